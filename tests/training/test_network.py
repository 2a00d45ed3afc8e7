import pytest

pytest.importorskip("ray.train.torch")


def test_the_interface_that_has_the_address():
    import psutil

    from facttune_ray.training.network import interface_of

    assert interface_of("127.0.0.1") == "lo"
    for name, found in psutil.net_if_addrs().items():
        assert interface_of(found[0].address.partition("%")[0]) == name
    assert interface_of("192.0.2.7") == ""


def test_the_users_own_interface_stays(monkeypatch):
    from facttune_ray.training import network

    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    network.use_interface_of_ray()
    import os

    assert (os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"]) == ("lo", "ib0")
