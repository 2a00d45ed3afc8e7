import hashlib
import os
import struct
import subprocess
import sys
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa
import pytest

from simulation.checker import RULES, Broken, check
from simulation.history import Attempt, Death, History, Row
from simulation.mutants import hunt, listed, plant
from simulation.scenario import Scenario, draw
from simulation.seeds import examine, report, shrink

REPO = Path(__file__).resolve().parents[2]
SEEDS = 2000
MUTANT_SEEDS = 10_000


def broken_in(found: list[dict]) -> dict[int, list]:
    return {f["seed"]: f["broken"] for f in found if f["broken"]}


def shown(broken: dict[int, list]) -> str:
    """The report of the first seed, for the test's message."""
    return "" if not broken else report(seed := min(broken), broken[seed][0][0])


def test_a_hundred_seeds_break_no_rule():
    broken = broken_in([examine(seed) for seed in range(100)])
    assert not broken, shown(broken)


# Seeds that broke a rule before the client or the rule was mended (jobs/results/README.md).
MENDED = (
    *(4568, 11158, 11533, 11898, 12894, 14612, 15649, 20521, 27388, 41899, 47541, 80443),
    *(51495, 62780, 66312, 67894, 74608, 87813, 94083, 96764, 99289),
)


@pytest.mark.parametrize("seed", MENDED)
def test_a_seed_that_broke_a_rule_breaks_none(seed):
    broken = broken_in([examine(seed)])
    assert not broken, shown(broken)


@pytest.mark.slow
def test_thousands_of_seeds_break_no_rule():
    with get_context("fork").Pool(2) as pool:
        broken = broken_in(pool.map(examine, range(100, 100 + SEEDS), chunksize=20))
    assert not broken, shown(broken)


def test_a_seed_is_the_same_run_to_the_byte():
    """The digest is equal in other processes, with other addresses and hashes of strings."""
    code = "import sys; from simulation.seeds import examine; print(examine(int(sys.argv[1])))"

    def run(seed: int, hashes: str) -> str:
        path = os.pathsep.join([str(REPO), str(REPO / "tests")])
        env = os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": hashes}
        made = subprocess.run([sys.executable, "-c", code, str(seed)], env=env, capture_output=True)
        return made.stdout.decode()

    for seed in (8, 21):
        first = run(seed, "1")
        assert first == run(seed, "2") == f"{examine(seed)}\n"
    assert examine(8)["digest"] != examine(21)["digest"]


def test_a_violation_is_shrunk_to_what_it_needs(monkeypatch):
    """Three plain rows break the rule: shrinking removes all faults and all other rows."""

    def no_more_than_two_plain_rows_end(e):
        if sum(row.kind == "plain" and row.outcome == "answer" for row in e.h.rows) > 2:
            yield "three of them"

    monkeypatch.setattr("simulation.checker.RULES", (no_more_than_two_plain_rows_end,))
    seed = next(s for s in range(100) if len(draw(s).kinds) > 15 and draw(s).kills)
    rule = no_more_than_two_plain_rows_end.__name__
    off, rows = shrink(seed, rule)
    assert "worker kills" in off and rows <= 5
    said = report(seed, rule)
    assert f"seed {seed}" in said and "three of them" in said and "sends" in said


@pytest.mark.slow
@pytest.mark.parametrize("mutant", listed(), ids=lambda mutant: mutant.name)
def test_a_planted_bug_is_found(mutant):
    """By the seed that found it first, or, when the code has changed, by another seed."""
    known = range(mutant.seed, mutant.seed + 1)
    assert hunt(mutant, known) is not None or hunt(mutant, range(MUTANT_SEEDS)) is not None


def test_every_bug_can_be_planted(tmp_path):
    """The text of each bug is in the code exactly once. `slow` tests find the bugs."""
    for i, mutant in enumerate(listed()):
        plant(mutant, tmp_path / str(i))


def test_the_planted_bugs_are_at_least_twenty():
    assert len({mutant.new for mutant in listed()}) >= 20


# -- the checker: each rule against a history that breaks it -----------------------------------

KEY = hashlib.sha256(b"one").hexdigest()
LEDGER = pa.schema(
    [
        ("key", pa.binary(32)),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("cost_usd", pa.float64()),
        ("attempts", pa.int32()),
        ("created_s", pa.float64()),
        ("crc", pa.uint32()),
    ]
)


def segment(**changed) -> bytes:
    row = {
        "key": bytes.fromhex(KEY),
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "cost_usd": 3e-5,
        "attempts": 1,
        "created_s": 1.0,
        "crc": 1,
    }
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, LEDGER) as writer:
        writer.write_table(pa.Table.from_pylist([row | changed], LEDGER))
    return sink.getvalue().to_pybytes()


def journal(*numbers: int) -> bytes:
    return b"".join(struct.pack(">32sdqH", bytes.fromhex(KEY), 3e-5, n, 0) for n in numbers)


def attempt(**changed) -> Attempt:
    made = Attempt(
        name=KEY,
        row=0,
        kind="plain",
        process="a",
        departed_s=1.0,
        arrived_s=1.1,
        status=200,
        billed=True,
        prompt_tokens=10,
        completion_tokens=5,
        told="usage",
        usd=3e-5,
        finished_s=1.4,
        ended_s=1.5,
    )
    return replace(made, **changed)


def row(**changed) -> Row:
    made = Row(0, "plain", "a", asked_s=0.5, keys=[KEY], ended_s=1.6, outcome="answer")
    return replace(made, **changed)


def history(**changed) -> History:
    """A history of one row, which was answered and is in the ledger."""
    scenario = Scenario(0, kinds=["plain"], choices=[0], gaps_s=[0.0], chars=[0])
    scenario.limits = [(0.0, 60.0, None)]
    scenario.configured = (60, None)
    made = History(
        scenario.settings(),
        attempts=[attempt()],
        rows=[row()],
        openings=[("a", 0.0), ("b", 3.0)],
        limits=scenario.limits,
        files={"out/ledger/x.arrow": segment()},
        ended_s=2.0,
    )
    return replace(made, **changed)


def settings(**changed) -> dict:
    return history().settings | changed


def rules_of(broken: list[Broken]) -> set[str]:
    return {b.rule for b in broken}


def test_a_correct_run_breaks_no_rule():
    assert check(history()) == []


BUSY = [attempt(name=f"{i:064x}", row=i, departed_s=float(i) / 3, billed=False) for i in range(60)]
KILLED = {"deaths": [Death("a", 1.2)], "rows": [row(ended_s=None, outcome="")]}
BAD = {
    "nothing_breaks": {"errors": ["a: in f: KeyError()"]},
    "every_row_ends": {"stuck": "nothing will ever happen again"},
    "every_bill_is_kept_or_listed": KILLED | {"files": {}, "attempts": [attempt(ended_s=None)]},
    "what_is_listed_is_bounded": {
        "files": {"out/ledger/x.arrow": segment(), "out/ledger/x.sent": journal(1)}
    },
    "nothing_is_paid_twice": {"attempts": [attempt(), attempt(process="b", departed_s=4.0)]},
    "the_ledger_costs_what_was_billed": {
        "files": {"out/ledger/x.arrow": segment(completion_tokens=4)}
    },
    "the_budget_holds": {
        "settings": settings(budget_usd=1e-5),
        "attempts": [
            attempt(
                name=f"{i:064x}", departed_s=2.0 * i, finished_s=2.0 * i + 1, ended_s=2.0 * i + 1
            )
            for i in range(5)
        ],
    },
    "the_limit_holds": {"attempts": BUSY},
    "permits_are_used": {
        "rows": [row(), row(row=1, asked_s=5.0, ended_s=None, outcome="")],
        "ended_s": 60.0,
    },
    "rows_end_as_they_should": {"rows": [row(outcome="row error", said="no answer")]},
    "nothing_is_sent_too_often": {
        "attempts": [attempt(status=500, billed=False, departed_s=float(i)) for i in range(9)]
    },
    "the_budget_is_used": {
        "settings": settings(budget_usd=1.0),
        "stops": ["llm.budget_usd=1 is reached"],
    },
}


@pytest.mark.parametrize("rule", [rule.__name__ for rule in RULES])
def test_each_rule_breaks_on_a_history_that_breaks_it(rule):
    assert rule in rules_of(check(history(**BAD[rule])))


def test_an_attempt_open_at_a_kill_is_listed_and_may_be_billed_twice():
    killed = attempt(ended_s=None)
    again = attempt(process="b", departed_s=4.0, ended_s=4.5)
    listed_one = {"out/ledger/x.arrow": segment(), "out/ledger/x.sent": journal(1)}
    rows = [*KILLED["rows"], row(process="b", ended_s=4.6)]
    bad = history(**KILLED | {"rows": rows, "attempts": [killed, again], "files": listed_one})
    assert check(bad) == []
    known = listed_one | {"out/ledger/x.sent": journal(1, -1)}
    assert rules_of(check(replace(bad, files=known))) == {"every_bill_is_kept_or_listed"}
