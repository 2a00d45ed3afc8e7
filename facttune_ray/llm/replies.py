"""Reads what a server replies: status, headers and body in, a `Meaning` out.

    read(HTTPReply(200, {}, b'{"choices": ...'), body)  ->  Meaning("answer", (Completion(...),))
    read(HTTPReply(503, {"retry-after": "1"}, b"..."), body)  ->  Meaning("retry", ...)

    answer      a paid answer, also an empty, cut or filtered answer
    row error   an error code says that this request alone is at fault
    refused     another 4xx: `refusals.py` decides whether it fails its row or stops the run
    retry       the same request may succeed later
    limit       429: send the same request after the cluster has slowed down
    stop        every request would fail: no credit, a wrong key

An error inside HTTP 200 is read as the status that its code names.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Any, Literal

from facttune_ray.errors import Final
from facttune_ray.llm.headers import retry_after_s

Kind = Literal["answer", "row error", "refused", "retry", "limit", "stop"]

# error.code or error.type -> (kind, hint); these come before the status
CODES: dict[str, tuple[Kind, str]] = {
    "insufficient_quota": ("stop", "the account's quota is used up"),
    "billing_hard_limit_reached": ("stop", "the account's quota is used up"),
    "invalid_api_key": ("stop", "set {key_env} (or {key_env}_FILE)"),
    "context_length_exceeded": ("row error", ""),
    "exceed_context_size_error": ("row error", ""),
    "string_above_max_length": ("row error", ""),
    "content_filter": ("row error", ""),
    "content_policy_violation": ("row error", ""),
    "invalid_prompt": ("row error", ""),
    "bio_policy": ("row error", ""),
    "misalignment_policy_violation": ("row error", ""),
}
STATUSES: dict[int, tuple[Kind, str]] = {
    401: ("stop", "set {key_env} (or {key_env}_FILE)"),
    402: ("stop", "the account has no credit left"),
    403: ("refused", "check the rights of {key_env}"),
    404: ("refused", "check {section}.model and {section}.base_url"),
    408: ("retry", ""),
    409: ("retry", ""),
    425: ("retry", ""),
    429: ("limit", ""),
}
# codes of errors inside HTTP 200 that are words -> status
NAMED = {"rate_limit_exceeded": 429, "rate_limit_error": 429, "authentication_error": 401}
# after these statuses of a gateway the model may have answered, and the answer been billed
UNKNOWN_STATUSES = {408, 502, 504, 520, 521, 522, 523, 524}
# parameter -> the hint of a refusal that names it; other parameters: {section}.params
SETTINGS = {
    "max_tokens": "change {section}.max_tokens, or set {section}.max_completion_tokens instead",
    "max_completion_tokens": "set {section}.max_completion_tokens=null",
    "max_output_tokens": "set {section}.max_tokens=null",
    "temperature": "set {section}.temperature=null",
    "n": "set sampling.choices=1",
    "logprobs": "set verdicts.logprobs=false",
    "top_logprobs": "set verdicts.logprobs=false",
}
# finish reasons of a complete answer, and of an answer cut at its token limit; every other reason
# means that a filter ended the answer
ENDED = frozenset(
    "stop eos eos_token end end_turn stop_sequence stop_token complete completed done finished "
    "tool_calls function_call tool_use".split()
)
CUT = frozenset({"length", "max_tokens", "model_length", "max_output_tokens"})
END_CHARS = 4  # characters that stand for the end token when tokens are divided by characters
MOST_TOKENS = 2**40  # a larger count is a server's mistake


@dataclass(frozen=True)
class HTTPReply:
    """A reply of the server. Names of `headers` are in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes


@dataclass(frozen=True)
class Completion:
    """One choice of a paid answer, with its share of the tokens."""

    text: str  # without the thoughts of a reasoning model, which older ledgers have in it
    prompt_tokens: int
    completion_tokens: int  # with thoughts, which are billed
    served_model: str
    attempts: int = 0  # of the request: in its first choice
    latency_s: float | None = None  # of the attempt that succeeded: in the first choice
    refusal: str | None = None
    finish_reason: str | None = None
    cost_usd: float = 0.0
    prompt_chars: int = 0  # of the request: in its first choice
    top_logprobs: str | None = None  # JSON {token: log-probability} of the first token, if sent
    thoughts: str | None = None  # of a reasoning model
    counted: str | None = None  # source of the tokens: usage | total | estimate

    @property
    def filtered(self) -> bool:
        """Whether a provider's filter ended the answer."""
        return bool(self.finish_reason) and self._finish not in ENDED | CUT

    @property
    def cut(self) -> bool:
        """Whether the answer ends at its token limit."""
        return self._finish in CUT

    @property
    def _finish(self) -> str:
        return (self.finish_reason or "").casefold()

    @property
    def answer(self) -> str:
        """The text without thoughts. Raise Final when a filter ended the answer, or when it was cut
        before its text began."""
        if self.filtered:
            raise Final(f"refused: {self.refusal}")
        text = split_thoughts(self.text)[0]
        if self.cut and not text.strip():
            raise Final("the answer was cut before its text began: raise llm.max_tokens")
        return text

    @property
    def whole_answer(self) -> str:
        """`answer`; raise Final also when the answer was cut within its text."""
        if self.cut:
            raise Final("the answer was cut at its token limit: raise llm.max_tokens")
        return self.answer


@dataclass(frozen=True)
class Meaning:
    """What a reply means for its request and for the run."""

    kind: Kind
    replies: tuple[Completion, ...] = ()  # the choices of an answer: at least one
    message: str = ""  # the text of the server's error
    hint: str = ""  # what the user can do; names our setting
    status: int | None = None
    retry_after_s: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    unknown: bool = False  # may have been billed although no answer came
    unreachable: bool = False  # no server listens there


def no_reply(message: str, unreachable: bool = False) -> Meaning:
    """The same request may succeed later. It may have been billed, unless no server listens."""
    return Meaning("retry", message=message, unknown=not unreachable, unreachable=unreachable)


def read(
    reply: HTTPReply, asked: Mapping[str, Any], section: str = "llm", key_env: str = "the key"
) -> Meaning:
    """The meaning of a reply to the body `asked`. `section`: config section that hints name."""
    text = reply.content.decode("utf-8", "replace")
    body: Any = None
    with contextlib.suppress(ValueError, RecursionError):
        body = json.loads(text)
    status, error = reply.status, _error_in(body) if reply.status < 400 else body
    if status < 300 and error is None:
        replies = replies_in(body)
        if isinstance(replies, tuple):
            return Meaning("answer", replies, status=status, headers=reply.headers)
        if replies is None:
            start = " ".join(text.split())[:80]
            message = f"HTTP {status} with a body that is no completion: {start!r}"
            return Meaning("retry", message=message, status=status, unknown=True)
        error = replies
    if status < 400:
        status = _status_in(error) or 500
    without_tags = " ".join(re.sub("<[^>]*>", " ", text).split())
    message = f"HTTP {status}: {error_text(error) or without_tags}"
    kind, hint = _row(status, error)
    if kind == "limit" and _never_fits(message):
        kind = "row error"
    if kind == "refused":
        hint = _setting(error, message, asked) or hint or f"check {section}.model and its settings"
    return Meaning(
        kind,
        message=message,
        hint=hint.format(section=section, key_env=key_env),
        status=status,
        retry_after_s=retry_after_s(reply.headers),
        headers=reply.headers,
        unknown=status in UNKNOWN_STATUSES and reply.status >= 400,
    )


# -- errors ----------------------------------------------------------------------------------


def _row(status: int, error: Any) -> tuple[Kind, str]:
    """The row of CODES or STATUSES: a code comes before its status."""
    for code in _codes(error):
        if code in CODES:
            return CODES[code]
    return STATUSES.get(status) or (("retry", "") if status >= 500 else ("refused", ""))


def _error_in(body: Any) -> Any:
    """The error inside a body of HTTP 200, or None."""
    if not isinstance(body, dict) or body.get("choices"):
        return None
    return body.get("error") or (body if body.get("object") == "error" else None)


def _fields(error: Any) -> dict:
    """The fields of an error, which may stand in a field `error`."""
    inner = error.get("error", error) if isinstance(error, dict) else None
    return inner if isinstance(inner, dict) else {}


def _codes(error: Any) -> list[str]:
    values = map(_fields(error).get, ("code", "type", "status"))
    return [str(value) for value in values if value is not None]


def _status_in(error: Any) -> int | None:
    for code in _codes(error):
        if code.isdecimal() and 400 <= int(code) < 600:
            return int(code)
        if code in NAMED:
            return NAMED[code]
    return None


def error_text(error: Any) -> str:
    """The message of an error, wherever the server has put it; "" when there is none."""
    if isinstance(error, str):
        return " ".join(error.split())
    if isinstance(error, list):  # FastAPI: one entry per field
        return "; ".join(filter(None, map(error_text, error)))
    if not isinstance(error, dict):
        return ""
    for key in ("error", "message", "detail", "msg", "error_message", "title", "errors"):
        if text := error_text(error.get(key)):
            at = ".".join(map(str, error["loc"])) if isinstance(error.get("loc"), list) else ""
            metadata = error.get("metadata")  # a router adds the message of the provider behind it
            raw = error_text(metadata.get("raw")) if isinstance(metadata, dict) else ""
            return (f"{at}: " if at else "") + text + (f": {raw}" if raw else "")
    return ""


def _setting(error: Any, message: str, asked: Mapping[str, Any]) -> str:
    """The hint for the setting that a refusal names, by its `param` or by a word of the message."""
    roles = [m.get("role") for m in asked.get("messages", ()) if isinstance(m, dict)]
    word = r"\bsystem\b" if "system" in roles else r"\bsystem role\b"
    if re.search(word, message, re.IGNORECASE):
        return "set {section}.system=user"
    param = str(_fields(error).get("param") or "")
    names = [k for k in asked if k not in ("model", "messages", "prompt")]
    if param in names or param in SETTINGS:
        names = [param]
    else:
        names = [k for k in names if re.search(rf"\b{re.escape(k)}\b", message)]
    return "; ".join(SETTINGS.get(k, f"set {{section}}.params.{k}=null") for k in names[:2])


def _never_fits(message: str) -> bool:
    """Whether a 429 says that this one request is larger than the whole limit."""
    asked = re.findall(r"request(?:ed)?\b[^0-9]{0,20}([0-9][0-9,]*)", message, re.IGNORECASE)
    limit = re.findall(r"limit\b[^0-9]{0,30}([0-9][0-9,]*)", message, re.IGNORECASE)
    numbers = [[int(n.replace(",", "")) for n in texts] for texts in (asked, limit)]
    return all(numbers) and max(numbers[0]) > max(numbers[1])


# -- answers ---------------------------------------------------------------------------------


def replies_in(body: Any) -> tuple[Completion, ...] | dict | None:
    """The choices of a chat or text completion, by index; None when the body is no completion; the
    error when a choice holds an error.

    The server counts the tokens of the whole answer. The prompt's tokens go to the first reply, 0
    to the others. The generated tokens are divided in proportion to the characters of the choices
    (and END_CHARS each), rounded so that the sum is what was paid.
    """
    try:
        choices = body["choices"]
        if len(choices) > 1:
            choices = sorted(choices, key=lambda c: int(c.get("index") or 0))
        for choice in choices:
            if isinstance(choice.get("error"), dict):
                return choice["error"]
        replies = [r for c in choices if (r := _reply(c, body)) is not None]
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        return None
    if not replies:
        return None
    prompt, generated, counted = tokens_in(body.get("usage"))
    sizes = [len(r.text) + len(r.thoughts or "") + END_CHARS for r in replies]
    parts = divided(generated, sizes) if len(replies) > 1 else [generated]
    return tuple(
        replace(r, prompt_tokens=0 if i else prompt, completion_tokens=parts[i], counted=counted)
        for i, r in enumerate(replies)
    )


def _reply(choice: Any, body: Any) -> Completion | None:
    """A choice without its tokens; None when it is quite empty."""
    message = {"content": choice["text"]} if "text" in choice else choice["message"] or {}
    finish = choice.get("finish_reason")
    content, thoughts = _parts(message.get("content"))
    text, inline = split_thoughts(content)
    for key in ("reasoning_content", "reasoning", "thinking"):
        if isinstance(message.get(key), str) and message[key]:
            thoughts = thoughts or message[key]
    refusal = message.get("refusal")
    if not content and not refusal and finish is None and not thoughts:
        return None
    finish = finish and _valid(str(finish))
    if finish and finish.casefold() not in ENDED | CUT:
        refusal = refusal or f"stopped by the provider's filter ({finish})"
    return Completion(
        text=_valid(text),
        refusal=refusal and _valid(str(refusal)),
        finish_reason=finish,
        prompt_tokens=0,
        completion_tokens=0,
        served_model=_valid(str(body.get("model") or "")),
        top_logprobs=_first_logprobs(choice.get("logprobs")),
        thoughts=_valid(thoughts or inline) or None,
    )


def _parts(content: Any) -> tuple[str, str]:
    """(text, thoughts) of content that is a text, null, or a list of parts."""
    if not isinstance(content, list):
        return (content, "") if isinstance(content, str) else ("", "")
    text, thoughts = "", ""
    for part in content:
        if isinstance(part, str):
            text += part
        elif part.get("type") in ("text", "output_text"):
            text += part.get("text") or ""
        elif part.get("type") in ("thinking", "reasoning"):
            inner = part.get("thinking") or part.get("text") or ""
            thoughts += inner if isinstance(inner, str) else _parts(inner)[0]
    return text, thoughts


def split_thoughts(text: str) -> tuple[str, str]:
    """(text, thoughts): a reasoning model may write its thoughts between <think> marks. A chat
    template that opens the thoughts leaves only the closing mark; a cut leaves only the opening."""
    before, mark, after = text.rpartition("</think>")
    answer, opened, cut = after.partition("<think>")
    return answer, (before.replace("<think>", "") if mark else "") + (cut if opened else "")


def tokens_in(usage: Any) -> tuple[int, int, str]:
    """(prompt, generated, source) tokens as they are billed. Some servers leave hidden thoughts out
    of the generated tokens, but not out of the total. (0, 0, "estimate") without counts."""
    used = usage if isinstance(usage, Mapping) else {}
    prompt = _count(used, "prompt_tokens", "input_tokens")
    generated = _count(used, "completion_tokens", "output_tokens")
    details = used.get("completion_tokens_details") or used.get("output_tokens_details")
    thoughts = _count(details, "reasoning_tokens") if isinstance(details, Mapping) else 0
    total = _count(used, "total_tokens")
    if total > prompt + generated:
        return prompt, total - prompt, "total"
    if thoughts > generated:
        return prompt, generated + thoughts, "usage"
    return prompt, generated, "usage" if prompt + generated else "estimate"


def _count(used: Mapping[str, Any], *names: str) -> int:
    for name in names:
        value = used.get(name)
        if isinstance(value, int | float) and math.isfinite(value) and value > 0:
            return min(int(value), MOST_TOKENS)
    return 0


def divided(total: int, weights: Sequence[int]) -> list[int]:
    """Whole parts of `total`, in proportion to positive `weights`. Their sum is `total`."""
    edges = [round(total * w / sum(weights)) for w in accumulate(weights, initial=0)]
    return [high - low for low, high in pairwise(edges)]


def _first_logprobs(logprobs: Any) -> str | None:
    """{"True": -0.1, ...}: the alternatives of the first token; None when the server sends none."""
    try:
        top = logprobs["content"][0]["top_logprobs"]
        return json.dumps({str(t["token"]): float(t["logprob"]) for t in top}) if top else None
    except (KeyError, IndexError, TypeError, ValueError):
        return None


def _valid(text: str) -> str:
    """The text without lone surrogates: JSON can carry them, files and tables cannot."""
    return text.encode("utf-8", "replace").decode()
