"""Read secrets from the environment, and remove them from every text that is written.

key("OPENAI_API_KEY")      its value, or the content of the file that OPENAI_API_KEY_FILE names
redact("401: sk-abc...")   "401: [key]": known secrets, and words with the shape of a secret
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
# names of environment variables that hold secrets
VARIABLES = re.compile(r"(API_KEY|_TOKEN|_SECRET|SECRET_ACCESS_KEY|ACCESS_KEY_ID|PASSWORD)$")
SHAPES = re.compile(r"(?i)(bearer\s+|\bsk-|\bhf_)[\w*.-]{6,}")
SHORTEST = 6  # characters: shorter values are words, not secrets
_read: set[str] = set()  # every value that `key` has returned


def key(variable: str) -> str:
    """The value of an environment variable, else the content of the file that `variable`_FILE
    names, else "". Raise UserError when the file cannot be read."""
    value = os.environ.get(variable, "").strip()
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
    values = {value for name, value in os.environ.items() if VARIABLES.search(name)} | _read
    return {value for value in values if len(value) >= SHORTEST and value != "none"}


def redact(text: str) -> str:
    """The text with "[key]" in place of each secret."""
    for value in sorted(known(), key=len, reverse=True):
        text = text.replace(value, "[key]")
    return SHAPES.sub(r"\1[key]", text)


def install() -> None:
    """Remove secrets from the tracebacks of this process."""
    sys.excepthook = _excepthook


def _excepthook(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    print(redact("".join(traceback.format_exception(kind, error, trace))), file=sys.stderr, end="")
