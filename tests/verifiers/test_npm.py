from __future__ import annotations

import math

import pytest
import torch

from facttune_ray.errors import UserError
from facttune_ray.verifiers.npm import NPM, nonparametric

TOPIC = "Mara Veldt"
FACTS = [
    "Mara Veldt plays the cello.",
    "She was born in Rome in 1931.",
    "She was in it.",  # only stopwords
    "Mara Veldt lives in Lyon.",
]
LYON, CELLO = "Mara Veldt was born in Lyon.", "She plays the cello and the harp in Lyon."
EVIDENCE = [[CELLO, LYON], [LYON], [LYON], [LYON, CELLO]]


def tokenizer(kind: str):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    texts = " ".join([*FACTS, LYON, CELLO, "Fact: ", "1 9 3 harp ##e ##ll ##o", "cell"])
    pieces = pre_tokenizers.BertPreTokenizer().pre_tokenize_str(texts)
    vocab = {t: i for i, t in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"])}
    for piece in ["##o", *(w for w, _ in pieces)]:
        if piece != "cello":  # "cello" is two tokens: cell ##o
            vocab.setdefault(piece, len(vocab))
    made = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        unk_token="[UNK]", mask_token="[MASK]", model_max_length=64,
    )  # fmt: skip


def save(folder, kind: str, positions: int = 64) -> str:
    import transformers as t

    tok = tokenizer(kind)
    small = {"vocab_size": len(tok), "hidden_size": 16, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 2, "intermediate_size": 32, "pad_token_id": 0}
    small |= {"max_position_embeddings": positions + 2}
    if kind == "modernbert":
        special = {"cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
        config = t.ModernBertConfig(**small, **special, local_attention=16)
    else:
        config = {"bert": t.BertConfig, "roberta": t.RobertaConfig}[kind](**small)
    torch.manual_seed(3)
    model = t.AutoModelForMaskedLM.from_config(config)
    for name, weight in model.named_parameters():
        if "norm" not in name.lower() and weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.4)
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = tmp_path_factory.mktemp("masked")
    return {kind: save(made / kind, kind) for kind in ("bert", "roberta", "modernbert")}


def run(npm: NPM, ids: list[int]) -> tuple[list[list[float]], list[list[float]]]:
    """The vectors and softmax of one sequence at every token, as Python numbers."""
    with torch.no_grad():
        batch = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids))}
        hidden = npm.model.base_model(**batch).last_hidden_state[0]
        logits = npm.model(**batch).logits[0]
    return hidden.tolist(), torch.softmax(logits.double(), -1).tolist()


def plain(npm: NPM, fact: str, passages: list[str], content: list[str], share: float) -> float:
    """A fact's score by a loop over tokens. `content`: the tokens that are masked in turn."""
    tok = npm.tokenizer
    store = []
    for passage in passages:
        ids = tok(passage)["input_ids"]
        store += list(zip(ids[1:-1], run(npm, ids)[0][1:-1], strict=True))
    ids = tok("Fact: " + fact)["input_ids"]
    fact_at = ids.index(tok.convert_tokens_to_ids(":")) + 1
    found = []
    for at in range(fact_at, len(ids) - 1):
        if tok.convert_ids_to_tokens(ids[at]) not in content:
            continue
        vectors, softmax = run(npm, [*ids[:at], tok.mask_token_id, *ids[at + 1 :]])
        mask, true = vectors[at], ids[at]
        weights = [
            (token, math.exp(sum(a * b for a, b in zip(mask, v, strict=True)) / len(mask) ** 0.5))
            for token, v in store
        ]
        near = sum(w for token, w in weights if token == true) / sum(w for _, w in weights)
        found.append(share * softmax[at][true] + (1 - share) * near)
    assert len(found) == len(content)
    return sum(found) / len(found)


CONTENT = [
    ["Mara", "Veldt", "plays", "cell", "##o"],
    ["born", "Rome", "1931"],
    [],
    ["Mara", "Veldt", "lives", "Lyon"],
]


@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert"])
@pytest.mark.parametrize("batch_tokens", [8192, 20])
def test_scores_equal_those_of_a_loop_over_tokens(folders, kind, batch_tokens):
    npm = NPM(folders[kind], batch_tokens=batch_tokens)
    got = npm.judge(TOPIC, FACTS, EVIDENCE)
    assert got[2] is None  # nothing to mask
    for i in (0, 1, 3):
        expected = plain(npm, FACTS[i], EVIDENCE[i], CONTENT[i], 0.5)
        assert got[i] == pytest.approx(expected, abs=1e-5)
    near = NPM(folders[kind], mlm_share=0.0).judge(TOPIC, FACTS[:1], EVIDENCE[:1])[0]
    assert near == pytest.approx(plain(npm, FACTS[0], EVIDENCE[0], CONTENT[0], 0.0), abs=1e-5)


def test_nonparametric_shares_equal_hand_computed_shares():
    """Width 4, so inner products are halved. mask (2 ln 2, 0, 0, 0) . first axis 1, 0, 2, 0
    -> exponents ln 2, 0, 2 ln 2, 0 -> weights 2, 1, 4, 1 of 8."""
    mask = torch.tensor([[2 * math.log(2), 0.0, 0.0, 0.0]])
    passage = torch.tensor([[1.0, 0, 0, 0], [0, 5.0, 0, 0], [2.0, 0, 0, 3.0], [0, 0, 7.0, 0]])
    ids = torch.tensor([7, 8, 9, 7])

    def share(token: int) -> float:
        return nonparametric(mask, passage, ids, torch.tensor([token])).item()

    assert share(7) == pytest.approx(3 / 8)  # both places of the token
    assert share(8) == pytest.approx(1 / 8)
    assert share(9) == pytest.approx(4 / 8)
    assert share(5) == 0  # in no passage


class Known(torch.nn.Module):
    """A masked LM with given vectors per token and given probabilities of the masked token."""

    class Body(torch.nn.Module):
        def __init__(self, rows):
            super().__init__()
            self.rows = rows

        def forward(self, input_ids, attention_mask):
            from transformers.modeling_outputs import BaseModelOutput

            return BaseModelOutput(last_hidden_state=self.rows[input_ids])

    def __init__(self, rows, probabilities, config):
        super().__init__()
        self.base_model, self.config = Known.Body(rows), config
        self.log = torch.log(torch.tensor(probabilities))

    def forward(self, input_ids, attention_mask):
        from transformers.modeling_outputs import MaskedLMOutput

        hidden = self.base_model(input_ids, attention_mask).last_hidden_state
        return MaskedLMOutput(logits=self.log.expand(*hidden.shape[:2], -1))


def test_a_facts_score_equals_the_hand_computed_score(folders):
    """Fact "Lyon harp", passage "Lyon cell Lyon". Mask . Lyon / sqrt(16) = ln 3, . cell = 0:
    weights 3, 1, 3 of 7. Lyon: (0.4 + 6/7) / 2; harp, in no passage: (0.2 + 0) / 2."""
    npm = NPM(folders["bert"])
    size, at = len(npm.tokenizer), npm.tokenizer.convert_tokens_to_ids
    rows = torch.zeros(size, 16)
    rows[at("[MASK]"), 0] = 4 * math.log(3)
    rows[at("Lyon"), 0] = 1.0
    rest = 0.4 / (size - 2)
    probabilities = [rest] * size
    probabilities[at("Lyon")], probabilities[at("harp")] = 0.4, 0.2
    npm.model = Known(rows, probabilities, npm.model.config)
    [score] = npm.judge("x", ["Lyon harp"], [["Lyon cell Lyon"]])
    assert score == pytest.approx(((0.4 + 6 / 7) / 2 + 0.1) / 2, abs=1e-5)


def test_passages_run_once_and_the_cache_is_bounded(folders):
    npm = NPM(folders["bert"])
    seen: list[int] = []
    hook = npm.model.base_model.register_forward_pre_hook(
        lambda module, args, given: seen.append(len(given["input_ids"])), with_kwargs=True
    )
    assert npm.vectors([LYON, CELLO])[LYON][1].shape == (7, 16)
    npm.vectors([CELLO, LYON])
    assert sum(seen) == 2
    hook.remove()
    one = sum(t.nbytes for t in npm.vectors([LYON])[LYON])
    small = NPM(folders["bert"], cache_bytes=one)
    small.judge(TOPIC, FACTS, EVIDENCE)
    assert small._kept_bytes <= one
    whole = npm.judge(TOPIC, FACTS, EVIDENCE)
    assert small.judge(TOPIC, FACTS, EVIDENCE) == pytest.approx(whole, abs=1e-6)


def test_a_long_passage_is_run_in_windows(folders):
    npm = NPM(folders["roberta"])
    long = " ".join([LYON] * 30)  # 210 tokens at 64 positions
    ids, vectors = npm.vectors([long])[long]
    assert len(ids) == len(vectors) == 210
    assert ids.tolist() == npm.tokenizer(long, add_special_tokens=False)["input_ids"]
    assert npm.judge(TOPIC, [LYON], [[long]])[0] > 0


def test_no_tokens_give_no_score_and_bad_folders_are_refused(folders, tmp_path):
    npm = NPM(folders["bert"])
    assert npm.judge(TOPIC, [], []) == []
    assert npm.judge(TOPIC, FACTS[:2], [[], [LYON]])[0] is None
    assert npm.judge(TOPIC, FACTS[:1], [["  "]]) == [None]
    with pytest.raises(UserError, match="Cannot load a model from .*absent"):
        NPM(str(tmp_path / "absent"))
    half = NPM(folders["bert"], dtype="bfloat16")
    assert half.judge(TOPIC, FACTS[:1], EVIDENCE[:1]) == pytest.approx(
        npm.judge(TOPIC, FACTS[:1], EVIDENCE[:1]), abs=0.1
    )
