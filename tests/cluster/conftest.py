"""One cluster for all tests of this folder that can share it: to start its hosts takes a minute."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from bench import hosts

HOSTS = 4


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[hosts.Cluster]:
    if why := hosts.allowed():
        pytest.skip(f"no network namespaces: {why}")
    with hosts.cluster([1] * HOSTS) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster: hosts.Cluster) -> hosts.Cluster:
    """A head without CPUs, and four worker hosts of one CPU. A test may lose each of them."""
    if not shared_cluster.answers():
        shared_cluster.down()
        shared_cluster.up([])
    missing = HOSTS - len(shared_cluster.workers)
    for _ in range(missing):
        shared_cluster.start_worker(1)
    if missing:
        shared_cluster.wait_for(1 + HOSTS)
    return shared_cluster
