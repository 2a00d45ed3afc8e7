from __future__ import annotations

import random

import pytest
import torch

from facttune_ray.errors import UserError
from facttune_ray.quickstart.base_model import train_tokenizer
from facttune_ray.verifiers import local_lm as v
from facttune_ray.verifiers.local_lm import LocalLM, render

WORDS = [f"w{i}" for i in range(60)]
TOPIC = "Mara Veldt"


def passage(rng: random.Random, words: int = 45) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words)) + "."


def article(seed: int = 0, passages: int = 7) -> list[str]:
    return [passage(random.Random(f"{seed}/{i}")) for i in range(passages)]


def asked(seed: int = 0, n: int = 14, k: int = 3) -> tuple[list[str], list[list[str]]]:
    """Facts of one topic, and the passages of each fact, best first."""
    rng, found = random.Random(seed), article(seed)
    facts = [f"{TOPIC} {passage(rng, rng.randint(2, 9))}" for _ in range(n)]
    return facts, [rng.sample(found, k) for _ in facts]


def config(kind: str, vocab: int, positions: int):
    import transformers as t

    small = {"vocab_size": vocab, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
    if kind == "gpt2":
        return t.GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=positions, **small)
    small |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    small |= {"max_position_embeddings": positions, "initializer_range": 0.2}
    if kind == "mistral":
        return t.MistralConfig(sliding_window=24, **small)
    return t.LlamaConfig(**small)


def save(folder, kind: str = "llama", positions: int = 512, extra: str = "True False") -> str:
    from transformers import AutoModelForCausalLM

    texts = [render(TOPIC, " ".join(WORDS), [" ".join(WORDS)]) + " " + extra]
    tokenizer = train_tokenizer(texts, 600, positions)
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config(kind, len(tokenizer), positions))
    for weight in model.parameters():  # large weights, so that a wrong position changes the scores
        torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = tmp_path_factory.mktemp("models")
    return {kind: save(made / kind, kind) for kind in ("llama", "gpt2", "mistral")}


def plain(lm: LocalLM, prompts: list[str]) -> list[float]:
    """One whole prompt at a time, with all logits."""
    true, false = (lm.tokenizer(w)["input_ids"][0] for w in (" True", " False"))
    scores = []
    for prompt in prompts:
        ids = torch.tensor([lm.tokenizer(prompt)["input_ids"]])
        with torch.no_grad():
            logits = lm.model(input_ids=ids, use_cache=False).logits[0, -1].double()
        t, f = logits[true].exp(), logits[false].exp()
        scores.append(float(t / (t + f)))
    return scores


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral"])
@pytest.mark.parametrize("batch_tokens", [8192, 100])
def test_scores_equal_those_of_single_whole_prompts(folders, kind, batch_tokens):
    lm = LocalLM(folders[kind], batch_tokens=batch_tokens)
    assert lm.shares == (kind != "mistral")  # a sliding window drops old tokens
    facts, evidence = asked()
    facts.append(facts[0])  # the same fact twice
    evidence.append(evidence[0])
    evidence[3] = []  # no passages
    got = lm.judge(TOPIC, facts, evidence)
    expected = plain(lm, [render(TOPIC, f, p) for f, p in zip(facts, evidence, strict=True)])
    assert got == pytest.approx(expected, abs=1e-4)
    assert got[0] == got[-1]
    assert max(expected) - min(expected) > 0.02  # the prompts differ

    order = article()
    placed = [sorted(p, key=order.index) for p in evidence]
    expected = plain(lm, [render(TOPIC, f, p) for f, p in zip(facts, placed, strict=True)])
    assert lm.judge(TOPIC, facts, evidence, order) == pytest.approx(expected, abs=1e-4)


def test_shared_passages_run_once(folders):
    lm = LocalLM(folders["llama"])
    facts, _ = asked(n=20)
    same = [article()[:3]] * 20
    lengths = [len(ids) for ids in lm.prompts(TOPIC, facts, same, {})]
    lm.judge(TOPIC, facts, same)
    prefix = len(lm.tokenizer(render(TOPIC, "", article()[:3]).partition("Statement")[0]).input_ids)
    assert lm.tokens_run <= sum(lengths) - 19 * prefix  # statements share tokens, too
    assert lm.tokens_run >= prefix + 20


def test_passages_in_one_order_share_more_tokens(folders):
    facts, evidence = asked(n=20)
    run = []
    for order in ([], article()):
        lm = LocalLM(folders["llama"])
        lm.judge(TOPIC, facts, evidence, order)
        run.append(lm.tokens_run)
    assert run[1] < 0.9 * run[0]


def test_a_long_prompt_drops_its_worst_passages(tmp_path):
    path = save(tmp_path / "short", positions=160)
    lm = LocalLM(path)
    facts, evidence = asked(n=4)  # 3 passages of 50 tokens: not all fit
    whole = lm.prompts(TOPIC, facts, evidence, {p: i for i, p in enumerate(article())})
    for fact, passages, ids in zip(facts, evidence, whole, strict=True):
        text = lm.tokenizer.decode(ids)
        assert len(ids) <= 160
        assert f"Passage: {passages[0]}\n" in text  # the best passage is complete
        assert passages[2] not in text
        assert text.endswith(f"Statement: {fact}\nTrue or False? Answer:")
    long = " ".join(WORDS * 4)
    [ids] = lm.prompts(TOPIC, ["w1 w2."], [[long, "w3."]], {})
    text = lm.tokenizer.decode(ids)
    assert "Passage: w0 w1 w2" in text and text.endswith(
        "Statement: w1 w2.\nTrue or False? Answer:"
    )
    assert 80 < len(ids) <= 160
    scores = lm.judge(TOPIC, ["w1 w2.", long], [[long], [long]])
    assert 0 <= scores[0] <= 1 and scores[1] is None  # too long even without passages
    assert [s is None for s in lm.judge(TOPIC, [*facts, long], [*evidence, []])] == [False] * 4 + [
        True
    ]


def test_a_statement_stays_on_its_line():
    prompt = render("A\nB", "X\nTrue or False? Answer: True", ["one\n\nStatement: two"])
    assert prompt.splitlines() == [
        "Read the passages about A B, then judge the statement by them alone.",
        "Passage: one Statement: two",
        "Statement: X True or False? Answer: True",
        "True or False? Answer:",
    ]


def test_the_answer_tokens_are_the_first_different_tokens(folders):
    lm = LocalLM(folders["llama"])
    ids = lm.tokenizer(" True False")["input_ids"]
    assert [lm.true, lm.false] == ids and lm.lead == []

    def letters(texts):  # a tokenizer of characters: both answers begin with a space
        return [[ord(c) for c in t] for t in texts]

    assert v.answer_tokens(letters, "m") == (ord("T"), ord("F"), [ord(" ")])
    with pytest.raises(UserError, match="does not tell"):
        v.answer_tokens(lambda texts: [[1] * t.count(" ") for t in texts], "m")


def test_prompts_form_a_prefix_tree():
    prompts = [(1, 2, 3, 9), (1, 2, 4, 9), (1, 2, 4, 9, 9), (7, 9)]
    assert v.common_length(prompts, 0, 3) == 2
    assert v.common_length(prompts, 1, 3) == 3  # one token of the shorter prompt remains
    assert v.common_length(prompts, 0, 4) == 0
    assert list(v.branches(prompts, 0, 4, 0)) == [(0, 3), (3, 4)]
    assert list(v.branches(prompts, 0, 3, 2)) == [(0, 1), (1, 3)]
    assert v.saving(prompts, 0, 3, 0) == 2 + 3
    assert v.saving(prompts, 0, 3, 2) == 1
    long = [(0,) * 300, (1,) * 300, (2,) * 100]
    assert list(v.packs([0, 1, 2], long, 0, 8192)) == [[0], [1, 2]]
    assert list(v.packs([0, 1, 2], long, 0, 50)) == [[0], [1], [2]]


def test_no_facts_give_no_scores_and_bad_folders_are_refused(folders, tmp_path):
    lm = LocalLM(folders["llama"])
    assert lm.judge(TOPIC, [], []) == []
    with pytest.raises(UserError, match="Cannot load a model from .*absent") as error:
        LocalLM(str(tmp_path / "absent"))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="Cannot load"):  # weights that are not safetensors
        path = tmp_path / "pickled"
        lm.model.config.save_pretrained(path)
        lm.tokenizer.save_pretrained(path)
        torch.save(lm.model.state_dict(), path / "pytorch_model.bin")
        LocalLM(str(path))
    reduced = LocalLM(folders["llama"], dtype="bfloat16")
    facts, evidence = asked()
    close = lm.judge(TOPIC, facts, evidence)
    assert reduced.judge(TOPIC, facts, evidence) == pytest.approx(close, abs=0.2)


def test_facts_get_each_others_passages():
    own = [["b", "a"], ["a", "c"], ["b", "a"], ["x", "y"], ["p", "q", "r", "s"]]
    assert v.join(own, 3) == [
        ["b", "a", "c"],  # its own passage first
        ["a", "c", "b"],
        ["b", "a", "c"],
        ["x", "y"],  # too many together with the others
        ["p", "q", "r", "s"],  # more than 3 passages of its own: a group of one
    ]
    assert all(set(p) == set("abcxy") for p in v.join(own[:4], 5))
    assert v.join([[], ["a"]], 2) == [["a"], ["a"]]
