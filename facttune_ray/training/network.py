"""The network between the workers of a training.

gloo takes the address that belongs to the host's name, which on many hosts is 127.0.0.1. NCCL
takes the first interface that it finds. Both may be of no use to other hosts. But every host has an
address in Ray by which the others reach it, so each worker uses the interface of that address.
"""

from __future__ import annotations

import os
from typing import Any

import psutil
import ray.util
from ray.train.torch import TorchConfig

# The variable that names the interface to each library, and its form. Without "=" NCCL would also
# take interfaces whose names only begin like this.
VARIABLES = {"GLOO_SOCKET_IFNAME": "{}", "NCCL_SOCKET_IFNAME": "={}"}


def interface_of(address: str) -> str:
    """Name of this host's interface that has the IP address; "" if none has it."""
    for name, found in psutil.net_if_addrs().items():
        if any(a.address.partition("%")[0] == address for a in found):  # fe80::1%eth0
            return name
    return ""


def use_interface_of_ray() -> None:
    """Name the interface of Ray's address to gloo and NCCL, unless the user has named one."""
    if name := interface_of(ray.util.get_node_ip_address()):
        for variable, form in VARIABLES.items():
            os.environ.setdefault(variable, form.format(name))


class ProcessGroup(TorchConfig):
    """Ray Train's process group of torch, on the interfaces of Ray's addresses."""

    @property
    def backend_cls(self) -> Any:
        return _Backend


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(use_interface_of_ray)
        super().on_start(worker_group, backend_config)
