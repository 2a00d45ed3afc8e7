"""The Ray cluster of a run: the one that RAY_ADDRESS names, or a local one."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading

from facttune_ray.errors import UserError, one_line
from facttune_ray.runtime import ending
from facttune_ray.telemetry import say

REACH_S = 5.0  # timeout of the connection that tests whether a cluster is there

_starting = threading.Lock()


def start_ray() -> None:
    """Join the cluster that RAY_ADDRESS names, or start a local one. UserError when no cluster
    answers there.

    Threads may call it at the same time: ray.init itself breaks when two threads call it.
    """
    with _starting:
        _start_ray()


def _start_ray() -> None:
    if not os.environ.get("RAY_ADDRESS") and "ray" not in sys.modules:
        # Ray's default. Setting it avoids a warning. Ray reads it on import.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    # The loss of a silent host is noticed after 15 s instead of 7 minutes.
    os.environ.setdefault("RAY_grpc_client_keepalive_time_ms", "10000")
    os.environ.setdefault("RAY_grpc_client_keepalive_timeout_ms", "5000")
    import ray
    import ray.data

    if ray.is_initialized():
        return
    if ending.handling():  # Ray's own SIGTERM handler would end the process without a line
        ray._private.utils.set_sigterm_handler = lambda handler: None
    if address := os.environ.get("RAY_ADDRESS"):
        try:
            _reach(address)
            # Ray's C++ code warns of every actor of a pool, which a user can do nothing about.
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
            _tell_pages(ray.init(logging_level=logging.WARNING).dashboard_url)
        except (OSError, ValueError, OverflowError) as e:
            raise UserError(
                f"RAY_ADDRESS={address}: no cluster answers there ({one_line(e)}): start it, or "
                f"unset RAY_ADDRESS to run on this machine alone"
            ) from None
    else:
        start_here()
    ending.install()
    for name in ("ray", "ray.data"):  # a user can do nothing about their warnings
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # progress.py prints the progress
    context.print_on_execution_start = False
    # An actor has no shard in reserve, so a pool whose actors are all busy must grow.
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0


def start_here(tries: int = 3) -> None:
    """Start Ray on this machine. On a busy machine the start may take longer than the 30 s that Ray
    waits, so start it up to `tries` times. UserError when it never starts."""
    import ray

    for left in reversed(range(tries)):
        try:
            ray.init(
                address="local",
                num_cpus=max(2, os.cpu_count() or 1),  # training needs a CPU beside the driver's
                include_dashboard=False,
                logging_level=logging.WARNING,
                log_to_driver=False,  # workers' lines stay in Ray's session logs
                object_store_memory=512 * 2**20,  # tables travel as files, not as objects
            )
            return
        except Exception as e:
            if "timed out during startup" not in str(e):
                raise
            ray.shutdown()
            if not left:
                raise UserError(
                    f"Ray did not start on this machine in {tries} tries: stop other work and run "
                    f"the same command again, or set RAY_ADDRESS to a cluster"
                ) from None
            say("Ray did not start within 30 s: starting it again")


def _tell_pages(dashboard: str | None) -> None:
    """Print the addresses of Ray's dashboard, and of Grafana where Ray is told of one."""
    if dashboard:
        pages = f"Ray's dashboard: http://{dashboard}"
        if grafana := os.environ.get("RAY_GRAFANA_IFRAME_HOST", os.environ.get("RAY_GRAFANA_HOST")):
            pages += f"  Grafana: {grafana.rstrip('/')}/d/facttune-ray"
        say(pages)


def _reach(address: str) -> None:
    """Raise OSError when nothing listens at the address. Ray itself would try for minutes and then
    end the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():  # "auto" and similar addresses: Ray resolves them
        return
    socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S).close()


def own_address() -> str:
    """Address of this host for the cluster's other hosts; loopback on a local cluster."""
    if not os.environ.get("RAY_ADDRESS"):
        return "127.0.0.1"
    start_ray()
    import ray

    return ray.util.get_node_ip_address()
