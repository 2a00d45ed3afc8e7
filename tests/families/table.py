"""Check every tiny model, and write the table of facttune_ray/training/FAMILIES.md.

    python tests/families/table.py [--results FILE]      FILE keeps results: a run can be continued

Models run in two processes. The script prints each model that is wrong, and fails if one is.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

PAGE = ROOT / "facttune_ray/training/FAMILIES.md"
BEGIN, END = "<!-- families: tests/families/table.py -->\n", "<!-- end of families -->\n"


def run(name: str) -> tuple[str, list, list]:
    """(name, result of sampling, result of training)"""
    import torch
    import transformers

    from families import check, tiny

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    results = (check.result(x, tiny.build(name)) for x in (check.sampling, check.training))
    sampled, trained = results
    return name, list(sampled), list(trained)


def table(results: dict[str, tuple[list, list]]) -> str:
    """One row for each pair of paths, with the types (and variants) that take it."""
    import transformers

    by_paths: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, (sampled, trained) in sorted(results.items()):
        by_paths[trained[0], sampled[0]].append(name)
    lines = [
        f"{len(results)} models of {len({n.split('/')[0] for n in results})} types, "
        f"transformers {transformers.__version__}:\n",
        "| training | sampling | types |",
        "| --- | --- | --- |",
    ]
    for (training, sampling), names in sorted(by_paths.items(), key=lambda x: -len(x[1])):
        lines.append(f"| {training} | {sampling} | {', '.join(names)} |")
    return "\n".join(lines) + "\n"


def write(text: str) -> None:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + BEGIN + text + END + after)


def main() -> int:
    from families import check, tiny

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, help="file of results, one a line")
    file = parser.parse_args().results
    known: dict[str, tuple[list, list]] = {}
    if file and file.exists():
        for line in file.read_text().splitlines():
            name, sampled, trained = json.loads(line)
            known[name] = sampled, trained
    left = [name for name in tiny.variants() if name not in known]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for name, sampled, trained in pool.imap_unordered(run, left):
            known[name] = sampled, trained
            if file:
                with file.open("a") as f:
                    f.write(json.dumps([name, sampled, trained]) + "\n")
    wrong = {
        name: both
        for name, both in known.items()
        if not all(check.Result(*result).right for result in both)
    }
    for name, both in wrong.items():
        print(name, *both)
    write(table(known))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
