import dataclasses

import pytest

from facttune_ray import config
from facttune_ray.config import wanted
from facttune_ray.errors import UserError


@pytest.mark.parametrize("name", sorted(p.stem for p in config.conf_dir().glob("*.yaml")))
def test_every_shipped_preset_loads(name):
    cfg = config.load([name])
    assert cfg.run.name == name
    assert cfg.tune or name == "score"  # which only scores


def test_later_layers_win(tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("train: {lr: 1e-3, beta: 0.2}\n")
    second.write_text("train: {lr: 2e-3}\ntune: {fs: {reward: factscore}}\n")
    cfg = config.load([str(first), str(second)], ["train.beta=0.3", "tune.fs.rounds=2"])
    assert (cfg.train.lr, cfg.train.beta, cfg.tune["fs"].rounds) == (2e-3, 0.3, 2)
    assert cfg.responses.samples == 10  # the dataclass's default


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.load([]).run.seed = 1


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("run.sed=1", 'unknown key "run.sed". Did you mean "seed"?'),
        ("tune.fs.rewrd=factscore", 'Did you mean "reward"?'),
        ("facts.method=foo", "must be one of llm, rules, spacy, labels, atomic_facts"),
        ("run.seed=one", "run.seed=one: must be a whole number"),
        ("run.shards=-1", "run.shards=-1: must be at least 0"),
        ("answers.top_p=0", "above 0 and at most 1"),
        ("train.lr=inf", "must be a finite number"),
        ("data.world.train=500", "people=400"),
        ("tune.base.rounds=1", "name a tuned model"),
        ("run.seed", "is not key=value"),
        ("train=3", "is a section"),
        ("tune.mc.reward=maxconf", 'tune.mc.reward: no reward "maxconf". Did you mean "max_conf"?'),
        ("rewards.columns=[ne_conf]", 'rewards.columns[0]: no reward "ne_conf"'),
        ("rewards.columns=[samp_conf]", "set questions.answer=true"),
        ("rewards.mix.max_conf.factscore=1", "rewards.mix.max_conf: a reward has this name"),
        ("rewards.mix.both.foo=1", 'rewards.mix.both: no reward "foo"'),
        ("rewards.mix.both={}", "rewards.mix.both: give at least one reward"),
        ("rewards.mix.both.factscore=x", "factscore=x: must be a number"),
        ("sampling.quantize=4bit", "sampling.quantize=4bit: needs a GPU: set sampling.gpus=1"),
        ("sampling={engine: vllm, tensor_parallel: 2}", "sampling.tensor_parallel: needs GPUs"),
        ("train={workers: 2, gpus: 0.5}", "train.gpus=0.5: 2 workers cannot share a GPU"),
        ("sampling.tensor_parallel=2", "only sampling.engine=vllm"),
        ("sampling.engine=api", "name the model: sampling.llm.model"),
        ("sampling.gpu_memory=0", "above 0 and at most 1"),
        ("data.ready=[facts]", "data.ready: only the files of data.source=tuning"),
        ("data.ready=[fact]", "data.ready[0]=fact: must be one of facts, questions, entities"),
        ("questions.context=-1", "questions.context=-1: must be at least 0"),
        ("sampling.llm.concurrency=0", "sampling.llm.concurrency=0: must be at least 1"),
        ("sampling.llm.timeout_s=0", "sampling.llm.timeout_s=0: must be above 0"),
        ("answers.temperature=-1", "answers.temperature=-1: must be at least 0"),
        ("groups.threshold=-1", "groups.threshold=-1: must be at least 0"),
        ("evaluation.k=[5,0]", "evaluation.k=[5, 0]: each must be at least 1"),
        ("evaluation.most=0", "evaluation.most=0: must be at least 1"),
        ("train.beta=0", "train.beta=0: must be above 0"),
        ("data.files=ChatGPT.jsonl", "data.files=ChatGPT.jsonl: must be a list, such as [VALUE]"),
        ("run.out=", "run.out: is empty: give a value"),
        ("tune.fs=factscore", "is a section: set one of its keys"),
        (
            "llm.model='${HOME}'",
            "${...} names no setting: ",
        ),
        ("train.lr=-1", "train.lr=-1: must be at least 0"),
        ("data.world.train=-1", "data.world.train=-1: must be at least 0"),
        ("llm.usd_per_million_input=-1", "llm.usd_per_million_input=-1: must be at least 0"),
        ("llm.base_url=localhost:8000/v1", "an address begins with http:// or https://"),
        ("tune.fs.lr=-1", "tune.fs.lr=-1: must be at least 0"),
        ("train.clip=-1", "train.clip=-1: must be at least 0"),
        (
            "train={loss: cdpo, label_smoothing: 0.5}",
            "train.label_smoothing=0.5: must be at least 0 and below",
        ),
        ("train.label_smoothing=0.1", "train.label_smoothing: train.loss=dpo has none"),
        ("train.eval_every=5", "set both"),
        ("train.eval_topics=5", "set both"),
        ("train.best=loss", "train.best: needs train.eval_every"),
        ("train.patience=2", "train.patience: needs train.best"),
        ("train.eval_samples=2", "train.eval_samples: needs train.eval_every"),
        ("train.lora.quantize=4bit", "train.lora.quantize: needs train.lora.rank"),
        ("train.min_workers=2", "train.min_workers=2: must be at most train.workers=1"),
        ("train.keep=0", "train.keep=0: must be at least 1"),
        ("train.log=[wandbb]", "must be one of tensorboard, wandb, mlflow"),
        ("data.test=0.9", "together"),
        ("data.val=-0.1", "at least 0"),
        ("tune.prompts.rounds=1", "not as a folder of the run"),
    ],
)
def test_bad_override_is_one_line_that_names_the_key(override, says):
    with pytest.raises(UserError) as caught:
        config.load([], [override])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


API = ["sampling.engine=api", "sampling.llm.model=m"]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["rewards.columns=[ne_max_conf]"], "set sampling.form=completions"),
        (["rewards.columns=[p_true]"], "p_true needs the model's weights"),
        (["tune.mc.reward=max_conf"], "has no weights: name model.path"),
        (["tune.mc.reward=max_conf", "model.path=m"], "cannot sample a tuned model"),
    ],
)
def test_what_an_endpoint_without_weights_cannot_do(overrides, says):
    with pytest.raises(UserError, match=says):
        config.load([], [*API, *overrides])


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["sampling.llm.budget_usd=1"], "sampling.llm.budget_usd: a run has one budget"),
        (["llm.budget_usd=1", "sampling.llm.ledger=x"], "sampling.llm.ledger=x: llm.budget_usd"),
        (["llm.budget_usd=1", "llm.ledger=x", "sampling.llm.ledger=x"], None),
        (["sampling.llm.ledger=x"], None),
    ],
)
def test_a_run_has_one_budget_over_one_ledger(overrides, says):
    if says is None:
        config.load([], [*API, *overrides])
        return
    with pytest.raises(UserError, match=says):
        config.load([], [*API, *overrides])


def test_imported_questions_come_with_their_facts():
    with pytest.raises(UserError, match=r"set data.ready=\[facts,questions\]"):
        config.load([], ["data.source=tuning", "data.ready=[questions]"])


@pytest.mark.parametrize(
    ("columns", "ready", "asked"),
    [
        ({"factscore", "factscore_lp"}, [], False),
        ({"max_conf"}, [], True),
        ({"max_conf"}, ["facts", "questions"], False),
        ({"ne_exp_conf"}, ["facts", "questions"], True),
        ({"ne_exp_conf", "samp_conf"}, ["facts", "questions", "entities"], False),
        ({"p_true"}, ["facts", "questions", "entities"], True),
    ],
)
def test_the_model_is_only_needed_for_what_the_files_do_not_bring(columns, ready, asked):
    cfg = config.load([], ["data.source=tuning", f"data.ready=[{','.join(ready)}]"])
    assert wanted.asks_model(cfg, columns) is asked


def test_a_mix_may_be_a_reward_and_bring_its_columns():
    mix = "rewards.mix.both={factscore: 1, ne_max_conf: 0.5}"
    cfg = config.load([], [mix, "tune.fs.reward=both", "rewards.columns=[both, p_true]"])
    assert cfg.rewards.mix == {"both": {"factscore": 1.0, "ne_max_conf": 0.5}}
    assert wanted.wanted(cfg) == {"both", "p_true"}
    assert wanted.needed(cfg, wanted.wanted(cfg)) == {"factscore", "ne_max_conf", "p_true"}
    with pytest.raises(UserError, match="set sampling.form=completions"):
        config.load([], [*API, mix, "rewards.columns=[both]"])


def test_missing_and_malformed_files(tmp_path):
    with pytest.raises(UserError, match="gone.yaml does not exist"):
        config.load(["gone.yaml"])
    with pytest.raises(UserError, match='Did you mean "quickstart"'):
        config.load(["quikstart"])
    bad = tmp_path / "bad.yaml"
    bad.write_text("run: {seed: [1\n")
    with pytest.raises(UserError, match="not valid YAML") as caught:
        config.load([str(bad)])
    assert "\n" not in str(caught.value)
    bad.write_text("- 1\n")
    with pytest.raises(UserError, match="expected sections"):
        config.load([str(bad)])
