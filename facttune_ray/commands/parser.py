"""The words of the command line: every command with its arguments and their help.

It imports nothing heavy, because `facttune --help` answers in 0.2 s. `cli.py` runs the commands;
`completion.py` makes shell completion from the same parser.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from importlib.metadata import version

from facttune_ray.stages import STEPS


def parser() -> tuple[argparse.ArgumentParser, Mapping[str, argparse.ArgumentParser]]:
    """(the parser, its commands)"""
    whole = argparse.ArgumentParser(
        prog="facttune",
        description="Tune language models for factuality: sample, score, prefer, train, measure.",
    )
    whole.add_argument(
        "--version", action="version", version=f"facttune_ray {version('facttune_ray')}"
    )
    commands = whole.add_subparsers(required=True, metavar="COMMAND", dest="command")

    def add(name: str, help: str) -> argparse.ArgumentParser:
        p = commands.add_parser(name, help=help, description=help)
        p.set_defaults(does=name)
        return p

    def prints(p: argparse.ArgumentParser, what: str = "print JSON") -> argparse.ArgumentParser:
        p.add_argument("--json", action="store_true", help=what)
        return p

    def takes_config(p: argparse.ArgumentParser) -> argparse.ArgumentParser:
        p.add_argument(
            "config",
            nargs="*",
            metavar="CONFIG|key=value",
            help="presets (a YAML path or a name in conf/) in order, and overrides",
        )
        return p

    of_run = "The first word may be the folder of a run, or its URI, instead of a config."
    summary = "print the summary as JSON"
    p = add("demo", "the report of a recorded quickstart: computes nothing")
    p.add_argument("--out", default="runs/demo.html", metavar="FILE", help="(default: %(default)s)")
    p.add_argument("--no-browser", action="store_true", help="only write the page")
    p = add("quickstart", "the whole loop on an embedded world: no key, GPU, network")
    p.add_argument("--out", help="folder of the run (default: runs/quickstart)")
    p.add_argument("--seed", type=int, help="seed of world, model and sampling (default: 0)")
    takes_config(prints(p, summary))
    p = add("run", "make every missing table, train, evaluate, report")
    takes_config(prints(p, summary))
    p = add("stage", "make the missing tables of one stage")
    p.add_argument("name", metavar="NAME", help="one of the steps below")
    takes_config(prints(p, summary))
    p.formatter_class = argparse.RawDescriptionHelpFormatter
    p.epilog = _steps()
    p = add("train", "train on the run's rewards, or on preferences in files of your own")
    takes_config(prints(p, "print the folders of the models as JSON"))
    p.epilog = (
        "With data.groups=FILE (JSONL, JSON, Parquet or CSV) and model.path it needs nothing else: "
        'each row is {"prompt", "responses", "rewards"}, {"prompt", "responses", "pairs"} or '
        '{"prompt", "chosen", "rejected"}. The same command goes on where it was stopped.'
    )
    p = add("estimate", "LLM requests, tokens, dollars and hours, before paying them")
    p.add_argument("--topics", type=int, default=100, help="topics that it counts (default: 100)")
    p.add_argument("--tokens-per-second", type=float, help="that a GPU samples (assumed: 2000)")
    p.add_argument("--tflops", type=float, help="that a GPU reaches (assumed: 150)")
    p.add_argument("--parameters", type=float, help="of the model (default: from its config)")
    takes_config(prints(p))
    p = add("evaluate", "measure trained models on held-out topics, report")
    takes_config(prints(p, summary))
    p = add("status", "every table of a run: progress, rows, errors, calls, cost")
    takes_config(prints(p))
    p.epilog = of_run
    p = add("watch", "the report of a run in the browser, while the run is made")
    p.add_argument("--port", type=int, default=0, help="to listen on (default: any free port)")
    p.add_argument("--open", action="store_true", help="open it in this machine's browser")
    takes_config(p)
    p.epilog = (
        f"{of_run} It reads files and disturbs no run. Only this machine reaches the page, with "
        "the token in the printed URL; from elsewhere: ssh -L PORT:127.0.0.1:PORT HOST."
    )
    p = add("config", "every setting: value, default, range, meaning")
    takes_config(prints(p))
    p.epilog = (
        "The first word may be a section, such as train or model.pretrain. Without presets it "
        "prints the defaults; with presets and overrides it marks the values that they change."
    )
    p = add("report", "write summary.json and report.html from finished tables")
    takes_config(prints(p, summary))
    p = add("compare", "several finished runs side by side")
    p.add_argument("runs", nargs="+", metavar="RUN", help="folders of finished runs, or URIs")
    form = p.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument(
        "--html", metavar="FILE", help="write one page: figures, topics, responses side by side"
    )
    p = add("inspect", "a run's responses, fact by fact")
    p.add_argument("run_folder", metavar="RUN", help="folder of a run, or a URI")
    p.add_argument(
        "topic", nargs="?", metavar="TOPIC", help="or how it begins; without: all topics"
    )
    p.add_argument("--model", default="", help="only scopes or models whose name contains this")
    p.add_argument("--sample", type=int, help="only the sample of this number")
    prints(p)
    p = add("export", "finished tables as files of FActScore, FactTune's scripts, TRL")
    p.add_argument("--to", required=True, metavar="DIR", help="folder to write into")
    p.add_argument("--chat", action="store_true", help="preferences as chat messages, for TRL")
    takes_config(prints(p))
    p = add("knowledge", "build a knowledge source, or search one")
    what = p.add_subparsers(required=True, metavar="ACTION")
    b = what.add_parser("build", help="files of {title, text} rows -> one SQLite database")
    b.add_argument(
        "inputs",
        nargs="+",
        metavar="IN",
        help="Parquet, JSONL, JSON or CSV files, folders, globs, URIs; also compressed",
    )
    b.add_argument("out", metavar="OUT.db", help="appears whole or not at all; run again to go on")
    b.add_argument("--workers", type=int, default=0, help="processes (default: one a core)")
    b.add_argument("--title-column", default="title", help="column of titles (default: title)")
    b.add_argument("--text-column", default="text", help="column of texts (default: text)")
    b.set_defaults(does="knowledge build")
    b = what.add_parser("index", help="full-text index beside a database that has none")
    b.add_argument("database", metavar="DB", help="such as FActScore's; it stays as it is")
    b.set_defaults(does="knowledge index")
    b = what.add_parser("search", help="passages of any article by words")
    b.add_argument("database", metavar="DB")
    b.add_argument("query", metavar="QUERY")
    b.add_argument("-k", type=int, default=5, help="passages shown (default: 5)")
    prints(b).set_defaults(does="knowledge search")
    p = add("ledger", "look after a ledger of paid completions")
    p.add_argument("action", choices=("stats", "compact", "verify", "gc"), metavar="ACTION")
    p.add_argument("folder", metavar="FOLDER", help="such as runs/quickstart/ledger; any URI")
    p.add_argument("--days", type=float, help="gc: remove completions older than this")
    p.add_argument("--model", help="gc: of these only those of this served model")
    prints(p)
    p.epilog = (
        "stats: by stage and model. compact: few segments, each key once. verify: read and check "
        "every row; exit code 2 when some are damaged. gc: torn segments, and what --days says."
    )
    p = add("annotator", "serve the rule-based OpenAI-compatible endpoint")
    p.add_argument("--host", default="127.0.0.1", help="address to listen on")
    p.add_argument("--port", type=int, required=True, help="0: any free port")
    p.add_argument(
        "--replay", metavar="FILE", help="answer with a labelled file's facts and labels"
    )
    p.add_argument(
        "options",
        nargs="*",
        metavar="key=value",
        help="latency, limits, faults: the fields of AnnotatorOptions in quickstart/options.py",
    )
    p = add("completion", "print the completion of commands, options and settings for a shell")
    p.add_argument("shell", choices=("bash", "zsh", "fish"), metavar="SHELL", help="bash|zsh|fish")
    p.epilog = (
        "bash: source <(facttune completion bash)   zsh, after compinit: "
        "source <(facttune completion zsh)   fish: facttune completion fish | source"
    )
    return whole, commands.choices


def _steps() -> str:
    """One line a step of a run: its name, where it runs, what it reads."""
    rows = [("step", "can run on", "reads")]
    rows += [(name, runs_on, reads) for name, (reads, runs_on) in STEPS.items()]
    return "\n".join(f"{name:<11} {runs_on:<39} {reads}" for name, runs_on, reads in rows)
