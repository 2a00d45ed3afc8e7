"""Training and sampling are right, or refused in one line, for every causal type."""

from __future__ import annotations

import pytest

from facttune_ray.errors import UserError
from families import check, tiny

# One model of each kind, with its paths of sampling and of training. A type that gets a slower path
# than here has lost speed.
KINDS = {
    "gpt2": ("fast", "fast"),  # learned positions
    "granite": ("fast", "fast"),  # scaled logits
    "mistral": ("own cache", "padded"),  # a window shorter than the texts
    "mistral/wide": ("fast", "fast"),  # a window longer than the texts
    "qwen2_moe/windowed": ("own cache", "padded"),  # a window that only the mask knows
    "gemma2": ("own cache", "padded"),  # softcaps
    "deepseek_v3": ("own cache", "fast"),  # latent attention
    "lfm2_moe": ("own cache", "padded"),  # convolutions
    "mamba": ("own cache, prefix repeated", "padded"),  # recurrent
    "rwkv": ("no cache", "padded"),  # takes no cache
    "phi3/longrope": ("no cache", "one length"),  # embeddings that depend on the length
    "llama/dynamic": ("no cache", "one length"),  # embeddings that grow with the length
    "bert/encoder": ("no cache", "refused"),  # a token sees tokens behind it
}


@pytest.mark.parametrize("name", KINDS)
def test_a_model_of_each_kind_is_right_and_takes_its_path(name):
    sampled, trained = (check.result(x, tiny.build(name)) for x in (check.sampling, check.training))
    assert sampled.right and trained.right, (sampled, trained)
    assert (sampled.path, trained.path) == KINDS[name], (sampled, trained)


@pytest.mark.slow
@pytest.mark.parametrize("variant", [v for v in tiny.variants() if v not in KINDS])
def test_every_type_is_right_or_refused_in_one_line(variant):
    for run in (check.sampling, check.training):
        result = check.result(run, tiny.build(variant))
        assert result.right, (variant, result)
        assert "\n" not in result.why


def test_the_check_finds_wrong_training_and_sampling(monkeypatch):
    """Without the tests of windows and positions, the fast path is taken and found wrong."""
    monkeypatch.setattr("facttune_ray.training.probe.Windows", Everything)
    monkeypatch.setattr("facttune_ray.sampling.paths.Windows", Everything)
    for part in ("training.probe", "sampling.paths"):
        monkeypatch.setattr(f"facttune_ray.{part}.depends_on_length", lambda *_: False)
    monkeypatch.setattr("facttune_ray.training.probe._depends_on_neighbours", lambda *_: False)
    for run in (check.training, check.sampling):
        result = check.result(run, tiny.build("phi3/longrope"))
        assert result.path == "fast" and not result.right and result.error > 0.05


class Everything:
    """Stands for a model without windows."""

    reach, why = 1 << 40, ""

    def __init__(self, lm: object) -> None:
        pass


def test_a_model_that_no_path_gives_right_is_refused(monkeypatch):
    monkeypatch.setattr(
        "facttune_ray.sampling.paths.Paths._compared", lambda *_: "logits differ by 1"
    )
    refused = check.result(check.sampling, tiny.build("llama"))
    assert refused.path == "refused" and "not even without a cache" in refused.why
    lm = tiny.build("llama")
    monkeypatch.setattr(lm, "forward", lambda **_: 1 / 0)
    with pytest.raises(UserError, match="LlamaForCausalLM cannot be trained here .ZeroDivision"):
        check.GroupModel(lm)
