"""conf/README.md and conf/schema.json, made from the settings.

python -m facttune_ray.config.reference       writes both

conf/README.md keeps the text above the line MARK; everything below it is made. An editor with a
YAML language server completes and checks a preset whose first line names the schema:

# yaml-language-server: $schema=schema.json
"""

from __future__ import annotations

import json
from typing import Any

from facttune_ray.config.listing import Row, sections, text_value
from facttune_ray.config.load import conf_dir
from facttune_ray.config.sections import Config, ContenderSettings

MARK = "<!-- Everything below is made by: python -m facttune_ray.config.reference -->"
HEAD = f"""# Settings

A preset is a YAML file of sections. `facttune run bio gpus/8 train.lr=3e-5` layers presets in order
and then `key=value`. `facttune config [SECTION] [CONFIG...]` prints the values that result.

{MARK}
"""


def markdown(above: str = HEAD) -> str:
    """The reference: one table a section, below what `above` has up to MARK."""
    blocks = [above.partition(MARK)[0] + MARK]
    listed: dict[tuple[str, ...], str] = {}  # keys of a section -> its name
    for section in sections(Config()):
        keys = tuple(row.key for row in section.rows)
        name = section.name.replace("[0]", "[]")
        blocks.append(f"## `{name}`\n\n{section.description}")
        if (first := listed.setdefault(keys, name)) == name:
            blocks.append("\n".join([*TOP, *map(_line, section.rows)]))
        else:
            blocks.append(f"The keys of `{first}`.{_differs(section.rows, first)}")
        if name == "contenders.NAME":
            names = (f"`{n}`" for n in vars(ContenderSettings()) if n != "of")
            blocks.append(f"Also keys of the sections {', '.join(names)}, to change them.")
    return "\n\n".join(blocks) + "\n"


TOP = ("| key | default | allowed | meaning |", "| --- | --- | --- | --- |")


def _line(row: Row) -> str:
    cells = (f"`{row.key}`", f"`{text_value(row.default)}`", row.allowed, row.description)
    return f"| {' | '.join(c.replace('|', chr(92) + '|') for c in cells)} |"


def _differs(rows: tuple[Row, ...], first: str) -> str:
    usual = {
        f"{s.name.replace('[0]', '[]')}.{r.key}": r for s in sections(Config()) for r in s.rows
    }
    other = [r for r in rows if r.default != usual[f"{first}.{r.key}"].default]
    texts = [f"`{r.key}: {text_value(r.default)}`" for r in other]
    return f" Other defaults: {', '.join(texts)}." if texts else ""


def schema() -> dict[str, Any]:
    """JSON schema of a preset. `${...}` is not known to it: an editor marks it in a number."""
    from pydantic import TypeAdapter

    kinds = [(kind.__name__, "validation", TypeAdapter(kind)) for kind in KINDS]
    _, made = TypeAdapter.json_schemas(kinds, title="A preset of facttune_ray")  # type: ignore[arg-type]
    made["$defs"]["ContenderSettings"]["additionalProperties"] = False
    for definition in made["$defs"].values():
        for about in definition["properties"].values():
            about.pop("title", None)  # the key in other letters
    contenders = made["$defs"]["Config"]["properties"]["contenders"]
    contenders["additionalProperties"] = {"$ref": "#/$defs/ContenderSettings"}
    start = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$ref": "#/$defs/Config"}
    return start | made


KINDS = (Config, ContenderSettings)


def main() -> None:
    """Write both files into conf/."""
    readme = conf_dir() / "README.md"
    readme.write_text(markdown(readme.read_text() if readme.exists() else HEAD))
    (conf_dir() / "schema.json").write_text(json.dumps(schema(), indent=1) + "\n")


if __name__ == "__main__":
    main()
