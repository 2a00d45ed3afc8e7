"""Rules across fields and sections. A range of one field stands beside the field.

To add a rule, let a function in RULES yield a line for a config that breaks it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import math
import re
from collections.abc import Iterator

from facttune_ray import secrets
from facttune_ray.config.contenders import contenders
from facttune_ray.config.layers import flatten
from facttune_ray.config.sections import Config
from facttune_ray.config.wanted import needed, wanted
from facttune_ray.errors import UserError, did_you_mean
from facttune_ray.storage.schema import REWARD_COLUMNS, made_of

# Folders that every run has, so that a model cannot have their names
FOLDERS = ("base", "imported", "world", "topics", "prompts", "knowledge", "ledger", "annotator")
# Settings that name files and models; a name such as "hf_models" or "sk-wiki.db" is not a key
PATHS = frozenset(
    "out folder topics files knowledge samples entity_samples groups path local_lm npm nli "
    "minicheck dense nli_model spacy_model ledger checkpoints deepspeed custom_generate".split()
)
# Parameters that every request has from other settings
OF_A_REQUEST = ("model", "messages", "temperature", "max_tokens", "n")


def check(cfg: Config) -> None:
    """UserError names the key of the first setting that breaks a rule."""
    _secrets(dataclasses.asdict(cfg))
    broken = (line for rules in RULES for line in rules(cfg))
    if line := next(broken, None):
        raise UserError(line)


def _secrets(settings: dict) -> None:
    """Refuse a key in a setting: the settings stand in tables and reports."""
    texts = list(_texts("", settings))
    for name, text in texts:
        if name.endswith("api_key_env") and text:
            if not re.fullmatch(r"[A-Za-z_]\w*", text):
                raise UserError(f"{name}: give the name of an environment variable, not a key")
            with contextlib.suppress(UserError):  # the client reports an unreadable key file
                secrets.key(text)  # makes the key known to secrets.known()
    hidden = secrets.known()
    for name, text in texts:
        path = name.rpartition(".")[2].partition("[")[0] in PATHS and "params" not in name
        secret = re.search(r"://[^/@]*:[^/@]*@", text) or (not path and secrets.SHAPES.search(text))
        if secret or any(s in text for s in hidden):
            raise UserError(
                f"{name}: holds a key, which would stand in every report: give it by environment: "
                f"llm.api_key_env names the variable"
            )


def _texts(name: str, value: object) -> Iterator[tuple[str, str]]:
    """(key, text) of every text at any depth."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts(f"{name}.{key}" if name else str(key), inner)
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from _texts(f"{name}[{i}]", inner)


def _values(cfg: Config) -> Iterator[str]:
    flat = flatten(dataclasses.asdict(cfg))
    for key, value in flat.items():
        if isinstance(value, float) and not math.isfinite(value):
            yield f"{key}={value}: must be a finite number"
    for key in ("llm.base_url", "sampling.llm.base_url"):
        url = flat[key]
        if url and url != "embedded" and not url.startswith(("http://", "https://")):
            yield f"{key}={url}: an address begins with http:// or https://"
    if cfg.data.ready and cfg.data.source != "tuning":
        yield "data.ready: only the files of data.source=tuning bring such tables"
    if "questions" in cfg.data.ready and "facts" not in cfg.data.ready:
        yield "data.ready: questions need their facts: set data.ready=[facts,questions]"
    if cfg.data.val + cfg.data.test > 1:
        yield f"data.val={cfg.data.val}, data.test={cfg.data.test}: must be at most 1 together"
    if min(cfg.evaluation.k, default=1) < 1:
        yield f"evaluation.k={cfg.evaluation.k}: each must be at least 1"
    world = cfg.data.world
    if cfg.data.source == "world" and world.train + world.val + world.test > world.people:
        yield (
            f"data.world: train + val + test = {world.train + world.val + world.test} topics, "
            f"but people={world.people}"
        )
    if set_twice := set(cfg.llm.params) & {*OF_A_REQUEST, "stream"}:
        yield f"llm.params.{min(set_twice)}: set llm.{min(set_twice)}, or leave it out"
    for name in cfg.tune:
        if not name.isidentifier() or name in FOLDERS:
            yield (
                f'tune.{name}: name a tuned model in letters, digits, "_", and not as a folder of '
                f"the run: {', '.join(FOLDERS)}"
            )


def _prompts(cfg: Config) -> Iterator[str]:
    if "" in cfg.responses.stop:
        yield "responses.stop: an empty text would end every response: leave it out"
    if "{topic}" not in (cfg.prompts.template or "{topic}"):
        yield "prompts.template: it needs {topic}, where the topic stands"
    if cfg.data.source == "topics" and cfg.prompts.method == "llm" and cfg.prompts.template:
        yield "prompts.template: only with prompts.method=template: leave it out"


def _verdicts(cfg: Config) -> Iterator[str]:
    before, passage, after = cfg.verdicts.nli_template.partition("{passage}")
    if cfg.verdicts.nli_template and (
        not passage or "{claim}" in before or after.count("{claim}") != 1
    ):
        yield (
            "verdicts.nli_template: write {passage} once and, after it, {claim} once, as in "
            '"{passage} {claim}"'
        )


def _model(cfg: Config) -> Iterator[str]:
    date = cfg.model.template_date
    try:
        datetime.date.fromisoformat(date)
    except ValueError:
        yield f"model.template_date={date}: a date is written as 2024-07-26"
    if cfg.model.template_args and cfg.model.chat == "never":
        yield "model.template_args: model.chat=never uses no template: leave them out"
    own = ("messages", "conversation", "chat_template", "tokenize", "add_generation_prompt")
    for name in cfg.model.template_args:
        if name in own or not name.isidentifier():
            yield f"model.template_args.{name}: not an argument that can be set"


def _decoder(cfg: Config) -> Iterator[str]:
    s = cfg.sampling
    if s.decoder != "plain" and s.engine != "transformers":
        yield f"sampling.decoder={s.decoder}: only with sampling.engine=transformers"
    if s.decoder == "custom" and not s.custom_generate:
        yield "sampling.decoder=custom: name the folder in sampling.custom_generate"
    if s.decoder == "custom" and not s.trust_remote_code:
        yield (
            "sampling.decoder=custom: it runs the Python code of sampling.custom_generate: read "
            "that, then set sampling.trust_remote_code=true"
        )
    if s.dola_layers not in ("low", "high"):
        numbers = s.dola_layers.replace(" ", "").split(",")
        if not all(n.isdecimal() for n in numbers):
            yield f'sampling.dola_layers={s.dola_layers}: low, high, or layers such as "0,2,4"'


def _contenders(cfg: Config) -> Iterator[str]:
    for contender in contenders(cfg):
        key = f"contenders.{contender.name}"
        if not contender.name.isidentifier() or contender.name in (*FOLDERS, *cfg.tune):
            yield (
                f'{key}: name it in letters, digits, "_", and not as a tuned model or a folder of '
                f"the run: {', '.join(FOLDERS)}"
            )
        alone = dataclasses.replace(contender.cfg, contenders={}, tune={}, rewards=Config().rewards)
        try:
            check(alone)
        except UserError as e:
            yield f"{key}: {e}"


def _training(cfg: Config) -> Iterator[str]:
    train = cfg.train
    if train.gpus % 1 and train.workers > 1:
        yield (
            f"train.gpus={train.gpus}: {train.workers} workers cannot share a GPU: give "
            f"each a whole one, or set train.workers=1"
        )
    if bool(train.eval_every) != bool(train.eval_topics):
        yield (
            f"train.eval_every={train.eval_every}, train.eval_topics={train.eval_topics}: set both "
            f"to measure on held-out topics, or neither"
        )
    needs = {
        "train.best": (train.best != "none", "train.eval_every", train.eval_every),
        "train.eval_samples": (train.eval_samples, "train.eval_every", train.eval_every),
        "train.patience": (train.patience, "train.best", train.best != "none"),
        "train.lora.quantize": (train.lora.quantize != "none", "train.lora.rank", train.lora.rank),
    }
    for key, (is_set, other, other_is_set) in needs.items():
        if is_set and not other_is_set:
            yield f"{key}: needs {other}, which is not set"
    if train.label_smoothing and train.loss != "cdpo":
        yield f"train.label_smoothing: train.loss={train.loss} has none: set cdpo"
    if train.min_workers > train.workers:
        least = f"train.min_workers={train.min_workers}"
        yield f"{least}: must be at most train.workers={train.workers}"


def _rewards(cfg: Config) -> Iterator[str]:
    """Whether the rewards exist and can be made."""
    asked = [(f"tune.{name}.reward", t.reward) for name, t in cfg.tune.items() if t.rounds]
    asked += [(f"rewards.columns[{i}]", name) for i, name in enumerate(cfg.rewards.columns)]
    for name, weights in cfg.rewards.mix.items():
        if name in REWARD_COLUMNS:
            yield f"rewards.mix.{name}: a reward has this name already: choose another"
        if not weights:
            yield f"rewards.mix.{name}: give at least one reward and its weight"
        for part in weights:
            if part not in REWARD_COLUMNS:
                yield f'rewards.mix.{name}: no reward "{part}".{did_you_mean(part, REWARD_COLUMNS)}'
    known = (*REWARD_COLUMNS, *cfg.rewards.mix)
    for key, name in asked:
        if name not in known:
            yield f'{key}: no reward "{name}".{did_you_mean(name, known)}'
    if "samp_conf" in needed(cfg, wanted(cfg)) and not cfg.questions.answer:
        yield "samp_conf compares with the answer of each fact: set questions.answer=true"


def _sampling(cfg: Config) -> Iterator[str]:
    s, columns = cfg.sampling, needed(cfg, wanted(cfg))
    if s.quantize != "none" and not s.gpus:
        yield f"sampling.quantize={s.quantize}: needs a GPU: set sampling.gpus=1"
    if s.tensor_parallel > 1 and s.engine != "vllm":
        yield "sampling.tensor_parallel: only sampling.engine=vllm spreads a model"
    elif s.tensor_parallel > 1 and not s.gpus:
        yield "sampling.tensor_parallel: needs GPUs: set sampling.gpus=1"
    for section, llm in (("llm", cfg.llm), ("sampling.llm", s.llm)):
        if llm.params.get("stream"):
            yield f"{section}.params.stream: answers are read whole: leave it out"
    if s.llm.budget_usd is not None:
        yield "sampling.llm.budget_usd: a run has one budget: set llm.budget_usd"
    if s.engine != "api":
        return
    if cfg.llm.budget_usd is not None and s.llm.ledger not in ("", cfg.llm.ledger):
        yield (
            f"sampling.llm.ledger={s.llm.ledger}: llm.budget_usd counts what one ledger holds: "
            f"leave it out, or set llm.ledger to the same"
        )
    if not s.llm.model:
        yield "sampling.engine=api: name the model: sampling.llm.model"
    given = {name for name, value in s.llm.params.items() if value is not None}  # null: not sent
    if set_twice := given & {*OF_A_REQUEST, "prompt", "top_p", "seed", "stop"}:
        name = min(set_twice)
        yield f"sampling.llm.params.{name}: each stage sends its own: leave it out"
    if s.form == "completions" and s.llm.mode == "batch":
        yield "sampling.form=completions: not with sampling.llm.mode=batch"
    if s.form == "chat" and made_of(columns, "entities"):
        yield "ne_* rewards continue a response: set sampling.form=completions"
    if "p_true" in columns:
        yield "p_true needs the model's weights: leave sampling.engine at transformers"
    tuned = [name for name, t in cfg.tune.items() if t.rounds]
    if tuned and not cfg.model.path:
        yield f"tune.{tuned[0]}: sampling.engine=api has no weights: name model.path"
    if tuned and (cfg.evaluation.tuned or any(cfg.tune[n].rounds > 1 for n in tuned)):
        yield (
            f"tune.{tuned[0]}: sampling.engine=api cannot sample a tuned model: set its rounds to "
            f"1 and evaluation.tuned=false, or use sampling.engine=transformers"
        )


RULES = (
    _values,
    _prompts,
    _verdicts,
    _model,
    _training,
    _rewards,
    _sampling,
    _decoder,
    _contenders,
)
