"""Classes and confidences of 200,000 questions with 20 answers each: columns against loops.

python jobs/bench_confidence.py [--quick] [--reference CHECKOUT] --out FILE.json

CHECKOUT: a clone of FactTune's llm_factuality_tuning; it needs scipy and pytz.
"""

import argparse
import os
import sys
import time

from bench import confidence as bench
from bench import machine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="20,000 questions")
    parser.add_argument("--reference", help="folder of FactTune's scripts")
    parser.add_argument("--out", required=True, help="JSON file to write")
    args = parser.parse_args()
    questions, workers = 20_000 if args.quick else 200_000, os.cpu_count() or 1
    loops = {"one_by_one": bench.one_by_one}
    if args.reference:
        loops["facttune_scripts"] = bench.scripts(args.reference)
    answers = bench.make(questions, 20)
    texts = len(answers.flatten().unique())
    bench.check(answers, 2000)
    results = {}
    for n in (1, workers):
        wall_s = bench.measure(answers, n)
        name = "facttune_ray" if n == workers else f"facttune_ray, {n} process"
        results[name] = {"questions": questions, "wall_s": round(wall_s, 2)}
    part = answers.slice(0, questions // 10).to_pylist()  # enough for a rate
    for name, loop in loops.items():
        started = time.perf_counter()
        loop(part)
        wall_s = time.perf_counter() - started
        results[name] = {"questions": len(part), "wall_s": round(wall_s, 2)}
    for r in results.values():
        r["us_a_question"] = round(1e6 * r["wall_s"] / r["questions"], 1)
    ours = results["facttune_ray"]["us_a_question"]
    alone = results["facttune_ray, 1 process"]["us_a_question"]
    result = {
        "settings": {"questions": questions, "answers": 20, "distinct_texts": texts},
        "results": results,
        "ratios": {n: round(results[n]["us_a_question"] / ours, 2) for n in loops},
        "ratios_1_process": {n: round(results[n]["us_a_question"] / alone, 2) for n in loops},
    }
    machine.write(args.out, result, "results")
    return 0


if __name__ == "__main__":
    sys.exit(main())
