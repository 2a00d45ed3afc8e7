"""Errors that this package raises on purpose.

    FacttuneError
    ├── UserError        bad input: one line on stderr, exit code 2, tables intact
    │   ├── RecipeMismatch   a table exists, made by another recipe
    │   ├── EndpointError    the LLM endpoint is down or refuses every request
    │   ├── BudgetReached    llm.budget_usd is spent: exit code 3
    │   ├── Stopped          another table failed first: that table's error is printed
    │   └── Missing          `facttune stage NAME` needs a table of another stage
    └── RowError         one row failed: becomes the row's `error` column, the stage goes on
        └── Final            a retry would fail alike: the answer was truncated or filtered

Every other exception is a bug and is raised with its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FacttuneError(Exception):
    """Base class of the errors that this package raises on purpose."""


class UserError(FacttuneError):
    """Bad input. The message is one line: file, key or row; what is wrong; what to do."""

    exit_code = 2


class RecipeMismatch(UserError):
    """The recipe of a table on disk differs from the requested recipe."""


class EndpointError(UserError):
    """The LLM endpoint cannot be reached, or rejects every request (401, 404, no quota)."""


class BudgetReached(UserError):
    """The run has spent `llm.budget_usd`. Paid completions are kept; a higher budget resumes."""

    exit_code = 3


class Stopped(UserError):
    """Another table, made at the same time as this one, has failed."""


class Missing(UserError):
    """`facttune stage NAME` needs a table that another stage has to make first."""


class RowError(FacttuneError):
    """One row could not be computed: a refusal, an unreadable answer. It is data, not a crash."""


class Final(RowError):
    """An answer was truncated at its token limit or removed by the provider's filter. The same
    request would fail again."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`' Did you mean "facts"?'`, or the known names when no name is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known)  # the most similar first
    close.sort(key=lambda other: sorted(other) != sorted(name))  # swapped letters before others
    return f' Did you mean "{close[0]}"?' if close else f" Known: {', '.join(known)}."


def one_line(error: BaseException) -> str:
    """The error's text on one line, without OmegaConf's indented key dump."""
    text = str(error).split("\n    full_key:")[0]
    return " ".join(text.split()) or type(error).__name__
