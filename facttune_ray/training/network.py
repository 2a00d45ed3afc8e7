"""The network between the workers of a training.

gloo and NCCL take the address of the host's name, which on many hosts is 127.0.0.1, or the first
interface that they find. Neither need lead to the other hosts. Ray's own address of a host does, so
each worker uses the interface that has it.
"""

from __future__ import annotations

import os
from typing import Any

import psutil
import ray.util
from ray.train.torch import TorchConfig

# What names the interface to each library. In NCCL's, "=" asks for this very name.
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
