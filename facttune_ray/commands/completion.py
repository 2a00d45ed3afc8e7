"""`facttune completion bash|zsh|fish`: shell completion, made from the parser of the command line.

    source <(facttune completion bash)

The script holds all words (commands, options, presets, stages, settings), so that a Tab starts no
Python.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import NamedTuple


class Words(NamedTuple):
    """What may follow a command."""

    help: str
    options: dict[str, str]  # "--json" -> its help
    values: list[str]  # positional words: actions, presets, settings; the shell adds files


def script(shell: str, commands: Mapping[str, argparse.ArgumentParser]) -> str:
    """The script for a shell: "bash", "zsh" or "fish". `commands`: name -> its parser."""
    found = {name: _words(name, p, p.description or "") for name, p in commands.items()}
    return _fish(found) if shell == "fish" else _bash(found, shell == "zsh")


def _words(name: str, parser: argparse.ArgumentParser, help: str) -> Words:
    options: dict[str, str] = {}
    values: list[str] = []
    for action in parser._actions:
        for option in action.option_strings:
            options[option] = action.help or ""
        if isinstance(action, argparse._SubParsersAction):
            values += action.choices
            for inner in action.choices.values():
                options |= _words("", inner, "").options
        elif not action.option_strings:
            values += action.choices or []
            if action.dest == "config":
                values += [*presets(), *(f"{key}=" for key in settings())]
    if name == "stage":
        from facttune_ray.stages import STEPS

        values = [*STEPS, *values]
    elif name == "config":
        from facttune_ray.config import listing

        values = [*listing.names(), *values]
    return Words(help, options, values)


def presets() -> list[str]:
    """The presets of conf/: "bio", "gpus/8", ..."""
    from facttune_ray.config import conf_dir

    found = [p.stem for p in conf_dir().glob("*.yaml")]
    found += [f"{p.parent.name}/{p.stem}" for p in conf_dir().glob("gpus/*.yaml")]
    return sorted(found)


def settings() -> Iterator[str]:
    """The key of every setting whose section every config has: "train.lr"."""
    from facttune_ray.config import Config, listing

    for section in listing.sections(Config()):
        if "NAME" not in section.name and "[" not in section.name:
            yield from (f"{section.name}.{row.key}" for row in section.rows)


BASH = """\
# completion of facttune for {shell}: source <(facttune completion {shell})
_facttune() {{
  # not COMP_WORDS, which splits key=value
  local line="${{COMP_LINE:0:$COMP_POINT}}" words=""
  local word="${{line##* }}"
  COMPREPLY=()
  if [[ $COMP_CWORD -eq 1 ]]; then
    COMPREPLY=( $(compgen -W "{commands} --help --version" -- "$word") )
    return
  fi
  case "$word" in
    *=*) for line in "${{word#*=}}"*; do [[ -e $line ]] && COMPREPLY+=( "{prefix}$line" ); done
         return ;;
  esac
  case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  COMPREPLY=( $(compgen -W "$words" -- "$word") $(compgen -f -- "$word") )
  if [[ ${{#COMPREPLY[@]}} -eq 1 && ( ${{COMPREPLY[0]}} == *= || -d ${{COMPREPLY[0]}} ) ]]; then
    {no_space}
  fi
}}
{install}
"""
ZSH_LINES = "autoload -Uz bashcompinit && bashcompinit\ncomplete -o nospace -F _facttune facttune"


def _bash(found: Mapping[str, Words], zsh: bool) -> str:
    """The bash script, which zsh runs by its bashcompinit."""
    cases = "\n".join(
        f'    {name}) words="{" ".join([*w.options, *w.values])}" ;;' for name, w in found.items()
    )
    return BASH.format(
        shell="zsh" if zsh else "bash",
        commands=" ".join(found),
        cases=cases,
        prefix="${word%%=*}=" if zsh else "",  # bash completes what stands after "="
        no_space=":" if zsh else "compopt -o nospace 2>/dev/null",
        install=ZSH_LINES if zsh else "complete -F _facttune facttune",
    ).rstrip()


def _fish(found: Mapping[str, Words]) -> str:
    lines = ["# completion of facttune for fish: facttune completion fish | source"]
    start = "complete -c facttune -n __fish_use_subcommand -f"
    lines += [f"{start} -a {name} -d {_quoted(w.help)}" for name, w in found.items()]
    for name, w in found.items():
        seen = f'complete -c facttune -n "__fish_seen_subcommand_from {name}"'
        for option, text in w.options.items():
            kind = "-l" if option.startswith("--") else "-s"
            lines.append(f"{seen} {kind} {option.lstrip('-')} -d {_quoted(text)}")
        if w.values:
            lines.append(f'{seen} -a "{" ".join(w.values)}"')
    return "\n".join(lines)


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
