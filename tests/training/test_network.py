import socket

import psutil

from facttune_ray.training import network


def test_the_interface_that_has_the_address():
    assert network.interface_of("127.0.0.1") == "lo"
    for name, found in psutil.net_if_addrs().items():
        for address in found:
            if address.family in (socket.AF_INET, socket.AF_INET6):
                assert network.interface_of(address.address.partition("%")[0]) == name
    assert network.interface_of("192.0.2.77") == ""


def test_the_users_own_interface_stays(monkeypatch):
    variables = {"NCCL_SOCKET_IFNAME": "ib0"}
    monkeypatch.setattr(network.os, "environ", variables)
    monkeypatch.setattr(network.ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    network.use_interface_of_ray()
    assert variables == {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "ib0"}
