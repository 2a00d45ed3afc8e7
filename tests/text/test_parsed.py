"""Facts of recorded parses: those that en_core_web_sm 3.8.0 gave for these sentences.

With the pipeline, `python tests/text/test_parsed.py PIPELINE` records them again.
"""

import json
import sys
from pathlib import Path

import pytest

from facttune_ray.text.decompose import rule_facts
from facttune_ray.text.fragments import is_fragment
from facttune_ray.text.parsed import parsed_facts

FILE = Path(__file__).with_name("parses.json")
TOPIC = "Mara Veldt"
CASES = json.loads(FILE.read_text())["cases"] if FILE.exists() else []


class Recorded:
    """A pipeline that gives recorded parses: [tag, part of speech, head, label] of each word."""

    def __init__(self, parses):
        spacy = pytest.importorskip("spacy")
        from spacy.lang.char_classes import HYPHENS
        from spacy.util import compile_infix_regex

        self.blank, self.parses = spacy.blank("en"), parses
        infixes = [rule for rule in self.blank.Defaults.infixes if HYPHENS not in rule]
        self.blank.tokenizer.infix_finditer = compile_infix_regex(infixes).finditer

    def make_doc(self, text):
        return self.blank.make_doc(text)

    def pipe(self, docs):
        from spacy.tokens import Doc

        for doc in docs:
            parse = self.parses[doc.text]
            tags, pos, heads, deps = zip(*parse, strict=True) if parse else ([], [], [], [])
            words, spaces = [t.text for t in doc], [bool(t.whitespace_) for t in doc]
            yield Doc(doc.vocab, words, spaces, tags=tags, pos=pos, heads=heads, deps=deps)


class Recording:
    """A pipeline that keeps its parses."""

    def __init__(self, nlp):
        self.nlp, self.make_doc, self.parses = nlp, nlp.make_doc, {}

    def pipe(self, docs):
        for doc in self.nlp.pipe(docs):
            self.parses[doc.text] = [[t.tag_, t.pos_, t.head.i, t.dep_] for t in doc]
            yield doc


@pytest.fixture(scope="module")
def nlp():
    return Recorded(json.loads(FILE.read_text())["parses"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["sentences"][-1][:50])
def test_facts_of_a_parse(nlp, case):
    found = parsed_facts(nlp, [(case["topic"], case["sentences"])])
    assert [fact for facts in found for fact in facts] == case["facts"]
    assert not any(is_fragment(fact, has_verb=True) for fact in case["facts"])


def test_responses_share_a_batch_and_keep_their_order(nlp):
    cases = CASES[:4]
    together = parsed_facts(nlp, [(c["topic"], c["sentences"]) for c in cases])
    assert [f for facts in together for f in facts] == [f for c in cases for f in c["facts"]]


@pytest.mark.parametrize("sentence", ["", "Who was she?", "\u2014", "word " * 120, "a" * 1_100_000])
def test_the_rules_split_what_is_not_parsed(nlp, sentence):
    assert list(parsed_facts(nlp, [(TOPIC, [sentence])])) == [rule_facts(TOPIC, sentence)]


def record(pipeline, cases):
    """Write the parses and facts of cases {"topic", "sentences"}; then read the facts."""
    from facttune_ray.text.pipelines import load_for_facts

    nlp = Recording(load_for_facts("facts.spacy_model", pipeline))
    made = []
    for case in cases:
        found = parsed_facts(nlp, [(case["topic"], case["sentences"])])
        made.append({**case, "facts": [fact for facts in found for fact in facts]})
    lines = ",\n".join(json.dumps(case) for case in made)
    parses = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in nlp.parses.items())
    FILE.write_text(f'{{"cases": [\n{lines}\n],\n"parses": {{\n{parses}\n}}}}\n')


if __name__ == "__main__":
    record(sys.argv[1], [{k: c[k] for k in ("topic", "sentences")} for c in CASES])
