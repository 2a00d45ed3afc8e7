"""Pairs per second of grouped DPO, of a pairwise loop and of TRL (pip install -e ".[bench]").

python jobs/bench_dpo.py [--quick] [--trainers NAME ...] [--prompt-tokens N ...]
                         [--device cuda] --out FILE.json
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from bench import dpo, dpo_trainers
from bench.machine import machine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small model, few responses")
    parser.add_argument(
        "--trainers", nargs="+", help="trainers to run beside this project; default all"
    )
    parser.add_argument("--prompt-tokens", type=int, nargs="+", help="default 64 and 400")
    parser.add_argument("--device", default="cpu", help="cuda: a billion parameters, bfloat16")
    parser.add_argument("--out", required=True, help="JSON file to write")
    args = parser.parse_args()
    lengths = args.prompt_tokens or ([16] if args.quick else [64, 400])
    # small passes save memory of a host, so they are not run on a GPU
    every = [n for n in dpo_trainers.TRAINERS if args.device == "cpu" or n != dpo_trainers.SMALL]
    names = [n for n in every if n in (args.trainers or every) or n == dpo_trainers.OURS]
    gpu = torch.cuda.get_device_name() if args.device == "cuda" else None
    result = {
        "machine": machine(threads=torch.get_num_threads(), gpu=gpu),
        "settings": {"trl": dpo.trl_note()},
        "results": {},
        "ratios": {},
    }
    for tokens in lengths:
        for found in dpo.run(dpo.settings(args.quick, tokens, args.device), names):
            result["settings"][f"prompt_{tokens}"] = found["settings"]
            for kind in ("results", "ratios"):
                result[kind] |= {f"prompt_{tokens}/{name}": x for name, x in found[kind].items()}
            Path(args.out).write_text(json.dumps(result, indent=1) + "\n")  # results so far
        print(json.dumps({k: result[k] for k in ("results", "ratios")}, indent=1), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
