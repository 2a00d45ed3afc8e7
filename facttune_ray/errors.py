"""Error tree: who made the mistake decides what happens.

    FacttuneError
    ├── UserError        bad input: one line on stderr, exit code 2, tables intact
    │   ├── RecipeMismatch   a table exists, made by another recipe
    │   ├── EndpointError    the LLM endpoint is down or refuses us
    │   ├── BudgetReached    llm.budget_usd is spent: exit code 3
    │   └── Stopped          another table has failed: that one's error is told
    └── RowError         one row failed: becomes that row's `error` column, the stage goes on
        └── Final            asking again would give the same: an answer was cut or filtered

Everything else is a bug and raises with its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FacttuneError(Exception):
    """Base of every error this package raises on purpose."""


class UserError(FacttuneError):
    """Bad input. The message is one line: what, where, and what to do."""

    exit_code = 2


class RecipeMismatch(UserError):
    """A table on disk was made by another recipe than the one asked for."""


class EndpointError(UserError):
    """The LLM endpoint cannot be reached, or rejects every request (401, 404, no quota)."""


class BudgetReached(UserError):
    """The run has paid `llm.budget_usd`. What is paid is kept; a higher budget goes on."""

    exit_code = 3


class Stopped(UserError):
    """Another table, made side by side with this one, has failed."""


class Missing(UserError):
    """`facttune stage NAME` came to a table that another stage has to make first."""


class RowError(FacttuneError):
    """One row could not be computed: a refusal, an unparseable answer. Data, not a crash."""


class Final(RowError):
    """An answer was cut at its most tokens, or taken by a provider's filter, as the same request's
    next answer would be."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`' Did you mean "facts"?'`, or the known names when nothing is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known)  # the most similar first
    close.sort(key=lambda other: sorted(other) != sorted(name))  # swapped letters before others
    return f' Did you mean "{close[0]}"?' if close else f" Known: {', '.join(known)}."


def one_line(error: BaseException) -> str:
    """The error's text on one line, without OmegaConf's indented key dump."""
    text = str(error).split("\n    full_key:")[0]
    return " ".join(text.split()) or type(error).__name__
