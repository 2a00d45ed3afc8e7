"""The way a model decodes: the fastest path that gives the logits of plain whole forward passes.

    paths = Paths(model)
    paths.at(500)      Way("fast"), for sequences of up to 500 tokens
    paths.at(9000)     Way("own cache", "its attention window has 4,096 tokens")

    fast        prompts and prefix run once for all of their rows (`shared.py`)
    own cache   the model's own cache, copied for every row (`repeated.py`)
    own cache, prefix repeated    as before, for a cache that takes several tokens only while empty
    no cache    the whole sequence for every token (`whole.py`)

Each path runs a prefix, prompts, rows and a dropped row of a few tokens, and its logits are
compared with forward passes of single sequences. `probe.py` tests what a few tokens cannot show.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from facttune_ray.errors import UserError
from facttune_ray.sampling import repeated, shared, whole
from facttune_ray.sampling.probe import (
    MOST,
    Way,
    Windows,
    alone,
    depends_on_length,
    differs,
    ids_of,
    positions,
    why_not,
)

PREFIX, PROMPT = 24, 5  # tokens of the tests


class Path(NamedTuple):
    run: Callable[..., Any]  # SharedRun and the classes with its methods
    prefill: Callable[..., Any]
    unequal: bool  # whether the prompts of a pass may differ in length


PATHS = {
    "fast": Path(shared.SharedRun, shared.prefill, True),
    "own cache": Path(repeated.RepeatedRun, repeated.prefill, False),
    "own cache, prefix repeated": Path(repeated.RepeatedRun, repeated.ids_only, False),
    "no cache": Path(whole.WholeRun, repeated.ids_only, False),
}


class Paths:
    """The paths of one model, tested when first asked for."""

    def __init__(self, model: Any) -> None:
        self.model = model
        known = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", MOST)
        self.positions = positions(model)
        self.most = min(self.positions or MOST, known or MOST, MOST)
        self._wrong: dict[str, str | None] = {}  # path -> why it is wrong on a few tokens
        self._plain: dict[tuple[int, ...], torch.Tensor] = {}  # ids -> logits [V] of the last
        self._windows: Windows | None = None
        self._still: tuple[int, int] = (0, MOST + 1)  # positions tested equal; the first unequal

    @torch.inference_mode()
    def at(self, longest: int) -> Way:
        """The path for sequences of up to `longest` tokens. UserError if none is right."""
        whys: list[str] = []
        for name in PATHS:
            why = self._why_not(name, min(longest, MOST))
            if why is None:
                return Way(name, "; ".join(dict.fromkeys(whys)))
            whys.append(why)
        raise UserError(
            f"sampling: {type(self.model).__name__} does not give the logits of its own forward "
            f"pass, not even without a cache ({whys[-1]}): use another model or sampling.engine"
        )

    def _why_not(self, name: str, longest: int) -> str | None:
        if name == "fast":
            windows = self._windows = self._windows or Windows(self.model)
            if windows.reach < longest:
                return windows.why
        if name != "no cache" and not self._steady(longest):
            return (
                f"its position embeddings depend on the longest sequence, in passes of up to "
                f"{longest:,} tokens"
            )
        if name not in self._wrong:
            room = self._windows.reach if name == "fast" and self._windows else self.most
            path = PATHS[name]
            self._wrong[name] = why_not(lambda: self._compared(path, room))
        return self._wrong[name]

    def _compared(self, path: Path, room: int) -> str | None:
        """None if the path gives the logits of whole forward passes, else how it fails. `room`: the
        largest number of tokens of a sequence."""
        model, device, of_R = self.model, self.model.device, np.array([0, 0, 1])
        prefix = ids_of(model, max(1, min(PREFIX, room - PROMPT - 3)))
        start = ids_of(model, 3 * PROMPT, 5)
        prompts = [start[:PROMPT], start[PROMPT : 2 * PROMPT + path.unequal]]
        new = ids_of(model, 5, 11)
        # A prefix that is only joined to the prompts needs no second test without it.
        for head in (prefix,) if path.prefill is repeated.ids_only else (prefix, []):
            run = path.run(model, path.prefill(model, head) if head else None)
            run.start(prompts, of_R, 2)
            run.step(torch.tensor(new[:3], device=device))
            run.keep(torch.tensor([0, 2], device=device))
            found_RV = run.step(torch.tensor(new[3:], device=device))
            rows = [
                tuple([*head, *prompt, *ids])
                for prompt, *ids in ((prompts[0], new[0], new[3]), (prompts[1], new[2], new[4]))
            ]
            if missing := [row for row in rows if row not in self._plain]:
                self._plain |= {ids: v[-1] for ids, v in alone(model, missing).items()}
            for found_V, row in zip(found_RV, rows, strict=True):
                if off := differs(found_V, self._plain[row]):
                    return f"logits differ by {off}"
        return None

    def _steady(self, longest: int) -> bool:
        """Whether a sequence is independent of the lengths of others, up to `longest` tokens. The
        answer for the largest length of the model, if it is yes, serves for all lengths."""
        good, bad = self._still
        for length in (self.most, longest):
            if good < length < bad:
                if depends_on_length(self.model, length):
                    bad = length
                else:
                    good = length
        self._still = good, bad
        return longest <= good
