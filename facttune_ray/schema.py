"""One Arrow schema a table, and the ids that tie the tables together.

    prompts -> responses -> facts -+-> verdicts -----------------+-> rewards -> groups
                                   +-> questions -> answers -----+

An unknown value is null, never 0. `error` says why a row has no value.
Ids are digests of their parents' ids, so the same input gives the same id on every machine.
"""

from __future__ import annotations

import hashlib

import pyarrow as pa

_str, _int, _float, _bool = pa.string(), pa.int32(), pa.float64(), pa.bool_()
_strs, _floats = pa.list_(pa.string()), pa.list_(pa.float64())

PROMPTS = pa.schema(
    [
        ("prompt_id", _str),  # digest(topic, prompt)
        ("topic", _str),  # what the response is about; also the article's title
        ("split", _str),  # train | val | test; a topic is in one split only
        ("prompt", _str),  # text given to the model
    ]
)

RESPONSES = pa.schema(
    [
        ("response_id", _str),  # digest(prompt_id, model, sample)
        ("prompt_id", _str),
        ("topic", _str),
        ("split", _str),
        ("model", _str),  # snapshot that wrote it: "base", "facttune_fs/round_1", "ChatGPT"
        ("sample", _int),  # 0..n-1
        ("prompt", _str),
        ("text", _str),
        ("tokens", _int),  # generated tokens, end mark included; null if imported
        ("abstained", _bool),  # as a labelled file says; null: `facts` finds out
        ("error", _str),
    ]
)

FACTS = pa.schema(
    [
        ("fact_id", _str),  # digest(response_id, position)
        ("response_id", _str),
        ("topic", _str),
        ("split", _str),
        ("position", _int),  # order within the response, over all its sentences
        ("sentence", _int),  # index of the sentence; null: the response abstained
        ("sentence_text", _str),
        ("start", _int),  # characters start..end-1 of the response's text hold the sentence
        ("end", _int),
        ("fact", _str),  # null when this sentence failed: see error; or the response abstained
        ("repeated", _bool),  # the same fact stands earlier in this response
        ("human_label", _str),  # S | NS | IR from a labelled file, else null
        ("abstained", _bool),  # the response declined to answer: it has this row alone
        ("error", _str),
    ]
)

VERDICTS = pa.schema(
    [
        ("fact_id", _str),
        ("response_id", _str),
        ("topic", _str),
        ("supported", _bool),  # null: could not be judged (no article, error)
        ("score", _float),  # in [0, 1], higher = more supported; null as above
        ("evidence", _str),  # passage that decided, null if none
        ("title", _str),  # article that it is from
        ("estimator", _str),
        ("reason", _str),  # why it is null without being an error: "no article"
        ("error", _str),
    ]
)

QUESTIONS = pa.schema(
    [
        ("fact_id", _str),
        ("response_id", _str),
        ("topic", _str),
        ("question_id", _str),  # digest(topic, question): identical questions share it
        ("question", _str),
        ("error", _str),
    ]
)

ANSWERS = pa.schema(
    [
        ("question_id", _str),  # one row a distinct question of a topic
        ("topic", _str),
        ("question", _str),
        ("answers", _strs),  # n samples, first line each; an empty answer stays ""
        ("classes", pa.list_(_int)),  # equivalence class of each answer; -1: empty, in no class
        ("error", _str),
    ]
)

REWARDS = pa.schema(
    [
        ("response_id", _str),
        ("prompt_id", _str),
        ("topic", _str),
        ("split", _str),
        ("model", _str),
        ("facts", _int),  # facts the rewards are means over
        ("repeated", _int),  # facts that repeat an earlier one of the response
        ("factscore", _float),  # supported / judged facts; null if none could be judged
        ("factscore_lp", _float),  # the same with FActScore's length penalty
        ("neg_ent", _float),  # the four confidence rewards: mean over questions
        ("max_conf", _float),
        ("exp_conf", _float),
        ("error", _str),
    ]
)

GROUPS = pa.schema(
    [
        ("prompt_id", _str),  # one row a prompt with at least one usable pair
        ("topic", _str),
        ("split", _str),
        ("prompt", _str),
        ("response_ids", _strs),
        ("responses", _strs),  # unique texts: the sequences that training runs
        ("rewards", _floats),
        ("pairs", _int),  # pairs i < j with |reward difference| > threshold
    ]
)

TABLES: dict[str, pa.Schema] = {
    "prompts": PROMPTS,
    "responses": RESPONSES,
    "facts": FACTS,
    "verdicts": VERDICTS,
    "questions": QUESTIONS,
    "answers": ANSWERS,
    "rewards": REWARDS,
    "groups": GROUPS,
}


def digest(*parts: object, chars: int = 20) -> str:
    """Stable id of its parts (80 bits as hex). Unlike `hash()`, equal in every process."""
    joined = "\x1f".join(str(p) for p in parts)
    return hashlib.sha256(joined.encode("utf-8", "surrogatepass")).hexdigest()[:chars]


def seed_from(*parts: object) -> int:
    """A 63-bit seed derived from ids and the run's seed."""
    return int(digest(*parts, chars=16), 16) >> 1
