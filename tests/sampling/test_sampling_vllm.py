"""The vLLM engine: its calls to a fake vLLM, and to the real vLLM on GPUs."""

from __future__ import annotations

import importlib.util
import os
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from facttune_ray.errors import UserError
from facttune_ray.quickstart.base_model import pretrain, random_model, save_folder, train_tokenizer
from facttune_ray.sampling.protocol import (
    Sample,
    SampleRequest,
    encode_prompt,
    encode_raw,
    encode_started,
    failure,
)
from facttune_ray.sampling.vllm import VLLMSampler

DOCUMENTS = ["Who is Mara?\nMara plays the cello.", "Who is Tiko?\nTiko plays the harp."]
SETTINGS = {"max_tokens": 12, "temperature": 1.0, "top_p": 0.9}
MODEL_TOKENS = 64
REAL = importlib.util.find_spec("vllm") is not None and torch.cuda.is_available()


class FakeLLM:
    """Keeps what it is made with and asked. Output k of a prompt says how many tokens the prompt
    has and its seed + k, as vLLM seeds them; outputs come in the wrong order on purpose."""

    made: list[FakeLLM] = []
    on_cpu = False  # vLLM is its build for CPUs

    def __init__(self, **settings) -> None:
        if settings["dtype"] == "float8":
            raise ValueError("float8 is not\nsupported")
        self.settings, self.asked = settings, []
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=MODEL_TOKENS))
        FakeLLM.made.append(self)

    def generate(self, prompts, sampling_params, use_tqdm):
        assert use_tqdm is False and len(prompts) == len(sampling_params)
        pairs = list(zip(prompts, sampling_params, strict=True))
        self.asked += pairs
        return [SimpleNamespace(outputs=self.outputs(*pair)) for pair in pairs]

    def outputs(self, prompt, params):
        assert params.n == 1 or params.temperature > 0  # vLLM refuses it
        tokens = len(prompt["prompt_token_ids"])
        return [
            SimpleNamespace(
                index=k,
                text=f" {tokens}:{params.seed + k}",
                token_ids=[0] * (k + 1),
                finish_reason="length" if k == 1 else "stop",
            )
            for k in reversed(range(params.n))
        ]


@pytest.fixture
def fake(monkeypatch):
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = FakeLLM, lambda **kw: SimpleNamespace(**kw)  # type: ignore
    platforms = ModuleType("vllm.platforms")
    platforms.current_platform = SimpleNamespace(is_cpu=lambda: FakeLLM.on_cpu)  # type: ignore
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)
    monkeypatch.setattr(FakeLLM, "on_cpu", False)
    monkeypatch.setattr(FakeLLM, "made", [])
    return FakeLLM


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("model") / "base"
    tokenizer = train_tokenizer(DOCUMENTS, 400, MODEL_TOKENS)
    save_folder(out, random_model(tokenizer, 0, 8, 1, 1, MODEL_TOKENS), tokenizer)
    return str(out)


@pytest.fixture
def sampler(fake, folder):
    return VLLMSampler(folder, dtype="float32")


def asked(sampler) -> list:
    """[(prompt token ids, sampling parameters)] of all calls."""
    return [(p["prompt_token_ids"], params) for p, params in sampler.llm.asked]


def test_settings_of_the_vllm_model(fake, folder):
    VLLMSampler(folder, dtype="bfloat16", gpu_memory=0.5, quantize="4bit", tensor_parallel=2)
    VLLMSampler(folder, dtype="float32")
    assert fake.made[0].settings == {
        "model": folder,
        "tokenizer": folder,
        "dtype": "bfloat16",
        "quantization": "bitsandbytes",
        "tensor_parallel_size": 2,
        "gpu_memory_utilization": 0.5,
        "enable_prefix_caching": True,
        "seed": 0,
        "disable_log_stats": True,
        "distributed_executor_backend": "mp",
    }
    plain = fake.made[1].settings
    assert plain["quantization"] is None and "distributed_executor_backend" not in plain


def test_on_cpus_the_cache_has_a_size_and_a_build_for_gpus_is_refused(fake, folder, monkeypatch):
    with pytest.raises(UserError, match="this vLLM is built for GPUs: set sampling.gpus=1"):
        VLLMSampler(folder, dtype="float32", device="cpu")
    monkeypatch.setattr(fake, "on_cpu", True)
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)
    VLLMSampler(folder, dtype="float32", device="cpu")
    (made,) = fake.made
    assert made.settings["kv_cache_memory_bytes"] == 2 * 2**30
    assert "gpu_memory_utilization" not in made.settings
    assert os.environ["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"


def test_every_output_is_kept_in_order_with_its_seed(sampler):
    found = sampler.sample(SampleRequest(["Who is Mara?", "Who?"], n=3, seeds=[100, 7], **SETTINGS))
    lengths = [len(encode_prompt(sampler.tokenizer, p)) for p in ("Who is Mara?", "Who?")]
    assert found[0] == [
        Sample(f" {lengths[0]}:100", 1, True),
        Sample(f" {lengths[0]}:101", 2, False),
        Sample(f" {lengths[0]}:102", 3, True),
    ]
    assert [s.text for s in found[1]] == [f" {lengths[1]}:{7 + k}" for k in range(3)]


def test_each_prompt_has_its_own_parameters(sampler):
    most = 2**63 - 1
    sampler.sample(
        SampleRequest(
            ["Who?", "Why?"],
            n=20,
            seeds=[3, most],
            max_tokens=[4, 9],
            temperature=0.7,
            top_p=0.9,
            stop=("\n",),
        )
    )
    (_, first), (_, second) = asked(sampler)
    assert vars(first) == {
        "n": 20,
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 4,
        "stop": ["\n"],
        "seed": 3,
        "include_stop_str_in_output": False,
        "skip_special_tokens": True,
    }
    assert second.max_tokens == 9 and 0 <= second.seed + 20 < 2**63
    sampler.sample(SampleRequest(["Who?"], n=1, seeds=[3], **SETTINGS))
    assert asked(sampler)[-1][1].stop is None


def test_prompts_are_the_tokens_that_training_uses(sampler):
    tok, one = sampler.tokenizer, {"n": 1, "seeds": [1], **SETTINGS}
    sampler.sample(SampleRequest(["Who is Mara?"], **one))
    sampler.sample(SampleRequest(["Who is Mara?"], raw=True, **one))
    sampler.sample(SampleRequest(["Who is Mara?"], prefix="Tiko plays.\n", **one))
    sampler.sample(SampleRequest(["Who is Mara?"], beginnings=["Mara plays the "], **one))
    ids = [ids for ids, _ in asked(sampler)]
    assert ids[0] == encode_prompt(tok, "Who is Mara?")
    assert ids[1] == encode_raw(tok, "Who is Mara?")
    assert ids[2] == encode_raw(tok, "Tiko plays.\n") + encode_raw(tok, "Who is Mara?")
    assert ids[3] == encode_started(tok, "Who is Mara?", "Mara plays the")
    assert tok.decode(ids[3]) == "Who is Mara?\nMara plays the"


def test_greedy_samples_are_requested_once(sampler):
    found = sampler.sample(
        SampleRequest(["Who?"], n=4, seeds=[5], max_tokens=[3], temperature=0.0, top_p=1.0)
    )
    assert [params.n for _, params in asked(sampler)] == [1]
    assert len(found[0]) == 4 and len(set(found[0])) == 1


def test_a_prompt_without_room_fails_and_a_long_prompt_gets_short_samples(sampler):
    tok = sampler.tokenizer
    word = " Mara"
    almost = word * (MODEL_TOKENS - 3)
    assert len(encode_raw(tok, almost)) == MODEL_TOKENS - 3
    found = sampler.sample(
        SampleRequest(
            [word * MODEL_TOKENS, almost, "Who?"], n=2, seeds=[1, 2, 3], raw=True, **SETTINGS
        )
    )
    error = "the prompt has 64 tokens, the model takes 64 in all"
    assert found[0] == [Sample("", 0, False, error=error)] * 2 and failure(found[0]) == error
    assert [params.max_tokens for _, params in asked(sampler)] == [3, 12]
    assert [s.text for s in found[1]] == [" 61:2", " 61:3"] and len(found[2]) == 2
    only = SampleRequest([word * 70], n=2, seeds=[1], raw=True, **SETTINGS)
    assert failure(sampler.sample(only)[0]) == error.replace("64 tokens", "70 tokens")


def test_tokens_of_texts_within_a_response(sampler):
    assert sampler.count_tokens(["Mara", "Mara plays the", ""]) == [1, 3, 0]


def test_bad_settings(sampler, folder):
    with pytest.raises(UserError, match="seeds"):
        sampler.sample(SampleRequest(["Who?"], n=1, seeds=[], **SETTINGS))
    with pytest.raises(UserError, match="4 bits only"):
        VLLMSampler(folder, quantize="8bit")
    with pytest.raises(
        UserError, match="vLLM cannot load a model from .*: float8 is not supported"
    ):
        VLLMSampler(folder, dtype="float8")
    with pytest.raises(UserError, match="vLLM cannot load a model from .*nowhere"):
        VLLMSampler(f"{folder}/nowhere")


def test_a_missing_package_is_one_line(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)  # as when it is not installed
    with pytest.raises(UserError, match="sampling.engine=vllm needs vLLM.*pip install vllm") as e:
        VLLMSampler(folder)
    assert "\n" not in str(e.value)


@pytest.mark.gpu
@pytest.mark.skipif(not REAL, reason="needs vLLM and a CUDA device")
def test_vllm_on_a_gpu(tmp_path):
    names = ("Mara", "Tiko", "Belu", "Kol")
    documents = [f"Who is {n}?\n{n} plays the {x}." for n in names for x in ("cello", "harp")]
    pretrain(
        documents * 8, tmp_path / "m", seed=0, steps=60, hidden=128, heads=2, lr=1e-2, max_length=64
    )
    sampler = VLLMSampler(str(tmp_path / "m"), dtype="bfloat16", gpu_memory=0.2)
    prompts, more = [f"Who is {n}?" for n in names], SETTINGS | {"seeds": [1, 2, 3, 4]}
    found = sampler.sample(SampleRequest(prompts, n=8, stop=(".",), **more))
    assert [len(f) for f in found] == [8] * 4
    assert all(f"{n} plays the" in s.text for n, f in zip(names, found, strict=True) for s in f)
    assert all(s.finished and "." not in s.text and 0 < s.tokens <= 12 for f in found for s in f)
    begun = [f"{n} plays the" for n in names]
    rest = sampler.sample(
        SampleRequest(prompts, n=4, beginnings=begun, **more | {"max_tokens": [1, 1, 1, 1]})
    )
    assert {s.text for f in rest for s in f} <= {" cello", " harp"}
    assert len(sampler.sample(SampleRequest(prompts, n=3, **more | {"temperature": 0.0}))[0]) == 3
