"""DoLa against its formula and against decoding without a cache; custom decoders."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from facttune_ray.errors import UserError
from facttune_ray.quickstart.base_model import pretrain
from facttune_ray.sampling.custom import CustomSampler
from facttune_ray.sampling.dola import ALPHA, Dola, divergence, layers_of
from facttune_ray.sampling.paths import PATHS
from facttune_ray.sampling.probe import Way
from facttune_ray.sampling.protocol import SampleRequest, encode_prompt
from facttune_ray.sampling.transformers import TransformersSampler

PROMPTS = ["Who is Mara?", "Who is Tiko?", "Who was Belu Sanor?"]
DOCUMENTS = [f"{p}\n{p[7:-1]} plays the {x}." for p in PROMPTS for x in ("cello", "harp", "oboe")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A model with large random weights and untied embeddings: its layers disagree."""
    out = tmp_path_factory.mktemp("model") / "base"
    pretrain(DOCUMENTS, out, seed=0, steps=0, hidden=32, layers=6, heads=2, max_length=64)
    model = AutoModelForCausalLM.from_pretrained(out)
    torch.manual_seed(0)
    config = type(model.config)(
        **model.config.to_dict() | {"tie_word_embeddings": False, "initializer_range": 0.3}
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(out)
    return str(out)


@pytest.mark.parametrize(
    ("which", "count", "tied", "found"),
    [
        ("high", 32, False, list(range(16, 32, 2))),
        ("low", 32, False, list(range(0, 16, 2))),
        ("low", 32, True, list(range(2, 16, 2))),
        ("high", 48, False, list(range(28, 48, 2))),
        ("low", 48, False, list(range(0, 20, 2))),
        ("high", 2, False, [1]),
        ("low", 2, True, [1]),
        ("0, 2,4", 6, False, [0, 2, 4]),
    ],
)
def test_layer_indices_by_hand(which, count, tied, found):
    assert layers_of(which, count, tied) == found


def test_a_missing_layer_is_refused():
    with pytest.raises(UserError, match="dola_layers=1,6: the model has the layers 0 to 5"):
        layers_of("1,6", 6, False)


def test_divergence_by_hand():
    p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.9, 0.1]])
    to_p = 0.7 * math.log(0.7 / 0.5) + 0.3 * math.log(0.3 / 0.5)
    by_hand = 0.5 * (to_p + 0.7 * math.log(0.7 / 0.9) + 0.3 * math.log(0.3 / 0.1))
    assert divergence(p.log(), q.log()).item() == pytest.approx(by_hand)
    assert divergence(p.log(), p.log()).item() == pytest.approx(0, abs=1e-7)


def test_contrast_by_hand():
    """The third token is below a tenth of the first. Each row chooses its farther layer."""
    config = SimpleNamespace(num_hidden_layers=4, tie_word_embeddings=False)
    config.get_text_config = lambda decoder: config
    model = SimpleNamespace(config=config, get_output_embeddings=lambda: lambda x: x)
    dola = Dola(model, "0,2")
    last = torch.tensor([[0.6, 0.35, 0.05], [0.5, 0.3, 0.2]]).log()
    near, far = [0.5, 0.4, 0.1], [0.1, 0.1, 0.8]
    hidden = [torch.tensor([near, far]).log(), torch.tensor([far, near]).log()]
    found = dola.contrast(hidden, last)
    assert ALPHA == 0.1
    expected = [[0.6 / 0.1, 0.35 / 0.1, 0.0], [0.5 / 0.1, 0.3 / 0.1, 0.2 / 0.8]]
    assert torch.allclose(found.exp(), torch.tensor(expected))


def by_hand(sampler: TransformersSampler, ids: list[int], layers: list[int], steps: int):
    """Token ids of greedy DoLa for one sequence, without a cache, by the paper's formula."""
    out: list[int] = []
    for _ in range(steps):
        found = sampler.model(input_ids=torch.tensor([ids + out]), output_hidden_states=True)
        last = found.logits[0, -1].double().softmax(-1)
        early = [
            sampler.model.lm_head(found.hidden_states[i][0, -1]).double().softmax(-1)
            for i in layers
        ]

        def far(q, last=last):
            middle = (last + q) / 2
            return (middle * ((middle / last).log() + (middle / q).log())).sum()

        chosen = max(early, key=far)
        score = torch.where(last >= 0.1 * last.max(), (last / chosen).log(), -torch.inf)
        out.append(int(score.argmax()))
        if out[-1] == sampler.tokenizer.eos_token_id:
            break
    return out


@pytest.mark.parametrize("which", ["high", "low", "1"])
@pytest.mark.parametrize("path", PATHS)
def test_greedy_equals_the_formula_without_a_cache(folder, monkeypatch, which, path):
    sampler = TransformersSampler(folder, dola_layers=which)
    monkeypatch.setattr(sampler.paths, "at", lambda longest: Way(path))
    layers = {"high": [3, 5], "low": [0, 2], "1": [1]}[which]
    settings = {"n": 2, "seeds": [0] * 3, "max_tokens": 10, "temperature": 0, "top_p": 1.0}
    found = sampler.sample(SampleRequest(PROMPTS, **settings))
    for prompt, samples in zip(PROMPTS, found, strict=True):
        ids = by_hand(sampler, encode_prompt(sampler.tokenizer, prompt), layers, 10)
        text = sampler.tokenizer.decode(ids, skip_special_tokens=True)
        assert [s.text for s in samples] == [text, text]
        assert [s.tokens for s in samples] == [len(ids)] * 2
        assert len(set(ids)) > 4
    plain = TransformersSampler(folder).sample(SampleRequest(PROMPTS, **settings))
    assert found != plain


def test_improbable_tokens_are_never_drawn(folder):
    """A token whose probability is below a tenth of the highest is never drawn."""
    sampler = TransformersSampler(folder, dola_layers="high")
    ids = encode_prompt(sampler.tokenizer, PROMPTS[0])
    probs = sampler.model(input_ids=torch.tensor([ids])).logits[0, -1].softmax(-1)
    head = {int(i) for i in (probs >= 0.1 * probs.max()).nonzero()[:, 0]}
    (found,) = sampler.sample(
        SampleRequest(PROMPTS[:1], n=100, seeds=[1], max_tokens=1, temperature=1.0, top_p=1.0)
    )
    texts = {sampler.tokenizer.decode([i], skip_special_tokens=True) for i in head}
    assert {s.text for s in found} <= texts


GENERATE = '''
def generate(model, input_ids, custom_generate=None, backwards=False, **kwargs):
    """The prompt's own tokens once more."""
    import torch
    again = input_ids.flip(1) if backwards else input_ids
    return torch.cat([input_ids, again], dim=1)
'''


def test_a_custom_decoder_is_loaded_from_a_folder(folder, tmp_path):
    (tmp_path / "custom_generate").mkdir()
    (tmp_path / "custom_generate" / "generate.py").write_text(GENERATE)
    settings = {"n": 2, "seeds": [0], "max_tokens": 10, "temperature": 1.0, "top_p": 1.0}
    sampler = CustomSampler(folder, generate=str(tmp_path))
    ((first, second),) = sampler.sample(SampleRequest(PROMPTS[:1], **settings))
    assert first.text == second.text == PROMPTS[0] + "\n" and not first.finished
    (other,) = CustomSampler(folder, generate=str(tmp_path), params={"backwards": True}).sample(
        SampleRequest(PROMPTS[:1], **settings)
    )
    assert sorted(other[0].text) == sorted(first.text) and other[0].text.startswith("\n?")


def test_a_folder_without_a_decoder_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match="no custom_generate/generate.py in this folder"):
        CustomSampler(folder, generate=str(tmp_path))
