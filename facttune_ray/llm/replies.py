"""What a server may answer, as one table: status, headers and body in, a `Meaning` out.

    read(HTTPReply(200, {}, b'{"choices": ...'), asked)  ->  Meaning("answer", (Reply(...),))
    read(HTTPReply(503, {"retry-after": "1"}, b"..."), asked)  ->  Meaning("retry", ...)

    answer      every paid answer, whatever it holds: also one that is empty, cut or filtered
    row error   the server says by a code that this request alone is at fault
    refused     a 4xx that may be the row's fault or the run's: `refusals.py` decides by evidence
    retry       the same request may succeed later
    limit       429: the same, after the cluster has slowed down
    stop        the same for every request: no credit, a wrong key

An error inside HTTP 200 is read as the status that its code names.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from itertools import accumulate, pairwise
from typing import Any, Literal

Kind = Literal["answer", "row error", "refused", "retry", "limit", "stop"]

# error.code or error.type, where the status says less
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
# statuses of an error whose body, in HTTP 200, has a word for a code
NAMED = {"rate_limit_exceeded": 429, "rate_limit_error": 429, "authentication_error": 401}
# a gateway that gave up does not know whether the model has answered
UNKNOWN_STATUSES = {408, 502, 504, 520, 521, 522, 523, 524}
# our settings behind parameters, for the hint of a refusal that names one
SETTINGS = {
    "max_tokens": "change {section}.max_tokens, or set {section}.max_completion_tokens instead",
    "max_completion_tokens": "set {section}.max_completion_tokens=null",
    "max_output_tokens": "set {section}.max_tokens=null",
    "temperature": "set {section}.temperature=null",
    "n": "set sampling.choices=1",
    "logprobs": "set verdicts.logprobs=false",
    "top_logprobs": "set verdicts.logprobs=false",
}
# finish reasons of an answer that is whole, and of one that ends at its most tokens; every other
# reason is a filter's
ENDED = frozenset(
    "stop eos eos_token end end_turn stop_sequence stop_token complete completed done finished "
    "tool_calls function_call tool_use".split()
)
CUT = frozenset({"length", "max_tokens", "model_length", "max_output_tokens"})
END_CHARS = 4  # of an end mark, when tokens are shared out by characters
MOST_TOKENS = 2**40  # a count above this is a server's mistake


@dataclass(frozen=True)
class HTTPReply:
    """What came over the wire. Names of `headers` are in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes


@dataclass(frozen=True)
class Reply:
    """One choice of an answer, and its share of the tokens."""

    text: str  # without the thoughts of a reasoning model
    refusal: str | None
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int  # thoughts included, for they are billed
    model: str
    headers: Mapping[str, str]
    top_logprobs: str | None = None  # JSON, when asked for: {token: log-probability} of the first
    thoughts: str = ""
    counted: str = "usage"  # where the tokens come from: usage | total | estimate


@dataclass(frozen=True)
class Meaning:
    """What a reply means for its request and for the run."""

    kind: Kind
    replies: tuple[Reply, ...] = ()  # of an answer, at least one
    message: str = ""  # the server's own words
    hint: str = ""  # what the user can do, with the name of our setting
    status: int | None = None
    retry_after_s: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    unknown: bool = False  # it may have been billed although no answer came
    unreachable: bool = False  # nothing listens there


def read(
    reply: HTTPReply, asked: Mapping[str, Any], section: str = "llm", key_env: str = "the key"
) -> Meaning:
    """The meaning of a reply to the body `asked`. `section`: of the config, for hints."""
    text = reply.content.decode("utf-8", "replace")
    body: Any = None
    with contextlib.suppress(ValueError, RecursionError):
        body = json.loads(text)
    status, error = reply.status, _error_in(body) if reply.status < 400 else body
    if status < 300 and error is None:
        found = replies_in(body, reply.headers)
        if isinstance(found, tuple):
            return Meaning("answer", found, status=status, headers=reply.headers)
        if found is None:
            what = " ".join(text.split())[:80]
            message = f"HTTP {status} with a body that is no completion: {what!r}"
            return Meaning("retry", message=message, status=status, unknown=True)
        error = found
    if status < 400:
        status = _status_in(error) or 500
    message = f"HTTP {status}: {words(error) or ' '.join(re.sub('<[^>]*>', ' ', text).split())}"
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


def _row(status: int, error: Any) -> tuple[Kind, str]:
    """The table's row: a code goes before its status."""
    for code in _codes(error):
        if code in CODES:
            return CODES[code]
    return STATUSES.get(status) or (("retry", "") if status >= 500 else ("refused", ""))


def _error_in(body: Any) -> Any:
    """An error that HTTP 200 hides, or None."""
    if not isinstance(body, dict) or body.get("choices"):
        return None
    return body.get("error") or (body if body.get("object") == "error" else None)


def _codes(error: Any) -> list[str]:
    inner = error.get("error", error) if isinstance(error, dict) else None
    if not isinstance(inner, dict):
        return []
    return [str(inner[key]) for key in ("code", "type", "status") if inner.get(key) is not None]


def _status_in(error: Any) -> int | None:
    for code in _codes(error):
        if code.isdecimal() and 400 <= int(code) < 600:
            return int(code)
        if code in NAMED:
            return NAMED[code]
    return None


def words(error: Any) -> str:
    """The server's own words, wherever its error has them; "" when there are none."""
    if isinstance(error, str):
        return " ".join(error.split())
    if isinstance(error, list):  # FastAPI: one entry a field
        return "; ".join(filter(None, map(words, error)))
    if not isinstance(error, dict):
        return ""
    for key in ("error", "message", "detail", "msg", "error_message", "title", "errors"):
        if said := words(error.get(key)):
            at = ".".join(map(str, error["loc"])) if isinstance(error.get("loc"), list) else ""
            raw = error.get("metadata")  # a router that tells what the provider behind it said
            more = words(raw.get("raw")) if isinstance(raw, dict) else ""
            return (f"{at}: " if at else "") + said + (f": {more}" if more else "")
    return ""


def _setting(error: Any, message: str, asked: Mapping[str, Any]) -> str:
    """The setting of ours that a refusal names: by its `param`, or by a word of the message."""
    inner = error.get("error", error) if isinstance(error, dict) else {}
    param = str(inner.get("param") or "") if isinstance(inner, dict) else ""
    roles = [m.get("role") for m in asked.get("messages", ()) if isinstance(m, dict)]
    word = r"\bsystem\b" if "system" in roles else r"\bsystem role\b"
    if re.search(word, message, re.IGNORECASE):
        return "set {section}.system=user"
    names = [k for k in asked if k not in ("model", "messages", "prompt")]
    named = (
        [param]
        if param in names or param in SETTINGS
        else [k for k in names if re.search(rf"\b{re.escape(k)}\b", message)]
    )
    return "; ".join(SETTINGS.get(k, f"set {{section}}.params.{k}=null") for k in named[:2])


def _never_fits(message: str) -> bool:
    """Whether a 429 says that this one request is larger than the whole limit."""
    asked = re.findall(r"request(?:ed)?\b[^0-9]{0,20}([0-9][0-9,]*)", message, re.IGNORECASE)
    limit = re.findall(r"limit\b[^0-9]{0,30}([0-9][0-9,]*)", message, re.IGNORECASE)
    numbers = [[int(n.replace(",", "")) for n in found] for found in (asked, limit)]
    return all(numbers) and max(numbers[0]) > max(numbers[1])


# -- answers ---------------------------------------------------------------------------------


def replies_in(body: Any, headers: Mapping[str, str]) -> tuple[Reply, ...] | dict | None:
    """The choices of a chat or text completion, by index; None when it is no completion; the error
    that a choice holds in place of a text.

    The server counts tokens of the whole answer: the prompt's stand in the first reply, 0 in the
    others; the generated ones are shared out in proportion to the choices' characters (and about
    one token's worth of them for the end mark), rounded so that the sum stays what was paid.
    """
    try:
        choices = body["choices"]
        if len(choices) > 1:
            choices = sorted(choices, key=lambda c: int(c.get("index") or 0))
        for choice in choices:
            if isinstance(choice.get("error"), dict):
                return choice["error"]
        found = [r for c in choices if (r := _reply(c, headers, body)) is not None]
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        return None
    if not found:
        return None
    prompt, generated, counted = tokens_in(body.get("usage"))
    sizes = [len(r.text) + len(r.thoughts) + END_CHARS for r in found]
    shares = shared(generated, sizes) if len(found) > 1 else [generated]
    return tuple(
        replace(r, prompt_tokens=0 if i else prompt, completion_tokens=shares[i], counted=counted)
        for i, r in enumerate(found)
    )


def _reply(choice: Any, headers: Mapping[str, str], body: Any) -> Reply | None:
    """A choice without its tokens; None when it says nothing at all."""
    message = {"content": choice["text"]} if "text" in choice else choice["message"] or {}
    finish = choice.get("finish_reason")
    said, thoughts = _parts(message.get("content"))
    text, inline = split_thoughts(said)
    for key in ("reasoning_content", "reasoning", "thinking"):
        if isinstance(message.get(key), str) and message[key]:
            thoughts = thoughts or message[key]
    refusal = message.get("refusal")
    if not said and not refusal and finish is None and not thoughts:
        return None
    finish = finish and _valid(str(finish))
    if finish and finish.casefold() not in ENDED | CUT:
        refusal = refusal or f"stopped by the provider's filter ({finish})"
    return Reply(
        text=_valid(text),
        refusal=refusal and _valid(str(refusal)),
        finish_reason=finish,
        prompt_tokens=0,
        completion_tokens=0,
        model=_valid(str(body.get("model") or "")),
        headers=headers,
        top_logprobs=_first_logprobs(choice.get("logprobs")),
        thoughts=_valid(thoughts or inline),
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
            said = part.get("thinking") or part.get("text") or ""
            thoughts += said if isinstance(said, str) else _parts(said)[0]
    return text, thoughts


def split_thoughts(text: str) -> tuple[str, str]:
    """(text, thoughts): a reasoning model may write its thoughts between <think> marks. A template
    that opens the thoughts itself leaves only the closing mark; a cut leaves only the opening."""
    before, mark, after = text.rpartition("</think>")
    answer, opened, cut = after.partition("<think>")
    return answer, (before.replace("<think>", "") if mark else "") + (cut if opened else "")


def tokens_in(usage: Any) -> tuple[int, int, str]:
    """(prompt, generated, where they come from) as billed: hidden thoughts, which some servers
    leave out of the generated tokens, are in the total. (0, 0, "estimate") without counts."""
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


def total_tokens(reply: Reply) -> int:
    return reply.prompt_tokens + reply.completion_tokens


def _count(used: Mapping[str, Any], *names: str) -> int:
    for name in names:
        value = used.get(name)
        if isinstance(value, int | float) and math.isfinite(value) and value > 0:
            return min(int(value), MOST_TOKENS)
    return 0


def shared(total: int, weights: Sequence[int]) -> list[int]:
    """Whole parts of `total` in proportion to `weights` (above 0), which add up to it."""
    edges = [round(total * w / sum(weights)) for w in accumulate(weights, initial=0)]
    return [high - low for low, high in pairwise(edges)]


def _first_logprobs(logprobs: Any) -> str | None:
    """{"True": -0.1, ...}: the first token's alternatives; None when the server tells none."""
    try:
        top = logprobs["content"][0]["top_logprobs"]
        return json.dumps({str(t["token"]): float(t["logprob"]) for t in top}) if top else None
    except (KeyError, IndexError, TypeError, ValueError):
        return None


def _valid(text: str) -> str:
    """JSON can carry half a surrogate pair; no file or table can."""
    return text.encode("utf-8", "replace").decode()


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds of `retry-after-ms` (finer, OpenAI) or `retry-after` (a number or a date); None
    without them."""
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name, "")
        with contextlib.suppress(ValueError, OverflowError):
            try:
                seconds = float(text) * scale
            except ValueError:
                seconds = parsedate_to_datetime(text).timestamp() - time.time()
            if math.isfinite(seconds):
                return max(0.0, seconds)
    return None
