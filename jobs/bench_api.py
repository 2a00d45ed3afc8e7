"""Clients of a limited LLM API side by side: this project, a sequential loop, unbounded gather,
the cookbook's token bucket, ray.data.llm, and the bare SDK where there is no limit.

python jobs/bench_api.py [--quick] --out FILE.json
"""

import argparse
import json
import os
import platform
import sys
from pathlib import Path

from facttune_ray.benchmarks import api
from facttune_ray.stages import worker

LIMITED = (api.OURS, "sequential", "gather", "token_bucket", "ray_data_llm")
UNLIMITED = (api.OURS, "bare_sdk", "ray_data_llm")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1,200 requests instead of 6,000")
    parser.add_argument("--out", required=True, help="JSON file to write")
    args = parser.parse_args()
    worker.start_ray()
    api.warm_up()
    results: dict[str, dict] = {}
    ratios: dict[str, dict] = {}
    for scenario, (options, limited, count) in api.scenarios(args.quick).items():
        found = results[scenario] = {}
        for name in LIMITED if limited else UNLIMITED:
            found[name] = api.measure(name, count, options, limited)
            print(scenario, name, found[name], flush=True)
        ours = found[api.OURS]["goodput_per_s"]
        ratios[scenario] = {
            name: round(ours / max(1e-9, figures["goodput_per_s"]), 2)
            for name, figures in found.items()
            if name != api.OURS
        }
    out = {
        "machine": {"cpus": os.cpu_count(), "platform": platform.platform()},
        "settings": {s: vars(o) for s, (o, _, _) in api.scenarios(args.quick).items()},
        "results": results,
        "ratios": ratios,
    }
    Path(args.out).write_text(json.dumps(out, indent=1) + "\n")
    print(json.dumps(ratios, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
