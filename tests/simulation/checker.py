"""Judges a simulated run by the records of provider, disk and rows. It shares no code with the
product: it reads the ledger with pyarrow and the journals with struct.

    for broken in check(history):
        print(broken.rule, broken.why)
"""

from __future__ import annotations

import hashlib
import itertools
import struct
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from simulation.history import Attempt, History, Row

# key, estimated dollars, n (n: attempt n was sent; -n: it has ended), length of the id after it
RECORD = struct.Struct(">32sdqH")
ANSWERED = {"plain", "hidden", "total_only", "no_usage", "parts", "thinking_part", "nonsense"}
STOPS = {"bad_setting", "no_credit"}
ASKED_ONCE = {"thoughts_cut", "empty_cut", "filtered", "filtered_half"}
REFUSED = {"too_long", "too_long_b", "moderated"}


@dataclass(frozen=True)
class Broken:
    rule: str
    why: str


class Evidence:
    """What the rules read, computed once."""

    def __init__(self, history: History) -> None:
        self.h, self.s = history, history.settings

    @cached_property
    def names(self) -> dict[str, str]:
        """Name of a request -> its first key."""
        out = {}
        for keys in {tuple(row.keys) for row in self.h.rows}:
            for n in range(1, len(keys) + 1):
                for some in itertools.combinations(keys, n) if n > 1 else ((k,) for k in keys):
                    whole = b"".join(map(bytes.fromhex, some))
                    name = some[0] if n == 1 else hashlib.sha256(whole).hexdigest()
                    out[name] = some[0]
        return out

    def first(self, name: str) -> str:
        return self.names.get(name, name)

    @cached_property
    def attempts(self) -> list[Attempt]:
        """The attempts that clients sent, without repetitions by a proxy."""
        return [a for a in self.h.attempts if a.failed != "twin"]

    @cached_property
    def billed(self) -> dict[str, list[Attempt]]:
        out = defaultdict(list)
        for a in self.attempts:
            if a.billed:
                out[self.first(a.name)].append(a)
        return out

    @cached_property
    def ledger(self) -> list[dict]:
        """The rows of all readable segments."""
        rows = []
        for path, data in self.h.files.items():
            if path.endswith(".arrow"):
                try:
                    rows += pa.ipc.open_file(pa.BufferReader(data)).read_all().to_pylist()
                except (pa.ArrowInvalid, OSError):
                    continue
        return rows

    @cached_property
    def kept(self) -> dict[str, list[list[dict]]]:
        """First key -> the answers in the ledger, each with the rows of all its choices."""
        together = defaultdict(dict)
        for row in self.ledger:  # rows that a merge has copied count once
            together[(row["created_s"], row["crc"], row["key"])][row["key"]] = row
        rows = [next(iter(found.values())) for found in together.values()]
        by_key = defaultdict(list)
        for row in rows:
            by_key[row["key"].hex()].append(row)
        follows = {}
        for asked in self.h.rows:
            for i, key in enumerate(asked.keys):
                follows[key] = asked.keys[i + 1 :]
        out = defaultdict(list)
        for row in rows:
            if row["attempts"] > 0:
                answer = [row]
                for key in follows.get(row["key"].hex(), []):
                    same = [r for r in by_key[key] if r["created_s"] == row["created_s"]]
                    if any(r["attempts"] > 0 for r in same):
                        break  # another request's
                    answer += same
                out[row["key"].hex()].append(answer)
        return out

    @cached_property
    def unknown(self) -> Counter[str]:
        """First key -> attempts in journals that were sent and have not ended."""
        out: Counter[str] = Counter()
        for path, data in self.h.files.items():
            if not path.endswith(".sent"):
                continue
            open_ones, at = set(), 0
            while at + RECORD.size <= len(data):
                key, _, n, size = RECORD.unpack_from(data, at)
                at += RECORD.size + size
                if n > 0:
                    open_ones.add((key, n))
                else:
                    open_ones.discard((key, -n))
            out.update(self.first(key.hex()) for key, _ in open_ones)
        return out

    @cached_property
    def death_s(self) -> dict[str, float]:
        return {d.process: d.at_s for d in self.h.deaths}

    @cached_property
    def row_of(self) -> dict[tuple[str, int], Row]:
        return {(row.process, row.row): row for row in self.h.rows}

    def delivered(self, a: Attempt) -> bool:
        """Whether the client got a complete answer."""
        return a.billed and not a.garbled and self.told(a)

    def told(self, a: Attempt) -> bool:
        """Whether the client got a reply."""
        return a.failed == "" and self.had(a)

    def had(self, a: Attempt) -> bool:
        """Whether the attempt ended before the process died."""
        return a.ended_s is not None and a.ended_s < self.death_s.get(a.process, float("inf"))

    def doubtful(self, a: Attempt) -> bool:
        """Whether the client could not know if the attempt was billed."""
        if a.failed in ("reset", "timeout", "cancelled") or a.garbled or not self.had(a):
            return True
        return (a.status or 0) >= 500 or a.status in (408, 409)

    def open_at_death(self, a: Attempt) -> bool:
        """Whether the process died before the row ended, perhaps with an answer in memory."""
        row = self.row_of.get((a.process, a.row))
        over = (
            row is not None and row.ended_s is not None and row.outcome in ("answer", "row error")
        )
        return a.process in self.death_s and not over

    @cached_property
    def budget_reached(self) -> bool:
        """Whether the budget stopped a run, or a row just before the process was killed."""
        said = [*self.h.stops, *(row.said for row in self.h.rows if row.outcome == "stop")]
        return any("budget_usd" in line for line in said)

    @cached_property
    def storage_failed(self) -> bool:
        return bool(self.s["disk_full"] or self.s["disk_broken"])

    @cached_property
    def peak_usd(self) -> float:
        """The highest cost of the requests in flight at any time."""
        moves = []
        for a in self.attempts:
            if a.usd:
                end = a.ended_s if a.ended_s is not None else self.h.ended_s
                end = max(end, a.finished_s or 0.0)
                moves += [(a.departed_s, a.usd), (end, -a.usd)]
        now = most = 0.0
        for _, usd in sorted(moves, key=lambda m: (m[0], -m[1])):
            now += usd
            most = max(most, now)
        return most

    @cached_property
    def justified(self) -> bool:
        """Whether the scenario has a reason to stop a run."""
        s = self.s
        return bool(s["down"] or self.storage_failed or any(k in STOPS for k in s["kinds"]))


# -- rules ---------------------------------------------------------------------------------------


def nothing_breaks(e: Evidence) -> Iterator[str]:
    yield from e.h.errors[:3]
    yield from e.h.crashed[:3]


def every_bill_is_kept_or_listed(e: Evidence) -> Iterator[str]:
    """1: Each billed answer is in the ledger, or its attempt in a journal."""
    for key, bills in e.billed.items():
        kept, unknown = len(e.kept[key]), e.unknown[key]
        lost = sum(_lost_in_crash(e, a) for a in bills)
        if len(bills) > kept + unknown + lost:
            yield (
                f"row {bills[0].row} ({bills[0].kind}), key {key[:8]}: billed {len(bills)} times, "
                f"{kept} in the ledger, {unknown} in journals"
            )


def _lost_in_crash(e: Evidence, a: Attempt) -> bool:
    """Whether a crash may have lost the journal's record: the request left just before it, or the
    process could not sync any more because it was killed or its disk was full until its end."""
    dead_s = (e.h.ends | e.death_s).get(a.process, float("inf"))
    # a stalled loop syncs later, and a sync runs in a thread
    synced_s = 0.3 + 2 * e.s["slow_threads_s"] + sum(t for _, _, t in e.s["stalls"])
    due_s = a.departed_s + synced_s
    for begin, end in e.s["disk_full"]:  # a sync is repeated until there is room
        if begin <= due_s <= end:
            due_s = end + synced_s
    return any(a.departed_s <= at and min(at, dead_s) < due_s for at in e.h.crashes)


def what_is_listed_is_bounded(e: Evidence) -> Iterator[str]:
    """1: A journal lists only requests that were in flight at a kill or got no answer."""
    if e.storage_failed or e.h.stuck:
        return
    mine = defaultdict(list)
    last_s: dict[str, float] = {}  # process -> last put of its journal in a store
    for a in e.attempts:
        last_s[a.process] = a.departed_s
    for a in e.attempts:
        mine[e.first(a.name)].append(a)
    asked_at_death = Counter(
        key
        for row in e.h.rows
        if row.ended_s is None and row.process in e.death_s
        for key in row.keys
    )
    for key, unknown in e.unknown.items():
        doubtful = sum(e.doubtful(a) or e.open_at_death(a) for a in mine[key])
        # the end of an attempt may be lost in a crash, and a store gets it with the next attempt
        late = sum(
            any(a.departed_s < at for at in e.h.crashes)
            or (e.s["store"] and a.process in e.death_s and _end(e, a) > last_s[a.process] - 1.0)
            for a in mine[key]
        )
        if unknown > doubtful + asked_at_death[key] + late:
            yield (
                f"key {key[:8]}: {unknown} unknown attempts are listed, {doubtful} were lost or in "
                f"flight at a kill"
            )


def nothing_is_paid_twice(e: Evidence) -> Iterator[str]:
    """2: A client does not repeat an answered request; after the row's end no client does."""
    opened = dict(e.h.openings)
    by_name = defaultdict(list)
    for a in e.attempts:
        by_name[a.name].append(a)
    for same in by_name.values():
        same.sort(key=lambda a: a.departed_s)
        for i, a in enumerate(same):
            if not e.delivered(a):
                continue
            row = e.row_of.get((a.process, a.row))
            for b in same[i + 1 :]:
                if b.departed_s < a.ended_s:
                    continue
                if a.process == b.process:
                    yield f"row {a.row}: answered at {a.ended_s:.3f}, sent again {b.departed_s:.3f}"
                elif row is not None and row.ended_s is not None and row.outcome != "stop":
                    if row.ended_s > b.departed_s or e.storage_failed:
                        continue
                    # a lagging listing may lack a new segment, and a merge moves rows to one
                    moved_s = [at for at in e.h.removed if at < opened[b.process]]
                    known_s = max([row.ended_s, *moved_s]) + e.s["stale_s"] + 1
                    if not e.s["stale_s"] or opened[b.process] >= known_s:
                        yield (
                            f"row {a.row}: ended at {row.ended_s:.3f} in {a.process}, sent again "
                            f"at {b.departed_s:.3f} by {b.process}"
                        )


def the_ledger_costs_what_was_billed(e: Evidence) -> Iterator[str]:
    """3: Each answer in the ledger has the tokens and dollars of an answer that was billed."""
    for key, answers in e.kept.items():
        left = [a for a in e.billed.get(key, [])]
        for answer in answers:
            prompt = sum(r["prompt_tokens"] for r in answer)
            completion = sum(r["completion_tokens"] for r in answer)
            usd = sum(r["cost_usd"] for r in answer)
            for a in left if not e.s["replays"] else e.billed.get(key, []):
                same = prompt == a.prompt_tokens and completion == a.completion_tokens
                same &= abs(usd - a.usd) < 1e-12 + 1e-9 * a.usd
                if a.told == "total":
                    same = prompt + completion == a.prompt_tokens + a.completion_tokens and usd > 0
                elif a.told == "none":
                    same = prompt + completion > 0 and usd > 0
                if same:
                    left = [other for other in left if other is not a]
                    break
            else:
                told = [(a.told, a.prompt_tokens, a.completion_tokens) for a in left]
                yield f"key {key[:8]}: kept {prompt} + {completion} tokens, ${usd:g}; billed {told}"


def the_budget_holds(e: Evidence) -> Iterator[str]:
    """3: The bill exceeds the budget by at most the requests in flight."""
    budget = e.s["budget_usd"]
    if budget is None:
        return
    bill = sum(a.usd for bills in e.billed.values() for a in bills)
    # costs that the client could not know: no answer, or no tokens in it
    doubtful = sum(
        a.usd
        for bills in e.billed.values()
        for a in bills
        if not e.delivered(a) or a.told == "none"
    )
    # requests that were funded by an estimate; the estimate of the first one is a guess
    guessed = e.s["workers"] * max((a.usd for a in e.attempts), default=0.0)
    slack = e.peak_usd * (1 + len(e.h.deaths)) + doubtful + 0.1 * budget + guessed
    if bill > budget + slack + 1e-9:
        yield f"billed ${bill:.6f}, the budget is ${budget:.6f}, in flight at most ${slack:.6f}"


def the_limit_holds(e: Evidence) -> Iterator[str]:
    """4: No 60 s have more departures than the limit, from when the client could know it."""
    s = e.s
    limits = e.h.limits
    low, high = s["trip_s"]
    for index, kind in ((1, "requests"), (2, "tokens")):
        told = s["configured"][index - 1]
        values = [limit[index] for limit in limits]
        if any(v is None for v in values) or not values:
            continue
        known_s = 0.0
        if told is None or told > min(values):
            if not s["tells_limits"] or told is not None:
                continue  # unknown, or wrong in the config
            restarts = [at for at in s["limiter_restarts"] if not _is_remembered(e, at)]
            since_s = max([0.0, *e.h.crashes, *restarts])  # what was known is lost
            first = [
                a.ended_s
                for a in e.attempts
                if a.status == 200 and e.told(a) and a.departed_s >= since_s
            ]
            known_s = min(first, default=e.h.ended_s) + 11.0 + 2 * high
        if len(limits) > 1 and told is None:
            known_s = max(known_s, limits[-1][0] + 15.0)
        rate = max(values) if told is None else told
        if len(limits) > 1 and known_s > limits[-1][0]:
            rate = values[-1]
        sent = [
            (a.departed_s, a.prompt_tokens + a.completion_tokens if index == 2 else 1)
            for a in e.attempts
            if a.departed_s >= known_s
        ]
        slack = rate / 60 * (high - low) + 1e-6
        slack += sum(t for _, _, t in s["stalls"]) * rate / 60
        slack += len(e.h.crashes)  # a limiter after a crash knows of no earlier request
        if index == 2:
            slack += 2 * _peak_tokens(e)
        times = [at for at, _ in sent]
        sums = [0, *itertools.accumulate(n for _, n in sent)]
        # a minute has the limit at most; shorter windows may have one second more than their part
        windows = [(60.0, rate)] + [(w, rate / 60 * (w + 1.0) + 1) for w in (5.0, 20.0)]
        for width_s, most in windows if index == 1 else windows[:1]:
            for i, at in enumerate(times):
                j = bisect_left(times, at + width_s)
                if sums[j] - sums[i] > most + slack:
                    yield (
                        f"{sums[j] - sums[i]} {kind} left in the {width_s:g} s from {at:.3f}, "
                        f"the limit is {rate:g} a minute (slack {slack:.1f})"
                    )
                    return


def _is_remembered(e: Evidence, at: float) -> bool:
    """Whether a process that knew the limit from an answer outlived the limiter's restart."""
    until_s = e.h.ends | e.death_s
    return any(
        a.status == 200 and e.told(a) and a.ended_s < at < until_s.get(a.process, at + 2.0) - 1.0
        for a in e.attempts
    )


def _peak_tokens(e: Evidence) -> float:
    moves = []
    for a in e.attempts:
        end = a.ended_s if a.ended_s is not None else e.h.ended_s
        n = a.prompt_tokens + a.completion_tokens
        moves += [(a.departed_s, n), (end, -n)]
    now = most = 0
    for _, n in sorted(moves, key=lambda m: (m[0], -m[1])):
        now += n
        most = max(most, now)
    return most


def every_row_ends(e: Evidence) -> Iterator[str]:
    """5: Every row ends within a bound."""
    if e.h.stuck:
        waiting = [r.row for r in e.h.rows if r.ended_s is None and r.process not in e.death_s]
        yield f"{e.h.stuck}: rows {waiting[:8]} wait"
        return
    for row in e.h.rows:
        if row.ended_s is None and row.process not in e.death_s:
            yield f"row {row.row} of {row.process} never ended"
            return
        if row.ended_s is not None and row.ended_s - row.asked_s > _longest_s(e):
            yield (
                f"row {row.row} took {row.ended_s - row.asked_s:.1f} s, at most "
                f"{_longest_s(e):.1f} s are explained"
            )
            return


def _longest_s(e: Evidence) -> float:
    """The longest that a row may wait, in the worst case for all rows before it."""
    s = e.s
    rates = [v / 60 for _, v, _ in e.h.limits if v] + [c / 60 for c in s["configured"][:1] if c]
    requests = sum(max(1, n) for n in s["choices"]) * (1 + s["reasks"])
    each = s["timeout_s"] + s["max_wait_s"]
    if any(tpm for *_, tpm in e.h.limits) or s["configured"][1]:  # it may admit one per minute
        each += 65.0
    return (
        2 * requests / min(rates, default=1.0)
        + min(2 * s["max_elapsed_s"], s["max_attempts"] * each * (1 + s["reasks"]))
        + s["faults_end_s"]
        + 120.0
        + requests * s["latency_s"] * 3
    )


def permits_are_used(e: Evidence) -> Iterator[str]:
    """6: In 10 s without faults, waiting requests leave at the rate of the limit."""
    s = e.s
    rpm = s["configured"][0]
    truth = [v for _, v, _ in e.h.limits]
    if rpm is None or s["configured"][1] is not None or any(v is None or v < rpm for v in truth):
        return
    if s["slow_threads_s"] > 0.05 or any(t for *_, t in e.h.limits):
        return
    high = s["trip_s"][1]
    # requests wait for funds, which a slow meter gives late
    if s["budget_share"] is not None and (s["budget_share"] < 3.0 or high > 0.3):
        return
    first: dict[tuple[str, int], float] = {}
    for a in e.attempts:
        first.setdefault((a.process, a.row), a.departed_s)
    times = sorted(a.departed_s for a in e.attempts)
    # after a 429 the rate rises slowly; the meter keeps the funds of a worker that was killed
    lasts = {"429": 90.0}
    others = 15.0 if s["budget_usd"] is None else 45.0
    excused = [(at, at + lasts.get(what, others) + 4 * high) for at, what in e.h.troubles]
    # a failing server gets fewer requests than the limit allows
    failed = [a for a in e.attempts if a.failed or (a.status or 0) >= 500]
    excused += [(_end(e, a), _end(e, a) + 30.0 + s["timeout_s"]) for a in failed] + _full(e)
    if s["budget_usd"] is not None:  # until the first answer a process sends one request at a time
        firsts: dict[str, float] = {}
        for a in e.attempts:
            if a.status == 200 and e.told(a):
                firsts[a.process] = min(firsts.get(a.process, e.h.ended_s), a.ended_s)
        excused += [(at, firsts.get(p, e.h.ended_s) + 1.0) for p, at in e.h.openings]
    rate = 0.99 * rpm / 60
    if high > 0.1:  # permits come once per round trip, which limits a worker with few places
        places = s["workers"] * max(1, min(s["concurrency"], 8 // s["workers"]))
        rate = min(rate, 0.2 * places / (s["latency_s"] + 2 * s["net_s"]))
    for begin, end in _stretches(_waiting(e, first), excused):
        if end - begin < 10.0:
            continue
        left = bisect_left(times, end) - bisect_left(times, begin)
        needed = 0.85 * rate * (end - begin - 1.0 - 2 * high) - 2 - s["workers"]
        if left < needed:
            yield (
                f"{left} requests left from {begin:.2f} to {end:.2f} s, {needed:.1f} could have "
                f"({rpm}/min) while others waited"
            )
            return


def _waiting(e: Evidence, first: dict[tuple[str, int], float]) -> list[tuple[float, float]]:
    """The times in which a row waited before its first attempt."""
    out = []
    for row in e.h.rows:
        ends = [first.get((row.process, row.row)), row.ended_s, e.death_s.get(row.process)]
        out.append(
            (row.asked_s + 1.0, min((t for t in ends if t is not None), default=e.h.ended_s))
        )
    return out


def _full(e: Evidence) -> list[tuple[float, float]]:
    """The times in which a worker had so many requests in flight that the window may stop it."""
    most = max(1, min(e.s["concurrency"], 8 // e.s["workers"]))
    flights = sorted(
        (t, step, a.process)
        for a in e.attempts
        for t, step in ((a.departed_s, 1), (_end(e, a), -1))
    )
    counts: Counter[str] = Counter()
    since: dict[str, float] = {}
    out = []
    for at, step, process in flights:
        counts[process] += step
        if counts[process] >= most:
            since.setdefault(process, at)
        elif process in since:
            out.append((since.pop(process), at + 1.0))
    return out + [(at, e.h.ended_s) for at in since.values()]


def _stretches(
    inside: list[tuple[float, float]], outside: list[tuple[float, float]]
) -> Iterator[tuple[float, float]]:
    """The times that are in an interval of the first list and in none of the second."""
    edges = [
        (t, i, step)
        for i, some in enumerate((inside, outside))
        for a, b in some
        if a < b
        for t, step in ((a, 1), (b, -1))
    ]
    depth, since = [0, 0], None
    for at, which, step in sorted(edges):
        depth[which] += step
        if depth[0] > 0 and depth[1] == 0:
            since = at if since is None else since
        elif since is not None:
            yield since, at
            since = None


def _end(e: Evidence, a: Attempt) -> float:
    return a.ended_s if a.ended_s is not None else e.h.ended_s


def rows_end_as_they_should(e: Evidence) -> Iterator[str]:
    """7: Each row ends as its kind says (answer, row error, stop), with no more attempts."""
    s = e.s
    may_stop = e.justified or e.budget_reached
    first_stop: dict[str, Row] = {}  # process -> its row that was stopped first
    for row in sorted(e.h.rows, key=lambda row: row.ended_s or 0.0):
        if row.outcome == "stop":
            first_stop.setdefault(row.process, row)
    tried: dict[tuple[str, int], list[Attempt]] = defaultdict(list)
    for a in e.attempts:
        tried[(a.process, a.row)].append(a)
    for row in e.h.rows:
        if row.outcome in ("", "cancelled"):
            continue
        mine = tried[(row.process, row.row)]
        expected = "answer" if row.kind in ANSWERED else "row error"
        if row.kind == "nonsense" and (s["choices"][row.row] or not s["reasks"]):
            expected = "row error"
        if row.kind in STOPS:
            expected = "stop"
        if row.outcome == "stop":
            refused = any(k in REFUSED or k == "huge" for k in s["kinds"])
            # the first stop of a process stops its other rows, whatever was answered between
            early = refused and not _others_were_answered(e, first_stop[row.process])
            if not may_stop and not early and not _refused_in_a_row(e, row.process):
                yield f"row {row.row} ({row.kind}) was stopped: {row.said[:120]}"
                return
        elif row.outcome != expected:
            exhausted = row.outcome == "row error" and _exhausted(e, mine)
            luck = row.kind in ("nonsense", "always_nonsense")
            if not exhausted and not luck:
                yield f"row {row.row} ({row.kind}): {row.outcome}: {row.said[:120]}"
                return
        answers = sum(e.delivered(a) for a in mine)
        if row.kind in ASKED_ONCE and answers > 1 and not s["choices"][row.row]:
            yield f"row {row.row} ({row.kind}) was answered {answers} times"
            return
        refusals = sum(a.status in (400, 403) and e.told(a) for a in mine)
        if row.kind in REFUSED and refusals > 2 * max(1, s["choices"][row.row]):
            yield f"row {row.row} ({row.kind}) was refused {refusals} times"
            return


def nothing_is_sent_too_often(e: Evidence) -> Iterator[str]:
    """7: A worker sends a request at most max_attempts times; a 429 does not count."""
    sent = Counter((a.process, a.name) for a in e.attempts if not _slowed(a))
    for (process, name), times in sent.items():
        if times > e.s["max_attempts"]:
            yield f"{process} sent {name[:8]} {times} times, max_attempts={e.s['max_attempts']}"
            return


def the_budget_is_used(e: Evidence) -> Iterator[str]:
    """3: A run that stops at its budget has spent it by its ledger, except for one request. An
    answer that tells only a total of tokens, or none, may cost more in the ledger than in the bill;
    an attempt that was answered just before a kill may also be listed as unknown."""
    budget = e.s["budget_usd"]
    if budget is None or not e.budget_reached:
        return
    s = e.s
    bill = sum(a.usd for bills in e.billed.values() for a in bills)
    kept = sum(r["cost_usd"] for answers in e.kept.values() for a in answers for r in a)
    tokens = max(1, s["most_choices"]) * (69 + s["answer_tokens"]) * s["usd_output"]
    one = (1.3 * (30 + max(s["chars"])) * s["usd_input"] + tokens) / 1e6  # its highest estimate
    doubtful = sum(e.doubtful(a) or e.open_at_death(a) for a in e.attempts)
    doubtful = one * max(doubtful, e.unknown.total())
    if max(bill, kept) + doubtful + 2 * one < budget:
        yield f"stopped at ${bill:.6f} of ${budget:.6f}, a request costs ${one:.6f} at most"


def _others_were_answered(e: Evidence, stopped: Row) -> bool:
    """Whether this run had an answer so much earlier that every worker had heard of it, or this
    worker had one from the ledger, or found one there when it began."""
    began_s = max((at for at in e.h.starts if at <= stopped.asked_s), default=0.0)
    told_s = stopped.ended_s - 12.0 - 8 * e.s["trip_s"][1]
    found_s = dict(e.h.openings)[stopped.process] - e.s["stale_s"]
    return any(
        e.delivered(a)
        and began_s <= a.ended_s < (told_s if a.process != stopped.process else stopped.ended_s)
        for a in e.attempts
    ) or any(
        row.outcome == "answer"
        and row.ended_s < (stopped.ended_s if row.process == stopped.process else found_s)
        for row in e.h.rows
    )


def _refused_in_a_row(e: Evidence, process: str) -> bool:
    """Whether a worker got so many refusals in a row that it may stop the run."""
    most = now = 0
    for a in sorted(e.attempts, key=lambda a: _end(e, a)):
        if a.process == process and a.failed == "":
            now = now + 1 if a.status in (400, 403) else 0 if e.delivered(a) else now
            most = max(most, now)
    return most >= 16


def _slowed(a: Attempt) -> bool:
    """Whether the reply was a 429, which does not count as an attempt."""
    return a.status == 429 and a.failed == ""


def _exhausted(e: Evidence, mine: list[Attempt]) -> bool:
    """Whether a request failed so often, or for so long, that its row may end."""
    by_name = defaultdict(list)
    for a in mine:
        by_name[a.name].append(a)
    for same in by_name.values():
        failures = [a for a in same if not e.delivered(a) and not _slowed(a)]
        span = max(_end(e, a) for a in same) - min(a.departed_s for a in same)
        if len(failures) >= e.s["max_attempts"] or span > e.s["max_elapsed_s"] - e.s["max_wait_s"]:
            return True
    return False


RULES: tuple[Callable[[Evidence], Iterator[str]], ...] = (
    nothing_breaks,
    every_row_ends,
    every_bill_is_kept_or_listed,
    what_is_listed_is_bounded,
    nothing_is_paid_twice,
    the_ledger_costs_what_was_billed,
    the_budget_holds,
    the_limit_holds,
    permits_are_used,
    rows_end_as_they_should,
    nothing_is_sent_too_often,
    the_budget_is_used,
)


def check(history: History) -> list[Broken]:
    evidence = Evidence(history)
    return [Broken(rule.__name__, why) for rule in RULES for why in rule(evidence)]
