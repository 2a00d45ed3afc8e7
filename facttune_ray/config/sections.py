"""Every setting, its default and its unit: frozen dataclasses are the only source of defaults.

Config keys are stage names: `facts` configures the stage `facts` that writes the table `facts`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from facttune_ray.config.data import PromptsConfig, SizesConfig
from facttune_ray.config.llm import LLMConfig, SamplingConfig
from facttune_ray.config.train import TrainConfig


@dataclass(frozen=True)
class RunConfig:
    """One run: where its tables go and what its seeds derive from."""

    name: str = "run"  # shown in the report
    out: str = "runs/default"  # folder of every table, model and report of this run
    seed: int = 0  # every random choice derives from this and from row ids
    # parts a table: a topic is whole in one part, which is the unit of work, and held in memory
    shards: int = 0  # 0: one for each 256 topics, at least 8
    workers: int = 0  # Ray actors of a stage; 0: one a CPU of the cluster (never more than shards)
    max_error_fraction: float = 0.05  # a stage fails when a larger share of its rows has an error


@dataclass(frozen=True)
class WorldConfig:
    """The embedded world of fictional people (data.source: world)."""

    people: int = 400  # topics
    train: int = 150  # topics whose responses are scored and trained on
    val: int = 50  # topics that choose the round
    test: int = 100  # topics of the summary


@dataclass(frozen=True)
class DataConfig:
    """Topics, prompts and the knowledge source."""

    # topics: a file of topics, whose prompts the section `prompts` makes; responses: rows {topic,
    # prompt, response} of any model; factscore: JSONL {topic, input, output}, with or without
    # FActScore's labels; tuning: questions_per_topic_*.json and responses/ of FactTune's scripts
    source: Literal["world", "topics", "responses", "factscore", "tuning"] = "world"
    folder: str = ""  # of `topics`, `files` and `knowledge`
    topics: str = ""  # topics: text, one a line; or JSONL, JSON, CSV, Parquet with a column `topic`
    topic_column: str = "topic"  # topics, responses: its name
    sizes: SizesConfig = field(default_factory=SizesConfig)  # topics, responses
    # responses: JSONL, JSON, CSV, Parquet; factscore: JSONL; each row's model is the file's name
    files: list[str] = field(default_factory=list)
    # tuning: tables that the folder's files bring, so that they are not made again: facts (with
    # verdicts), questions (with answers), entities
    ready: list[Literal["facts", "questions", "entities"]] = field(default_factory=list)
    samples: str = "atomic_qs_samples/llama-7b_20samples"  # questions: folder of their answers
    entity_samples: str = "ne_samples/llama7b_20samples"  # entities: folder of their samples
    knowledge: str = ""  # {title, text} JSONL, or a FActScore SQLite database
    groups: Any = ""  # `facttune train`: a file, or a list of files, of preferences of one's own
    reward: str = "rewards"  # groups: key of the rewards in those files
    val: float = 0.15  # share of topics in the val split, where no size says it
    test: float = 0.25  # the same of the test split
    world: WorldConfig = field(default_factory=WorldConfig)


@dataclass(frozen=True)
class PretrainConfig:
    """The tiny Llama that stands for the base model when model.path is empty."""

    documents: Literal["world", "responses"] = "world"  # text it is trained on
    epochs: float = 2.5  # passes over the documents; 0: random weights
    batch_tokens: int = 512  # tokens a step
    lr: float = 3e-3  # AdamW peak learning rate
    hidden: int = 128  # width
    layers: int = 2
    heads: int = 4
    vocab_size: int = 3000  # tokenizer entries at most
    max_length: int = 512  # positions; a longer document is cut


@dataclass(frozen=True)
class ModelConfig:
    """The base model."""

    path: str = ""  # Hugging Face folder or hub id; empty: pre-train a tiny one
    chat: Literal["auto", "never"] = "auto"  # use the tokenizer's chat template if it has one
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of sampling weights
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)


@dataclass(frozen=True)
class ResponsesConfig:
    """Responses to each prompt."""

    samples: int = 10  # a train prompt (paper: 10)
    max_tokens: int = 256  # generated tokens at most
    temperature: float = 1.0
    top_p: float = 1.0


@dataclass(frozen=True)
class FactsConfig:
    """Responses to atomic facts."""

    # labels, atomic_facts: the labelled file's human facts, or its own (--use_atomic_facts)
    method: Literal["llm", "rules", "labels", "atomic_facts"] = "llm"
    domain: Literal["general", "bio", "medicine"] = "general"  # worked examples of the prompt
    carry_words: int = 0  # a sentence of so few words is asked with the next (FActScore: 11)
    decontextualize: bool = False  # show what stands before, so that "He" becomes a name
    cleanup: Literal["none", "entities"] = "none"  # drop facts whose names are not the sentence's
    spacy_model: str = "en_core_web_sm"  # entities of the clean-up; rules when not installed
    abstention: str = "generic"  # none | generic | llm | your own package.module:function


@dataclass(frozen=True)
class VerdictsConfig:
    """Facts to verdicts, against the topic's article."""

    # lexical | chat | local_lm | npm, joined by "+": all must support; or FActScore's names:
    # retrieval+ChatGPT, retrieval+llama, retrieval+llama+npm, retrieval+ChatGPT+npm, npm
    estimator: str = "chat"
    retrieval: Literal["bm25", "dense", "fts", "none"] = "bm25"  # fts: all articles, no title
    no_article: Literal["null", "search"] = "null"  # topic without article: no verdict, or fts
    passages: int = 5  # shown for a fact (FActScore: 5)
    threshold: float | None = None  # supported from this score; null: the estimator's own
    facts_per_request: int = 1  # chat: several facts of a topic in one request
    logprobs: bool = False  # chat: score = probability of True, where the endpoint tells it
    local_lm: str = ""  # Hugging Face folder, its URI, or hub id of a causal LM
    npm: str = "facebook/npm-single"  # of a masked LM
    npm_passages: int = 3  # shown to npm (FActScore: 3)
    dense: str = "sentence-transformers/gtr-t5-large"  # of a sentence-transformers model
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of local_lm and npm
    batch_tokens: int = 8192  # of local_lm and npm, a forward pass
    gpus: float = 0.0  # a worker of local_lm, npm, dense; 0: CPU
    accelerator: str = ""  # their kind, as sampling.accelerator


@dataclass(frozen=True)
class QuestionsConfig:
    """Facts to the questions that they answer."""

    domain: Literal["general", "bio", "medicine"] = "general"  # worked examples of the prompt
    context: int = 0  # facts before it in the response that the prompt shows, at most
    answer: bool = False  # ask for the answer, too: what samp_conf compares with


@dataclass(frozen=True)
class AnswersConfig:
    """Questions to sampled answers of the model that wrote the responses."""

    samples: int = 20  # a question (paper: 20)
    max_tokens: int = 15  # tokens an answer
    temperature: float = 1.0
    top_p: float = 0.9
    examples: Literal["none", "bio", "medicine"] = "bio"  # worked questions before each question


@dataclass(frozen=True)
class EntitiesConfig:
    """Noun chunks of a response, each sampled again from what stands before it."""

    spacy_model: str = "en_core_web_sm"  # pipeline with a parser, by name or folder
    samples: int = 20  # an entity, of as many tokens as it has (paper: 20)
    temperature: float = 1.0
    top_p: float = 0.9


@dataclass(frozen=True)
class ClassesConfig:
    """Which sampled answers mean the same."""

    # reference: FactTune's scripts bit by bit, faults included
    method: Literal["heuristic", "exact", "llm", "nli", "reference"] = "heuristic"
    max_pairs: int = 12  # llm, nli: pairs judged a question at most, the likeliest first
    nli_model: str = "microsoft/deberta-large-mnli"  # sequence classifier with an entailment label
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # nli
    batch_tokens: int = 8192  # nli: tokens of a forward pass
    gpus: float = 0.0  # nli: GPUs a worker; 0: CPU
    accelerator: str = ""  # their kind, as sampling.accelerator


@dataclass(frozen=True)
class PTrueConfig:
    """Facts to the model's own probability that they are true."""

    batch_tokens: int = 8192  # of a forward pass


@dataclass(frozen=True)
class RewardsConfig:
    """Verdicts and answers to one row of rewards a response."""

    distinct_facts: bool = False  # count a repeated fact once; false: as the reference does
    gamma: float = 10.0  # facts below which factscore_lp is penalised (FActScore: 10)
    columns: list[str] = field(default_factory=list)  # made beside those that `tune` uses
    # name -> {reward: weight}: weighted sums of z-scored rewards, rewards of their own
    mix: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class GroupsConfig:
    """Rewards to preference groups."""

    threshold: float = 0.0  # a pair needs a reward difference above this
    max_pairs: int = 0  # of a prompt, those of the largest difference; 0: all
    weights: Literal["equal", "margin"] = "equal"  # of pairs; margin: their reward difference


@dataclass(frozen=True)
class TuneConfig:
    """One tuned model: which reward, and how many on-policy rounds."""

    reward: str = "factscore"  # a column of `rewards`, or a name in rewards.mix
    rounds: int = 1  # sample, score, train; each starts from the one before; 0: not tuned
    lr: float | None = None  # null: train.lr
    epochs: int | None = None  # null: train.epochs


@dataclass(frozen=True)
class EvaluationConfig:
    """Held-out measurement."""

    samples: int = 10  # responses a val or test prompt
    tuned: bool = True  # sample and score the tuned models
    select: Literal["net", "error_rate", "correct"] = "net"  # val figure that chooses the round
    resamples: int = 2000  # bootstrap resamples over topics
    # estimator of a second opinion on the test facts. auto: lexical, which asks no LLM, where
    # verdicts.estimator is another; none: only verdicts.estimator
    estimator: str = "auto"
    judge_samples: int = 1  # responses a test prompt that an LLM compares with base; 0: none
    k: list[int] = field(default_factory=list)  # of f1@K, recall@K; []: median and most facts
    examples: int = 5000  # responses in the report at most
    # measured responses of a model at most, and of those with rewards: of a larger set, whole
    # shards up to so many. The figures' memory grows with them, by less than 1 KB each
    most: int = 65_536


@dataclass(frozen=True)
class Config:
    """Everything. Each field is one section of a YAML preset."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    llm: LLMConfig = field(default_factory=LLMConfig)
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    responses: ResponsesConfig = field(default_factory=ResponsesConfig)
    facts: FactsConfig = field(default_factory=FactsConfig)
    verdicts: VerdictsConfig = field(default_factory=VerdictsConfig)
    questions: QuestionsConfig = field(default_factory=QuestionsConfig)
    answers: AnswersConfig = field(default_factory=AnswersConfig)
    entities: EntitiesConfig = field(default_factory=EntitiesConfig)
    classes: ClassesConfig = field(default_factory=ClassesConfig)
    p_true: PTrueConfig = field(default_factory=PTrueConfig)
    rewards: RewardsConfig = field(default_factory=RewardsConfig)
    groups: GroupsConfig = field(default_factory=GroupsConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    tune: dict[str, TuneConfig] = field(default_factory=dict)
    # name -> another model or decoder on the test topics: {of: a tuned model, none: base} and
    # settings of its own in the sections model, sampling, responses, prompts, evaluation
    contenders: dict[str, dict[str, Any]] = field(default_factory=dict)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


# Keys of these are the user's, or the provider's
FREE = {
    "tune.": TuneConfig,
    "llm.params.": None,
    "sampling.llm.params.": None,
    "sampling.custom_params.": None,
    "contenders.": None,
    "rewards.mix.": None,
}
