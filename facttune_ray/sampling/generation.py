"""What a model's generation_config.json asks for and the config has no setting for.

    asked = Asked(model.generation_config, eos=[2])
    asked.text        "top_k=20; not used: temperature=0.7 (the config decides)"
    rules = asked.rules(prompt_tokens, temperature)     of one pass, whose prompts have one length
    rules(ids_RT, logits_RV)                            logits that `pick` draws from

The rules are transformers' own processors of logits, in the order of `generate`. The temperature
and top_p of a request always decide, because the config states them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from transformers import LogitsProcessorList
from transformers.generation import logits_process as lp

Make = Callable[[Any, int, Sequence[int]], Any]  # value, tokens of the prompt, end marks
PENALTIES: dict[str, Make] = {
    "sequence_bias": lambda x, _n, _e: lp.SequenceBiasLogitsProcessor(x),
    "repetition_penalty": lambda x, _n, _e: lp.RepetitionPenaltyLogitsProcessor(x),
    "no_repeat_ngram_size": lambda x, _n, _e: lp.NoRepeatNGramLogitsProcessor(x),
    "bad_words_ids": lambda x, _n, e: lp.NoBadWordsLogitsProcessor(x, list(e)),
    "min_new_tokens": lambda x, n, e: lp.MinNewTokensLengthLogitsProcessor(n, x, list(e)),
    "suppress_tokens": lambda x, _n, _e: lp.SuppressTokensLogitsProcessor(x),
    "begin_suppress_tokens": lambda x, n, _e: lp.SuppressTokensAtBeginLogitsProcessor(x, n),
}
CUTS: dict[str, Make] = {  # only where tokens are drawn, behind the temperature
    "top_k": lambda x, _n, _e: lp.TopKLogitsWarper(x),
    "min_p": lambda x, _n, _e: lp.MinPLogitsWarper(x),
    "typical_p": lambda x, _n, _e: lp.TypicalLogitsWarper(x),
    "epsilon_cutoff": lambda x, _n, _e: lp.EpsilonLogitsWarper(x),
    "eta_cutoff": lambda x, _n, _e: lp.EtaLogitsWarper(x),
}
DECIDED = ("temperature", "top_p")  # the config states them
OTHERS = (  # this engine cannot do them
    "num_beams",
    "guidance_scale",
    "watermarking_config",
    "encoder_repetition_penalty",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "min_length",
    "top_h",
    "stop_strings",
    "penalty_alpha",
)
NEUTRAL = {  # values that change nothing, beside None and empty lists
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "guidance_scale": 1.0,
    "typical_p": 1.0,
    "temperature": 1.0,
    "top_p": 1.0,
    "num_beams": 1,
}


class Asked:
    """`respect`: whether samples follow the model's generation_config."""

    def __init__(self, config: Any, eos: Iterable[int], respect: bool = True) -> None:
        self.eos = sorted(eos)
        every = (*PENALTIES, *CUTS, *DECIDED, *OTHERS)
        given = {name: getattr(config, name, None) for name in every}
        self.values = {
            name: value
            for name, value in given.items()
            if value not in (None, [], {}, 0, NEUTRAL.get(name))
        }
        self.used = [n for n in (*PENALTIES, *CUTS) if respect and n in self.values]
        self.reads_ids = any(n in PENALTIES for n in self.used)  # rules that read earlier tokens

    @property
    def text(self) -> str:
        """One line; "" if the model asks for nothing."""
        parts = [self._named(self.used)] if self.used else []
        for why, names in (
            ("the config decides", [n for n in self.values if n in DECIDED]),
            ("this engine cannot", [n for n in self.values if n in OTHERS]),
            (
                "sampling.generation_config=ignore",
                [n for n in self.values if n not in (*self.used, *DECIDED, *OTHERS)],
            ),
        ):
            if names:
                parts.append(f"not used: {self._named(names)} ({why})")
        return "; ".join(parts)

    def _named(self, names: Sequence[str]) -> str:
        shown = {n: str(self.values[n]).replace(" ", "") for n in names}
        return ", ".join(f"{n}={x if len(x) <= 24 else x[:21] + '...'}" for n, x in shown.items())

    def rules(
        self, prompt_tokens: int, temperature: float
    ) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None:
        """ids [R, T] of prompt and sample so far, logits [R, V] -> logits. None if the model asks
        for nothing. Cuts see the logits at `temperature`, and return logits at temperature 1."""
        penalties = [n for n in self.used if n in PENALTIES]
        cuts = [n for n in self.used if n in CUTS and temperature > 0]
        if not penalties and not cuts:
            return None
        makes = {**PENALTIES, **CUTS}
        first, then = (
            LogitsProcessorList([makes[n](self.values[n], prompt_tokens, self.eos) for n in names])
            for names in (penalties, cuts)
        )

        def apply(ids_RT: torch.Tensor, logits_RV: torch.Tensor) -> torch.Tensor:
            ids = cast(torch.LongTensor, ids_RT)
            logits_RV = first(ids, cast(torch.FloatTensor, logits_RV.clone()))
            if not cuts:
                return logits_RV
            return then(ids, cast(torch.FloatTensor, logits_RV / temperature)) * temperature

        return apply
