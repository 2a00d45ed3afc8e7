"""Clients of a limited LLM API: this project, a sequential loop, unbounded gather, the cookbook's
token bucket, ray.data.llm, and the bare SDK if there is no limit.

python jobs/bench_api.py [--quick] --out FILE.json     python jobs/bench_api.py --memory [--quick]
python jobs/bench_api.py --limiter [--out FILE.json]
"""

import argparse
import json
import sys
from pathlib import Path

from bench import api, limiter, machine, memory

from facttune_ray.runtime import cluster

LIMITED = (api.OURS, "sequential", "gather", "token_bucket", "ray_data_llm")
UNLIMITED = (api.OURS, "bare_sdk", "ray_data_llm")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1,200 requests instead of 6,000")
    parser.add_argument(
        "--memory", action="store_true", help="only the growth of a worker's memory"
    )
    parser.add_argument("--limiter", action="store_true", help="only the used share of a limit")
    parser.add_argument("--out", help="JSON file to write")
    args = parser.parse_args()
    if args.memory:
        for part in memory.measure(6000 if args.quick else 60_000):
            print(part)
        return 0
    if args.limiter:
        shares = limiter.table()
        print(limiter.show(shares))
        if args.out:
            Path(args.out).write_text(json.dumps({"virtual_time": True, "shares": shares}) + "\n")
        return 0
    if not args.out:
        parser.error("--out FILE.json: where to write the figures")
    cluster.start_ray()
    api.warm_up()
    figures: dict[str, dict[str, dict]] = {}
    for scenario, (options, limited, count) in api.scenarios(args.quick).items():
        for name in LIMITED if limited else UNLIMITED:
            measured = api.measure(name, count, options, limited)
            figures.setdefault(name, {})[scenario] = measured
            print(scenario, name, measured, flush=True)
    result = {"settings": api.settings(args.quick)} | api.compare(figures)
    machine.write(args.out, result, "ratios")
    return 0


if __name__ == "__main__":
    sys.exit(main())
