"""Every verifier that can run here against human labels, and the speed of models of pairs.

python jobs/bench_verifiers.py [--quick] [--data FOLDER] --out FILE.json [KEY=VALUE ...]

FOLDER holds ChatGPT.jsonl, InstructGPT.jsonl and knowledge.jsonl. The file
../countries/countries.jsonl beside it adds statements about countries. KEY=VALUE: settings of the
section `verdicts` without its name. lexical always runs; nli=MODEL, minicheck=MODEL, npm=MODEL and
local_lm=MODEL add a verifier, alone and joined with lexical.
"""

import argparse
import datetime
import json
import sys
from pathlib import Path

from bench import countries, machine, verifiers, windows

from facttune_ray.errors import UserError

DATA = Path(__file__).resolve().parents[1] / "../shared/data/factscore"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="300 facts of each file")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the labelled files")
    parser.add_argument("--out", required=True, help="JSON file to write")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_args()
    if odd := [word for word in args.settings if "=" not in word]:
        parser.error(f"{odd[0]}: write KEY=VALUE, such as nli=MODEL")
    settings = dict(word.split("=", 1) for word in args.settings)
    speed = windows.run(args.quick)
    print("windows", json.dumps(speed), flush=True)
    result = (
        {"date": datetime.date.today().isoformat()} | speed | {"published": verifiers.PUBLISHED}
    )
    if all((args.data / f"{name}.jsonl").is_file() for name in (*verifiers.FILES, "knowledge")):
        try:
            figures = verifiers.quality(args.data, settings, 300 if args.quick else 0)
        except UserError as error:
            print(f"bench_verifiers: {error}", file=sys.stderr)
            return 2
        result["quality"] = figures
    else:
        print(f"no labelled files in {args.data}: only the speed is measured", flush=True)
    if (articles := args.data.parent / "countries" / "countries.jsonl").is_file():
        result["countries"] = countries.lexical_figures(articles)
        print("countries", result["countries"], flush=True)
    machine.write(args.out, result, "ratios")
    return 0


if __name__ == "__main__":
    sys.exit(main())
