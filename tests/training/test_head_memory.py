"""A step with a large vocabulary: softcaps of logits cost no copy of all logits."""

from __future__ import annotations

import subprocess
import sys

import pytest

STEP = """
import resource, sys, torch, transformers
from facttune_ray.training.model import GroupModel
from facttune_ray.training.passes import lay_out

capped = sys.argv[1] == "capped"
torch.manual_seed(0)
torch.set_num_threads(1)
config = transformers.Gemma2Config(
    vocab_size=128_000, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=16, query_pre_attn_scalar=16,
    sliding_window=4096,
)
if not capped:
    config.final_logit_softcapping = config.attn_logit_softcapping = None
lm = transformers.Gemma2ForCausalLM(config)
model = GroupModel(lm.eval(), 1024)
ids = [int(i) for i in torch.randint(5, 128_000, (512,))]
groups = [(ids[:64], [ids[64:288], ids[288:512]]), (ids[100:164], [ids[:224], ids[224:448]])]
model(lay_out(groups, share_prefix=model.shares)).sum().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_a_step_with_softcaps_takes_little_more_memory():
    """900 tokens of 128,000 words are 460 MB of logits; a softcap would make copies of them."""
    peaks = {}
    for kind in ("capped", "plain"):
        done = subprocess.run(
            [sys.executable, "-c", STEP, kind], capture_output=True, text=True, check=True
        )
        peaks[kind] = int(done.stdout.split()[-1])
    assert peaks["capped"] <= 1.3 * peaks["plain"], peaks
