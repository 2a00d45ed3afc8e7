"""Simulated Ray actors: calls take time, get lost or come twice, and an actor may restart.

actor = Actor(world, "limiter", host, scenario, lambda again: LimiterActor(limits))
await actor.handle(process).renew.remote(seen)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray

from simulation.history import History
from simulation.scenario import Scenario
from simulation.world import Host, Process, World


class Actor:
    def __init__(
        self,
        world: World,
        name: str,
        host: Host,
        scenario: Scenario,
        history: History,
        make: Callable[[Process, bool], Any],  # (process, whether the actor was restarted)
    ) -> None:
        self.world, self.name, self.host, self.scenario = world, name, host, scenario
        self.history, self.make = history, make
        self.dice = world.dice("actors")
        self.instance: Any = None
        self.lives = 0
        self.start()

    def start(self) -> None:
        self.process = Process(self.world, f"{self.name}-{self.lives}", self.host)
        self.lives += 1
        with self.process:
            try:
                self.instance = self.make(self.process, self.lives > 1)
            except Exception as e:  # Ray tries again at the next call
                self.instance = None
                self.world.note(self.process.name, f"does not start: {e}")

    def kill(self) -> None:
        self.process.kill()
        self.instance = None

    def restart(self) -> None:
        if not self.process.dead:
            self.world.note(self.name, "restarts")
            self.history.troubles.append((self.world.now, f"{self.name} restarts"))
            self.kill()
            self.world.later(self.scenario.restart_s, self.start)

    def handle(self, caller: Process) -> Handle:
        return Handle(self, caller)

    def trip_s(self) -> float:
        return self.dice.uniform(*self.scenario.trip_s)

    def _goes_wrong(self, share: float) -> bool:
        faulty = self.world.now < self.scenario.faults_end_s
        if wrong := faulty and share > 0 and self.dice.random() < share:
            self.history.troubles.append((self.world.now, f"a call of {self.name}"))
        return wrong

    def call(self, caller: Process, method: str, argument: Any) -> Any:
        answered = caller.create_future()
        if self._goes_wrong(self.scenario.lost_calls):
            if self.dice.random() < 0.5:
                self.world.later(1.0, self._settle, caller, answered, None, _lost())
            return answered
        self.world.later(self.trip_s(), self._arrive, caller, method, argument, answered)
        if self._goes_wrong(self.scenario.repeated_calls):
            late_s = self.trip_s() * 2 + self.dice.choice([0.0, 0.1, 1.0])
            self.world.later(late_s, self._arrive, None, method, argument, None)
        return answered

    def _arrive(self, caller: Process | None, method: str, argument: Any, answered: Any) -> None:
        if self.instance is None and not self.process.dead:
            self.process.kill()
            self.start()
        if self.instance is None:
            if caller is not None:
                self.world.later(self.trip_s(), self._settle, caller, answered, None, _lost())
            return
        with self.process:
            result = getattr(self.instance, method)(argument)
        if caller is None:
            return
        if self._goes_wrong(self.scenario.lost_calls):
            if self.dice.random() < 0.5:
                self.world.later(1.0, self._settle, caller, answered, None, _lost())
            return
        self.world.later(self.trip_s(), self._return, self.process, caller, answered, result)

    def _return(self, process: Process, caller: Process, answered: Any, result: Any) -> None:
        if process.dead:  # the reply is lost with it
            self._settle(caller, answered, None, _lost())
        else:
            self._settle(caller, answered, result, None)

    def _settle(self, caller: Process, answered: Any, result: Any, error: Any) -> None:
        def tell() -> None:
            if answered.done():
                return
            if error is None:
                answered.set_result(result)
            else:
                answered.set_exception(error)

        caller.call_soon(tell)


class Handle:
    def __init__(self, actor: Actor, caller: Process) -> None:
        self._actor, self._caller = actor, caller

    def __getattr__(self, method: str) -> Any:
        return _Method(self._actor, self._caller, method)


class _Method:
    def __init__(self, actor: Actor, caller: Process, method: str) -> None:
        self.actor, self.caller, self.method = actor, caller, method

    def remote(self, argument: Any) -> Any:
        return self.actor.call(self.caller, self.method, argument)


def _lost() -> Exception:
    return ray.exceptions.RayActorError()
