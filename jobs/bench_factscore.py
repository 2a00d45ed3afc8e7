"""The slow parts of FActScore, in this project and as FActScore does them: verdicts by chat,
verdicts by a local model, and building a knowledge source.

python jobs/bench_factscore.py [--quick] --out FILE.json
"""

import argparse
import json
import sys

from bench import chat, knowledge, local_lm, machine

from facttune_ray.runtime import cluster

PARTS = {"chat": chat.run, "local_lm": local_lm.run, "knowledge": knowledge.run}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer facts and articles")
    parser.add_argument("--out", required=True, help="JSON file to write")
    args = parser.parse_args()
    cluster.start_ray()
    parts = {}
    for name, run in PARTS.items():
        parts[name] = run(args.quick)
        print(name, json.dumps(parts[name]), flush=True)
    result = {
        "settings": {name: part["settings"] for name, part in parts.items()},
        "results": {f"{n}/{who}": r for n, p in parts.items() for who, r in p["results"].items()},
        "ratios": {f"{n}/{who}": r for n, p in parts.items() for who, r in p["ratios"].items()},
    }
    machine.write(args.out, result, "ratios")
    return 0


if __name__ == "__main__":
    sys.exit(main())
