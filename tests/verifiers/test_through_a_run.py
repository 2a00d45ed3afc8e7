"""Complete runs with local models only: causal LM, masked LM, dense retrieval."""

import json

import pytest

from facttune_ray import cli
from facttune_ray.quickstart.base_model import random_model, train_tokenizer
from facttune_ray.storage import tables
from facttune_ray.storage.tables import Folder

ARTICLES = {
    "Mara Veldt": ["Mara Veldt was born in Lyon .", "Mara Veldt plays the cello ."],
    "Tom Ruhl": ["Tom Ruhl was a bishop of Oslo .", "Tom Ruhl kept a ferret ."],
}
OUTPUTS = {
    "Mara Veldt": "Mara Veldt was born in Lyon. Mara Veldt was married to a bishop.",
    "Tom Ruhl": "Tom Ruhl kept a ferret. Tom Ruhl plays the cello.",
    "Nobody Known": "Nobody Known was born in Oslo.",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """Folders of a tiny Llama, a tiny masked LM and a tiny sentence-transformers model."""
    st = pytest.importorskip("sentence_transformers", reason="pip install -e '.[dense]'")
    from sentence_transformers import models as parts
    from transformers import (
        BertConfig,
        BertForMaskedLM,
        BertForSequenceClassification,
        BertTokenizerFast,
        T5Config,
        T5ForConditionalGeneration,
    )

    folder = tmp_path_factory.mktemp("models")
    texts = [p for passages in ARTICLES.values() for p in passages] + list(OUTPUTS.values())
    more = ["True or False? Answer: True False", "predict: 0 1"]
    tokenizer = train_tokenizer([*texts, *more], 400, 512)
    random_model(tokenizer, 0, 32, 2, 2, 512).save_pretrained(folder / "llama")
    tokenizer.save_pretrained(folder / "llama")
    words = sorted({w for t in texts for w in t.lower().replace(".", " . ").split()})
    special = "[PAD] [UNK] [CLS] [SEP] [MASK] fact :".split()
    (folder / "vocab.txt").write_text("\n".join([*special, *words]))
    config = BertConfig(
        vocab_size=len(special) + len(words), hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=16, max_position_embeddings=64,
    )  # fmt: skip
    t5 = T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    t5.decoder_start_token_id = tokenizer.pad_token_id
    T5ForConditionalGeneration(t5).save_pretrained(folder / "minicheck")
    tokenizer.save_pretrained(folder / "minicheck")
    config.id2label = {0: "neutral", 1: "entailment"}
    BertForSequenceClassification(config).save_pretrained(folder / "nli")
    masked = BertForMaskedLM(config)
    masked.save_pretrained(folder / "masked")
    masked.bert.save_pretrained(folder / "bert")
    for name in ("masked", "bert", "nli"):
        BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder / name)
    body = parts.Transformer(str(folder / "bert"), max_seq_length=32)
    pooling = parts.Pooling(16, pooling_mode="mean")
    st.SentenceTransformer(modules=[body, pooling]).save(str(folder / "dense"))
    names = ("llama", "masked", "dense", "nli", "minicheck")
    return {name: str(folder / name) for name in names}


def verdicts(tmp_path, *words) -> list[dict]:
    lines = [json.dumps({"topic": t, "output": o}) for t, o in OUTPUTS.items()]
    (tmp_path / "m.jsonl").write_text("\n".join(lines) + "\n")
    rows = [json.dumps({"title": t, "text": p}) for t, p in ARTICLES.items()]
    (tmp_path / "k.jsonl").write_text("\n".join(rows) + "\n")
    given = ["score", f"data.folder={tmp_path}", "data.files=[m.jsonl]", "data.knowledge=k.jsonl"]
    given += [f"run.out={tmp_path / 'out'}", "run.shards=2", "facts.method=rules", *words]
    assert cli.main(["run", *given]) == 0
    folder = Folder.of(str(tmp_path / "out")) / "imported/all/verdicts"
    return [row for shard in range(2) for row in tables.rows(folder, shard)]


@pytest.mark.parametrize("estimator", ["local_lm", "npm", "retrieval+llama+npm", "nli+minicheck"])
def test_local_estimators_in_a_complete_run(ray_cluster, tmp_path, capsys, models, estimator):
    words = [f"verdicts.estimator={estimator}", f"verdicts.local_lm=file://{models['llama']}"]
    words += [f"verdicts.npm=file://{models['masked']}", f"verdicts.nli={models['nli']}"]
    words += [f"verdicts.minicheck=file://{models['minicheck']}"]
    dense = "llama" in estimator or estimator == "local_lm"
    if dense:
        words += ["verdicts.retrieval=dense", f"verdicts.dense={models['dense']}"]
    rows = verdicts(tmp_path, *words)
    judged = [r for r in rows if r["topic"] != "Nobody Known"]
    assert len(judged) == 4
    for r in judged:
        assert r["error"] is None and 0 <= r["score"] <= 1
        assert r["supported"] is not None and r["evidence"] in ARTICLES[r["topic"]]
    (unknown,) = [r for r in rows if r["topic"] == "Nobody Known"]
    assert (unknown["supported"], unknown["reason"]) == (None, "no article")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["models"]["m"]["no_article"] == 1
    assert not (tmp_path / "out" / "ledger").exists()
    vectors = [*(tmp_path / "out").glob("knowledge/vectors/*.npy")]
    assert len(vectors) == (2 if dense else 0)  # one file per article


def test_a_missing_model_gives_one_line(ray_cluster, tmp_path, capsys):
    words = [f"verdicts.local_lm={tmp_path / 'none'}", "verdicts.estimator=local_lm"]
    with pytest.raises(AssertionError):
        verdicts(tmp_path, *words)
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("facttune: error: ") and str(tmp_path / "none") in error
