import threading
import time

import pytest

from facttune_ray import notices


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch):
    monkeypatch.setattr(notices, "_known", False)
    monkeypatch.setattr(notices, "_looked_s", float("-inf"))


def test_the_head_is_asked_until_it_says_yes(ray_cluster, monkeypatch):
    import ray

    state, asked = ray._private.state.state, []
    real = state.get_draining_nodes  # tests/cluster/test_notices.py drains a real node
    own = ray.get_runtime_context().get_node_id()

    def answer():
        asked.append(real())
        return {own: 0} if len(asked) == 3 else {"another": 0}

    assert notices.draining() is False  # the real answer
    monkeypatch.setattr(state, "get_draining_nodes", answer)
    assert notices.draining() is False and not asked
    monkeypatch.setattr(notices, "LOOK_S", 0.0)
    assert [notices.draining() for _ in range(5)] == [False, False, True, True, True]
    assert asked == [{}, {}, {}]


def test_a_silent_head_is_not_waited_for(ray_cluster, monkeypatch):
    import ray

    silent, asked = threading.Event(), []

    def wait():
        asked.append(1)
        silent.wait()
        raise RuntimeError("the head does not answer")

    monkeypatch.setattr(ray._private.state.state, "get_draining_nodes", wait)
    monkeypatch.setattr(notices, "LOOK_S", 0.0)
    monkeypatch.setattr(notices, "WAIT_S", 0.05)
    began = time.monotonic()
    assert not any(notices.draining() for _ in range(1000))
    assert time.monotonic() - began < 1 and len(asked) == 1
    silent.set()
    notices._question.join(5)
    assert not notices.draining() and len(asked) == 2
