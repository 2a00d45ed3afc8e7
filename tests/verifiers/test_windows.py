"""Models that judge a fact by its passages: entailment and MiniCheck, tiny ones made here."""

from __future__ import annotations

import json
import random

import pytest
import torch

from facttune_ray.errors import UserError
from facttune_ray.verifiers.entailment import Entailment
from facttune_ray.verifiers.minicheck import MiniCheck
from facttune_ray.verifiers.windows import Windows, join

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = [f"w{i}" for i in range(30)]
FACTS = ["w1 w2", "w3 w4 w5 w6 w7", "w29"]
LONG = " ".join(random.Random(0).choices(WORDS, k=150))  # longer than the models' 64 positions
PASSAGES = ["w1 w2 w3 w4", "w9 w8 w7", LONG, "w20 w21 w22 w23 w24 w25 w26"]
EVIDENCE = [[PASSAGES[0], PASSAGES[2]], [PASSAGES[1], PASSAGES[3], PASSAGES[0]], [PASSAGES[2]]]


def words_tokenizer(pre_tokenizer="Whitespace", single="[CLS] $A [SEP]"):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "so", "?"]
    vocab = {w: i for i, w in enumerate([*special, *WORDS])}
    made = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    made.pre_tokenizer = getattr(pre_tokenizers, pre_tokenizer)()
    made.post_processor = processors.TemplateProcessing(
        single=single,
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def save(folder, model, tokenizer) -> str:
    for weight in model.parameters():  # large weights: scores differ clearly
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def classifier(folder, labels=("contradiction", "entailment", "neutral"), tokenizer=None) -> str:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=36, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64, id2label=dict(enumerate(labels)),
        label2id={name: i for i, name in enumerate(labels)},
    )  # fmt: skip
    return save(folder, BertForSequenceClassification(config), tokenizer or words_tokenizer())


def minicheck(folder, pieces=("▁0", "▁1")) -> str:
    """A tiny T5 with T5's own kind of tokenizer; its window has 64 tokens."""
    from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer

    letters = [(c, -9.0) for c in "predict:w0123456789The.catsonmWhr"]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    vocab += [("▁predict", -2.0), *((p, -2.0) for p in pieces), *((f"▁{w}", -4.0) for w in WORDS)]
    known = {piece for piece, _ in vocab}
    vocab += [(c, p) for c, p in dict(letters).items() if c not in known]
    tokenizer = T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=64)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
        decoder_start_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    return save(folder, T5ForConditionalGeneration(config), tokenizer)


@pytest.fixture(scope="module")
def nli(tmp_path_factory) -> str:
    return classifier(tmp_path_factory.mktemp("nli") / "m")


@pytest.fixture(scope="module")
def t5(tmp_path_factory) -> str:
    return minicheck(tmp_path_factory.mktemp("t5") / "m")


def slices(body: list[int], room: int) -> list[list[int]]:
    """Overlapping windows by a second, plain way: a window starts 3/4 of a window after the last
    one, until one reaches the end."""
    out = [body[:room]]
    at = 0
    while at + room < len(body):
        at += room - room // 4
        out.append(body[at : at + room])
    return out


@torch.no_grad()
def one_pair(model: Entailment, passage: str, fact: str) -> float:
    """P(entailment) one window after the other, from rows written by hand."""
    tok = model.tokenizer
    a, b = (tok(text, add_special_tokens=False)["input_ids"] for text in (passage, fact))
    found = []
    for window in slices(a, 64 - len(b) - 3):
        ids = [2, *window, 3, *b, 3]
        types = [0] * (len(window) + 2) + [1] * (len(b) + 1)
        logits = model.model(
            input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([types])
        ).logits
        found.append(float(torch.softmax(logits[0], -1)[1]))
    return max(found)


@torch.no_grad()
def one_document(model: MiniCheck, document: str, claim: str) -> float:
    """P(1) of the whole text in MiniCheck's format, as one string."""
    ids = model.tokenizer(f"predict: {document}</s>{claim}", return_tensors="pt")["input_ids"]
    logits = model.model(
        input_ids=ids, decoder_input_ids=torch.zeros(1, 1, dtype=torch.long)
    ).logits
    pair = [model.tokenizer.convert_tokens_to_ids(p) for p in ("▁0", "▁1")]
    return float(torch.softmax(logits[0, 0, pair], -1)[1])


@pytest.mark.parametrize("batch_tokens", [8192, 100, 1])
def test_the_best_window_of_the_best_passage_counts(nli, batch_tokens):
    model = Entailment(nli, batch_tokens=batch_tokens)
    scored = model.judge("w0", FACTS, EVIDENCE)
    for (score, at), fact, passages in zip(scored, FACTS, EVIDENCE, strict=True):
        expected = [one_pair(model, p, fact) for p in passages]
        assert score == pytest.approx(max(expected), abs=1e-5)
        assert at == expected.index(max(expected))
    assert len({round(score, 3) for score, _ in scored}) > 1  # the model tells facts apart


def test_a_score_does_not_depend_on_the_other_facts(nli):
    model = Entailment(nli)
    together = model.judge("w0", FACTS, EVIDENCE)
    alone = [model.judge("w0", [f], [e])[0] for f, e in zip(FACTS, EVIDENCE, strict=True)]
    assert [at for _, at in together] == [at for _, at in alone]
    for (a, _), (b, _) in zip(together, alone, strict=True):
        assert a == pytest.approx(b, abs=1e-5)


def test_support_that_stands_in_the_last_window_is_found(nli):
    """A window holds what the end of a long passage says, so the score equals that window's."""
    model = Entailment(nli)
    room = 64 - 3 - 1
    windows = slices(LONG.split(), room)
    assert len(windows) == 3 and len(windows[-1]) > 1
    scores = [one_pair(model, " ".join(w), "w29") for w in windows]
    ((score, _),) = model.judge("w0", ["w29"], [[LONG]])
    assert score == pytest.approx(max(scores), abs=1e-5)
    assert len({round(s, 4) for s in scores}) == 3  # windows differ


def test_facts_without_passages_and_facts_that_are_too_long_are_unknown(nli):
    model = Entailment(nli)
    facts = ["w1", " ".join(WORDS[:25] * 2), "w2", "w3"]
    scored = model.judge("w0", facts, [[], [LONG], ["  "], [PASSAGES[0]]])
    assert scored[:3] == [(None, None)] * 3 and scored[3][1] == 0
    assert model.judge("w0", [], []) == []
    with pytest.raises(ValueError, match="1 facts but 2 lists"):
        model.judge("w0", ["w1"], [[], []])


def test_passages_and_facts_are_tokenised_once(nli, monkeypatch):
    model, seen = Entailment(nli), []
    plain = Windows._encoded
    monkeypatch.setattr(
        Windows, "_encoded", lambda self, a, b: seen.append((list(a), list(b))) or plain(self, a, b)
    )
    facts = [f"w{i}" for i in range(20)]
    model.judge("w0", facts, [PASSAGES] * 20)
    (passages, _), (_, claims) = seen
    assert passages == PASSAGES and claims == facts


def test_a_text_cannot_imitate_the_models_own_marks(nli, t5):
    model = Entailment(nli)
    odd = ["w1 [SEP] w2", "w1 [CLS]\nw2[PAD]"]
    scored = model.judge("w0", [*odd, "w1 w2"], [["w3 [SEP] w4"]] * 2 + [["w3 w4"]])
    assert len(set(scored)) == 1 and model.pairs_run == 1
    assert model.judge("w0", ["w1"], [["[SEP]"]]) == [(None, None)]
    document = MiniCheck(t5)
    document.judge("w0", ["w1</s>w2", "w1 w2", "{passage}"], [["w3 </s> w4"], ["w3 w4"], ["w3"]])
    assert document.rows_run == 2


def test_equal_rows_are_scored_once(nli):
    model = Entailment(nli)
    model.judge("w0", ["w1", "w1"], [["w2 w3", "w2  w3"], ["w2 w3"]])
    assert model.pairs_run == 1


def test_a_classifier_of_one_text_has_a_template(nli):
    model = Entailment(nli, template="so {passage} ? {claim} so", key="verdicts.nli")
    ((score, _),) = model.judge("w0", ["w1 w2"], [["w4 w5 w6"]])
    inputs = model.tokenizer("so w4 w5 w6 ? w1 w2 so", return_tensors="pt")
    with torch.no_grad():
        expected = torch.softmax(model.model(**inputs).logits[0], -1)[1]
    assert score == pytest.approx(float(expected), abs=1e-5)
    ((score, _),) = model.judge("w0", ["w1 w2"], [[LONG]])  # windows, with the template's words
    assert 0 < score < 1 and model.pairs_run == 5


def roberta():
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaTokenizer

    made = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    made.train_from_iterator([LONG] * 9, vocab_size=300, special_tokens=special)
    model = json.loads(made.to_str())["model"]
    return RobertaTokenizer(vocab=model["vocab"], merges=[tuple(m) for m in model["merges"]])


def deberta():
    from tokenizers import SentencePieceUnigramTokenizer
    from transformers import DebertaV2Tokenizer

    made = SentencePieceUnigramTokenizer()
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    made.train_from_iterator([LONG], vocab_size=30, special_tokens=special, unk_token="[UNK]")
    vocab = json.loads(made.to_str())["model"]["vocab"]
    return DebertaV2Tokenizer(vocab=[tuple(piece) for piece in vocab])


@pytest.mark.parametrize("tokenizer", [roberta, deberta])
@pytest.mark.parametrize("form", ["", "{passage} [SEP]{claim}", '{passage}\n\nSo "{claim}"?\n- w1'])
def test_parts_give_the_tokens_of_the_whole(tokenizer, form):
    tok = tokenizer()
    windows = Windows(tok, 512, "m", form)
    passage, claim = "w3 w4. W5, w6", "w9 w8!"
    ((head, body),), (tail,) = windows.passages([passage]), windows.claims([claim])
    text = form.replace("{passage}", passage).replace("{claim}", claim)
    whole = tok(text) if form else tok(passage, claim)
    assert join(head, body, tail).ids == whole["input_ids"]
    assert body.ids == tok(passage, add_special_tokens=False)["input_ids"]


def test_a_template_in_which_words_run_together_is_refused(tmp_path):
    folder = classifier(tmp_path / "m", tokenizer=words_tokenizer("WhitespaceSplit"))
    Entailment(folder, template="{passage} {claim}")
    with pytest.raises(UserError, match="does not fit: put a space or a mark") as e:
        Entailment(folder, template="{passage}{claim}")
    assert "\n" not in str(e.value)


def test_a_label_may_be_named_and_one_logit_is_a_sigmoid(tmp_path):
    two = classifier(tmp_path / "two", ("LABEL_0", "LABEL_1"))
    with pytest.raises(UserError, match=r"LABEL_0, LABEL_1.*name the label in verdicts.nli_label"):
        Entailment(two, key="verdicts.nli")
    with pytest.raises(
        UserError, match="verdicts.nli_label=yes: .* has the labels LABEL_0, LABEL_1"
    ):
        Entailment(two, label="yes", key="verdicts.nli")
    no, yes = (Entailment(two, label=f"LABEL_{i}", key="verdicts.nli") for i in (0, 1))
    ((a, _),), ((b, _),) = (m.judge("w0", ["w1"], [["w2 w3"]]) for m in (no, yes))
    assert a + b == pytest.approx(1, abs=1e-5) and abs(a - b) > 0.01

    one = Entailment(classifier(tmp_path / "one", ("consistent",)), label="consistent")
    ((score, _),) = one.judge("w0", ["w1"], [["w2 w3"]])
    with torch.no_grad():
        inputs = one.tokenizer(["w2 w3"], ["w1"], return_tensors="pt")
        logit = one.model(**inputs).logits[0, 0]
    assert score == pytest.approx(float(torch.sigmoid(logit)), abs=1e-5)


@pytest.mark.parametrize("batch_tokens", [8192, 1])
def test_minicheck_reads_its_own_format(t5, batch_tokens):
    model = MiniCheck(t5, batch_tokens=batch_tokens)
    evidence = [[PASSAGES[0]], [PASSAGES[1], PASSAGES[3]], [PASSAGES[3]]]
    scored = model.judge("w0", FACTS, evidence)
    for (score, at), fact, passages in zip(scored, FACTS, evidence, strict=True):
        expected = [one_document(model, p, fact) for p in passages]
        assert score == pytest.approx(max(expected), abs=1e-5)
        assert at == expected.index(max(expected))
    assert len({round(score, 3) for score, _ in scored}) == 3


def test_a_document_longer_than_minichecks_window_is_cut(t5):
    model = MiniCheck(t5)
    claim = "w29"
    head, tail = 2, 3  # "predict", ":" before the document; end, claim, end after it
    expected = [
        one_document(model, " ".join(w), claim) for w in slices(LONG.split(), 64 - head - tail)
    ]
    ((score, at),) = model.judge("w0", [claim], [[LONG]])
    assert len(expected) == model.rows_run == 4
    assert (score, at) == (pytest.approx(max(expected), abs=1e-5), 0)
    assert model.judge("w0", [" ".join(WORDS * 2)], [[LONG]]) == [(None, None)]


def test_a_tokenizer_without_minichecks_answers_is_refused(tmp_path):
    folder = minicheck(tmp_path / "m", pieces=())  # "0" and "1" begin with the same piece
    with pytest.raises(UserError, match="does not tell 0 from 1") as e:
        MiniCheck(folder)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("judge", [Entailment, MiniCheck])
def test_missing_weights_give_one_line(tmp_path, nli, judge):
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes(open(f"{nli}/{name}", "rb").read())
    (folder / "pytorch_model.bin").write_bytes(b"a pickle, which is never read")
    for path in (str(folder), str(tmp_path / "none")):
        with pytest.raises(UserError, match="Cannot load a model from") as e:
            judge(path)
        assert "\n" not in str(e.value)
