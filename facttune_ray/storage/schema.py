"""The Arrow schema of each table, and the ids that join the tables.

    topics -> prompts -> responses -+-> facts -+-> verdicts -----------------------+-> rewards
                                    |          +-> p_true -------------------------+
                                    |          +-> questions -> answers -+         |
                                    +-> entities ------------------------+-> classes
    rewards -> groups -> reference

An unknown value is null, never 0. `error` says why a row has no value.
An id is a digest of its parents' ids, so the same input gives the same id on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import pyarrow as pa

_str, _int, _float, _bool = pa.string(), pa.int32(), pa.float64(), pa.bool_()
_strs, _floats = pa.list_(pa.string()), pa.list_(pa.float64())
_ints, _marks = pa.list_(pa.int32()), pa.list_(pa.int8())
_turn = pa.struct([("role", pa.string()), ("content", pa.string())])  # a chat message

SPLITS = ("train", "val", "test")

# Every reward, and the table whose rows it averages. stages/rewards.py computes them.
REWARD_COLUMNS = {
    "factscore": "verdicts",  # supported / judged facts; null if none could be judged
    "factscore_lp": "verdicts",  # the same with FActScore's length penalty
    "neg_ent": "questions",  # confidence: means over the questions of the response's facts
    "max_conf": "questions",
    "exp_conf": "questions",
    "samp_conf": "questions",
    "ne_neg_ent": "entities",  # the same over its entities
    "ne_max_conf": "entities",
    "ne_exp_conf": "entities",
    "ne_samp_conf": "entities",
    "p_true": "p_true",  # mean over facts
}


def made_of(rewards: Iterable[str], table: str) -> bool:
    """Whether one of these rewards is a mean over rows of the table."""
    return any(REWARD_COLUMNS[name] == table for name in rewards)


COLUMNS: dict[str, dict[str, pa.DataType]] = {  # table -> its columns
    "topics": {
        "topic": _str,  # one row per topic of a topics file
        "split": _str,  # train | val | test
        "pronoun": _str,  # as in prompts
        "lower_case": _str,  # as in prompts
    },
    "prompts": {
        "prompt_id": _str,  # digest(topic, prompt)
        "topic": _str,  # subject of the response; also the article's title
        "split": _str,  # train | val | test; a topic is in one split only
        "prompt": _str,  # text given to the model
        "pronoun": _str,  # biographies: the person's pronoun, "her"; null: unknown
        "lower_case": _str,  # medicine: the topic within a sentence, "type 2 diabetes"; or null
        "error": _str,  # why the LLM wrote no prompt; `prompt` is null then
        "group": _str,  # kind of topic from the file: "very rare"; null: not given
    },
    "responses": {
        "response_id": _str,  # digest(prompt_id, model, sample)
        "prompt_id": _str,
        "topic": _str,
        "split": _str,
        "model": _str,  # model that wrote it: "base", "facttune_fs/round_1", "ChatGPT"
        "sample": _int,  # 0..n-1
        "prompt": _str,
        "text": _str,
        "thoughts": _str,  # reasoning, neither scored nor trained on; null: no reasoning model
        "tokens": _int,  # generated tokens, end mark included; null if imported
        "abstained": _bool,  # from a labelled file; null: the stage `facts` decides
        "error": _str,
    },
    "facts": {
        "fact_id": _str,  # digest(response_id, position)
        "response_id": _str,
        "topic": _str,
        "split": _str,
        "position": _int,  # order within the response, over all its sentences
        "sentence": _int,  # index of the sentence; null: the response abstained
        "sentence_text": _str,
        "start": _int,  # characters start..end-1 of the response's text hold the sentence
        "end": _int,
        "fact": _str,  # null: the sentence failed (see error), or the response abstained
        "repeated": _bool,  # the same fact occurs earlier in this response
        "human_label": _str,  # S | NS | IR from a labelled file, else null
        "abstained": _bool,  # the response declined to answer: this is its only row
        "error": _str,
    },
    "verdicts": {
        "fact_id": _str,
        "response_id": _str,
        "topic": _str,
        "supported": _bool,  # null: could not be judged (no article, error)
        "score": _float,  # in [0, 1], higher = more supported; null as above
        "evidence": _str,  # deciding passage; null: none
        "title": _str,  # article of the passage
        "estimator": _str,
        "reason": _str,  # why `supported` is null without an error: "no article"
        "error": _str,
    },
    "questions": {
        "fact_id": _str,
        "response_id": _str,
        "topic": _str,
        "question_id": _str,  # digest(topic, question): identical questions share it
        "question": _str,
        "answer": _str,  # the fact's own answer; null: not requested (questions.answer)
        "error": _str,
    },
    "answers": {
        "question_id": _str,  # one row per distinct question of a topic
        "topic": _str,
        "question": _str,
        "answers": _strs,  # first lines of n samples; an empty answer stays ""
        "error": _str,
    },
    "entities": {
        "entity_id": _str,  # digest(response_id, start): one row per occurrence
        "response_id": _str,
        "topic": _str,
        "split": _str,
        "text": _str,  # null when the response could not be parsed: see error
        "start": _int,  # characters start..end-1 of the response's text
        "end": _int,
        "prefix": _str,  # last words before the entity, for a judge of equivalence
        "tokens": _int,  # length of the entity and largest length of a sample
        "answers": _strs,  # n sampled continuations in place of the entity
        "error": _str,
    },
    "classes": {
        "unit_id": _str,  # question_id or entity_id
        "unit": _str,  # question | entity
        "topic": _str,
        "classes": pa.list_(_int),  # equivalence class of each answer; -1: empty, in no class
        "originals": _strs,  # the facts' own answers to the question, or the entity
        "shares": _floats,  # per original: share of the answers that mean the same
        "error": _str,
    },
    "p_true": {
        "fact_id": _str,
        "response_id": _str,
        "topic": _str,
        "p_true": _float,  # in [0, 1]; null: the fact is too long for the model, or there is none
        "error": _str,
    },
    "rewards": {
        "response_id": _str,
        "prompt_id": _str,
        "topic": _str,
        "split": _str,
        "model": _str,
        "facts": _int,  # facts that the rewards average
        "repeated": _int,  # facts that repeat an earlier fact of the response
        "judged": _int,  # `facts` with a verdict
        "answered": _int,  # `facts` with an answered question; null: no questions
        "entities": _int,  # entities with a sample; null: not sampled
        "words": _int,  # length of the response; null if it failed
        "abstained": _bool,  # the response declined to answer
        **dict.fromkeys(REWARD_COLUMNS, _float),
        "errors": _int,  # failed rows of the response: facts, questions, verdicts ...
        "error": _str,
    },
    "mixes": {
        "response_id": _str,
        "prompt_id": _str,
        "topic": _str,
        "split": _str,
        "name": _str,  # in rewards.mix
        "value": _float,  # sum of weight * z-score; null when one of its rewards is null
        "error": _str,
    },
    "judgements": {
        "response_id": _str,  # of the tuned model, or of a contender
        "base_id": _str,  # response_id of the base model's response in the comparison
        "topic": _str,
        "split": _str,
        "quality": _str,  # fluency | helpfulness
        "shown_first": _str,  # tuned | base | tie, when the tuned model's response is first
        "shown_second": _str,  # tuned | base | tie, when it is second
        "preferred": _str,  # the winner in both orders, else tie; null: not judged
        "error": _str,
    },
    "groups": {
        "prompt_id": _str,  # one row per prompt with at least one usable pair
        "topic": _str,
        "split": _str,
        "prompt": _str,
        "response_ids": _strs,
        "responses": _strs,  # unique texts: the sequences that training runs
        "rewards": _floats,  # of each response; for pairs from a file: its wins minus losses
        "pairs": _int,  # pairs i < j with |reward difference| > threshold
        "given_pairs": pa.list_(_ints),  # [winner, loser] from a file; null: rewards decide
        "turns": pa.list_(_turn),  # messages of a conversation; null: `prompt` is one user message
    },
    "reference": {
        "prompt_id": _str,  # one row per row of `groups`
        "topic": _str,
        "split": _str,
        "response_ids": _strs,
        "rewards": _floats,
        "prompt_tokens": _ints,
        "response_tokens": pa.list_(_ints),  # end marks included
        "logps": pa.list_(pa.list_(pa.float32())),  # log-probability of each response token
        "win_masks": pa.list_(_marks),  # 1: the token counts when its response wins; null: all 1
        "lose_masks": pa.list_(_marks),  # 1: the token counts when its response loses
        "pairs": _int,  # as in groups
        "given_pairs": pa.list_(_ints),  # as in groups
        "cut_prompt": _bool,  # the prompt was truncated to train.max_prompt_length
        "cut_responses": _int,  # number of responses truncated to train.max_length
        "error": _str,
    },
}
TABLES = {table: pa.schema(columns) for table, columns in COLUMNS.items()}


def digest(*parts: object, chars: int = 20) -> str:
    """Hex digest of the parts: 4 bits a character. Unlike `hash()`, equal in every process."""
    joined = "\x1f".join(str(p) for p in parts)
    return hashlib.sha256(joined.encode("utf-8", "surrogatepass")).hexdigest()[:chars]


def seed_from(*parts: object) -> int:
    """A 63-bit seed derived from ids and the run's seed."""
    return int(digest(*parts, chars=16), 16) >> 1
