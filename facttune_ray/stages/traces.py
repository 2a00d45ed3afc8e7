"""The trace of a fact: what each judge of the fact read, and what it said.

    Traces(cfg, knowledge).of_shard({"facts": [...], "verdicts": [...], ...})
        ->  {"c07e": [{"stage": "verdicts", "by": "chat", "messages": [["user", "..."]],
                       "params": {...}, "answers": [{"text": "True", "model": "gpt", ...}]},
                      {"stage": "second opinion", "by": "lexical", "sentence": "She plays ...",
                       "parts": [["words in the best sentence", 2.2], ...], "score": 0.92, ...}]}

The tables hold no prompt. A request is made again by the function that made it in its stage, and
its answers are found in the ledger by the request's key. No request is sent, and no model is run: a
verifier with a model has its passages in the trace, and a score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from facttune_ray.config import Config, VerdictsConfig
from facttune_ray.errors import UserError, one_line
from facttune_ray.llm.ledger import Ledger
from facttune_ray.llm.parameters import Prompt
from facttune_ray.llm.recorded import Request, recorded
from facttune_ray.llm.replies import Completion
from facttune_ray.prompts import verdicts as verdicts_prompt
from facttune_ray.sampling import engines
from facttune_ray.sampling.api import calls
from facttune_ray.stages import answers, connect, facts, questions, verdicts
from facttune_ray.stages.context import Context
from facttune_ray.stages.evidence import Evidence, evidence_of
from facttune_ray.stages.work import Work
from facttune_ray.text.decompose import normal_fact
from facttune_ray.verifiers import lexical

Step = dict[str, Any]  # one judge of a trace; several facts may share it
Rows = list[dict]
UNRANKED = (
    "verdicts.retrieval=dense: the report does not run the model that ranks passages, so it cannot "
    "show what the judge read besides the deciding passage"
)


class Traces:
    """The ledger and the articles of a run, for reading."""

    def __init__(self, cfg: Config, knowledge: str) -> None:
        """`knowledge`: path or URI of the database of articles, or ""."""
        self.cfg, self.second = cfg, verdicts.second_opinion(cfg)
        self.knowledge = knowledge
        self.ledger = _ledger(cfg)
        self.sampling: Config | None = None  # the settings of the endpoint that samples answers
        if cfg.sampling.engine == "api":
            self.sampling = replace(cfg, llm=engines.endpoint(cfg))
            self.samples = _ledger(self.sampling)

    def of_shard(self, rows: Mapping[str, Rows]) -> dict[str, list[Step]]:
        """fact_id -> the steps of its trace. `rows`: of one shard: prompts, responses, facts,
        verdicts, questions, and `second` (verdicts of the second estimator)."""
        asked = Asked(self.cfg)
        steps: dict[str, list[Step]] = {f["fact_id"]: [] for f in rows["facts"]}
        for cfg, name, stage in (
            (self.cfg, "verdicts", "verdicts"),
            (self.second, "second", "second opinion"),
        ):
            if cfg is not None and rows[name]:
                judges = self._judges(cfg, stage, asked, rows)
                for f in rows["facts"]:
                    if f["fact"] and f["human_label"] != verdicts.IRRELEVANT:
                        steps[f["fact_id"]] += judges[f["topic"], normal_fact(f["fact"])]
        if self.cfg.facts.method == "llm":
            self._extraction(asked, steps, rows)
        self._questions(asked, steps, rows)
        asked.look_up(self.ledger)
        if self.sampling:
            sampled = Asked(self.sampling)
            self._answers(sampled, steps, rows)
            sampled.look_up(self.samples)
        return {
            fact_id: [s for s in some if s.get("answers") or not s.get("optional")]
            for fact_id, some in steps.items()
        }

    def _extraction(self, asked: Asked, steps: dict[str, list[Step]], rows: Mapping) -> None:
        """The request that split a sentence into facts."""
        responses = {r["response_id"]: r for r in rows["responses"]}
        for f in rows["facts"]:
            if f["sentence_text"] is not None and f["response_id"] in responses:
                place = f["sentence_text"], f["start"]
                sent = facts.messages(self.cfg.facts, responses[f["response_id"]], *place)
                steps[f["fact_id"]].append(asked.step("facts", Request(sent)))

    def _questions(self, asked: Asked, steps: dict[str, list[Step]], rows: Mapping) -> None:
        """The request for the question of a fact."""
        there = {q["fact_id"] for q in rows["questions"]}
        if not there:
            return
        cfg, topics = self.cfg.questions, {p["topic"]: p for p in rows["prompts"]}
        with_context = list(questions.with_context(rows["facts"], cfg.context))
        first = questions.first_of(with_context)
        for key, f, _ in with_context:
            if f["fact_id"] in there:
                fact, before = first[key]
                sent = questions.messages(cfg, topics.get(f["topic"], {}), fact, before)
                steps[f["fact_id"]].append(asked.step("questions", Request(sent)))

    def _answers(self, asked: Asked, steps: dict[str, list[Step]], rows: Mapping) -> None:
        """The requests for sampled answers to the question of a fact."""
        questioned = {q["question_id"]: q for q in rows["questions"] if q["question"]}
        models = {
            r["model"] for r in rows["responses"]
        }  # one: a scope with questions has one model
        for model in models if questioned else ():
            request = answers.request(self.cfg, model, questioned)
            sent = dict(zip(questioned, calls(self.cfg.sampling.form, request), strict=True))
            for q in rows["questions"]:
                if q["question"]:
                    prompt, params = sent[q["question_id"]]
                    step = asked.step("answers", Request(prompt, samples=params))
                    steps[q["fact_id"]].append(step)

    def _judges(
        self, cfg: Config, stage: str, asked: Asked, rows: Mapping[str, Rows]
    ) -> dict[tuple[str, str], list[Step]]:
        """(topic, normal form of a fact) -> the steps of its estimators."""
        context = Context(Work("verdicts", "", {}, cfg, knowledge=self.knowledge))
        most = verdicts.ranked(cfg.verdicts)
        out: dict[tuple[str, str], list[Step]] = {}
        for topic, distinct in verdicts.distinct_facts(rows["facts"]).items():
            try:
                if most and cfg.verdicts.retrieval == "dense":
                    raise UserError(UNRANKED)
                evidence = evidence_of(context, topic, list(distinct.values()), most)
                judges = _judges_of(context, evidence, stage, asked)
            except (UserError, OSError) as e:  # such as: the database of articles has gone
                by = cfg.verdicts.estimator
                judges = [[{"stage": stage, "by": by, "note": one_line(e)}]] * len(distinct)
            out |= {(topic, normal): j for normal, j in zip(distinct, judges, strict=True)}
        return out


def _judges_of(context: Context, evidence: Evidence, stage: str, asked: Asked) -> list[list[Step]]:
    """The steps of each fact of a topic, by all estimators."""
    cfg, names = context.cfg.verdicts, verdicts.estimators(context.cfg.verdicts)
    out: list[list[Step]] = [[] for _ in evidence.facts]
    if evidence.reason is not None:  # no article: no judge was asked
        return out
    for name in names:
        head = {"stage": stage, "by": name, "threshold": verdicts.threshold(cfg, name)}
        if name == "chat":
            _chat(cfg, evidence, stage, asked, out)
        elif name == "lexical":
            prepared = lexical.prepare(evidence.topic, evidence.passages, context.articles.rarity)
            for fact, steps in zip(evidence.facts, out, strict=True):
                steps.append(head | _lexical(fact, prepared, evidence.passages))
        else:
            most = cfg.npm_passages if name == "npm" else cfg.passages
            for shown, steps in zip(evidence.by_fact, out, strict=True):
                read = [[evidence.titles[i], evidence.passages[i]] for i in shown[:most]]
                steps.append(head | {"passages": read})
    return out


def _chat(
    cfg: VerdictsConfig, evidence: Evidence, stage: str, asked: Asked, out: list[list[Step]]
) -> None:
    """Add the request about each fact. After a request about several facts it is optional: it was
    sent only if the answer about several facts could not be read."""
    every = range(len(evidence.facts))
    together = verdicts.facts_together(cfg, every)
    for part in together:
        step = asked.step(stage, Request(verdicts.messages_together(cfg, evidence, part)))
        for fact in part:
            out[fact].append(step)
    for fact in every:
        one = Request(verdicts.messages(cfg, evidence, fact), verdicts.parameters(cfg))
        out[fact].append(asked.step(stage, one, optional=bool(together)))


def _lexical(fact: str, prepared: lexical.Prepared, passages: Sequence[str]) -> Step:
    """The sentence that decided, its clause as it was read, and the parts of the score."""
    support, place, parts = lexical.explain(fact, prepared)
    if place is None:
        return {"note": support.reason}
    clause = lexical.best_clause(fact, prepared, place)
    said = {"sentence": prepared.article.sentence(place, passages), "clause": clause}
    shown = [[name, round(odds, 3)] for name, odds in parts if odds]
    return said | {"score": support.score, "parts": shown, "said": support.reason}


class Asked:
    """The requests of a shard. Equal requests are one step."""

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg
        self.steps: dict[tuple[str, ...], tuple[Step, Request]] = {}

    def step(self, stage: str, request: Request, optional: bool = False) -> Step:
        """The step of a request. `optional`: the request may not have been sent."""
        # two topics may have the same question: the seeds of its sampled answers tell them apart
        key = stage, repr(request.samples), *(text for _, text in _messages(request.prompt))
        if key not in self.steps:
            step = {"stage": stage, "by": self.cfg.llm.model, "optional": optional}
            self.steps[key] = step, request
        return self.steps[key][0]

    def look_up(self, ledger: Ledger | None) -> None:
        """Add to each step the messages that were sent, and the answers."""
        found = recorded(self.cfg.llm, ledger, [request for _, request in self.steps.values()])
        for (step, _), r in zip(self.steps.values(), found, strict=True):
            step["messages"] = _messages(r.prompt)
            step |= {"params": r.params, "answers": list(map(_answer, r.completions))}


def _ledger(cfg: Config) -> Ledger | None:
    folder = connect.ledger_folder(cfg)
    return Ledger(folder) if folder.exists() else None


def _messages(prompt: Prompt) -> list[list[str]]:
    """[role, content] of each message; a text for `completions` has the role "text"."""
    if isinstance(prompt, str):
        return [["text", prompt]]
    return [[m["role"], m["content"]] for m in prompt]


def _answer(c: Completion) -> dict[str, Any]:
    """A completion, without fields that are unknown."""
    found = {
        "text": c.text,
        "refusal": c.refusal,
        "thoughts": c.thoughts,
        "finish": c.finish_reason,
        "model": c.served_model,
        "prompt_tokens": c.prompt_tokens,
        "completion_tokens": c.completion_tokens,
        "cost_usd": c.cost_usd,
        "latency_s": c.latency_s,
        "attempts": c.attempts,
        "probability": verdicts_prompt.probability(c.top_logprobs),
    }
    return {k: v for k, v in found.items() if v is not None}
