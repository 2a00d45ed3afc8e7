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
    if isinstance(error, OSError):
        from facttune_ray.storage.folders import outage

        if (line := outage(error)) is not None:
            return _fail(f"storage: {line}")
    raise error


def _fail(message: str, exit_code: int = 2) -> int:
    print(f"facttune: error: {secrets.redact(message)}", file=sys.stderr)
    return exit_code


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

    from facttune_ray.evaluation import compare_runs

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
