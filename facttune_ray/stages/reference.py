"""groups -> reference: token ids of each group, with the starting model's log-probabilities.

in   groups     {"prompt_id": "8f2c", "prompt": "Write a ...", "responses": ["Mara ...", "She ..."],
                 "rewards": [0.667, 1.0], ...}
     facts      {"fact_id": "77aa", "response_id": "51ab", "start": 0, "end": 31, ...}
     verdicts   {"fact_id": "77aa", "response_id": "51ab", "supported": true, ...}
                (facts and verdicts: inputs only with train.loss=fact_masked)
out  reference  {"prompt_id": "8f2c", "prompt_tokens": [1, 88, 14], "rewards": [0.667, 1.0],
                 "response_tokens": [[40, 41, 2], [52, 9, 2]],
                 "logps": [[-0.3, -2.1, -0.01], [-1.2, -0.4, -0.02]], "win_masks": null,
                 "lose_masks": null, "cut_responses": 0, ...}

Training reads this table (paper, section 3.3). DPO's reference model is the model that training
starts from. It runs each unique response once before training, so training loads no second model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from facttune_ray.config import Config
from facttune_ray.errors import UserError
from facttune_ray.sampling import templates
from facttune_ray.sampling.templates import Turn
from facttune_ray.stages.context import Context

VERSION = 2
COPIED = ("prompt_id", "topic", "split", "response_ids", "rewards", "pairs")
Masks = tuple[list[list[int]], list[list[int]]]  # win masks, lose masks of the responses


def recipe(cfg: Config) -> dict:
    keys = ("max_length", "max_prompt_length", "keep_prompt", "dtype")
    settings = {f"train.{k}": getattr(cfg.train, k) for k in keys}
    settings |= templates.recipe(cfg.model)
    if cfg.responses.stop:
        settings["responses.stop"] = cfg.responses.stop
    if cfg.train.lora.quantize != "none":  # rounded weights give other log-probabilities
        settings["train.lora.quantize"] = cfg.train.lora.quantize
    return settings


async def run(context: Context, shard: int) -> list[dict]:
    from facttune_ray.sampling.probe import positions
    from facttune_ray.training.batches import tokenize
    from facttune_ray.training.reference import token_logps_of

    cfg = context.cfg
    rows = context.rows("groups", shard)
    if not rows:
        return []
    tokenizer, model = context.trained
    chat = templates.of(cfg.model)
    groups = [
        tokenize(
            r["prompt_id"],
            _prompt(r),
            r["responses"],
            tokenizer,
            cfg.train,
            chat,
            cfg.responses.stop,
        )
        for r in rows
    ]
    highest = max(i for g in groups for ids in (g.prompt, *g.responses) for i in ids)
    vocabulary = model.lm.get_input_embeddings().num_embeddings
    if highest >= vocabulary:
        raise UserError(
            f"{context.work.model_path}: its tokenizer gives token {highest}, its model knows "
            f"{vocabulary:,} tokens: use the model's own tokenizer"
        )
    most = positions(model.lm)
    for g in groups:
        longest = len(g.prompt) + max(map(len, g.responses))
        if most is not None and longest > most:
            raise UserError(
                f"{context.work.model_path}: it has places for {most} tokens, a prompt and its "
                f"response have {longest}: lower train.max_length"
            )
    share = cfg.train.share_prefix and model.shares
    logps = token_logps_of(model, groups, cfg.train.pass_tokens, share)
    masker = _Masker(context, shard) if "verdicts" in context.work.inputs else None
    out = []
    for r, g, group_logps in zip(rows, groups, logps, strict=True):
        win, lose = masker.masks(r, g.responses, tokenizer) if masker else (None, None)
        out.append(
            {
                **{k: r[k] for k in COPIED},
                "given_pairs": r.get("given_pairs"),  # not a column of older tables
                "prompt_tokens": g.prompt,
                "response_tokens": g.responses,
                "logps": group_logps,
                "win_masks": win,
                "lose_masks": lose,
                "cut_prompt": g.cut_prompt,
                "cut_responses": g.cut_responses,
                "error": None,
            }
        )
    return out


def _prompt(row: Mapping[str, Any]) -> str | list[Turn]:
    """The prompt of a row of `groups`."""
    turns = row.get("turns")  # not a column of older tables
    return [Turn(t["role"], t["content"]) for t in turns] if turns else row["prompt"]


class _Masker:
    """Makes masks from the facts and verdicts of a shard's responses."""

    def __init__(self, context: Context, shard: int) -> None:
        self.facts: dict[str, list[dict]] = defaultdict(list)
        self.verdicts: dict[str, list[dict]] = defaultdict(list)
        for row in context.rows("facts", shard):
            self.facts[row["response_id"]].append(row)
        for row in context.rows("verdicts", shard):
            self.verdicts[row["response_id"]].append(row)
        self.facts_table = context.work.inputs["facts"]

    def masks(
        self, group: Mapping[str, Any], tokens: Sequence[Sequence[int]], tokenizer: Any
    ) -> Masks:
        """Masks of each response's tokens, as long as its tokens after truncation."""
        from facttune_ray.training.masks import masks, offsets, sentences

        pairs = []
        ids = zip(group["response_ids"], group["responses"], tokens, strict=True)
        for response_id, text, kept in ids:
            spans = sentences(self.facts[response_id], self.verdicts[response_id])
            last = max((end for _, end, _ in spans), default=0)
            if last > len(text):
                raise UserError(
                    f"{self.facts_table}: a sentence of response {response_id} ends at character "
                    f"{last}, its text at {len(text)}: make the table facts again"
                )
            pairs.append(masks(spans, offsets(tokenizer, text)[: len(kept)]))
        return [win for win, _ in pairs], [lose for _, lose in pairs]
