"""The real LLM client in a simulated world with virtual time and faults, one run per seed.

python jobs/simulate.py --seeds 100000 [--first 0] [--processes 2] [--out FILE.json]

Exits with 1 when a seed breaks a rule, and prints the shrunk trace of the seed.
"""

import argparse
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from simulation.many import many  # noqa: E402
from simulation.seeds import report  # noqa: E402

MAX_TRACES = 3  # printed at most


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, required=True, help="number of seeds")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", help="JSON file to write")
    args = parser.parse_args()
    if args.seeds < 1 or args.processes < 1:
        parser.error("--seeds and --processes: must be at least 1")
    found = many(range(args.first, args.first + args.seeds), args.processes)
    for rule, where in found["broken"].items():
        print(f"{rule}: seeds {where[:20]}")
    for rule, where in list(found["broken"].items())[:MAX_TRACES]:
        print(report(where[0], rule))
    if args.out:
        Path(args.out).write_text(json.dumps(found, indent=1) + "\n")
    return 1 if found["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
