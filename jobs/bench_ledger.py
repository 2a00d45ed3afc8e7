"""Looking up many keys in a large store of completions: this project's ledger, SQLite, a pickle.

python jobs/bench_ledger.py [--quick] --out FILE.json
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import machine
from bench.ledger import STORES


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="50,000 rows instead of 1,000,000")
    parser.add_argument("--out", required=True, help="JSON file to write")
    args = parser.parse_args()
    rows, keys = (50_000, 10_000) if args.quick else (1_000_000, 100_000)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (fill, _) in STORES.items():
            place = Path(folder, name)
            started = time.monotonic()
            fill(place, rows)
            filled_s = round(time.monotonic() - started, 2)
            command = [sys.executable, "-m", "bench.ledger", name, str(place)]
            done = subprocess.run(
                [*command, str(rows), str(keys)], capture_output=True, text=True, check=True
            )
            size = sum(f.stat().st_size for f in place.rglob("*") if f.is_file())
            figures = json.loads(done.stdout)
            results[name] = {"fill_s": filled_s, "store_mb": round(size / 2**20, 1)} | figures
            print(name, results[name], flush=True)
    ours = results["facttune_ray"]["look_up_s"]
    ratios = {n: round(r["look_up_s"] / ours, 2) for n, r in results.items() if n != "facttune_ray"}
    settings = {"rows": rows, "keys": keys}
    machine.write(args.out, {"settings": settings, "results": results, "ratios": ratios})
    return 0


if __name__ == "__main__":
    sys.exit(main())
