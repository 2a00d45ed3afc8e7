from __future__ import annotations

import pytest
import torch

from facttune_ray.errors import UserError
from facttune_ray.quickstart.base_model import pretrain, train_tokenizer
from facttune_ray.sampling.protocol import SampleRequest
from facttune_ray.sampling.transformers import TransformersSampler

ANSWERS = {"Mara": "Ostrel", "Tiko": "Kaldin", "Belu": "Verport", "Sanor": "Haskow"}
DOCUMENTS = [f"Question: Where was {w} born?\nAnswer: {v}" for w, v in ANSWERS.items()]
TINY = {"hidden": 32, "layers": 1, "heads": 2, "threads": 1, "max_length": 64}


@pytest.fixture(autouse=True)
def keep_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "text",
    [
        DOCUMENTS[0],
        "Zo\u00eb \u4e16\u754c \U0001f600\n\n  two  spaces\tand a tab ",
        "don't \u2014 'quoted' 1955, 3.14%",
    ],
)
def test_tokenizer_gives_any_text_back(text):
    tokenizer = train_tokenizer(DOCUMENTS, 300, 64)
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_known_words_are_one_token_and_the_limit_holds():
    tokenizer = train_tokenizer(DOCUMENTS, 3000, 64)
    assert tokenizer.tokenize("Question: Where was Mara born?") == [
        "Question", ":", "\u0120Where", "\u0120was", "\u0120Mara", "\u0120born", "?",
    ]  # fmt: skip
    assert tokenizer.tokenize("wh") == ["w", "h"]  # no word of the documents: its bytes
    assert len(train_tokenizer(DOCUMENTS, 260, 64)) == 260


def test_a_trained_model_is_saved_and_opened_by_transformers(tmp_path):
    seen = []
    out = tmp_path / "deep" / "base"
    figures = pretrain(
        DOCUMENTS * 40,
        out,
        seed=0,
        steps=150,
        lr=1e-2,
        on_step=lambda step, steps, loss: seen.append((step, steps, loss)),
        **TINY,
    )
    assert [s for s, _, _ in seen] == list(range(1, 151)) and seen[-1][1] == 150
    assert seen[-1][2] < 0.5 * seen[0][2]
    assert figures["steps"] == 150 and figures["documents"] == 160
    assert [p.name for p in out.parent.iterdir()] == ["base"]  # no temporary folder is left

    sampler = TransformersSampler(str(out), threads=1)
    said = sampler.sample(
        SampleRequest(
            [f"Question: Where was {who} born?\nAnswer:" for who in ANSWERS],
            n=1,
            seeds=[0] * 4,
            max_tokens=4,
            temperature=0,
            top_p=1,
            raw=True,
        )
    )
    assert [s[0].text.strip() for s in said] == list(ANSWERS.values())
    assert all(s[0].finished and s[0].tokens == 2 for s in said)


def test_equal_seeds_give_equal_weights(tmp_path):
    from safetensors.torch import load_file

    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        pretrain(DOCUMENTS, tmp_path / name, seed=seed, steps=5, **TINY)
        weights.append(load_file(tmp_path / name / "model.safetensors"))
    key = "model.embed_tokens.weight"
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    assert not torch.equal(weights[0][key], weights[2][key])


def test_random_model_replaces_an_older_folder(tmp_path):
    out = tmp_path / "base"
    out.mkdir()
    (out / "stale").write_text("old")
    figures = pretrain(["Zo\u00eb was born in \u0141\u00f3d."], out, seed=0, epochs=0, **TINY)
    assert figures["steps"] == 0 and not (out / "stale").exists()
    assert (out / "config.json").exists()


def test_bad_input_is_one_line(tmp_path):
    with pytest.raises(UserError, match="No documents"):
        pretrain([], tmp_path / "base", seed=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write the base model"):
        pretrain(DOCUMENTS, tmp_path / "file" / "base", seed=0, steps=0, **TINY)
