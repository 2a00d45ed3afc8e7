"""What a sampling engine promises, and how text becomes a model's input.

    sampler.sample(["Write a biography of Mara Veldt."], n=2, seeds=[7], max_tokens=64,
                   temperature=1.0, top_p=1.0)
    -> [[Sample(text="Mara Veldt was born in Ostrava. ...", tokens=31, finished=True),
         Sample(text="Mara Veldt studied physics. ...", tokens=29, finished=True)]]

Training and sampling build the model's input here and nowhere else:

    plain model   <bos if the tokenizer adds one> prompt "\\n" | response <eos>
    chat model    chat template of [{"role": "user", "content": prompt}] | response <eos>

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
        response a prompt, which its samples continue and do not repeat.
        """
        ...

    def count_tokens(self, texts: list[str]) -> list[int]:
        """How many tokens each text has when it stands within a response (no bos, no eos)."""
        ...


def uses_chat(tokenizer: Any, chat: Chat) -> bool:
    """Whether prompts go through the tokenizer's chat template."""
    if chat not in ("auto", "never"):
        raise UserError(f'chat is "{chat}"; it is either "auto" or "never".')
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


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer puts bos before a text. Asked of it, as its flags do not all tell."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a")["input_ids"][:1] == [bos]


def encode_response(tokenizer: Any, response: str) -> list[int]:
    """Token ids of a response and its end mark."""
    if tokenizer.eos_token_id is None:
        raise UserError("The tokenizer has no eos_token, which ends a response. Set one.")
    ids = tokenizer(response, add_special_tokens=False)["input_ids"]
    return [*ids, tokenizer.eos_token_id]
