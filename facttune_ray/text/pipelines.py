"""Load spaCy's pipelines, each once in a process.

load("entities.spacy_model", "en_core_web_sm")          for noun chunks
load_for_facts("facts.spacy_model", "en_core_web_sm")   for clauses; "co-founder" is one word
open_pipeline("facts.spacy_model", "en_core_web_sm")    whole, for the names in `cleanup.py`
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from facttune_ray.errors import UserError

UNUSED = ["ner", "lemmatizer", "entity_ruler", "entity_linker", "textcat", "textcat_multilabel"]
_TAGS = "tags (a tagger)"


class NotInstalled(UserError):
    """There is no spaCy, or no package of this name."""


@functools.cache
def load(key: str, name: str) -> Any:
    """The spaCy pipeline of an installed package or a folder, without the parts that are unused.

    `key`: the setting that errors name. Raise UserError when the pipeline is missing, or lacks a
    part that noun chunks need.
    """
    nlp, doc = _tried(key, name)
    lacks = {
        **_lacks(doc),
        f'rules for noun chunks of the language "{nlp.lang}"': nlp.vocab.get_noun_chunks is None,
    }
    _refuse(key, name, lacks)
    return nlp


@functools.cache
def load_for_facts(key: str, name: str) -> Any:
    """The pipeline for `parsed.parsed_facts`. Words with a hyphen stay whole, as facts need them.

    Raise UserError when the pipeline is missing, or lacks a parser, parts of speech or tags.
    """
    nlp, doc = _tried(key, name)
    _refuse(key, name, {**_lacks(doc), _TAGS: not doc.has_annotation("TAG")})
    from spacy.lang.char_classes import HYPHENS
    from spacy.util import compile_infix_regex

    infixes = [rule for rule in nlp.Defaults.infixes if HYPHENS not in rule]
    nlp.tokenizer.infix_finditer = compile_infix_regex(infixes).finditer
    return nlp


def no_spacy(key: str, name: str) -> NotInstalled:
    install = f"pip install spacy && python -m spacy download {name}"
    return NotInstalled(f"{key}: spaCy is not installed: {install}")


def open_pipeline(key: str, name: str, exclude: Iterable[str] = ()) -> Any:
    """The spaCy pipeline of an installed package or a folder. Raise NotInstalled where spaCy or the
    package is missing, another UserError where a folder or a package holds no pipeline."""
    try:
        import spacy
    except ImportError:
        raise no_spacy(key, name) from None
    try:
        return spacy.load(name, exclude=[*exclude])
    except (ImportError, OSError, ValueError) as e:
        if isinstance(e, OSError) and "/" not in name:
            raise NotInstalled(
                f'{key}: the spaCy pipeline "{name}" is not installed: '
                f"python -m spacy download {name}, or give the folder of a pipeline"
            ) from None
        reason = " ".join(str(e).split())[:160]
        raise UserError(f'{key}: no pipeline in "{name}": {reason}') from None


def _tried(key: str, name: str) -> tuple[Any, Any]:
    """(pipeline without its unused parts, a sentence that it parsed)."""
    nlp = open_pipeline(key, name, UNUSED)
    return nlp, nlp("She plays the cello in Lyon.")


def _lacks(doc: Any) -> dict[str, bool]:
    return {
        "a dependency parser": not doc.has_annotation("DEP"),
        "parts of speech (a morphologizer, or a tagger with an attribute_ruler)": (
            not doc.has_annotation("POS")
        ),
    }


def _refuse(key: str, name: str, lacks: dict[str, bool]) -> None:
    if any(lacks.values()):
        missing = " and ".join(part for part, absent in lacks.items() if absent)
        raise UserError(
            f'{key}: the pipeline "{name}" lacks {missing}; use one such as en_core_web_sm'
        )
