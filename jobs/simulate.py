"""The LLM client in a simulated world, seed by seed: real code, virtual time, every fault.

python jobs/simulate.py --seeds 100000 [--first 0] [--processes 2] [--out FILE.json]

Ends with exit code 1 when a seed breaks a rule, and prints its shrunk trace.
"""

import argparse
import json
import multiprocessing
import os
import platform
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from simulation.seeds import examine, report  # noqa: E402

SHOWN = 3  # traces that are printed at most


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, required=True, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first one")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", help="JSON file to write")
    args = parser.parse_args()
    if args.seeds < 1 or args.processes < 1:
        parser.error("--seeds and --processes: must be at least 1")
    seeds = range(args.first, args.first + args.seeds)
    began_s = told_s = time.monotonic()
    happened: Counter[str] = Counter()
    broken: dict[str, list[int]] = {}
    done = events = 0
    virtual_s = 0.0
    with multiprocessing.get_context("fork").Pool(args.processes) as pool:
        for found in pool.imap_unordered(examine, seeds, chunksize=min(20, args.seeds)):
            done += 1
            events += found["events"]
            virtual_s += found["virtual_s"]
            happened.update(found["happened"])
            for rule in {rule for rule, _ in found["broken"]}:
                broken.setdefault(rule, []).append(found["seed"])
            if time.monotonic() - told_s > 10.0 or done == args.seeds:
                told_s = time.monotonic()
                print(
                    f"{done:,} seeds   {sum(map(len, broken.values()))} broken rules   "
                    f"{events:,} events   {virtual_s / 3600:,.1f} virtual hours   "
                    f"{done / (told_s - began_s):.1f} seeds/s",
                    flush=True,
                )
    for rule, where in sorted(broken.items()):
        print(f"{rule}: seeds {sorted(where)[:20]}")
    for rule, where in sorted(broken.items())[:SHOWN]:
        print(report(min(where), rule))
    if args.out:
        out = {
            "machine": {"cpus": os.cpu_count(), "arch": platform.machine()},
            "seeds": args.seeds,
            "first": args.first,
            "processes": args.processes,
            "broken": {rule: sorted(where) for rule, where in sorted(broken.items())},
            "events": events,
            "virtual_hours": round(virtual_s / 3600, 2),
            "wall_s": round(time.monotonic() - began_s, 1),
            "happened": dict(sorted(happened.items())),
        }
        Path(args.out).write_text(json.dumps(out, indent=1) + "\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
