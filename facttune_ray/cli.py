"""`facttune`: the command line. Thin: jobs/ call the same functions.

Exit codes: 0 done; 1 a bug (traceback); 2 bad input (one line); 3 the budget is spent (one line);
130 interrupted (Ctrl-C), 143 terminated (SIGTERM), 129 hung up: one line, what is paid is kept.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Collection, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from facttune_ray import secrets
from facttune_ray.errors import UserError, did_you_mean
from facttune_ray.runtime import ending
from facttune_ray.stages import STEPS

if TYPE_CHECKING:
    from facttune_ray.config import Config


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, and turn a UserError into one line and exit code 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser, commands = _parser()
    if words and not words[0].startswith("-") and words[0] not in commands:
        return _fail(f'no command "{words[0]}".{did_you_mean(words[0], commands)}')
    args = parser.parse_args(words)
    secrets.install()
    if "OMP_WAIT_POLICY" not in os.environ:
        # threads that wait for their next loop spin: for as long as is default, two programs on the
        # same cores take ten times as long and more; a single one is as fast with this
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # transformers imports DeepSpeed where accelerate is there, which warns of a missing GPU
    logging.getLogger("DeepSpeed").addFilter(_is_error)
    try:
        with ending.signals_handled():
            return args.run(args)
    except KeyboardInterrupt:
        return _ended()
    except Exception as e:
        return _failed(e) if ending.received is None else _ended()


def _ended() -> int:
    ending.tell()
    return ending.exit_code()


def _failed(error: Exception) -> int:
    """The exit code of a mistake that is the user's or a store's; a bug is raised again."""
    if isinstance(error, UserError):
        return _fail(str(error), error.exit_code)
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("facttune_ray"):
        return _fail(f"{error.name} is not installed; a dependency: `pip install facttune_ray`")
    if isinstance(error, OSError):
        from facttune_ray.storage.folders import outage

        if (line := outage(error)) is not None:
            return _fail(f"storage: {line}")
    raise error


def _fail(message: str, exit_code: int = 2) -> int:
    print(f"facttune: error: {secrets.redact(message)}", file=sys.stderr)
    return exit_code


def _parser() -> tuple[argparse.ArgumentParser, Collection[str]]:
    """(the parser, the names of its commands)"""
    parser = argparse.ArgumentParser(
        prog="facttune",
        description="Tune language models for factuality: sample, score, prefer, train, measure.",
    )
    parser.add_argument(
        "--version", action="version", version=f"facttune_ray {version('facttune_ray')}"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")

    def add(name: str, run: object, help: str) -> argparse.ArgumentParser:
        p = commands.add_parser(name, help=help, description=help)
        p.set_defaults(run=run)
        return p

    def takes_config(p: argparse.ArgumentParser) -> argparse.ArgumentParser:
        p.add_argument(
            "config",
            nargs="*",
            metavar="CONFIG|key=value",
            help="presets (a YAML path or a name in conf/) in order, and overrides",
        )
        return p

    p = add("demo", _demo, "the report of a recorded quickstart: computes nothing")
    p.add_argument("--out", default="runs/demo.html", metavar="FILE", help="(default: %(default)s)")
    p.add_argument("--no-browser", action="store_true", help="only write the page")
    p = add("quickstart", _quickstart, "the whole loop on an embedded world: no key, GPU, network")
    p.add_argument("--out", help="folder of the run (default: runs/quickstart)")
    p.add_argument("--seed", type=int, help="seed of world, model and sampling (default: 0)")
    takes_config(p)
    takes_config(add("run", _run, "make every missing table, train, evaluate, report"))
    p = add("stage", _run, "make the missing tables of one stage")
    p.add_argument("name", metavar="NAME", help="one of the steps below")
    takes_config(p)
    p.formatter_class = argparse.RawDescriptionHelpFormatter
    p.epilog = _steps()
    p = add("train", _train, "train on the run's rewards, or on preferences in files of your own")
    takes_config(p)
    p.epilog = (
        "With data.groups=FILE (JSONL, JSON, Parquet or CSV) and model.path it needs nothing else: "
        'each row is {"prompt", "responses", "rewards"}, {"prompt", "responses", "pairs"} or '
        '{"prompt", "chosen", "rejected"}. The same command goes on where it was stopped.'
    )
    p = add("estimate", _estimate, "LLM requests, tokens, dollars and hours, before paying them")
    p.add_argument("--topics", type=int, default=100, help="topics that it counts (default: 100)")
    p.add_argument("--tokens-per-second", type=float, help="that a GPU samples (assumed: 2000)")
    p.add_argument("--tflops", type=float, help="that a GPU reaches (assumed: 150)")
    p.add_argument("--parameters", type=float, help="of the model (default: from its config)")
    p.add_argument("--json", action="store_true", help="print JSON")
    takes_config(p)
    takes_config(add("evaluate", _measure, "measure trained models on held-out topics, report"))
    takes_config(add("status", _status, "tables on disk: rows, errors, calls, cost"))
    p = add("config", _settings, "every setting: value, default, range, meaning")
    p.add_argument("--json", action="store_true", help="print JSON")
    takes_config(p)
    p.epilog = (
        "The first word may be a section, such as train or model.pretrain. Without presets it "
        "prints the defaults; with presets and overrides it marks the values that they change."
    )
    takes_config(add("report", _measure, "write summary.json and report.html from finished tables"))
    p = add("compare", _compare, "several finished runs side by side")
    p.add_argument("runs", nargs="+", metavar="RUN", help="folders of finished runs, or URIs")
    form = p.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument(
        "--html", metavar="FILE", help="write one page: figures, topics, responses side by side"
    )
    p = add("inspect", _inspect, "a run's responses, fact by fact")
    p.add_argument("run_folder", metavar="RUN", help="folder of a run, or a URI")
    p.add_argument(
        "topic", nargs="?", metavar="TOPIC", help="or how it begins; without: all topics"
    )
    p.add_argument("--model", default="", help="only scopes or models whose name contains this")
    p.add_argument("--sample", type=int, help="only the sample of this number")
    p = add("export", _export, "finished tables as files of FActScore, FactTune's scripts, TRL")
    p.add_argument("--to", required=True, metavar="DIR", help="folder to write into")
    p.add_argument("--chat", action="store_true", help="preferences as chat messages, for TRL")
    takes_config(p)
    p = add("knowledge", _knowledge_build, "build a knowledge source, or search one")
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
    b.set_defaults(run=_knowledge_build)
    b = what.add_parser("index", help="full-text index beside a database that has none")
    b.add_argument("database", metavar="DB", help="such as FActScore's; it stays as it is")
    b.set_defaults(run=_knowledge_index)
    b = what.add_parser("search", help="passages of any article by words")
    b.add_argument("database", metavar="DB")
    b.add_argument("query", metavar="QUERY")
    b.add_argument("-k", type=int, default=5, help="passages shown (default: 5)")
    b.set_defaults(run=_knowledge_search)
    p = add("ledger", _ledger, "look after a ledger of paid completions")
    p.add_argument("action", choices=("stats", "compact", "verify", "gc"), metavar="ACTION")
    p.add_argument("folder", metavar="FOLDER", help="such as runs/quickstart/ledger; any URI")
    p.add_argument("--days", type=float, help="gc: remove completions older than this")
    p.add_argument("--model", help="gc: of these only those of this served model")
    p.epilog = (
        "stats: by stage and model. compact: few segments, each key once. verify: read and check "
        "every row; exit code 2 when some are damaged. gc: torn segments, and what --days says."
    )
    p = add("annotator", _annotator, "serve the rule-based OpenAI-compatible endpoint")
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
    return parser, commands.choices


def _steps() -> str:
    """One line a step of a run: its name, where it runs, what it reads."""
    rows = [("step", "can run on", "reads")]
    rows += [(name, runs_on, reads) for name, (reads, runs_on) in STEPS.items()]
    return "\n".join(f"{name:<11} {runs_on:<39} {reads}" for name, runs_on, reads in rows)


def _config(
    args: argparse.Namespace,
    first: Sequence[str] = (),
    also: Sequence[str] = (),
    needed: bool = True,
) -> Config:
    from facttune_ray import config

    presets = [*first, *(w for w in args.config if "=" not in w)]
    if not presets and needed:
        names = ", ".join(sorted(p.stem for p in config.conf_dir().glob("*.yaml")))
        raise UserError(f"name a preset: a YAML file, or one of conf/: {names}")
    return config.load(presets, [*(w for w in args.config if "=" in w), *also])


def _close(cfg: Config, summary: dict) -> None:
    from facttune_ray.evaluation.report import text

    print(text.table(summary))
    out = cfg.run.out.partition("?")[0]
    print(f"\n{out}/report.html  {out}/summary.json")


def _demo(args: argparse.Namespace) -> int:
    from facttune_ray.commands import demo

    path = demo.demo(args.out)
    print(path)
    if args.no_browser or not demo.opened(path):
        print("open this page in a browser", file=sys.stderr)
    return 0


def _quickstart(args: argparse.Namespace) -> int:
    also = [f"run.out={args.out}"] if args.out is not None else []
    also += [f"run.seed={args.seed}"] if args.seed is not None else []
    return _make(_config(args, ["quickstart"], also))


def _run(args: argparse.Namespace) -> int:
    """`run`, and `stage`, which names the one stage to make."""
    return _make(_config(args), getattr(args, "name", None))


def _make(cfg: Config, only: str | None = None) -> int:
    from facttune_ray.commands import run

    summary, made = run.run(cfg, only)
    if summary:
        _close(cfg, summary)
    elif not made:
        print(f"stage {only}: nothing to do, every table matches its recipe")
    return 0


def _train(args: argparse.Namespace) -> int:
    from facttune_ray.commands import run, train_given

    cfg = _config(args, needed=not any(w.startswith("data.groups=") for w in args.config))
    if cfg.data.groups not in ("", None):
        models, made = train_given.train_given(cfg)
    else:
        models, made = run.train(cfg)
    if not made:
        print("train: nothing to do, every table matches its recipe")
    print("\n".join(models))
    return 0


def _measure(args: argparse.Namespace) -> int:
    from facttune_ray.commands import run

    cfg = _config(args)
    _close(cfg, run.evaluate(cfg) if args.command == "evaluate" else run.report(cfg))
    return 0


def _status(args: argparse.Namespace) -> int:
    from facttune_ray.commands.status import status
    from facttune_ray.runtime.maker import describe

    cfg = _config(args)
    for name, manifest in status(cfg):
        print(describe(cfg, name, manifest) if manifest else f"{name:<36} unfinished")
    return 0


def _settings(args: argparse.Namespace) -> int:
    from facttune_ray.config import listing

    first = args.config[0] if args.config else ""
    section = args.config.pop(0) if first and listing.is_section(first) else ""
    try:
        cfg = _config(args, needed=False)
    except UserError as e:
        hint = "" if section else did_you_mean(first, listing.names())
        raise UserError(f"{e}{hint}" if "Did you mean" in hint else str(e)) from None
    shown = listing.chosen(cfg, section) if section else listing.sections(cfg)
    print(listing.as_json(shown) if args.json else listing.table(shown))
    return 0


def _estimate(args: argparse.Namespace) -> int:
    import json

    from facttune_ray.estimate import estimate, gpu_hours, show

    given = {"tokens_per_s": args.tokens_per_second, "tflops": args.tflops}
    rates = gpu_hours.Rates(**{k: v for k, v in given.items() if v is not None})
    if min(rates.tokens_per_s, rates.tflops, args.parameters or 1) <= 0:
        raise UserError("--tokens-per-second, --tflops and --parameters must be above 0")
    if args.topics < 1:
        raise UserError(f"--topics {args.topics}: must be at least 1")
    cfg = _config(args)
    rows = estimate.estimate(cfg, args.topics, rates, args.parameters)
    text = show.show(rows, cfg, rates, args.parameters)
    print(json.dumps(rows, indent=1) if args.json else text)
    return 0


def _ledger(args: argparse.Namespace) -> int:
    from facttune_ray.llm import ledger_tools
    from facttune_ray.storage.tables import Folder

    return ledger_tools.main(args.action, Folder.of(args.folder), args.days, args.model)


def _export(args: argparse.Namespace) -> int:
    from facttune_ray.export import export
    from facttune_ray.storage.tables import Folder, writing

    cfg = _config(args)
    with writing(args.to):
        done = export.export(
            Folder.of(cfg.run.out),
            args.to,
            cfg.rewards.gamma,
            threshold=cfg.groups.threshold,
            chat=args.chat,
        )
    print(export.show(done))
    return 0


def _knowledge_build(args: argparse.Namespace) -> int:
    from facttune_ray.knowledge import build

    columns = (args.title_column, args.text_column)
    return build.main_build(args.inputs, args.out, args.workers, columns)


def _knowledge_index(args: argparse.Namespace) -> int:
    from facttune_ray.knowledge import build

    return build.main_index(args.database)


def _knowledge_search(args: argparse.Namespace) -> int:
    from facttune_ray.knowledge import articles

    return articles.main_search(args.database, args.query, args.k)


def _compare(args: argparse.Namespace) -> int:
    import json

    from facttune_ray.evaluation import compare_runs, compare_topics

    if args.html is not None:
        print(compare_topics.write(args.runs, args.html))
        return 0
    found = compare_runs.compare(args.runs)
    print(json.dumps(found, indent=1) if args.json else compare_runs.show(found))
    return 0


def _inspect(args: argparse.Namespace) -> int:
    from facttune_ray.evaluation import inspect_run

    paint = sys.stdout.isatty()
    if args.topic is None:
        print(inspect_run.topics(args.run_folder, paint))
    else:
        print(inspect_run.responses(args.run_folder, args.topic, args.model, args.sample, paint))
    return 0


def _annotator(args: argparse.Namespace) -> int:
    from facttune_ray import config
    from facttune_ray.quickstart import annotator

    given = [f"host={args.host}", f"port={args.port}", *args.options]
    given += [f"replay={args.replay}"] if args.replay else []
    annotator.serve(config.override(annotator.AnnotatorOptions, given))
    return 0


if __name__ == "__main__":
    sys.exit(main())
