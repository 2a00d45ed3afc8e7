"""The sections of the stages: a config key is a stage's name, and so is the table it writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from facttune_ray.config.model import Dtype
from facttune_ray.config.setting import setting

Domain = Literal["general", "bio", "medicine"]
EXAMPLES = ("none", "bio", "medicine", "general")  # worked questions by name


@dataclass(frozen=True)
class ResponsesConfig:
    """Responses to each prompt."""

    samples: int = setting(10, "Responses to each train prompt (the paper: 10).", ge=1)
    max_tokens: int = setting(256, "Most generated tokens of a response.", unit="tokens", ge=1)
    temperature: float = setting(1.0, "Sampling temperature; 0: greedy.", ge=0)
    top_p: float = setting(1.0, "Nucleus sampling: probability mass to sample from.", gt=0, le=1)
    stop: list[str] = setting(
        [], r'Texts that end a response, such as ["\n"]; the first of them cuts it.'
    )


@dataclass(frozen=True)
class FactsConfig:
    """Responses to atomic facts."""

    method: Literal["llm", "rules", "spacy", "labels", "atomic_facts"] = setting(
        "llm",
        "rules: by rules of English grammar; spacy: by the parse of spacy_model, else by rules; "
        "labels, atomic_facts: the human facts of a labelled FActScore file, or its generated "
        "facts (--use_atomic_facts).",
    )
    domain: Domain = setting("general", "Worked examples that the prompt shows.")
    carry_words: int = setting(
        0,
        "A sentence of at most this many words is asked with the next sentence (FActScore: 11).",
        unit="words",
        ge=0,
    )
    decontextualize: bool = setting(
        False, 'Show the text before a sentence, so that "He" becomes a name.'
    )
    cleanup: Literal["none", "entities"] = setting(
        "none", "entities: drop a fact whose names do not stand in its sentence."
    )
    spacy_model: str = setting(
        "en_core_web_sm",
        "spaCy pipeline, by name or folder. method=spacy needs it; without it, cleanup=entities "
        "finds names by rules.",
    )
    abstention: str = setting("generic", "none, generic, llm, or your own package.module:function.")


@dataclass(frozen=True)
class VerdictsConfig:
    """Facts to verdicts, against the topic's article."""

    estimator: str = setting(
        "chat",
        'lexical, chat, nli, minicheck, local_lm, npm, joined by "+": all must support; or a name '
        "of FActScore: retrieval+ChatGPT, retrieval+llama, retrieval+llama+npm, "
        "retrieval+ChatGPT+npm, npm.",
    )
    retrieval: Literal["bm25", "dense", "fts", "none"] = setting(
        "bm25", "How passages are found; fts: in all articles, whatever their title."
    )
    no_article: Literal["null", "search"] = setting(
        "null", "Facts of a topic without article: no verdict (null), or full-text search."
    )
    passages: int = setting(5, "Passages shown for a fact (FActScore: 5).", ge=1)
    threshold: float | None = setting(
        None, "Score from which a fact is supported; null: the estimator's own."
    )
    facts_per_request: int = setting(1, "chat: facts of a topic in one request.", ge=1)
    logprobs: bool = setting(
        False, "chat: the score is the probability of True, where the endpoint returns it."
    )
    local_lm: str = setting("", "local_lm: causal LM, as a Hugging Face folder, URI or hub id.")
    nli: str = setting(
        "", "nli: sequence classifier with an entailment label, as a folder, URI or hub id."
    )
    nli_label: str = setting("", "nli: label of a supported fact; empty: the entailment label.")
    nli_template: str = setting(
        "",
        "nli: text with {passage} and {claim} for a classifier of one text (FactCG); empty: a "
        "pair of texts.",
    )
    minicheck: str = setting(
        "", "minicheck: MiniCheck's Flan-T5 (lytang/MiniCheck-Flan-T5-Large), or one like it."
    )
    npm: str = setting("facebook/npm-single", "npm: masked LM, as a folder, URI or hub id.")
    npm_passages: int = setting(3, "npm: passages shown for a fact (FActScore: 3).", ge=1)
    dense: str = setting(
        "sentence-transformers/gtr-t5-large", "retrieval=dense: sentence-transformers model."
    )
    dtype: Dtype = setting("float32", "nli, minicheck, local_lm, npm: type of the weights.")
    batch_tokens: int = setting(
        8192, "nli, minicheck, local_lm, npm: most tokens of a pass.", unit="tokens", ge=1
    )
    gpus: float = setting(
        0.0, "nli, minicheck, local_lm, npm, dense: GPUs of a worker; 0: CPU.", unit="GPUs", ge=0
    )
    accelerator: str = setting("", "GPU type, as in sampling.accelerator; empty: any.")


@dataclass(frozen=True)
class QuestionsConfig:
    """Facts to the questions that they answer."""

    domain: Domain = setting("general", "Worked examples that the prompt shows.")
    context: int = setting(0, "Most preceding facts of the response in the prompt.", ge=0)
    answer: bool = setting(
        False, "Also ask for the answer, with which the reward samp_conf compares."
    )


@dataclass(frozen=True)
class AnswersConfig:
    """Questions to sampled answers of the model that wrote the responses."""

    samples: int = setting(20, "Answers to each question (the paper: 20).", ge=1)
    max_tokens: int = setting(15, "Most tokens of an answer.", unit="tokens", ge=1)
    temperature: float = setting(1.0, "Sampling temperature; 0: greedy.", ge=0)
    top_p: float = setting(0.9, "Nucleus sampling: probability mass to sample from.", gt=0, le=1)
    examples: str = setting(
        "bio",
        "Worked questions that stand before each question: none, bio, medicine, general, or a file "
        "of your own.",
    )


@dataclass(frozen=True)
class EntitiesConfig:
    """Noun chunks of a response, each sampled again from the text before it."""

    spacy_model: str = setting("en_core_web_sm", "spaCy pipeline with a parser, by name or folder.")
    samples: int = setting(
        20, "Samples of each entity, of as many tokens as it has (the paper: 20).", ge=1
    )
    temperature: float = setting(1.0, "Sampling temperature; 0: greedy.", ge=0)
    top_p: float = setting(0.9, "Nucleus sampling: probability mass to sample from.", gt=0, le=1)


@dataclass(frozen=True)
class ClassesConfig:
    """Which sampled answers mean the same."""

    method: Literal["heuristic", "exact", "llm", "nli", "reference"] = setting(
        "heuristic", "How answers are compared; reference: FactTune's scripts, with their faults."
    )
    max_pairs: int = setting(
        12, "llm, nli: most pairs judged of a question, the likeliest first.", ge=0
    )
    nli_model: str = setting(
        "microsoft/deberta-large-mnli", "nli: sequence classifier with an entailment label."
    )
    dtype: Dtype = setting("float32", "nli: type of the weights.")
    batch_tokens: int = setting(8192, "nli: most tokens of a forward pass.", unit="tokens", ge=1)
    gpus: float = setting(0.0, "nli: GPUs of a worker; 0: CPU.", unit="GPUs", ge=0)
    accelerator: str = setting("", "GPU type, as in sampling.accelerator; empty: any.")


@dataclass(frozen=True)
class PTrueConfig:
    """Facts to the model's own probability that they are true."""

    batch_tokens: int = setting(8192, "Most tokens of a forward pass.", unit="tokens", ge=1)


@dataclass(frozen=True)
class RewardsConfig:
    """Verdicts and answers to one row of rewards a response."""

    distinct_facts: bool = setting(
        False, "Count a repeated fact once; false: as the reference does."
    )
    gamma: float = setting(
        10.0,
        "factscore_lp penalises a response of fewer facts (FActScore: 10); 0: none.",
        unit="facts",
        ge=0,
    )
    columns: list[str] = setting([], "Rewards to make beside the rewards that `tune` uses.")
    mix: dict[str, dict[str, float]] = setting(
        {}, "New rewards: name -> {reward: weight}, a weighted sum of z-scored rewards."
    )


@dataclass(frozen=True)
class GroupsConfig:
    """Rewards to preference groups."""

    threshold: float = setting(0.0, "A pair needs a reward difference above this.", ge=0)
    max_pairs: int = setting(
        0, "Most pairs of a prompt, the largest reward difference first; 0: all.", ge=0
    )
    weights: Literal["equal", "margin"] = setting(
        "equal", "Weights of pairs; margin: their reward difference."
    )
