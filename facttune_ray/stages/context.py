"""What a stage works with: input rows, LLM client, models, articles.

A worker process keeps its contexts between shards, so it loads a model or connects once. The
contexts of several stages in one process share what is equal: the sampled model, the endpoint, the
articles.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from facttune_ray import telemetry
from facttune_ray.config.stages import ClassesConfig, VerdictsConfig
from facttune_ray.stages.work import Work
from facttune_ray.storage import tables
from facttune_ray.storage.tables import Folder

if TYPE_CHECKING:
    from facttune_ray.knowledge.articles import Articles
    from facttune_ray.knowledge.dense import Dense
    from facttune_ray.llm.client import Client
    from facttune_ray.sampling.protocol import Sample, Sampler, SampleRequest
    from facttune_ray.text.cleanup import Entities
    from facttune_ray.training.model import GroupModel
    from facttune_ray.verifiers.entailment import Entailment
    from facttune_ray.verifiers.local_lm import LocalLM
    from facttune_ray.verifiers.minicheck import MiniCheck
    from facttune_ray.verifiers.npm import NPM


T = TypeVar("T")


class Context:
    """Resources of one stage in one worker, made when first used."""

    def __init__(self, work: Work, opened: dict | None = None, **resources: Any) -> None:
        """`opened`: what the contexts of a process share. `resources`: objects that replace
        resources of the same names, such as `client` in an estimate."""
        self.work, self.cfg = work, work.cfg
        self._opened = {} if opened is None else opened
        self.root = Folder.of(work.cfg.run.out)
        for name, resource in resources.items():
            assert hasattr(type(self), name), name
            setattr(self, name, resource)

    def rows(self, role: str, shard: int) -> list[dict]:
        """A shard's rows of an input table, in order, of the splits of the work; [] when the table
        is no input."""
        if role not in self.work.inputs:
            return []
        rows = tables.rows(self.root / self.work.inputs[role], shard)
        return [r for r in rows if r.get("split") in (None, *self.work.splits)]

    def _shared(self, key: tuple, make: Callable[[], T]) -> T:
        if key not in self._opened:
            self._opened[key] = make()
        return self._opened[key]

    async def close(self) -> None:
        """Close the client, if it was used."""
        if "client" in vars(self):  # where cached_property keeps it
            await self.client.close()

    @functools.cached_property
    def client(self) -> Client:
        from facttune_ray.stages.connect import connect

        return connect(self.work, self._shared)

    @functools.cached_property
    def sampler(self) -> Sampler:
        from facttune_ray.sampling import engines

        cfg, path = self.cfg, self.work.model_path
        if cfg.sampling.engine == "api":
            return engines.make(cfg, path, self.client)
        key = ("sampler", path, repr(cfg.model), repr(cfg.sampling))
        return self._shared(key, lambda: engines.make(cfg, path, None))

    async def sample(self, request: SampleRequest) -> list[list[Sample]]:
        """`Sampler.sample`, awaited where the engine waits for a network."""
        result = self.sampler.sample(request)
        samples = await result if isinstance(result, Awaitable) else result
        labels = {"stage": self.work.stage, "run": self.cfg.run.name}
        telemetry.count("samples", sum(map(len, samples)), **labels)
        return samples

    @property
    def path(self) -> str:
        """The path of the code that the model took (`sampling/paths.py`, `training/probe.py`), and
        why it is not the fast path; "" without a model of this process."""
        if "trained" in vars(self):
            return str(self.trained[1].way)
        sampler = vars(self).get("sampler")  # where cached_property keeps it
        return str(getattr(sampler, "way", ""))

    @functools.cached_property
    def articles(self) -> Articles:
        from facttune_ray.knowledge.articles import Articles
        from facttune_ray.knowledge.local import local_copy

        file = self.work.knowledge
        return self._shared(("articles", file), lambda: Articles(local_copy(file)))

    @functools.cached_property
    def entities(self) -> Callable[[str], Entities]:
        """Names, dates and numbers of a sentence, for the clean-up of its facts. UserError if the
        driver finds them by another pipeline, or by rules."""
        from facttune_ray.stages.pipelines import check_same, version_or_rules
        from facttune_ray.text import cleanup

        key, name = "facts.spacy_model", self.cfg.facts.spacy_model
        check_same(key, name, self.root / self.work.output, version_or_rules)
        return cleanup.load(name)

    @functools.cached_property
    def parser(self) -> Any:
        """spaCy's pipeline for `facts.method=spacy`. UserError if the driver has another one."""
        from facttune_ray.stages.pipelines import check_same
        from facttune_ray.text.pipelines import load_for_facts

        key, name = "facts.spacy_model", self.cfg.facts.spacy_model
        check_same(key, name, self.root / self.work.output)
        return load_for_facts(key, name)

    @functools.cached_property
    def dense(self) -> Dense:
        from facttune_ray.knowledge.dense import Dense

        cfg = self.cfg.verdicts
        kept = (self.root / "knowledge/vectors").path if self.root.local else None
        return Dense(cfg.dense, device=_device(cfg.gpus), cache_dir=kept)

    @functools.cached_property
    def local_lm(self) -> LocalLM:
        from facttune_ray.verifiers.local_lm import LocalLM

        return LocalLM(self.cfg.verdicts.local_lm, **_settings(self.cfg.verdicts))

    @functools.cached_property
    def self_judge(self) -> LocalLM:
        """The model that wrote the responses, as a judge of its own facts."""
        from facttune_ray.verifiers.local_lm import LocalLM

        cfg = self.cfg
        return LocalLM(
            self.work.model_path,
            dtype=cfg.model.dtype,
            device=_device(cfg.sampling.gpus),
            batch_tokens=cfg.p_true.batch_tokens,
            quantize=cfg.sampling.quantize,
        )

    @functools.cached_property
    def trained(self) -> tuple[Any, GroupModel]:
        """(tokenizer, model) that training starts from."""
        from facttune_ray.sampling.weights import load
        from facttune_ray.training.model import GroupModel

        cfg, path = self.cfg.train, self.work.model_path
        device, quantize = _device(cfg.gpus), cfg.lora.quantize
        tokenizer, model = load(
            path, cfg.dtype, device=device, quantize=quantize, key="train.lora.quantize"
        )
        return tokenizer, GroupModel(model, cfg.max_length)

    @functools.cached_property
    def entailment(self) -> Entailment:
        from facttune_ray.verifiers.entailment import Entailment

        return Entailment(self.cfg.classes.nli_model, **_settings(self.cfg.classes))

    @functools.cached_property
    def nli(self) -> Entailment:
        from facttune_ray.verifiers.entailment import Entailment

        v = self.cfg.verdicts
        form: dict[str, Any] = {
            "label": v.nli_label,
            "template": v.nli_template,
            "key": "verdicts.nli",
        }
        return Entailment(v.nli, **form, **_settings(self.cfg.verdicts))

    @functools.cached_property
    def minicheck(self) -> MiniCheck:
        from facttune_ray.verifiers.minicheck import MiniCheck

        return MiniCheck(self.cfg.verdicts.minicheck, **_settings(self.cfg.verdicts))

    @functools.cached_property
    def npm(self) -> NPM:
        from facttune_ray.verifiers.npm import NPM

        return NPM(self.cfg.verdicts.npm, **_settings(self.cfg.verdicts))


def _device(gpus: float) -> str:
    return "cuda" if gpus else "cpu"


def _settings(section: VerdictsConfig | ClassesConfig) -> dict[str, Any]:
    """How the models of a section are loaded and run."""
    device = _device(section.gpus)
    return {"dtype": section.dtype, "device": device, "batch_tokens": section.batch_tokens}
