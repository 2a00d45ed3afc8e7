"""Which contenders a config may have, and what each of them is."""

from __future__ import annotations

import pytest

from facttune_ray import config
from facttune_ray.config import contenders
from facttune_ray.errors import UserError

TUNED = ["tune.fs.reward=factscore", "model.path=m"]


def test_a_contender_is_the_run_with_some_settings_changed():
    words = [
        *TUNED,
        "contenders.dola={of: fs, sampling: {decoder: dola}, responses: {temperature: 0}}",
        "contenders.gpt={sampling: {engine: api, llm: {model: g}}, evaluation: {samples: 1}}",
        "contenders.other={model: {path: n}}",
    ]
    cfg = config.load([], words)
    dola, gpt, other = contenders(cfg)
    assert (dola.name, dola.of, dola.own_prompts) == ("dola", "fs", False)
    assert dola.cfg.sampling.decoder == "dola" and dola.cfg.responses.temperature == 0
    assert (gpt.cfg.sampling.engine, gpt.cfg.evaluation.samples) == ("api", 1)
    assert other.cfg.model.path == "n" and cfg.model.path == "m"
    chat = config.load(["bio"], ["contenders.chat={prompts: {form: chat}}"])
    assert [c.own_prompts for c in contenders(chat)] == [False, False, True]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("contenders.a=3", "contenders.a"),
        ("contenders.a={samplin: {}}", 'unknown key "contenders.a.samplin". Did you mean "sampl'),
        ("contenders.a={facts: {method: rules}}", 'unknown key "contenders.a.facts"'),
        (
            "contenders.a={sampling: {decodr: dola}}",
            'unknown key "contenders.a.sampling.decodr". Did',
        ),
        ("contenders.a={of: fx}", 'contenders.a.of: no tuned model "fx". Known: fs.'),
        ("contenders.a={of: fs, model: {path: n}}", "set `of` or `model.path`, not both"),
        ("contenders.a={of: fs, sampling: {engine: api, llm: {model: g}}}", "cannot sample a tun"),
        ("contenders.a={prompts: {form: chat}}", "only with data.source=topics"),
        ("contenders.a={sampling: {engine: api}}", "contenders.a: sampling.engine=api: name the"),
        ("contenders.a={sampling: {decoder: custom}}", "name the folder in sampling.custom_gen"),
        ("contenders.a={responses: {top_p: 2}}", "contenders.a: responses.top_p=2"),
        ("contenders.fs={responses: {top_p: 1}}", "contenders.fs: name it"),
        ("contenders.base={responses: {top_p: 1}}", "contenders.base: name it"),
        ("sampling={decoder: custom, custom_generate: x}", "set sampling.trust_remote_code=true"),
        ("sampling={decoder: dola, engine: vllm, gpus: 1}", "only with sampling.engine=transf"),
        ("sampling.dola_layers=top", "low, high, or layers such as"),
        (
            "prompts.template=Who?",
            "Who?: no such file: check prompts.template: give a file, or a text with {",
        ),
        ("data.sizes.test=-1", "data.sizes.test=-1: must be at least 0"),
    ],
)
def test_what_is_refused_in_one_line(override, says):
    with pytest.raises(UserError) as e:
        config.load([], [*TUNED, override])
    assert says in str(e.value) and "\n" not in str(e.value), str(e.value)
