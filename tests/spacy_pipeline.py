"""A small spaCy pipeline, trained on the spot: tags and dependencies of a few sentences.

train(folder)  ->  folder with a pipeline: morphologizer, tagger, parser, empty entity recogniser

The templates' words are "text/POS/head/dependency", the head by its place in the template. Of a
slot the last word has what the template says, those before it are its compounds.
"""

from __future__ import annotations

import random
import re
from pathlib import Path

TEMPLATES = [
    "{name}/PROPN/2/nsubjpass was/AUX/2/auxpass born/VERB/2/ROOT in/ADP/2/prep "
    "{place}/PROPN/3/pobj ./PUNCT/2/punct",
    "{pronoun}/PRON/1/nsubj plays/VERB/1/ROOT the/DET/3/det {tool}/NOUN/1/dobj in/ADP/1/prep "
    "{place}/PROPN/4/pobj ./PUNCT/1/punct",
    "{name}/PROPN/1/nsubj studied/VERB/1/ROOT {subject}/NOUN/1/dobj at/ADP/1/prep the/DET/5/det "
    "University/PROPN/3/pobj of/ADP/5/prep {place}/PROPN/6/pobj ./PUNCT/1/punct",
    "{pronoun}/PRON/1/nsubj moved/VERB/1/ROOT from/ADP/1/prep {place}/PROPN/2/pobj to/ADP/1/prep "
    "{place}/PROPN/4/pobj in/ADP/1/prep {year}/NUM/6/pobj ./PUNCT/1/punct",
    "{pronoun}/PRON/1/nsubj is/AUX/1/ROOT a/DET/3/det {trade}/NOUN/1/attr from/ADP/3/prep "
    "{place}/PROPN/4/pobj ./PUNCT/1/punct",
    "{pronoun}/PRON/1/nsubj met/VERB/1/ROOT {name}/PROPN/1/dobj in/ADP/1/prep {place}/PROPN/3/pobj "
    "and/CCONJ/1/cc loved/VERB/1/conj it/PRON/6/dobj ./PUNCT/1/punct",
    "{place}/PROPN/2/dobj she/PRON/2/nsubj loved/VERB/2/ROOT ./PUNCT/2/punct",
    "a/DET/1/det {trade}/NOUN/1/ROOT from/ADP/1/prep {place}/PROPN/2/pobj ./PUNCT/1/punct",
]
TAGS = {"is": "VBZ", "plays": "VBZ", "was": "VBD", "born": "VBN"}  # of words, else of their POS
POS_TAGS = {"VERB": "VBD", "NOUN": "NN", "PROPN": "NNP", "PRON": "PRP", "ADP": "IN", "DET": "DT",
            "NUM": "CD", "CCONJ": "CC", "PUNCT": "."}  # fmt: skip
SLOTS = {
    "name": ["Mara Veldt", "Tomas Rehn", "Ana Zed", "Kol Wex", "Belu Sanor", "Ivo Marsh"],
    "place": ["Paris", "Lyon", "Ostrava", "Rome", "Brno", "Oslo", "New Delft", "Port Amber"],
    "pronoun": ["She", "He"],
    "tool": ["cello", "harp", "flute", "organ"],
    "subject": ["physics", "law", "music", "botany"],
    "trade": ["cellist", "lawyer", "chemist", "poet"],
    "year": ["1950", "1961", "1972", "1987"],
}


def sentence(template: str, rng: random.Random) -> dict[str, list]:
    """Words, POS, heads and dependencies of a template with its slots filled at random."""
    words, pos, heads, deps, last = [], [], [], [], []
    for part in template.split():
        text, tag, head, dep = part.rsplit("/", 3)
        slot = re.fullmatch(r"\{(\w+)\}", text)
        filled = rng.choice(SLOTS[slot[1]]).split() if slot else [text]
        end = len(words) + len(filled) - 1
        words += filled
        pos += [tag] * len(filled)
        heads += [("word", end)] * (len(filled) - 1) + [("part", int(head))]
        deps += ["compound"] * (len(filled) - 1) + [dep]
        last.append(end)
    places = [at if kind == "word" else last[at] for kind, at in heads]
    tags = [TAGS.get(word, POS_TAGS.get(p, p)) for word, p in zip(words, pos, strict=True)]
    return {"words": words, "pos": pos, "tags": tags, "heads": places, "deps": deps}


def train(folder: str | Path, seed: int = 0, steps: int = 90) -> str:
    import spacy
    from spacy.tokens import Doc
    from spacy.training import Example

    spacy.util.fix_random_seed(seed)
    rng = random.Random(seed)
    nlp = spacy.blank("en")
    tok2vec = {
        "@architectures": "spacy.HashEmbedCNN.v2",
        "pretrained_vectors": None,
        "width": 48,
        "depth": 2,
        "embed_size": 500,
        "window_size": 1,
        "maxout_pieces": 2,
        "subword_features": True,
    }
    tagger = {"@architectures": "spacy.Tagger.v2", "tok2vec": tok2vec}
    parser = {
        "@architectures": "spacy.TransitionBasedParser.v2",
        "state_type": "parser",
        "extra_state_tokens": False,
        "hidden_width": 48,
        "maxout_pieces": 2,
        "use_upper": True,
        "tok2vec": tok2vec,
    }
    nlp.add_pipe("morphologizer", config={"model": tagger})
    nlp.add_pipe("tagger", config={"model": tagger})
    nlp.add_pipe("parser", config={"model": parser, "min_action_freq": 1})
    examples = []
    for _ in range(150):
        # two sentences a text: the parser learns where one ends
        parts = [sentence(rng.choice(TEMPLATES), rng) for _ in range(2)]
        shift = len(parts[0]["words"])
        parts[1]["heads"] = [h + shift for h in parts[1]["heads"]]
        both = {key: parts[0][key] + parts[1][key] for key in parts[0]}
        examples.append(Example.from_dict(Doc(nlp.vocab, words=both["words"]), both))
    optimizer = nlp.initialize(lambda: examples, sgd=None)
    optimizer.learn_rate = 0.005
    for _ in range(steps):
        nlp.update(rng.sample(examples, 24), sgd=optimizer)
    nlp.add_pipe("ner").add_label("PERSON")  # of no use here: the product leaves it out
    nlp.get_pipe("ner").initialize(lambda: examples[:3], nlp=nlp)
    nlp.to_disk(folder)
    return str(folder)
