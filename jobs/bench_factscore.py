"""FActScore's slow parts against the way the reference does them: verdicts by chat, verdicts by a
local model, and building a knowledge source.

python jobs/bench_factscore.py [--quick] --out FILE.json
"""

import argparse
import json
import os
import platform
import sys
from pathlib import Path

from bench import chat, knowledge, local_lm

from facttune_ray.runtime import cluster

PARTS = {"chat": chat.run, "local_lm": local_lm.run, "knowledge": knowledge.run}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer facts and articles")
    parser.add_argument("--out", required=True, help="JSON file to write")
    args = parser.parse_args()
    cluster.start_ray()
    found = {}
    for name, run in PARTS.items():
        found[name] = run(args.quick)
        print(name, json.dumps(found[name]), flush=True)
    out = {
        "machine": {"cpus": os.cpu_count(), "arch": platform.machine()},
        "settings": {name: f["settings"] for name, f in found.items()},
        "results": {f"{n}/{who}": r for n, f in found.items() for who, r in f["results"].items()},
        "ratios": {f"{n}/{who}": r for n, f in found.items() for who, r in f["ratios"].items()},
    }
    Path(args.out).write_text(json.dumps(out, indent=1) + "\n")
    print(json.dumps(out["ratios"], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
