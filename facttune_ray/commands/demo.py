"""`facttune demo`: the report of a recorded quickstart, before anything is computed.

    demo("runs/demo.html")      write the page
    record("runs/quickstart")   write demo.html.gz beside this file

The page is the report that a quickstart wrote, with one paragraph that says so. To record it again,
after a change of the report or of the version:

    facttune quickstart && facttune report quickstart evaluation.examples=1500
    python -m facttune_ray.commands.demo runs/quickstart

This file imports the standard library alone, so that the command answers at once and needs no
dependency of the package.
"""

from __future__ import annotations

import gzip
import json
import sys
from datetime import datetime
from importlib.resources import files
from pathlib import Path

from facttune_ray.errors import UserError

MOST_BYTES = 500_000  # of the recorded page, compressed, so that the package stays small
SIGN = '<p class="note" id="recorded">'  # how the paragraph about the recording begins


def demo(out: str) -> Path:
    """Write the recorded report to the local file `out`. -> its path"""
    if "://" in out:
        raise UserError(f"--out {out}: name a local file")
    path = Path(out).expanduser().absolute()
    page = gzip.decompress((files("facttune_ray.commands") / "demo.html.gz").read_bytes())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(page)
    except OSError as e:
        raise UserError(
            f"cannot write {path}: {e.strerror}: name another file with --out"
        ) from None
    return path


def record(run: str) -> Path:
    """Record the report of a finished quickstart. -> the recorded file, demo.html.gz"""
    page = (Path(run) / "report.html").read_text(encoding="utf-8")
    about = json.loads((Path(run) / "summary.json").read_text(encoding="utf-8"))["run"]
    day = datetime.fromisoformat(about["created"])
    said = (
        f"<b>A recorded run.</b> <code>facttune quickstart</code> made this report on {day.day} "
        f"{day:%B %Y}, with seed {about['seed']} and facttune_ray "
        f"{about['versions']['facttune_ray']}. <code>facttune demo</code> computes nothing. "
        f"<code>facttune quickstart</code> makes a report like this one on this machine, in 3 to 5 "
        f"minutes."
    )
    before, main, after = page.partition("<main>\n")
    if about["config"]["data"]["source"] != "world" or SIGN in page or not main:
        raise UserError(f"{run}: record the report of a finished `facttune quickstart`")
    title = before.replace("<title>", "<title>Recorded run: ", 1)
    packed = gzip.compress(f"{title}{main}{SIGN}{said}</p>\n{after}".encode(), 9, mtime=0)
    if len(packed) > MOST_BYTES or (Path(run) / "report_data").exists():
        raise UserError(
            f"{run}: too many responses: make its report with fewer evaluation.examples"
        )
    file = Path(__file__).with_name("demo.html.gz")
    file.write_bytes(packed)
    return file


if __name__ == "__main__":
    try:
        print(record(sys.argv[1]))
    except (UserError, OSError) as e:
        sys.exit(f"demo: error: {e}")
