"""The limiter and the meter as Ray actors, and how workers reach them.

All runs of a cluster share the limiter of an endpoint and model. It is detached, and ends when no
worker has asked for ten minutes. The meter belongs to one run. Both use no CPU and run on the head
node. A call that finds its actor dead looks the actor up again. A lost call costs the permits in
its answer and nothing else: a report can be repeated.
"""

from __future__ import annotations

import asyncio
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import ray

from facttune_ray import telemetry
from facttune_ray.errors import UserError
from facttune_ray.llm.cost import QUIET_S, Allowance, Meter, MeterReport, Reporter, Usage
from facttune_ray.llm.ledger import Ledger
from facttune_ray.llm.limiter import Lease, Limiter, LimiterReport, Limits
from facttune_ray.llm.permits import ActorLost, Renew
from facttune_ray.secrets import redact
from facttune_ray.storage.schema import digest
from facttune_ray.storage.tables import Folder

NAMESPACE = "facttune"
IDLE_S = 600.0
ANSWER_S = 10.0  # an actor that takes longer counts as lost
ON_HEAD = {"node:__internal_head__": 0.001}
_OPTIONS = {"namespace": NAMESPACE, "max_restarts": -1, "num_cpus": 0, "resources": ON_HEAD}


def _restarted() -> bool:
    """Whether Ray has restarted this actor."""
    with warnings.catch_warnings():  # Ray's own property asks a deprecated one
        warnings.simplefilter("ignore")
        return ray.get_runtime_context().was_current_actor_reconstructed


class LimiterActor:
    """`Limiter` with a clock."""

    def __init__(self, limits: Limits) -> None:
        restarted = _restarted()
        self.limiter = Limiter(limits, restarted)
        self.began_s = self.asked_s = time.monotonic()
        threading.Thread(target=self._exit_when_idle, daemon=True).start()

    def renew(self, report: LimiterReport) -> Lease:
        self.asked_s = time.monotonic()
        lease = self.limiter.renew(report, self.asked_s)
        telemetry.gauge("llm_in_flight_limit", self.limiter.window)
        return lease

    def configure(self, limits: Limits) -> None:
        """Use the limits of the run that started last. A run without limits does not remove those
        of a busy run. Learned limits stay."""
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

    def _exit_when_idle(self) -> None:
        while time.monotonic() - self.asked_s < IDLE_S:
            time.sleep(5.0)
        ray.kill(ray.get_runtime_context().current_actor, no_restart=True)


class MeterActor:
    """`Meter` of one run. It reads from the ledger what was paid before it started."""

    def __init__(self, budget_usd: float | None, ledger: Folder, run: str) -> None:
        paid_usd = Ledger(ledger).paid_usd(run) if budget_usd is not None else {}
        self.meter = Meter(budget_usd, sum(paid_usd.values()), paid_usd)
        if _restarted():
            self.meter.quiet_until_s = time.monotonic() + QUIET_S  # workers have requests in flight

    def report(self, report: MeterReport) -> Allowance:
        return self.meter.report(report)

    def stop(self) -> None:
        """Stop every worker: requests in flight are kept, no more requests are sent."""
        self.meter.stopped = True

    def snapshot(self) -> dict:
        return self.meter.snapshot()


def start_meter(name: str, budget_usd: float | None, ledger: Folder, run: str) -> Any:
    """Start the run's meter, which ends with this driver. Raise UserError when the ledger does not
    tell what was paid before: otherwise requests would wait for the budget without an end."""
    actor: Any = ray.remote(MeterActor)
    handle = actor.options(name=name, **_OPTIONS).remote(budget_usd, ledger, run)
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
    """The limiter of this endpoint and model. The first caller starts it."""
    name = f"facttune-limiter-{digest(base_url, model, api_key_env)}"
    actor: Any = ray.remote(LimiterActor)
    options = actor.options(name=name, lifetime="detached", get_if_exists=True, **_OPTIONS)
    handle = options.remote(limits)
    handle.configure.remote(limits)
    return handle


class _Caller:
    """Calls an actor that may be restarting."""

    def __init__(self, find: Callable[[], Any]) -> None:
        self._find, self._handle = find, None

    async def __call__(self, method: str, argument: Any) -> Any:
        try:
            if self._handle is None:
                self._handle = self._find()
            call = getattr(self._handle, method).remote(argument)
            return await asyncio.wait_for(call, ANSWER_S)
        except ray.exceptions.RayTaskError:
            raise  # a bug
        except (ray.exceptions.RayError, TimeoutError, ValueError) as e:
            self._handle = None
            raise ActorLost(str(e)) from None


def renew_at(base_url: str, model: str, api_key_env: str, limits: Limits) -> Renew:
    """The function by which a gate asks the cluster's limiter."""
    call = _Caller(lambda: limiter_of(base_url, model, api_key_env, limits))

    async def renew(report: LimiterReport) -> Lease:
        telemetry.gauge("llm_waiting", report.waiting, worker=report.worker)
        telemetry.gauge("llm_in_flight", report.in_flight, worker=report.worker)
        return await call("renew", report)

    return renew


def report_to(meter: str, model: str) -> Reporter:
    """The function by which a client reports to its run's meter; it updates Ray's metrics, too."""
    call = _Caller(lambda: ray.get_actor(meter, NAMESPACE))
    reported = Usage()

    async def report(report: MeterReport) -> Allowance:
        nonlocal reported
        allowance = await call("report", report)
        for name, value in asdict(report.used - reported).items():
            telemetry.count(f"llm_{name}", value, stage=report.stage, model=model)
        reported = report.used
        return allowance

    return report
