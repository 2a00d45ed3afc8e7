"""The interface of a sampling engine, and the token ids of prompts and responses.

    sampler.sample(SampleRequest(["Write a biography of Mara Veldt."], n=2, seeds=[7],
                                 max_tokens=64, temperature=1.0, top_p=1.0))
    -> [[Sample(text="Mara Veldt was born in Ostrava. ...", tokens=31, finished=True),
         Sample(text="Mara Veldt studied physics. ...", tokens=29, finished=True)]]

Training and sampling build the model's input here and nowhere else:

    plain model   <bos if the tokenizer adds one> prompt "\\n" | response <eos, or a stop>
    chat model    chat template up to the answer (templates.py)           | response <end of turn>

Left of the bar is the prompt (`encode_prompt`), right of it the response (`encode_response`).
The two sides are tokenised separately, so a response's tokens never depend on its prompt.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple, Protocol

from facttune_ray.errors import UserError
from facttune_ray.sampling.templates import (
    Chat,
    Turn,
    plain_text,
    prompt_text,
    text_behind_answer,
    uses_chat,
)


class Sample(NamedTuple):
    text: str  # as generated: not stripped, without end mark, cut before the first `stop`
    tokens: int  # generated tokens, end mark or stop token included
    finished: bool  # True: ended by an end mark or a `stop`; False: reached `max_tokens`
    thoughts: str = ""  # of a reasoning model, which an endpoint returns separately
    error: str | None = None  # why this sample has no text


@dataclass(frozen=True)
class SampleRequest:
    """n samples of each prompt. UserError for values that no engine can serve."""

    prompts: list[str]
    _: KW_ONLY
    n: int
    seeds: list[int]  # one a prompt; the samples of a prompt depend on no other seed
    max_tokens: int | list[int]  # of every sample, or one number a prompt
    temperature: float  # 0: greedy
    top_p: float  # in (0, 1]
    prefix: str = ""  # text before every prompt, such as worked questions; implies `raw`
    stop: tuple[str, ...] = ()  # strings that end a sample
    raw: bool = False  # continue the prompts exactly: no newline, no chat template
    # The start of each prompt's response. The samples continue it and do not repeat it. Spaces at
    # its end are dropped; a sample begins with its own: " Ostrava", or "trava" after "Os".
    beginnings: list[str] | None = None

    def __post_init__(self) -> None:
        prompts = len(self.prompts)
        for name, count in (("seeds", len(self.seeds)), ("max_tokens", len(self.limits))):
            if count != prompts:
                raise UserError(f"{prompts} prompts but {count} {name}: give one a prompt.")
        given = self.max_tokens
        smallest = min(given, default=1) if isinstance(given, list) else given
        if self.n < 1 or smallest < 1:
            raise UserError(f"n is {self.n} and max_tokens is {smallest}: both must be at least 1.")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise UserError(
                f"temperature is {self.temperature} and top_p is {self.top_p}: "
                "temperature must be 0 or more, top_p above 0 and at most 1."
            )
        if isinstance(self.stop, str) or "" in self.stop:
            raise ValueError(f"stop is {self.stop!r}: it must be a tuple of texts, none empty")
        if self.beginnings is not None:
            if self.prefix:
                raise ValueError("with `prefix`, put the beginnings into the prompts")
            if len(self.beginnings) != prompts:
                raise ValueError(f"{prompts} prompts but {len(self.beginnings)} beginnings")

    @property
    def limits(self) -> list[int]:
        """The largest number of generated tokens, by prompt."""
        if isinstance(self.max_tokens, list):
            return self.max_tokens
        return [self.max_tokens] * len(self.prompts)


class Sampler(Protocol):
    """An engine that samples texts."""

    def sample(self, request: SampleRequest) -> list[list[Sample]] | Awaitable[list[list[Sample]]]:
        """A list of n samples for each prompt, in the prompts' order. An engine that waits for a
        network returns an awaitable. A sample that failed has an `error` and no text."""
        ...

    def count_tokens(self, texts: list[str]) -> list[int]:
        """How many tokens each text has when it stands within a response (no bos, no eos)."""
        ...


def failure(samples: list[Sample]) -> str | None:
    """The first error if all samples of a prompt failed, else None."""
    return samples[0].error if all(s.error for s in samples) else None


def texts(samples: list[Sample]) -> list[str] | None:
    """The texts of the samples that did not fail; None if all failed."""
    return [s.text for s in samples if s.error is None] or None


def cut(text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
    """(the text before the first of `stops`, whether one of them is in the text)."""
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    return (text[: min(ends)], True) if ends else (text, False)


def encode_prompt(tokenizer: Any, prompt: str | Sequence[Turn], chat: Chat = "auto") -> list[int]:
    """Token ids of a prompt, one message or a conversation, up to where the response begins."""
    turns = [Turn("user", prompt)] if isinstance(prompt, str) else prompt
    if uses_chat(tokenizer, chat):
        return _encode(tokenizer, prompt_text(tokenizer, turns, chat))
    return encode_raw(tokenizer, plain_text(turns))


def encode_raw(tokenizer: Any, text: str) -> list[int]:
    """Token ids of text that a model continues as it is: bos, if the model has one, and no eos."""
    ids = _encode(tokenizer, text)
    return [tokenizer.bos_token_id, *ids] if adds_bos(tokenizer) else ids


def encode_started(tokenizer: Any, prompt: str, beginning: str, chat: Chat = "auto") -> list[int]:
    """Token ids of a prompt and the beginning of its response.

    Spaces at the end are dropped: in training a space belongs to the token after it, so a model
    that is shown a lone space continues in a way that it never learned.
    """
    return encode_prompt(tokenizer, prompt, chat) + _encode(tokenizer, beginning.rstrip(" "))


def encode_request(
    tokenizer: Any, request: SampleRequest, chat: Chat = "auto"
) -> tuple[list[int], list[list[int]]]:
    """(token ids of the prefix, token ids of every prompt behind it). UserError if a prompt has
    no token."""
    prefix: list[int] = []
    if request.beginnings is not None:
        pairs = list(zip(request.prompts, request.beginnings, strict=True))
        if request.raw:
            encoded = [encode_raw(tokenizer, (p + b).rstrip(" ")) for p, b in pairs]
        else:
            encoded = [encode_started(tokenizer, p, b, chat) for p, b in pairs]
    elif request.prefix:
        # The prefix carries bos; the prompts behind it are tokenised separately, without bos.
        prefix = encode_raw(tokenizer, request.prefix)
        encoded = [_encode(tokenizer, p) for p in request.prompts]
    elif request.raw:
        encoded = [encode_raw(tokenizer, p) for p in request.prompts]
    else:
        encoded = [encode_prompt(tokenizer, p, chat) for p in request.prompts]
    for i, ids in enumerate(encoded):
        if not ids:
            raise UserError(f"Prompt {i} is empty after tokenisation.")
    return prefix, encoded


def encode_response(tokenizer: Any, response: str, end: int) -> list[int]:
    """Token ids of a response and its end mark."""
    return [*_encode(tokenizer, response), end]


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def token_counts(tokenizer: Any, texts: list[str]) -> list[int]:
    """The number of tokens of each text within a response, that is behind a word; 0 if empty."""
    if not texts:
        return []
    rows = tokenizer(["a", *(f"a {t}" for t in texts)], add_special_tokens=False)["input_ids"]
    return [len(row) - len(rows[0]) if t else 0 for t, row in zip(texts, rows[1:], strict=True)]


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer puts bos before a text. Tested on a text: its flags are unreliable."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a")["input_ids"][:1] == [bos]


def end_mark(tokenizer: Any, chat: Chat = "auto", stops: Sequence[str] = ()) -> int:
    """The token that ends a response: eos, or the special token that the chat template puts behind
    an answer, such as Gemma's <end_of_turn>. The samples of a plain model with `stops` end at such
    a text, so their end mark is the first of `stops` that is one token."""
    if tokenizer.eos_token_id is None:
        raise UserError("The tokenizer has no eos_token, which ends a response. Set one.")
    if not uses_chat(tokenizer, chat):
        encoded = (_encode(tokenizer, stop) for stop in stops)
        return next((ids[0] for ids in encoded if len(ids) == 1), tokenizer.eos_token_id)
    behind = text_behind_answer(tokenizer, chat)
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids = _encode(tokenizer, behind)
    return next((i for i in ids if i in special), tokenizer.eos_token_id)


def end_ids(tokenizer: Any, model: Any) -> set[int]:
    """All tokens that may end a response of the model."""
    configured = model.generation_config.eos_token_id
    eos_ids = configured if isinstance(configured, list) else [configured]
    return {i for i in [*eos_ids, tokenizer.eos_token_id, end_mark(tokenizer)] if i is not None}
