"""What a model's generation_config asks for, against transformers' own generate."""

from __future__ import annotations

import pytest
import torch
from families import tiny
from transformers import GenerationConfig

from facttune_ray.sampling.generation import Asked
from facttune_ray.sampling.protocol import SampleRequest
from facttune_ray.sampling.transformers import TransformersSampler

GREEDY = {"n": 1, "seeds": [1, 2, 3], "max_tokens": 10, "temperature": 0.0, "top_p": 1.0}
TEXTS = ["".join(map(tiny.character, ids)) for ids in ([20, 21, 20], [9, 30, 41, 9], [50])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("tiny")
    tiny.build("llama").save_pretrained(out)
    tiny.tokenizer().save_pretrained(out)
    return out


def sampler(folder, respect=True, **asked) -> TransformersSampler:
    GenerationConfig(eos_token_id=2, **asked).save_pretrained(folder)
    return TransformersSampler(str(folder), respect_generation_config=respect)


ASKED = [
    {"repetition_penalty": 1.7},
    {"no_repeat_ngram_size": 2},
    {"suppress_tokens": list(range(4, 60))},
    {"begin_suppress_tokens": list(range(4, 90))},
    {"bad_words_ids": [[i] for i in range(10, 70)]},
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "min_new_tokens": 4},
]


@pytest.mark.parametrize("asked", ASKED, ids=lambda x: "+".join(x))
def test_greedy_text_equals_generate(folder, asked):
    own = sampler(folder, **asked)
    got = own.sample(SampleRequest(TEXTS, raw=True, **GREEDY))
    free = sampler(folder, respect=False, **asked).sample(SampleRequest(TEXTS, raw=True, **GREEDY))
    for text, (sample,) in zip(TEXTS, got, strict=True):
        ids = own.tokenizer(text, return_tensors="pt")["input_ids"]
        made = own.model.generate(ids, do_sample=False, max_new_tokens=10, pad_token_id=0)[0]
        assert sample.text == own.tokenizer.decode(
            made[ids.shape[1] :], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
    assert got != free  # the settings matter here


def test_cuts_bound_the_tokens_that_are_drawn(folder):
    settings = GREEDY | {"n": 200, "temperature": 1.5, "max_tokens": 1}
    request = SampleRequest(TEXTS, raw=True, **settings)
    for asked, most in (
        ({"top_k": 3, "do_sample": True}, 3),
        ({"min_p": 0.6, "do_sample": True}, 20),
    ):
        own = sampler(folder, **asked)
        free = sampler(folder, respect=False, **asked).sample(request)
        for text, samples, others in zip(TEXTS, own.sample(request), free, strict=True):
            with torch.no_grad():
                ids = own.tokenizer(text, return_tensors="pt")["input_ids"]
                probs = (own.model(input_ids=ids).logits[0, -1] / 1.5).softmax(-1)
            allowed = probs.topk(3).indices if "top_k" in asked else probs >= 0.6 * probs.max()
            allowed = allowed if "top_k" in asked else allowed.nonzero()[:, 0]
            texts = {tiny.character(i) if i != 2 else "" for i in allowed.tolist()}
            assert {s.text for s in samples} == texts and len(texts) <= most
            assert {s.text for s in others} > texts


def test_one_line_says_what_is_respected_and_what_is_not():
    config = GenerationConfig(top_k=20, temperature=0.7, repetition_penalty=1.05, num_beams=4)
    text = Asked(config, [2]).text
    assert text.startswith("repetition_penalty=1.05, top_k=20; ")
    assert "not used: temperature=0.7 (the config decides)" in text
    assert "not used: num_beams=4 (this engine cannot)" in text
    ignored = Asked(config, [2], respect=False)
    assert "top_k=20 (sampling.generation_config=ignore)" in ignored.text
    assert ignored.rules(3, 1.0) is None
    plain = Asked(GenerationConfig(), [2])
    assert plain.text == "" and plain.rules(3, 1.0) is None
