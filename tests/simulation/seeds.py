"""Examines single seeds, and shrinks a seed that breaks a rule.

examine(7)                 counts of the run, and the rules that it broke
print(report(7, "the_limit_holds"))     the seed, the rule, and a shrunk trace
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from simulation.checker import Broken, check
from simulation.history import History
from simulation.run import simulate
from simulation.scenario import WITHOUT, Scenario, draw
from simulation.world import World

TRACE_LINES = 80


def examine(seed: int) -> dict[str, Any]:
    scenario = draw(seed)
    history, world = simulate(scenario)
    return {
        "seed": seed,
        "broken": [[b.rule, b.why] for b in check(history)],
        "events": world.events,
        "virtual_s": history.ended_s,
        "happened": happened(history, scenario),
        "digest": world.digest(),
    }


def happened(history: History, scenario: Scenario) -> dict[str, int]:
    """Counts of events in the run."""
    out = Counter(
        rows=len(scenario.kinds),
        requests=len(history.attempts),
        billed=sum(a.billed for a in history.attempts),
        answers_not_received=sum(a.billed and a.failed != "" for a in history.attempts),
        garbled=sum(a.garbled for a in history.attempts),
        kills=sum(not d.crash for d in history.deaths),
        killed_by_crashes=sum(d.crash for d in history.deaths),
        stops=len(history.stops),
    )
    for a in history.attempts:
        out[f"status {a.status}" if a.failed == "" else f"no answer: {a.failed}"] += 1
    out.update(f"row: {row.outcome or 'killed'}" for row in history.rows)
    out.update("seeds with " + name for name in faults(scenario))
    return dict(out)


def faults(scenario: Scenario) -> list[str]:
    """The kinds of faults that this scenario has."""
    found = []
    for name, without in WITHOUT.items():
        if any(getattr(scenario, key) != value for key, value in without.items()):
            found.append(name)
    found += ["changing limits"] if len(scenario.limits) > 1 else []
    found += ["row kinds"] if any(kind != "plain" for kind in scenario.kinds) else []
    found += ["choices"] if any(scenario.choices) else []
    found += ["lulls"] if any(scenario.gaps_s) else []
    return found


def shrink(seed: int, rule: str) -> tuple[frozenset[str], int]:
    """(faults that can be left out, rows that are needed) for this seed to break this rule."""
    off: frozenset[str] = frozenset()
    rows = len(draw(seed).kinds)

    def breaks(off: frozenset[str], rows: int) -> bool:
        history, _ = simulate(draw(seed, off, rows))
        return any(b.rule == rule for b in check(history))

    for name in WITHOUT:
        if breaks(off | {name}, rows):
            off |= {name}
    step = rows // 2
    while step:
        while rows - step >= 1 and breaks(off, rows - step):
            rows -= step
        step //= 2
    return off, rows


def report(seed: int, rule: str) -> str:
    """A report of a seed that breaks a rule: command, shrunk scenario, trace."""
    off, rows = shrink(seed, rule)
    scenario = draw(seed, off, rows)
    history, world = simulate(scenario)
    lines = [
        f"seed {seed} breaks {rule}; run it again: python jobs/simulate.py --first {seed} "
        f"--seeds 1",
        f"shrunk to {rows} rows and: {', '.join(faults(scenario)) or 'no fault at all'}",
        *(f"    {name} = {value!r}" for name, value in _unusual(scenario)),
        *trace(history, world, rule),
    ]
    return "\n".join(lines)


def _unusual(scenario: Scenario) -> list[tuple[str, Any]]:
    usual = vars(Scenario(scenario.seed))
    return [(name, value) for name, value in vars(scenario).items() if value != usual[name]]


def trace(history: History, world: World, rule: str) -> list[str]:
    lines = [f"{at:10.4f}  {who:<24.24} {what}" for at, who, what in world.log]
    if len(lines) > TRACE_LINES:
        half = TRACE_LINES // 2
        lines = [*lines[:half], f"... {len(lines) - TRACE_LINES} lines ...", *lines[-half:]]
    broken: list[Broken] = [b for b in check(history) if b.rule == rule]
    return [*lines, *(f"{b.rule}: {b.why}" for b in broken[:5])]
