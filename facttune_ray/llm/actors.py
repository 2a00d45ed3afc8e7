"""The limiter and the meter as Ray actors, and how workers reach them.

The limiter of an endpoint and model is detached and shared by every run of the cluster; it leaves
when nobody has asked for ten minutes. The meter belongs to one run. Both take no CPU and stand on
the head node. A call that finds its actor dead looks for it again: all that is lost are the
permits in an answer that did not come; reports are made to be repeated.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import ray

from facttune_ray import telemetry
from facttune_ray.errors import UserError
from facttune_ray.llm.cost import QUIET_S, Allowance, Ask, Meter, MeterLost, Report, Usage
from facttune_ray.llm.ledger import Ledger
from facttune_ray.llm.limiter import Lease, Limiter, Limits, Seen
from facttune_ray.llm.permits import LimiterLost, Renew
from facttune_ray.secrets import redact
from facttune_ray.storage.schema import digest
from facttune_ray.storage.tables import Folder

NAMESPACE = "facttune"
IDLE_S = 600.0
ANSWER_S = 10.0  # an actor that takes longer is taken for lost
ON_HEAD = {"node:__internal_head__": 0.001}


class LimiterActor:
    """`Limiter` with a clock."""

    def __init__(self, limits: Limits) -> None:
        restarted = ray.get_runtime_context().was_current_actor_reconstructed
        self.limiter = Limiter(limits, restarted)
        self.began_s = self.asked_s = time.monotonic()
        threading.Thread(target=self._leave_when_idle, daemon=True).start()

    def renew(self, seen: Seen) -> Lease:
        self.asked_s = time.monotonic()
        lease = self.limiter.renew(seen, self.asked_s)
        telemetry.gauge("llm_in_flight_limit", self.limiter.window)
        return lease

    def configure(self, limits: Limits) -> None:
        """The limits of the latest run win; one without any leaves those of a run beside it. What
        was learned stays."""
        if limits != Limits() or not self.limiter.busy(time.monotonic()):
            self.limiter.configured = limits

    def state(self) -> dict[str, float | None]:
        limits = self.limiter.limits()
        return {
            "requests_per_minute": limits.requests_per_minute,
            "tokens_per_minute": limits.tokens_per_minute,
            "factor": self.limiter.factor,
            "in_flight": self.limiter.window,
            "up_s": time.monotonic() - self.began_s,
        }

    def _leave_when_idle(self) -> None:
        while time.monotonic() - self.asked_s < IDLE_S:
            time.sleep(5.0)
        ray.kill(ray.get_runtime_context().current_actor, no_restart=True)


class MeterActor:
    """`Meter` of one run. What was paid before it started (again) stands in the ledger."""

    def __init__(self, budget_usd: float | None, ledger: Folder, run: str) -> None:
        paid_usd = Ledger(ledger).paid_usd(run) if budget_usd is not None else {}
        self.meter = Meter(budget_usd, sum(paid_usd.values()), paid_usd)
        if ray.get_runtime_context().was_current_actor_reconstructed:
            self.meter.quiet_until_s = time.monotonic() + QUIET_S  # workers have requests in flight

    def report(self, ask: Ask) -> Allowance:
        return self.meter.report(ask)

    def stop(self) -> None:
        """Let every worker end: what is under way is kept, and nothing more is asked."""
        self.meter.stopped = True

    def snapshot(self) -> dict:
        return self.meter.snapshot()


def start_meter(name: str, budget_usd: float | None, ledger: Folder, run: str) -> Any:
    """The run's meter; it ends with the driver that starts it. UserError when it cannot tell from
    the ledger what was paid before: requests would wait for ever for what is left of the budget."""
    actor: Any = ray.remote(MeterActor)
    made = actor.options(
        name=name, namespace=NAMESPACE, max_restarts=-1, num_cpus=0, resources=ON_HEAD
    )
    handle = made.remote(budget_usd, ledger, run)
    if budget_usd is not None:
        try:
            ray.get(handle.snapshot.remote())
        except ray.exceptions.RayActorError as e:
            why = str(e).strip().splitlines()[-1]
            raise UserError(
                f"llm.budget_usd: what was paid before cannot be read from the ledger {ledger}: "
                f"{redact(why)}: `facttune ledger verify` tells which of its files are damaged"
            ) from None
    return handle


def limiter_of(base_url: str, model: str, api_key_env: str, limits: Limits) -> Any:
    """The limiter of this endpoint and model, started by whoever comes first."""
    name = f"facttune-limiter-{digest(base_url, model, api_key_env)}"
    actor: Any = ray.remote(LimiterActor)
    made = actor.options(
        name=name,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        num_cpus=0,
        resources=ON_HEAD,
    )
    handle = made.remote(limits)
    handle.configure.remote(limits)
    return handle


class _Caller:
    """Calls to an actor that may be restarting."""

    def __init__(self, find: Callable[[], Any], lost: type[Exception]) -> None:
        self._find, self._lost, self._handle = find, lost, None

    async def __call__(self, method: str, argument: Any) -> Any:
        try:
            if self._handle is None:
                self._handle = self._find()
            call = getattr(self._handle, method).remote(argument)
            return await asyncio.wait_for(call, ANSWER_S)
        except ray.exceptions.RayTaskError:
            raise  # a bug of ours
        except (ray.exceptions.RayError, TimeoutError, ValueError) as e:
            self._handle = None
            raise self._lost(str(e)) from None


def renew_at(base_url: str, model: str, api_key_env: str, limits: Limits) -> Renew:
    """How a gate asks the cluster's limiter."""
    call = _Caller(lambda: limiter_of(base_url, model, api_key_env, limits), LimiterLost)

    async def renew(seen: Seen) -> Lease:
        telemetry.gauge("llm_waiting", seen.waiting, worker=seen.worker)
        telemetry.gauge("llm_in_flight", seen.in_flight, worker=seen.worker)
        return await call("renew", seen)

    return renew


def report_to(meter: str, model: str) -> Report:
    """How a client reports to its run's meter; also counts in Ray's metrics."""
    call = _Caller(lambda: ray.get_actor(meter, NAMESPACE), MeterLost)
    told = Usage()

    async def report(ask: Ask) -> Allowance:
        nonlocal told
        allowance = await call("report", ask)
        for name, value in asdict(ask.used - told).items():
            telemetry.count(f"llm_{name}", value, stage=ask.stage, model=model)
        told = ask.used
        return allowance

    return report
