"""What a sampling engine promises, and how text becomes a model's input.

    sampler.sample(["Write a biography of Mara Veldt."], n=2, seeds=[7], max_tokens=64,
                   temperature=1.0, top_p=1.0)
    -> [[Sample(text="Mara Veldt was born in Ostrava. ...", tokens=31, finished=True),
         Sample(text="Mara Veldt studied physics. ...", tokens=29, finished=True)]]

Training and sampling build the model's input here and nowhere else:

    plain model   <bos if the tokenizer adds one> prompt "\\n" | response <eos>
    chat model    chat template of [{"role": "user", "content": prompt}] | response <end of turn>

Left of the bar is the prompt (`encode_prompt`), right of it the response (`encode_response`).
The two sides are tokenised apart, so a response's tokens never depend on its prompt.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Literal, NamedTuple, Protocol

from facttune_ray.errors import UserError

Chat = Literal["auto", "never"]


class Sample(NamedTuple):
    text: str  # as generated: not stripped, without end mark, cut before `stop`
    tokens: int  # generated tokens, end mark or stop token included
    finished: bool  # ended by end mark or `stop`; False: `max_tokens` was reached
    thoughts: str = ""  # of a reasoning model, kept apart by an endpoint
    error: str | None = None  # why this sample has no text


class Failed(list[Sample]):
    """No samples of a prompt, and why: the `error` of its row."""

    def __init__(self, error: str) -> None:
        super().__init__()
        self.error = error


def failure(samples: list[Sample]) -> str | None:
    """Why a prompt has no samples with a text; None when it has some."""
    if not samples:
        return getattr(samples, "error", "the sampling engine gave no samples")
    return samples[0].error if all(s.error for s in samples) else None


def texts(samples: list[Sample]) -> list[str] | None:
    """The texts of those samples that have one; None when none has."""
    return [s.text for s in samples if s.error is None] or None


class Sampler(Protocol):
    """An engine that samples texts. One list of n samples a prompt, in the prompts' order."""

    def sample(
        self,
        prompts: list[str],
        *,
        n: int,
        seeds: list[int],
        max_tokens: int | list[int],
        temperature: float,
        top_p: float,
        prefix: str = "",
        stop: str | None = None,
        raw: bool = False,
        begun: list[str] | None = None,
    ) -> list[list[Sample]] | Awaitable[list[list[Sample]]]:
        """Draw n samples a prompt. An engine that waits for a network returns an awaitable.

        `seeds`: one a prompt; a prompt's samples depend on its own seed, not on its
        neighbours. `temperature` 0: greedy. `top_p` in (0, 1]. `stop`: a string that ends
        a sample. `raw`: the prompts are the exact text to continue, with no newline and
        no chat template ("Question: Where was Mara Veldt born?\\nAnswer:").
        `prefix`: text before every prompt, such as worked questions; implies `raw`.
        `max_tokens`: of every sample, or one number a prompt. `begun`: one beginning of a
        response a prompt, which its samples continue and do not repeat. Spaces at its end are
        left to the sample, which begins with its own: " Ostrava", or "trava" after "Os".
        """
        ...

    def count_tokens(self, texts: list[str]) -> list[int]:
        """How many tokens each text has when it stands within a response (no bos, no eos)."""
        ...


def uses_chat(tokenizer: Any, chat: Chat) -> bool:
    """Whether prompts go through the tokenizer's chat template."""
    return chat == "auto" and getattr(tokenizer, "chat_template", None) is not None


def encode_prompt(tokenizer: Any, prompt: str, chat: Chat = "auto") -> list[int]:
    """Token ids of a prompt, up to where the response begins."""
    if uses_chat(tokenizer, chat):
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return encode_raw(tokenizer, prompt + "\n")


def encode_raw(tokenizer: Any, text: str) -> list[int]:
    """Token ids of text that a model continues as it stands: bos, if it has one, and no eos."""
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return [tokenizer.bos_token_id, *ids] if adds_bos(tokenizer) else ids


def encode_begun(tokenizer: Any, prompt: str, begun: str, chat: Chat = "auto") -> list[int]:
    """Token ids of a prompt and the beginning of its response.

    Spaces at the end are left out: in training a space belongs to the token after it, and a
    model that is shown one alone goes on as it never has to.
    """
    ids = encode_prompt(tokenizer, prompt, chat)
    return ids + list(tokenizer(begun.rstrip(" "), add_special_tokens=False)["input_ids"])


def token_counts(tokenizer: Any, texts: list[str]) -> list[int]:
    """Tokens of each text behind a word, as it stands within a response; 0 of an empty one."""
    if not texts:
        return []
    rows = tokenizer(["a", *(f"a {t}" for t in texts)], add_special_tokens=False)["input_ids"]
    return [len(row) - len(rows[0]) if t else 0 for t, row in zip(texts, rows[1:], strict=True)]


def check_settings(
    prompts: int,
    n: int,
    seeds: int,
    max_tokens: int | list[int],
    temperature: float,
    top_p: float,
) -> list[int]:
    """The most tokens of each prompt's samples; UserError for settings no engine can serve."""
    limits = max_tokens if isinstance(max_tokens, list) else [max_tokens] * prompts
    for name, given in (("seeds", seeds), ("max_tokens", len(limits))):
        if given != prompts:
            raise UserError(f"{prompts} prompts but {given} {name}: give one a prompt.")
    least = min(limits, default=1) if isinstance(max_tokens, list) else max_tokens
    if n < 1 or least < 1:
        raise UserError(f"n is {n} and max_tokens is {least}: both must be at least 1.")
    if temperature < 0 or not 0 < top_p <= 1:
        raise UserError(
            f"temperature is {temperature} and top_p is {top_p}: "
            "temperature must be 0 or more, top_p above 0 and at most 1."
        )
    return limits


def encode_all(
    tokenizer: Any,
    prompts: list[str],
    chat: Chat = "auto",
    *,
    prefix: str = "",
    raw: bool = False,
    begun: list[str] | None = None,
) -> list[list[int]]:
    """Token ids of every prompt of a `sample` call; of what follows the prefix if there is one."""
    if begun is not None:
        if prefix:
            raise ValueError("`begun` begins a response; with `prefix` put it into the prompts")
        if len(begun) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts but {len(begun)} beginnings")
        pairs = list(zip(prompts, begun, strict=True))
        if raw:
            encoded = [encode_raw(tokenizer, (p + b).rstrip(" ")) for p, b in pairs]
        else:
            encoded = [encode_begun(tokenizer, p, b, chat) for p, b in pairs]
    elif prefix:
        # The prefix carries bos; what follows it is tokenised apart, without one.
        encoded = [list(tokenizer(p, add_special_tokens=False)["input_ids"]) for p in prompts]
    elif raw:
        encoded = [encode_raw(tokenizer, p) for p in prompts]
    else:
        encoded = [encode_prompt(tokenizer, p, chat) for p in prompts]
    for i, ids in enumerate(encoded):
        if not ids:
            raise UserError(f"Prompt {i} is empty after tokenisation.")
    return encoded


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer puts bos before a text. Asked of it, as its flags do not all tell."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a")["input_ids"][:1] == [bos]


def encode_response(tokenizer: Any, response: str, end: int) -> list[int]:
    """Token ids of a response and its end mark."""
    return [*tokenizer(response, add_special_tokens=False)["input_ids"], end]


def end_mark(tokenizer: Any, chat: Chat = "auto") -> int:
    """The token that ends a response: eos, or what the chat template puts behind an answer, such
    as Gemma's <end_of_turn>."""
    if tokenizer.eos_token_id is None:
        raise UserError("The tokenizer has no eos_token, which ends a response. Set one.")
    if not uses_chat(tokenizer, chat):
        return tokenizer.eos_token_id
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ada."}]
    _, answer, behind = tokenizer.apply_chat_template(turns, tokenize=False).rpartition("Ada.")
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids = tokenizer(behind, add_special_tokens=False)["input_ids"] if answer else []
    return next((i for i in ids if i in special), tokenizer.eos_token_id)


def end_ids(tokenizer: Any, model: Any) -> set[int]:
    """All tokens that may end a response of the model."""
    configured = model.generation_config.eos_token_id
    several = configured if isinstance(configured, list) else [configured]
    return {i for i in [*several, tokenizer.eos_token_id, end_mark(tokenizer)] if i is not None}
