"""Rows of preferences in the forms of well-known data sets -> the forms that `given.py` groups.

in   {"instruction": "Who is Ada?", "generations": ["Ada was ...", "She ..."], "ratings": [5, 2]}
out  {"prompt": [Turn("user", "Who is Ada?")], "responses": ["Ada was ...", "She ..."],
      "rewards": [5, 2]}

Each form is a function and a line of FORMS. A prompt becomes a conversation: one user message, or
several turns with an optional system message. Texts may be chat messages with "role" and "content"
or with "from" and "value", and a content may be a list of text parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from facttune_ray.errors import RowError
from facttune_ray.sampling.templates import Turn

Row = Mapping[str, Any]
ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "chatgpt": "assistant",
}  # fmt: skip
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"  # marks in the texts of HH


def parsed(row: Row) -> dict[str, Any]:
    """The row with "prompt" as a list of turns, and "chosen" and "rejected", or "responses" with
    "rewards" or "pairs", as texts or None. Columns of null count as missing. RowError for a row
    that has another form."""
    row = {k: v for k, v in row.items() if v is not None}
    for columns, parse in FORMS.items():
        if row.keys() >= set(columns):
            row |= parse(row)
            break
    turns = turns_of("prompt", row["prompt"]) if "prompt" in row else []
    out: dict[str, Any] = {
        k: row[k] for k in ("topic", "rewards", "pairs", "responses") if k in row
    }
    for name in ("chosen", "rejected"):
        if name in row:
            turns, out[name] = _answer(name, row[name], turns)
    if isinstance(row.get("responses"), list):
        out["responses"] = []
        for i, value in enumerate(row["responses"]):
            text = None
            if value is not None or "rewards" not in row:
                turns, text = _answer(f"responses[{i}]", value, turns)
            out["responses"].append(text)
    system = row.get("system")
    if isinstance(system, str) and system.strip() and turns and turns[0].role != "system":
        turns = [Turn("system", system), *turns]
    return out | ({"prompt": _checked(turns)} if turns else {}) | {"columns": sorted(row)}


# ---------------------------------------------------------------- forms


def _generations(row: Row) -> dict:
    """distilabel and Argilla: {"instruction": ..., "generations": [...], "ratings": [...]}"""
    ratings = next((row[k] for k in ("rewards", "ratings", "rating") if k in row), None)
    found = {"responses": row["generations"], **_instructed(row)}
    return found if ratings is None else found | {"rewards": ratings}


def _completions(row: Row) -> dict:
    """UltraFeedback: {"instruction": ..., "completions": [{"response": ..., "overall_score": 7},
    ...]}"""
    completions = row["completions"]
    if not isinstance(completions, list) or not all(isinstance(c, dict) for c in completions):
        raise RowError('"completions" must be a list of objects with "response"')
    scores = [c.get("overall_score", c.get("fine-grained_score")) for c in completions]
    texts = [c.get("response") for c in completions]
    return {"responses": texts, "rewards": scores, **_instructed(row)}


def _openai(row: Row) -> dict:
    """OpenAI's preference files: {"input": {"messages": [...]}, "preferred_output": [...], ...}"""
    asked = row["input"].get("messages") if isinstance(row["input"], dict) else row["input"]
    return {
        "prompt": asked,
        "chosen": row["preferred_output"],
        "rejected": row["non_preferred_output"],
    }


def _sharegpt(row: Row) -> dict:
    """ShareGPT pairs: {"conversations": [{"from": "human", "value": ...}], "chosen": {...}, ...}"""
    return {"prompt": row["conversations"]}


def _alpaca(row: Row) -> dict:
    """Alpaca pairs: {"instruction": ..., "input": "", "chosen": ..., "rejected": ...}, with the
    earlier turns in "history": [["question", "answer"], ...]"""
    return _instructed(row)


def _alpaca_outputs(row: Row) -> dict:
    """Alpaca pairs: {"instruction": ..., "input": "", "output": ["the better", "the worse"]}"""
    output = row["output"]
    if not isinstance(output, list) or len(output) != 2:
        raise RowError('"output" must be a list of the better and the worse answer')
    return {"chosen": output[0], "rejected": output[1], **_instructed(row)}


def _argilla(row: Row) -> dict:
    """Argilla's pairs: {"instruction": ..., "chosen_response": ..., "rejected_response": ...}"""
    pair = {"chosen": row["chosen_response"], "rejected": row["rejected_response"]}
    return pair | _instructed(row)


def _question(row: Row) -> dict:
    """Orca's pairs: {"system": ..., "question": ..., "chosen": ..., "rejected": ...}"""
    return {"prompt": row["question"]}


def _dialogues(row: Row) -> dict:
    """HH: both texts are dialogues with the same beginning, marked by "Human:" and "Assistant:"."""
    chosen, rejected = row["chosen"], row["rejected"]
    both = isinstance(chosen, str) and isinstance(rejected, str)
    if "prompt" in row or not both or not chosen.lstrip().startswith(HUMAN.strip()):
        return {}
    same = 0
    while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
        same += 1
    start = chosen.rfind(ASSISTANT, 0, same)
    if start < 0:
        raise RowError('"chosen" and "rejected" are dialogues that begin differently')
    turns = []
    for part in ("\n\n" + chosen[:start].lstrip()).split(HUMAN)[1:]:
        asked, *answers = part.split(ASSISTANT)
        turns += [{"role": "user", "content": asked.strip()}]
        turns += [{"role": "assistant", "content": a.strip()} for a in answers]
    cut = start + len(ASSISTANT)
    return {"prompt": turns, "chosen": chosen[cut:].strip(), "rejected": rejected[cut:].strip()}


# columns that a row must have -> how it is read; the first that fits
FORMS: dict[tuple[str, ...], Callable[[Row], dict]] = {
    ("input", "preferred_output", "non_preferred_output"): _openai,
    ("completions",): _completions,
    ("generations",): _generations,
    ("chosen_response", "rejected_response"): _argilla,
    ("conversations", "chosen", "rejected"): _sharegpt,
    ("instruction", "chosen", "rejected"): _alpaca,
    ("instruction", "output"): _alpaca_outputs,
    ("question", "chosen", "rejected"): _question,
    ("chosen", "rejected"): _dialogues,
}


# ---------------------------------------------------------------- fields


def _instructed(row: Row) -> dict:
    """The prompt of a row with "instruction", "input" and "history", unless it has a "prompt"."""
    if "prompt" in row or not (row.keys() & {"instruction", "input"}):
        return {}
    texts = [row[k] for k in ("instruction", "input") if row.get(k)]
    if not all(isinstance(t, str) for t in texts):
        raise RowError('"instruction" and "input" must be texts')
    history = row.get("history", [])
    if not isinstance(history, list) or not all(_two_texts(h) for h in history):
        raise RowError('"history" must be a list of [question, answer]')
    turns = [(role, t) for h in history for role, t in zip(("user", "assistant"), h, strict=True)]
    turns.append(("user", "\n".join(texts)))
    return {"prompt": [{"role": role, "content": text} for role, text in turns]}


def _two_texts(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value)


def turns_of(name: str, value: Any) -> list[Turn]:
    """A text as one user message, or chat messages."""
    if isinstance(value, str):
        return [Turn("user", value)]
    messages = [value] if isinstance(value, dict) else value
    if (
        not isinstance(messages, list)
        or not messages
        or not all(isinstance(m, dict) for m in messages)
    ):
        raise RowError(f'"{name}" must be a text or a list of chat messages, not {value!r:.40}')
    return [_turn(name, m) for m in messages]


def _turn(name: str, message: Mapping[str, Any]) -> Turn:
    keys = ("from", "value") if "from" in message else ("role", "content")
    role, content = (message.get(k) for k in keys)
    if isinstance(content, list):
        for part in content:
            kind = part.get("type", "text") if isinstance(part, dict) else type(part).__name__
            if kind != "text" or not isinstance(part.get("text"), str):
                raise RowError(
                    f'"{name}" has a part of type {kind!r:.40}: only texts are trained on'
                )
        content = "".join(part["text"] for part in content)
    if not isinstance(role, str) or not isinstance(content, str):
        raise RowError(f'"{name}": a chat message needs "role" and "content", both texts')
    if role not in ROLES:
        raise RowError(f'"{name}" has a message of role {role!r:.40}: only {", ".join(ROLES)}')
    return Turn(ROLES[role], content)


def _answer(name: str, value: Any, turns: list[Turn]) -> tuple[list[Turn], str]:
    """(conversation before the answer, its text). The answer may be a text, or a message alone or
    behind messages. `turns`: the conversation so far. The shorter of the two must be the end of the
    longer.
    """
    if isinstance(value, str):
        return turns, value
    *before, last = turns_of(name, value)
    short, long = sorted((turns, before), key=len)
    end = long[len(long) - len(short) :]
    same = all(
        a.role == b.role and a.content.rstrip() == b.content.rstrip()
        for a, b in zip(short, end, strict=True)
    )
    if last.role != "assistant" or not same:
        raise RowError(f'"{name}" must be an assistant message, alone or behind the prompt\'s')
    return (turns if len(turns) >= len(before) else before), last.content


def _checked(turns: list[Turn]) -> list[Turn]:
    """The turns without white space at their end. RowError unless a user speaks last."""
    roles = [t.role for t in turns]
    if roles[-1] != "user" or "system" in roles[1:]:
        raise RowError(f'"prompt" must end with a user message, not {", ".join(roles)}')
    last = turns[-1].content.rstrip()
    if not last:
        raise RowError('"prompt" is empty')
    return [*turns[:-1], Turn("user", last)]
