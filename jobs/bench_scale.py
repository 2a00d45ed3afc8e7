"""The whole pipeline over worlds of 1,000, 10,000 and 100,000 topics on clusters of 1, 2 and 4
hosts with the annotator: time, memory, object store, bytes, and an estimate for 10 million topics.

python jobs/bench_scale.py [--quick] [--folder DIR] --out FILE.json     (Linux, root, iproute2)
"""

import argparse
import json
import sys
from pathlib import Path

from bench import machine, scale, scale_model


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="200 and 400 topics, 1 and 2 hosts")
    parser.add_argument("--folder", default="/tmp/facttune-scale", help="folder of worlds and runs")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="key=value", help="settings of every run"
    )
    parser.add_argument("--sizes", type=int, nargs="*", help="numbers of topics")
    parser.add_argument(
        "--again", nargs="+", help="make only these runs; keep the other figures in --out"
    )
    parser.add_argument("--out", required=True, help="JSON file to write")
    args = parser.parse_args()
    sizes = args.sizes or ([200, 400] if args.quick else [1_000, 10_000, 100_000])
    runs = {f"{n}": (n, 1, None) for n in sizes}
    runs |= {f"{sizes[0]}, {h} hosts": (sizes[0], h, None) for h in ([2] if args.quick else [2, 4])}
    runs["limited"] = (5 * sizes[0], 1, scale.LIMIT)
    out: dict = {
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
        machine.write(args.out, out)  # results so far
    out["growth"] = scale.growth(*(results[str(n)] for n in sizes[-2:]))
    out["model"] = scale_model.model(results[str(sizes[-1])])
    machine.write(args.out, out)
    print(json.dumps({k: out[k] for k in ("growth", "model")}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
