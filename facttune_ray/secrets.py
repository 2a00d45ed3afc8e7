"""Secrets: from the environment or a file that it names, and in nothing that is written.

key("OPENAI_API_KEY")      its value, or the content of the file in OPENAI_API_KEY_FILE
redact("401: sk-abc...")   "401: [key]": every secret this process knows, and what looks like one
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from pathlib import Path
from types import TracebackType

from facttune_ray.errors import UserError

FILE = "_FILE"  # OPENAI_API_KEY_FILE names a file that holds the key
# variables of other programs that hold secrets
VARIABLES = re.compile(r"(API_KEY|_TOKEN|_SECRET|SECRET_ACCESS_KEY|ACCESS_KEY_ID|PASSWORD)$")
SHAPES = re.compile(r"(?i)(bearer\s+|\bsk-|\bhf_)[\w*.-]{6,}")
SHORTEST = 6  # characters: shorter values are words, not secrets
_read: set[str] = set()  # what `key` has given out


def key(variable: str) -> str:
    """The key that a variable holds or, when it is not set, that the file in `variable`_FILE holds;
    "" when neither is set. UserError when the file cannot be read."""
    value = os.environ.get(variable, "").strip()  # files of keys end in newlines
    if not value and (file := os.environ.get(variable + FILE)):
        try:
            value = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as e:
            why = getattr(e, "strerror", None) or "not UTF-8"
            raise UserError(f"{variable}{FILE}={file}: cannot be read: {why}") from None
    if value:
        _read.add(value)
    return value


def known() -> set[str]:
    """Values that must not be shown: keys that were read, and the environment's secrets."""
    found = {v for name, v in os.environ.items() if VARIABLES.search(name)}
    return {v for v in found | _read if len(v) >= SHORTEST and v != "none"}


def redact(text: str) -> str:
    """The text without any of them."""
    for value in sorted(known(), key=len, reverse=True):
        text = text.replace(value, "[key]")
    return SHAPES.sub(r"\1[key]", text)


def install() -> None:
    """Tracebacks of this process show no secret."""
    sys.excepthook = _excepthook


def _excepthook(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    print(redact("".join(traceback.format_exception(kind, error, trace))), file=sys.stderr, end="")
