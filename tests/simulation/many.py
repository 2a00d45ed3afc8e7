"""Runs many seeds in several processes, and prints a line every ten seconds.

found = many(range(2000), processes=2)
found["broken"]    {"the_limit_holds": [1374, ...], ...}: rule -> the seeds that break it
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import time
from collections import Counter
from typing import Any

from simulation.seeds import examine

TOLD_S = 10.0


def many(seeds: range, processes: int) -> dict[str, Any]:
    """Run the seeds. Return counts over all of them, and the broken rules."""
    began_s = told_s = time.monotonic()
    happened: Counter[str] = Counter()
    broken: dict[str, list[int]] = {}
    done = events = 0
    virtual_s = 0.0
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        for found in pool.imap_unordered(examine, seeds, chunksize=min(20, len(seeds))):
            done += 1
            events += found["events"]
            virtual_s += found["virtual_s"]
            happened.update(found["happened"])
            for rule in {rule for rule, _ in found["broken"]}:
                broken.setdefault(rule, []).append(found["seed"])
                print(f"seed {found['seed']} breaks {rule}", flush=True)
            if time.monotonic() - told_s > TOLD_S or done == len(seeds):
                told_s = time.monotonic()
                print(
                    f"{done:,} seeds   {sum(map(len, broken.values()))} broken rules   "
                    f"{events:,} events   {virtual_s / 3600:,.1f} virtual hours   "
                    f"{done / (told_s - began_s):.1f} seeds/s",
                    flush=True,
                )
    return {
        "machine": {"cpus": os.cpu_count(), "arch": platform.machine()},
        "seeds": len(seeds),
        "first": seeds[0],
        "processes": processes,
        "broken": {rule: sorted(where) for rule, where in sorted(broken.items())},
        "events": events,
        "virtual_hours": round(virtual_s / 3600, 2),
        "wall_s": round(time.monotonic() - began_s, 1),
        "happened": dict(sorted(happened.items())),
    }
