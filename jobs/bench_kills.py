"""What a SIGKILL costs at 128 requests in flight, where the server ignores Idempotency-Key.

python jobs/bench_kills.py [--kills 12] --out FILE.json
"""

import argparse
import json
import os
import platform
import sys
from pathlib import Path

from bench.kills import IN_FLIGHT, KILL_S, LATENCY_MS, WARM, killed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=12, help="of each mode")
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
    out = {
        "machine": {"cpus": os.cpu_count(), "arch": platform.machine()},
        "settings": settings,
        "results": results,
    }
    Path(args.out).write_text(json.dumps(out, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
