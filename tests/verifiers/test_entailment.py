"""Entailment in both directions, by tiny classifiers that the tests make."""

from __future__ import annotations

import itertools

import pytest
import torch

from facttune_ray.errors import UserError
from facttune_ray.verifiers.entailment import Entailment, entailment_label
from facttune_ray.verifiers.passes import passes

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = [f"w{i}" for i in range(30)]
LABELS = {0: "CONTRADICTION", 1: "NEUTRAL", 2: "ENTAILMENT"}


def tokenizer(pad: str | None = "[PAD]"):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    made = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token=pad,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )


def classifier(seed: int = 0, labels: dict[int, str] = LABELS, positions: int = 64):
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(WORDS) + 4,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=positions,
        id2label=labels,
        label2id={name: i for i, name in labels.items()},
    )
    return BertForSequenceClassification(config)


def save(folder, model, made=None) -> str:
    model.save_pretrained(folder)
    (made or tokenizer()).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def random_model(tmp_path_factory):
    """A model with large weights, so that each label is the likeliest for some pairs."""
    model = classifier()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return save(tmp_path_factory.mktemp("nli") / "random", model)


def texts() -> list[str]:
    made = [" ".join(WORDS[i : i + n]) for i in (0, 17) for n in (1, 4, 11)]
    return [*made, ""]


def plain(model: Entailment, premise: str, hypothesis: str) -> bool:
    """One pair at a time, without padding."""
    inputs = model.tokenizer([premise], [hypothesis], return_tensors="pt")
    with torch.no_grad():
        return int(model.model(**inputs).logits.argmax()) == 2


@pytest.mark.parametrize("batch_tokens", [8192, 40, 1])
def test_the_same_is_entailment_in_both_directions_for_every_batch_size(random_model, batch_tokens):
    model = Entailment(random_model, batch_tokens=batch_tokens)
    pairs = list(itertools.product(texts(), repeat=2))
    expected = [a == b or (plain(model, a, b) and plain(model, b, a)) for a, b in pairs]
    assert model.same(pairs) == expected
    forward = [plain(model, a, b) for a, b in pairs]
    # both directions differ from one, and the model distinguishes pairs
    assert sum(expected) < sum(forward) < len(pairs)
    assert sum(expected) > len(texts())
    alone = Entailment(random_model)
    assert [alone.same([p])[0] for p in pairs] == expected
    assert model.same([(b, a) for a, b in pairs]) == expected


def test_each_direction_of_a_pair_runs_once(random_model):
    model = Entailment(random_model)
    a, b, c, *_ = texts()
    assert model.same([]) == []
    assert model.same([(a, a)]) == [True] and model.pairs_run == 0
    first = model.same([(a, b), (b, a), (a, b), (b, c)])
    run = model.pairs_run
    assert 2 <= run <= 4
    assert model.same([(b, a), (c, b), (a, b), (b, c)]) == [first[i] for i in (0, 3, 0, 3)]
    assert model.pairs_run == run


def test_the_cache_is_bounded(random_model):
    pairs = list(itertools.combinations(texts(), 2))
    small, large = Entailment(random_model, cached=3), Entailment(random_model)
    assert small.same(pairs) == small.same(pairs) == large.same(pairs)
    assert small.pairs_run > large.pairs_run


def test_a_long_pair_loses_its_beginning(random_model):
    model = Entailment(random_model)
    assert model.windows.limit == 64
    long = " ".join(WORDS * 5)
    model.same([(f"{long} w1", f"{long} w2"), (f"{long} w1", "w3")])  # fits the positions
    assert model.pairs_run >= 2
    ids = model.tokenizer(long + " w1", "w3", truncation=True, max_length=64)["input_ids"]
    assert len(ids) == 64 and model.tokenizer.decode(ids).endswith("w1 [SEP] w3 [SEP]")


def test_a_model_without_padding_runs_pairs_one_at_a_time(random_model, tmp_path):
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(random_model)
    bare = Entailment(save(tmp_path / "bare", model, tokenizer(pad=None)))
    assert bare.pad is None
    pairs = list(itertools.combinations(texts(), 2))
    assert bare.same(pairs) == Entailment(random_model).same(pairs)


def test_batches_are_sorted_by_length_and_bounded_by_tokens():
    rows = [[7] * n for n in (3, 9, 3, 5)]
    device = torch.device("cpu")
    run = list(passes(rows, 10, 0, device))
    assert [chosen for chosen, _ in run] == [[1], [3, 0], [2]]
    assert run[1][1]["attention_mask"].sum(1).tolist() == [5, 3]
    assert [chosen for chosen, _ in passes(rows, 10, None, device)] == [[1], [3], [0], [2]]
    assert list(passes([], 10, 0, device)) == []


def test_the_label_for_entailment_is_recognised():
    assert entailment_label(LABELS, "m") == 2
    assert entailment_label({0: "entailment", 1: "not_entailment"}, "m") == 0
    assert entailment_label({0: "non-entailment", 1: "entail"}, "m") == 1


@pytest.mark.parametrize(
    "labels", [{0: "LABEL_0", 1: "LABEL_1"}, {0: "entails", 1: "entailment_strong"}]
)
def test_a_model_without_a_single_entailment_label_is_refused(tmp_path, labels):
    folder = save(tmp_path / "m", classifier(labels=labels))
    with pytest.raises(UserError, match=f"{labels[0]}, {labels[1]}.*entailment") as e:
        Entailment(folder)
    assert "\n" not in str(e.value)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="Cannot load a model"):
        Entailment(str(tmp_path / "none"))


def test_a_trained_model_separates_one_direction_from_both(tmp_path):
    """The model learns that every text entails w10..w19, and no text entails w0..w9."""
    torch.manual_seed(0)
    made, model = tokenizer(), classifier(labels={0: "not_entailment", 1: "entailment"})
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    pairs = list(itertools.product(range(20), repeat=2))
    inputs = made([f"w{p}" for p, _ in pairs], [f"w{h}" for _, h in pairs], return_tensors="pt")
    target = torch.tensor([int(h >= 10) for _, h in pairs])
    for _ in range(40):
        some = torch.randint(len(pairs), (64,))
        logits = model(**{k: v[some] for k, v in inputs.items()}).logits
        torch.nn.functional.cross_entropy(logits, target[some]).backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = Entailment(save(tmp_path / "trained", model))
    got = trained.same([("w12", "w15"), ("w2", "w15"), ("w15", "w2"), ("w2", "w5"), ("w5", "w5")])
    assert got == [True, False, False, False, True]
