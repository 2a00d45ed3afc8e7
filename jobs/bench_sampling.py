"""Samples per second of short answers: this project's engine and two ways to call generate.

python jobs/bench_sampling.py [--quick] --out FILE.json
python jobs/bench_sampling.py --device cuda --dtype bfloat16 --hidden 2048 --layers 16 \
    --vocab 32000 --max-rows 2048 --out FILE.json        about a billion parameters
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from bench.machine import machine
from bench.sampling import run, settings


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer questions, one repeat")
    parser.add_argument("--out", required=True, help="JSON file to write")
    parser.add_argument("--device", help="cpu or cuda")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16")
    for name in ("hidden", "layers", "vocab", "max-rows"):
        parser.add_argument(f"--{name}", type=int)
    model = vars(parser.parse_args())
    out, quick = model.pop("out"), model.pop("quick")
    measured = run(settings(quick, **model))
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    result = {"machine": machine(threads=torch.get_num_threads(), **gpu)} | measured
    print(json.dumps({k: result[k] for k in ("results", "ratios")}, indent=1))
    Path(out).write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
