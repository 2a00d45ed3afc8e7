"""The cost of a SIGKILL with 128 requests in flight, if the server ignores Idempotency-Key.

python jobs/bench_kills.py [--kills 12] --out FILE.json
"""

import argparse
import sys

from bench import machine
from bench.kills import IN_FLIGHT, KILL_S, LATENCY_MS, WARM, killed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=12, help="number of kills in each mode")
    parser.add_argument("--out", required=True, help="JSON file to write")
    args = parser.parse_args()
    results = {}
    for mode in ("online", "background"):
        results[mode] = killed(args.kills, mode)
        print(mode, results[mode], flush=True)
    settings = {
        "in_flight": IN_FLIGHT,
        "latency_ms": LATENCY_MS,
        "kill_after_s": KILL_S,
        "warm_requests": WARM,
    }
    machine.write(args.out, {"settings": settings, "results": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
