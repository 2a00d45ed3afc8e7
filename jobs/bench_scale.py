"""The whole pipeline over worlds of 1,000, 10,000 and 100,000 topics on clusters of 1, 2 and 4
hosts, with the annotator: time, memory, object store, bytes; what 10 million topics would take.

python jobs/bench_scale.py [--quick] [--folder DIR] --out FILE.json     (Linux, root, iproute2)
"""

import argparse
import json
import os
import platform
import sys
from pathlib import Path

from bench import scale, scale_model


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="200 and 400 topics, 1 and 2 hosts")
    parser.add_argument("--folder", default="/tmp/facttune-scale", help="of worlds and runs")
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", help="of every run")
    parser.add_argument("--sizes", type=int, nargs="*", help="topics instead of those above")
    parser.add_argument("--again", nargs="+", help="runs to make; other figures: those in --out")
    parser.add_argument("--out", required=True, help="JSON file to write")
    args = parser.parse_args()
    sizes = args.sizes or ([200, 400] if args.quick else [1_000, 10_000, 100_000])
    runs = {f"{n}": (n, 1, None) for n in sizes}
    runs |= {f"{sizes[0]}, {h} hosts": (sizes[0], h, None) for h in ([2] if args.quick else [2, 4])}
    runs["limited"] = (5 * sizes[0], 1, scale.LIMIT)
    out: dict = {
        "machine": {"cpus": os.cpu_count(), "arch": platform.machine()},
        "settings": {"responses": scale.RESPONSES, "sentences": scale.SENTENCES, "set": args.set},
        "results": {},
    }
    results = out["results"]
    if args.again:
        results |= json.loads(Path(args.out).read_text())["results"]
    for name, (count, hosts, limit) in runs.items():
        if args.again and name not in args.again:
            continue
        folder = Path(args.folder) / str(count)
        results[name] = scale.measure(folder, count, hosts, limit, tuple(args.set))
        print(name, json.dumps(results[name] | {"stages": "..."}), flush=True)
        Path(args.out).write_text(json.dumps(out, indent=1) + "\n")  # of what has ended
    out["growth"] = scale.growth(*(results[str(n)] for n in sizes[-2:]))
    out["model"] = scale_model.model(results[str(sizes[-1])])
    Path(args.out).write_text(json.dumps(out, indent=1) + "\n")
    print(json.dumps({k: out[k] for k in ("growth", "model")}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
