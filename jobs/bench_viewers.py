"""A reader's tasks in the report, in Inspect's viewer and in promptfoo: clicks and seconds.

python jobs/bench_viewers.py RUN --inspect VENV/bin --promptfoo FOLDER --out FILE.json

RUN: the folder of a finished quickstart. VENV: a virtual environment with `inspect-ai`. FOLDER: a
folder in which `npm install promptfoo` has run. Needs Chromium and playwright.
"""

import argparse
import tempfile
from pathlib import Path

from bench import machine, viewers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--inspect", required=True, type=Path, help="bin/ of a venv")
    parser.add_argument("--promptfoo", required=True, type=Path, help="folder with node_modules")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", required=True, help="JSON file to write")
    args = parser.parse_args()
    found = viewers.responses(args.run)
    with tempfile.TemporaryDirectory() as here:
        data = viewers.write(found, Path(here))
        with (
            viewers.inspect(data, args.inspect) as inspect,
            viewers.promptfoo(data, args.promptfoo) as promptfoo,
        ):
            report = (Path(args.run).absolute() / "report.html").as_uri()
            addresses = {"report": report, "inspect": inspect, "promptfoo": promptfoo}
            result = viewers.measure(addresses, viewers.worst(found["base"]), args.repeats)
    machine.write(args.out, {"responses": len(found["base"]), "tasks": result}, "tasks")


if __name__ == "__main__":
    main()
