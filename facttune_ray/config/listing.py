"""Every setting as a row: what `facttune config`, conf/README.md and tests read.

sections(cfg)  ->  Section("train.lora", "Low-rank adapters (peft) ...", [Row("rank", ...)])
"""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from facttune_ray.config.contenders import contenders
from facttune_ray.config.kinds import allows, child_type, choices, hints, parts, section_of
from facttune_ray.config.sections import Config, ContenderSettings
from facttune_ray.config.setting import bounds_text
from facttune_ray.errors import UserError, did_you_mean

SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


@dataclass(frozen=True)
class Row:
    """One setting."""

    key: str  # within its section
    type: str  # "int or null", or the values that it may have: "none | 8bit | 4bit"
    range: str  # ">= 0"; "": no limit
    unit: str
    default: Any
    value: Any  # of the config that is shown
    description: str

    @property
    def changed(self) -> bool:
        return self.value != self.default

    @property
    def allowed(self) -> str:
        """Type, range and unit: `float > 0 or null, s`."""
        first, *null = self.type.partition(" or null")
        return ", ".join(filter(None, (f"{first} {self.range}".strip() + "".join(null), self.unit)))


@dataclass(frozen=True)
class Section:
    name: str  # dotted key
    description: str
    rows: tuple[Row, ...]


def sections(cfg: Config) -> Iterator[Section]:
    """Every section of a config in order. Where the user chooses the names of sections, a config
    without any shows `tune.NAME`, `contenders.NAME` and `llm.endpoints[0]`."""
    for name, hint in hints(Config).items():
        if name == "contenders":
            yield from _contenders(cfg)
        else:
            yield from _sections(name, hint, getattr(cfg, name), getattr(Config(), name))


def names() -> list[str]:
    """The sections of every config."""
    return list(hints(Config))


def is_section(name: str) -> bool:
    """Whether the name, or what stands before its first dot, is a section of every config."""
    return "=" not in name and name.split(".")[0] in names()


def chosen(cfg: Config, name: str) -> list[Section]:
    """A section and the sections inside it. UserError for a name that no section has."""
    every = list(sections(cfg))
    found = [s for s in every if s.name == name or s.name.startswith((f"{name}.", f"{name}["))]
    if not found:
        raise UserError(f'no section "{name}".{did_you_mean(name, [s.name for s in every])}')
    return found


def _sections(name: str, hint: Any, value: Any, default: Any) -> Iterator[Section]:
    if kind := section_of(hint):
        rows = []
        inner = []
        for field in dataclasses.fields(kind):
            mine, usual = getattr(value, field.name), getattr(default, field.name)
            inner.append((f"{name}.{field.name}", hints(kind)[field.name], mine, usual))
            if not section_of(hints(kind)[field.name]):
                rows.append(_row(field, hints(kind)[field.name], mine, usual))
        yield Section(name, " ".join((kind.__doc__ or "").split()), tuple(rows))
        for each in inner:
            yield from _sections(*each)
    elif kind := section_of(child_type(hint, "", name)):  # a dict or a list of sections
        named = value.items() if isinstance(value, dict) else enumerate(value)
        blank = [("NAME" if allows(hint, dict) else 0, kind())]
        for key, item in list(named) or blank:
            place = f"{name}[{key}]" if isinstance(key, int) else f"{name}.{key}"
            yield from _sections(place, kind, item, kind())


def _contenders(cfg: Config) -> Iterator[Section]:
    """Of each contender `of`, and the settings in which it differs from the run."""
    if not cfg.contenders:
        yield next(_sections("contenders.NAME", ContenderSettings, *[ContenderSettings()] * 2))
    names = [name for name in hints(ContenderSettings) if name != "of"]
    usual = ContenderSettings(**{name: getattr(cfg, name) for name in names})
    for one in contenders(cfg):
        mine = ContenderSettings(one.of, **{name: getattr(one.cfg, name) for name in names})
        first, *others = _sections(f"contenders.{one.name}", ContenderSettings, mine, usual)
        yield first
        for section in others:
            if rows := tuple(row for row in section.rows if row.changed):
                yield dataclasses.replace(section, rows=rows)


def _row(field: dataclasses.Field[Any], hint: Any, value: Any, default: Any) -> Row:
    about = field.metadata
    unit = about.get("json_schema_extra", {}).get("unit", "")
    return Row(
        key=field.name,
        type=_type_text(hint),
        range=bounds_text(about, SIGNS) or ("not empty" if about.get("min_length") else ""),
        unit=unit,
        default=_plain(default),
        value=_plain(value),
        description=about["description"],
    )


def _type_text(hint: Any) -> str:
    if values := choices(hint):
        return " | ".join(values)
    names = {int: "int", float: "float", bool: "true | false", str: "text", Any: "any value"}
    texts = []
    for part in parts(hint):
        inner = child_type(part, "", "")
        if allows(part, dict):
            texts.append("{NAME: " + _type_text(inner) + "}")
        elif allows(part, list):
            texts.append("[" + ("SECTION" if section_of(inner) else _type_text(inner)) + "]")
        else:
            texts.append("null" if part is type(None) else names[part])
    return " or ".join(texts)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]


# --- printed

WIDTHS = (21, 22, 22, 31)  # columns of 100 characters with the mark and the gaps

HEADER = ("key", "value [default]", "type, range, unit", "meaning")


def text_value(value: Any) -> str:
    """A value as YAML has it: null, true, 5e-07, "" for an empty text."""
    return value if isinstance(value, str) and value else json.dumps(value)


def table(shown: Iterable[Section]) -> str:
    """Sections as text of at most 100 columns. `*` marks a value that is not the default."""
    lines = [_columns(" ", HEADER), ""]
    marked = False
    for section in filter(lambda s: s.rows, shown):
        marked |= any(row.changed for row in section.rows)
        lines += [*textwrap.wrap(f"{section.name}: {section.description}", 100), ""]
        lines += [*(line for row in section.rows for line in _lines(row)), ""]
    note = "* is not the default, which stands in brackets."
    return "\n".join([*lines, note] if marked else lines[:-1])


def _lines(row: Row) -> Iterator[str]:
    value = text_value(row.value)
    if row.changed:
        value += f" [{text_value(row.default)}]"
    cells = [
        textwrap.wrap(text, width)
        for text, width in zip((row.key, value, row.allowed, row.description), WIDTHS, strict=True)
    ]
    mark = "*" if row.changed else " "
    for texts in zip_longest(*cells, fillvalue=""):
        yield _columns(mark, texts)
        mark = " "


def _columns(mark: str, texts: Iterable[str]) -> str:
    padded = (f"{text:<{width}}" for text, width in zip(texts, WIDTHS, strict=True))
    return (mark + " ".join(padded)).rstrip()


def as_json(shown: Iterable[Section]) -> str:
    """A list of settings, each with its full key."""
    rows = [
        {**vars(row), "key": f"{section.name}.{row.key}", "changed": row.changed}
        for section in shown
        for row in section.rows
    ]
    return json.dumps(rows, indent=1)
