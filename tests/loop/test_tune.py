"""The nodes of training: on hand-made tables, and on preferences in files of one's own."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from facttune_ray import cli, config
from facttune_ray.config import LoraConfig, SFTConfig, TrainConfig, TuneConfig
from facttune_ray.errors import Missing, UserError
from facttune_ray.loop import tune
from facttune_ray.loop.models import Snapshot
from facttune_ray.loop.nodes import DriverTable
from facttune_ray.loop.run import Run
from facttune_ray.quickstart import base_model
from facttune_ray.quickstart.annotator import embedded
from facttune_ray.runtime.maker import Maker
from facttune_ray.storage.schema import digest
from facttune_ray.text.sentences import split
from facttune_ray.training.recipe import check_training, dpo_recipe, sft_recipe

TEXTS = (
    "Mara plays the cello. She keeps a goat.",
    "Mara plays the harp. She keeps a goat.",
    "Mara plays the harp. She keeps an owl.",
)
TABLES = ("responses", "rewards", "facts", "verdicts")
SHORT = ["run.shards=1", "train.max_steps=2", "train.groups_per_step=2", "train.lr=1e-3"]
SHORT += ["train.warmup_steps=0"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "model"
    base_model.pretrain([f"Who is Mara?\n{t}" for t in TEXTS], folder, seed=0, epochs=0, hidden=32)
    return str(folder)


@pytest.fixture
def words(tmp_path, model):
    return [f"model.path={model}", f"run.out={tmp_path / 'out'}", *SHORT]


def rows(folder):
    return [r for p in sorted(folder.glob("part-*")) for r in pq.read_table(p).to_pylist()]


def lines(folder):
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model" / "model.safetensors")


# ---------------------------------------------------------------- a round, on hand-made tables


def made_tables(
    run, rewards=(1.0, 0.5, 0.0), supported=((True, True), (False, True), (False, False))
):
    """`src/responses`, `rewards`, `facts` and `verdicts` of two prompts with the same responses."""
    tables = {name: [] for name in TABLES}
    for prompt in ("Who is Mara?", "Tell me of Mara."):
        for i, (text, reward, right) in enumerate(zip(TEXTS, rewards, supported, strict=True)):
            ids = {"response_id": digest(prompt, i), "prompt_id": digest(prompt), "topic": "Mara"}
            ids |= {"split": "train"}
            tables["responses"].append(ids | {"prompt": prompt, "text": text})
            tables["rewards"].append(ids | {"factscore": reward})
            for k, (sentence, true) in enumerate(zip(split(text), right, strict=True)):
                fact = ids | {"fact_id": digest(prompt, i, k)}
                del fact["prompt_id"]
                tables["verdicts"].append({k: fact[k] for k in ("fact_id", "response_id", "topic")})
                tables["verdicts"][-1]["supported"] = true
                tables["facts"].append(fact | {"start": sentence.start, "end": sentence.end})
    for name, some in tables.items():
        run.make(DriverTable(f"src/{name}", name, lambda some=some: some), {"made": name})


def one_round(words, *more, only=None, **made):
    """Train a round on those tables, or make its table `only`. -> the names made"""
    cfg = config.load([], [*words, *more])
    with Maker(cfg, embedded, only, also={"groups", *TABLES}) as maker:
        made_tables(run := Run(maker), **made)
        start = Snapshot("base", cfg.model.path, "base")
        tune.train_round(run, "fs", TuneConfig(reward="factscore"), 1, start, "src")
        return [name for name in maker.made if not name.startswith("src/")]


def test_facts_and_verdicts_reach_the_reference_table(words, tmp_path, ray_cluster):
    with pytest.raises(Missing, match="stage reference needs fs/round_1/train"):
        one_round(words, "train.loss=fact_masked", only="reference")
    out = tmp_path / "out" / "fs" / "round_1" / "reference"
    manifest = json.loads((out / "_MANIFEST.json").read_text())
    assert {"input.facts", "input.verdicts"} < set(manifest["recipe"])
    assert len(rows(out)) == 2
    for row in rows(out):
        right, half, wrong = zip(row["win_masks"], row["lose_masks"], strict=True)
        assert set(right[0]) == {1} and sum(right[1]) == 1  # the end mark
        assert sum(wrong[0]) == 1 and set(wrong[1]) == {1}
        assert [w + x for w, x in zip(*half, strict=True)] == [1] * (len(half[0]) - 1) + [2]


def test_other_losses_take_neither(words, tmp_path, ray_cluster):
    with pytest.raises(Missing):
        one_round(words, only="reference")
    out = tmp_path / "out" / "fs" / "round_1" / "reference"
    recipe = json.loads((out / "_MANIFEST.json").read_text())["recipe"]
    assert not {"input.facts", "input.verdicts"} & set(recipe)
    assert all(r["win_masks"] is None for r in rows(out))


@pytest.mark.slow
def test_masked_tokens_change_the_model(words, tmp_path, ray_cluster):
    found = {}
    for loss in ("dpo", "fact_masked"):
        one_round(words, f"train.loss={loss}", f"run.out={tmp_path / loss}")
        out = tmp_path / loss / "fs" / "round_1" / "train"
        assert lines(out)[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
        found[loss] = weights(out)
    one, other = found.values()
    assert any((one[k] - other[k]).abs().max() > 1e-5 for k in one)


def test_without_a_verdict_nothing_is_masked_and_nothing_trained(words, tmp_path, ray_cluster):
    unknown = ((None, None),) * 3
    with pytest.raises(UserError, match="no sentence of the responses .* has a verdict") as e:
        one_round(words, "train.loss=fact_masked", supported=unknown)
    assert "train.loss=fact_masked" in str(e.value) and "\n" not in str(e.value)
    assert not (tmp_path / "out" / "fs" / "round_1" / "train").exists()


@pytest.mark.parametrize(
    ("rewards", "says"),
    [
        ((None, None, None), "src/rewards: factscore is null for every train response"),
        ((0.5, 0.5, 0.5), "no two responses of a prompt whose factscore differ by more than"),
    ],
)
def test_rewards_without_a_pair_are_one_clear_line(words, ray_cluster, rewards, says):
    with pytest.raises(UserError, match=says) as e:
        one_round(words, rewards=rewards)
    assert "\n" not in str(e.value)


@pytest.mark.slow
def test_supervised_tuning_comes_first_and_dpo_starts_from_its_model(words, tmp_path, ray_cluster):
    more = ["train.sft.epochs=1", "train.sft.lr=1e-2"]
    assert one_round(words, *more) == [
        "fs/round_1/groups",
        "fs/sft/reference",
        "fs/sft/train",
        "fs/round_1/reference",
        "fs/round_1/train",
    ]
    out = tmp_path / "out" / "fs"
    of = {n: json.loads((out / n / "_MANIFEST.json").read_text()) for n in ("sft/train",
          "round_1/reference", "round_1/train")}  # fmt: skip
    assert of["round_1/reference"]["recipe"]["input.model"] == of["sft/train"]["fingerprint"]
    assert of["round_1/train"]["recipe"]["input.model"] == of["sft/train"]["fingerprint"]
    assert lines(out / "sft" / "train")[0]["loss"] > 1  # nats a token of a random model
    assert lines(out / "round_1" / "train")[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    before, after = rows(out / "sft" / "reference"), rows(out / "round_1" / "reference")
    assert sum(map(sum, after[0]["logps"])) > sum(map(sum, before[0]["logps"]))
    assert one_round(words, *more) == []


# ---------------------------------------------------------------- recipes


def test_what_changes_no_weight_is_in_no_recipe():
    plain = TrainConfig()
    faster = replace(
        plain,
        workers=4,
        min_workers=1,
        deepspeed="zero3",
        pass_tokens=1,
        save_every=3,
        checkpoints="s3://bucket",
        log=["tensorboard"],
        eval_every=5,
        eval_samples=2,
        sft=SFTConfig(epochs=2),  # its own node; DPO's input.model tells of it
    )
    assert dpo_recipe(plain) == dpo_recipe(faster)
    for other in (
        replace(plain, lr=1.0),
        replace(plain, lora=LoraConfig(rank=4)),
        replace(plain, eval_topics=3),
        replace(plain, best="loss", eval_every=5),
    ):
        assert dpo_recipe(plain) != dpo_recipe(other)
    json.dumps(dpo_recipe(replace(plain, lora=LoraConfig(rank=4))))


def test_the_recipe_of_supervised_tuning_knows_nothing_of_pairs():
    plain = TrainConfig(sft=SFTConfig(epochs=1))
    other = replace(plain, loss="ipo", beta=0.5, lr=1.0, epochs=9, pairs_per_step=4)
    assert sft_recipe(plain) == sft_recipe(other)
    for changed in (
        replace(plain, sft=SFTConfig(epochs=1, targets="best")),
        replace(plain, sft=SFTConfig(epochs=2)),
        replace(plain, optimizer="adamw"),
        replace(plain, max_steps=5),
    ):
        assert sft_recipe(plain) != sft_recipe(changed)


def test_later_rounds_of_a_confidence_reward_have_no_verdicts():
    words = ["train.loss=fact_masked", "tune.mc.reward=max_conf"]
    check_training(config.load([], [*words, "tune.mc.rounds=1"]))
    check_training(config.load([], ["tune.mc.reward=max_conf", "tune.mc.rounds=2"]))
    check_training(config.load([], [words[0], "tune.fs.reward=factscore_lp",
                                           "tune.fs.rounds=2"]))  # fmt: skip
    with pytest.raises(UserError, match="train.loss=fact_masked: .*round 2 of tune.mc"):
        check_training(config.load([], [*words, "tune.mc.rounds=2"]))
    mix = ["rewards.mix.both={factscore: 1.0, max_conf: 0.5}", "tune.mc.reward=both"]
    check_training(config.load([], [words[0], *mix, "tune.mc.rounds=2"]))


# ---------------------------------------------------------------- facttune train


def given(tmp_path, name="p.jsonl"):
    """Five pairs of two prompts, as a file of chosen and rejected."""
    found = [("Who is Mara?", 0, 1), ("Who is Mara?", 0, 2), ("Who is Mara?", 1, 2)]
    found += [("Tell me of Mara.", 0, 2), ("Tell me of Mara.", 1, 2)]
    (tmp_path / name).write_text(
        "".join(
            json.dumps({"prompt": p, "chosen": TEXTS[w], "rejected": TEXTS[x]}) + "\n"
            for p, w, x in found
        )
    )
    return f"data.groups={tmp_path / name}"


def test_train_on_a_file_and_again(words, tmp_path, ray_cluster, capsys):
    command = ["train", given(tmp_path), *words, "train.epochs=2"]
    assert cli.main(command) == 0
    out = tmp_path / "out" / "given"
    assert capsys.readouterr().out.splitlines()[-1] == str(out / "train" / "model")
    assert sorted(len(r["given_pairs"]) for r in rows(out / "groups")) == [2, 3]
    (first, second) = lines(out / "train")
    assert (first["pairs"], first["loss"]) == (5, pytest.approx(math.log(2), abs=1e-4))
    assert second["loss"] < first["loss"] - 1e-4
    (tmp_path / "moved.jsonl").write_bytes((tmp_path / "p.jsonl").read_bytes())
    command[1] = f"data.groups=[{tmp_path / 'moved.jsonl'}]"  # files count by content
    assert cli.main(command) == 0
    assert "nothing to do" in capsys.readouterr().out
    (tmp_path / "moved.jsonl").write_text(json.dumps({"prompt": "p"} | dict(
        chosen="a", rejected="b")) + "\n")  # fmt: skip
    assert cli.main(command) == 2
    assert "was made by another recipe: data.groups[0] was" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("targets", ["all", "best"])
def test_supervised_tuning_on_a_file(words, tmp_path, ray_cluster, capsys, targets):
    sft = ["train.sft.epochs=2", f"train.sft.targets={targets}", "train.sft.lr=1e-2"]
    assert cli.main(["train", given(tmp_path), *words, *sft]) == 0
    out = tmp_path / "out" / "given"
    assert capsys.readouterr().out.split() == [
        str(out / "sft" / "train" / "model"),
        str(out / "train" / "model"),
    ]
    losses = [x["loss"] for x in lines(out / "sft" / "train")]
    assert losses[-1] < losses[0]


def test_what_training_lacks_is_named_and_not_made(words, tmp_path, ray_cluster, capsys):
    more = ["tune.fs.reward=factscore", "data.source=world"]
    (tmp_path / "c.yaml").write_text("{}")
    assert cli.main(["train", str(tmp_path / "c.yaml"), *words, *more]) == 2
    assert "stage train needs knowledge, which is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["data.groups=gone.jsonl"], "gone.jsonl: no such file"),
        (["model.path="], "model.path is empty"),
        (["model.path=./nomodel"], "model.path=./nomodel: no model there"),
        (["train.log=[wandb]"], "train.log=wandb: pip install wandb"),
        (["train.loss=fact_masked"], "train.loss=fact_masked: needs the tables facts and verdicts"),
        (["groups.weights=margin"], "p.jsonl:1: groups.weights=margin is about rewards"),
        (["data.groups=[]"], "data.groups is empty"),
        (["data.groups={a: b}"], "{a: b}: no such file: check data.groups"),
        (["train.deepspeed=zero9"], "zero9"),
    ],
)
def test_bad_input_of_train_is_one_clear_line(words, tmp_path, capsys, more, says):
    assert cli.main(["train", given(tmp_path), *words, *more]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.chaos
def test_the_same_command_goes_on_after_a_kill(words, tmp_path, ray_cluster, capsys):
    more = ["train.max_steps=0", "train.epochs=200", "train.save_every=10"]
    command = ["train", given(tmp_path), *words, *more]
    log = tmp_path / "out" / "given" / "train" / "train.jsonl"
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    first = subprocess.Popen(
        [sys.executable, "-m", "facttune_ray", *command],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 240
    stands = log.with_name("checkpoints") / "checkpoint_manager_snapshot.json"
    # uploaded beside the steps
    while not stands.exists() or len(log.read_text().splitlines()) <= 10:
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    first.kill()
    first.wait()
    seen = log.read_text().splitlines()
    assert len(seen) < 200
    assert cli.main(command) == 0
    after = log.read_text().splitlines()
    assert [json.loads(x)["step"] for x in after] == list(range(1, 201))
    assert len(seen) > 10 and after[:10] == seen[:10]  # not trained again


def test_train_needs_a_config_or_a_file(capsys):
    assert cli.main(["train", "run.seed=1"]) == 2
    assert "name a preset" in capsys.readouterr().err


def test_preferences_in_files_are_for_train(words, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("{}")
    assert cli.main(["run", str(tmp_path / "c.yaml"), given(tmp_path), *words]) == 2
    assert "only `facttune train` takes preferences from files" in capsys.readouterr().err
