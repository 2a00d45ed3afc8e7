"""`facttune`: the command line. Thin: jobs/ call the same functions.

Exit codes: 0 done; 1 a bug (traceback); 2 bad input (one line); 3 the budget is spent (one line);
130 interrupted (Ctrl-C), 143 terminated (SIGTERM), 129 hung up: one line, what is paid is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from facttune_ray import secrets
from facttune_ray.commands import parser, process
from facttune_ray.errors import UserError, did_you_mean
from facttune_ray.runtime import ending

if TYPE_CHECKING:
    from facttune_ray.config import Config


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, and turn a UserError into one line and exit code 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    whole, commands = parser.parser()
    if words and not words[0].startswith("-") and words[0] not in commands:
        return _fail(f'no command "{words[0]}".{did_you_mean(words[0], commands)}')
    args = whole.parse_args(words)
    process.prepare()
    try:
        with ending.signals_handled():
            return COMMANDS[args.does](args)
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
    if isinstance(error, ModuleNotFoundError):
        missing = error.name or getattr(getattr(error, "cause", None), "name", None)
        if missing and not missing.startswith("facttune_ray"):  # `cause`: of a worker's error
            return _fail(
                f"the Python package {missing} is not installed: install facttune_ray again with "
                f"its dependencies"
            )
    if isinstance(error, OSError):
        from facttune_ray.storage.folders import outage

        if (line := outage(error)) is not None:
            return _fail(f"storage: {line}")
    raise error


def _fail(message: str, exit_code: int = 2) -> int:
    print(f"facttune: error: {secrets.redact(message)}", file=sys.stderr)
    return exit_code


def _print(args: argparse.Namespace, value: Any, text: Callable[[], str]) -> None:
    """Print the value as JSON where --json asks for it, else as text."""
    print(json.dumps(value, indent=1) if args.json else text())


def _paints() -> bool:
    """Whether the terminal shows colours, and the user has not declined them (no-color.org)."""
    declined = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return sys.stdout.isatty() and not declined


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


def _close(args: argparse.Namespace, cfg: Config, summary: dict) -> None:
    from facttune_ray.evaluation.report import files, text

    out = cfg.run.out.partition("?")[0]
    made = f"{out}/report.html  {out}/summary.json"
    _print(args, files.finite(summary), lambda: f"{text.table(summary)}\n\n{made}")


def _demo(args: argparse.Namespace) -> int:
    from facttune_ray.commands import browser, demo

    path = demo.demo(args.out)
    print(path)
    if args.no_browser or not browser.opened(path.as_uri()):
        print("open this page in a browser", file=sys.stderr)
    return 0


def _quickstart(args: argparse.Namespace) -> int:
    also = [f"run.out={args.out}"] if args.out is not None else []
    also += [f"run.seed={args.seed}"] if args.seed is not None else []
    return _make(args, _config(args, ["quickstart"], also))


def _run(args: argparse.Namespace) -> int:
    """`run`, and `stage`, which names the one stage to make."""
    return _make(args, _config(args), getattr(args, "name", None))


def _make(args: argparse.Namespace, cfg: Config, only: str | None = None) -> int:
    from facttune_ray.commands import run

    summary, made = run.run(cfg, only)
    if summary:
        _close(args, cfg, summary)
    elif args.json:
        print(json.dumps({"made": made}))
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
    nothing = [] if made else ["train: nothing to do, every table matches its recipe"]
    _print(args, {"models": models, "made": made}, lambda: "\n".join([*nothing, *models]))
    return 0


def _measure(args: argparse.Namespace) -> int:
    from facttune_ray.commands import run

    cfg = _config(args)
    _close(args, cfg, run.evaluate(cfg) if args.command == "evaluate" else run.report(cfg))
    return 0


def _status(args: argparse.Namespace) -> int:
    from facttune_ray.commands import status
    from facttune_ray.runtime import settings
    from facttune_ray.stages.connect import ledger_folder
    from facttune_ray.storage.folders import Folder

    cfg, folder = _config_or_folder(args)
    found = status.status(cfg, folder)
    name = folder or (cfg.run.out if cfg else "")
    ledger = str(ledger_folder(cfg or settings.of_folder(Folder.of(folder))))
    value = {"run": name, "tables": [t.as_dict() for t in found]}
    _print(args, value, lambda: status.show(name, found, ledger, _paints()))
    return 0


def _watch(args: argparse.Namespace) -> int:
    from facttune_ray.commands.watch import watch
    from facttune_ray.commands.watched import Watched

    cfg, folder = _config_or_folder(args)
    return watch(Watched.of_config(cfg) if cfg else Watched.of_folder(folder), args.port, args.open)


def _config_or_folder(args: argparse.Namespace) -> tuple[Config | None, str]:
    """(the config, "") or (None, the folder of a run), by the first word."""
    from facttune_ray.commands.status import is_run

    first = args.config[0] if args.config else ""
    if not is_run(first):
        return _config(args), ""
    if more := args.config[1:]:
        raise UserError(f"{first} is the folder of a run: it takes no config ({more[0]})")
    return None, first


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
    from facttune_ray.estimate import estimate, gpu_hours, show

    given = {"tokens_per_s": args.tokens_per_second, "tflops": args.tflops}
    rates = gpu_hours.Rates(**{k: v for k, v in given.items() if v is not None})
    if min(rates.tokens_per_s, rates.tflops, args.parameters or 1) <= 0:
        raise UserError("--tokens-per-second, --tflops and --parameters must be above 0")
    if args.topics < 1:
        raise UserError(f"--topics {args.topics}: must be at least 1")
    cfg = _config(args)
    rows = estimate.estimate(cfg, args.topics, rates, args.parameters)
    _print(args, rows, lambda: show.show(rows, cfg, rates, args.parameters))
    return 0


def _ledger(args: argparse.Namespace) -> int:
    from facttune_ray.llm import ledger_tools
    from facttune_ray.storage.tables import Folder

    folder = Folder.of(args.folder)
    return ledger_tools.main(args.action, folder, args.days, args.model, args.json)


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
    _print(args, export.plain(done), lambda: export.show(done))
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

    return articles.main_search(args.database, args.query, args.k, args.json)


def _compare(args: argparse.Namespace) -> int:
    from facttune_ray.evaluation import compare_runs, compare_topics

    if args.html is not None:
        print(compare_topics.write(args.runs, args.html))
        return 0
    found = compare_runs.compare(args.runs)
    _print(args, found, lambda: compare_runs.show(found))
    return 0


def _inspect(args: argparse.Namespace) -> int:
    from facttune_ray.evaluation import inspect_run

    if args.topic is None:
        counts = inspect_run.topics(args.run_folder)
        _print(args, counts, lambda: inspect_run.show_topics(counts, _paints()))
    else:
        chosen = (args.run_folder, args.topic, args.model, args.sample)
        found = inspect_run.responses(*chosen)
        _print(args, found, lambda: inspect_run.show_responses(found, _paints()))
    return 0


def _annotator(args: argparse.Namespace) -> int:
    from facttune_ray import config
    from facttune_ray.quickstart import annotator

    given = [f"host={args.host}", f"port={args.port}", *args.options]
    given += [f"replay={args.replay}"] if args.replay else []
    annotator.serve(config.override(annotator.AnnotatorOptions, given))
    return 0


def _completion(args: argparse.Namespace) -> int:
    from facttune_ray.commands import completion

    print(completion.script(args.shell, parser.parser()[1]))
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "demo": _demo,
    "quickstart": _quickstart,
    "run": _run,
    "stage": _run,
    "train": _train,
    "estimate": _estimate,
    "evaluate": _measure,
    "report": _measure,
    "status": _status,
    "watch": _watch,
    "config": _settings,
    "compare": _compare,
    "inspect": _inspect,
    "export": _export,
    "knowledge build": _knowledge_build,
    "knowledge index": _knowledge_index,
    "knowledge search": _knowledge_search,
    "ledger": _ledger,
    "annotator": _annotator,
    "completion": _completion,
}


if __name__ == "__main__":
    sys.exit(main())
