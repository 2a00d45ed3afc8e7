from __future__ import annotations

from collections import Counter

import pytest
import torch

from facttune_ray.errors import UserError
from facttune_ray.quickstart.base_model import pretrain
from facttune_ray.sampling import shared
from facttune_ray.sampling.paths import PATHS
from facttune_ray.sampling.probe import Way
from facttune_ray.sampling.protocol import SampleRequest, encode_prompt
from facttune_ray.sampling.transformers import TransformersSampler

NAMES = ["Mara", "Tiko", "Belu Sanor", "Kol Wex", "Ana Zed Bru"]
DOCUMENTS = [f"Who is {n}?\n{n} plays the {x}.\nEnd." for n in NAMES for x in ("cello", "harp")]
SETTINGS = {"max_tokens": 12, "temperature": 1.0, "top_p": 1.0}


@pytest.fixture(scope="module")
def sampler(tmp_path_factory):
    out = tmp_path_factory.mktemp("model") / "base"
    pretrain(
        DOCUMENTS * 8,
        out,
        seed=0,
        steps=60,
        hidden=32,
        layers=2,
        heads=2,
        lr=1e-2,
        max_length=64,
        threads=1,
    )
    return TransformersSampler(str(out))


def prompts() -> list[str]:
    return [f"Who is {n}?" for n in NAMES]


def plain(sampler: TransformersSampler, ids: list[int], steps: int) -> list[int]:
    """Token ids of greedy decoding without a cache: the whole sequence runs for every token."""
    out: list[int] = []
    for _ in range(steps):
        logits = sampler.model(input_ids=torch.tensor([ids + out])).logits[0, -1]
        out.append(int(logits.argmax()))
        if out[-1] == sampler.tokenizer.eos_token_id:
            break
    return out


def test_greedy_equals_decoding_without_a_cache(sampler):
    got = sampler.sample(
        SampleRequest(prompts(), n=2, seeds=[0] * 5, max_tokens=12, temperature=0, top_p=1)
    )
    for prompt, samples in zip(prompts(), got, strict=True):
        ids = plain(sampler, encode_prompt(sampler.tokenizer, prompt), 12)
        text = sampler.tokenizer.decode(ids, skip_special_tokens=True)
        assert [s.text for s in samples] == [text, text]
        assert samples[0].tokens == len(ids)
        assert samples[0].finished == (ids[-1] == sampler.tokenizer.eos_token_id)


def test_a_shared_prefix_equals_the_text_in_front_of_every_prompt(sampler):
    prefix = "Who is Tiko?\nTiko plays the harp.\n"
    settings = SETTINGS | {"n": 4, "seeds": [1, 2, 3, 4, 5]}
    apart = sampler.sample(SampleRequest(prompts(), prefix=prefix, **settings))
    whole = sampler.sample(SampleRequest([prefix + p for p in prompts()], raw=True, **settings))
    assert apart == whole


def test_the_lines_before_all_prompts_run_once(sampler, monkeypatch):
    """Worked examples of a template: the samples are those of the prompts one by one."""
    examples = (
        "Who is Tiko?\nTiko plays the harp.\nEnd.\n\nWho is Kol Wex?\nKol Wex plays the cello."
    )
    asked = [f"{examples}\nEnd.\n\n{p}" for p in prompts()]
    settings = SETTINGS | {"n": 3, "seeds": [1, 2, 3, 4, 5]}
    ran: list[int] = []
    start = shared.SharedRun.start

    def counted(self, given, *more):
        ran.extend(map(len, given))
        return start(self, given, *more)

    monkeypatch.setattr(shared.SharedRun, "start", counted)
    together = sampler.sample(SampleRequest(asked, **settings))
    whole = len(encode_prompt(sampler.tokenizer, examples))
    assert sum(size >= whole for size in ran) == 1, "each prompt ran the examples again"
    sampler.sample(SampleRequest(asked[1:], **settings | {"seeds": [2, 3, 4, 5]}))
    assert sum(size >= whole for size in ran) == 1, "another request ran the examples again"
    monkeypatch.setattr(sampler, "_common", lambda prompts: ([], prompts))
    assert sampler.sample(SampleRequest(asked, **settings)) == together


@pytest.mark.parametrize("path", [name for name in PATHS if name != "fast"])
def test_a_model_that_cannot_share_gives_the_same_samples(sampler, monkeypatch, path):
    prefix = "Who is Tiko?\nTiko plays the harp.\n"
    settings = SETTINGS | {"n": 4, "seeds": [1, 2, 3, 4, 5], "top_p": 0.9, "stop": ("\n",)}
    calls = [
        {"prefix": prefix},
        {"raw": True},
        {"beginnings": ["Mara plays", "", "x", "Kol", "A B"]},
    ]
    together = [sampler.sample(SampleRequest(prompts(), **settings, **c)) for c in calls]
    assert sampler.way.path == "fast"
    monkeypatch.setattr(sampler.paths, "at", lambda longest: Way(path))
    found = [sampler.sample(SampleRequest(prompts(), **settings, **c)) for c in calls]
    assert sampler.way.path == path and found == together


def test_a_tokenizer_of_another_model_is_refused(sampler, monkeypatch):
    monkeypatch.setattr(
        "facttune_ray.sampling.transformers.encode_request", lambda *_: ([], [[5, 9999]])
    )
    request = SampleRequest(["a"], n=1, seeds=[1], **SETTINGS)
    with pytest.raises(UserError, match="gives token 9999, its model knows .* use the model's own"):
        sampler.sample(request)


def test_learned_positions_bound_a_sample(tmp_path, sampler):
    """A prompt without room for a token gets an error, one with little room shorter samples."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 12}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(sampler.tokenizer), **sizes)).save_pretrained(
        tmp_path
    )
    sampler.tokenizer.save_pretrained(tmp_path)
    small = TransformersSampler(str(tmp_path))
    texts = ["Who is Mara? Who is Tiko? Who is Belu Sanor?" * 3, "Who is"]
    room = 12 - len(encode_prompt(small.tokenizer, texts[1]))
    request = SampleRequest(texts, n=2, seeds=[1, 2], max_tokens=40, temperature=1.0, top_p=1.0)
    long, short = small.sample(request)
    assert all("the model takes 12 in all" in s.error for s in long)
    assert 0 < room < 12 and all(s.error is None and 0 < s.tokens <= room for s in short)


def test_neighbours_and_row_limits_do_not_change_a_sample(sampler):
    seeds = [11, 12, 13, 14, 15]
    together = sampler.sample(SampleRequest(prompts(), n=6, seeds=seeds, **SETTINGS))
    alone = [
        sampler.sample(SampleRequest([p], n=6, seeds=[s], **SETTINGS))[0]
        for p, s in zip(prompts(), seeds, strict=True)
    ]
    assert together == alone
    few = sampler.sample(SampleRequest(prompts(), n=3, seeds=seeds, **SETTINGS))
    assert [s[:3] for s in together] == few  # more samples extend fewer
    sampler.max_rows = 4  # below n: a prompt's samples take two passes
    try:
        assert sampler.sample(SampleRequest(prompts(), n=6, seeds=seeds, **SETTINGS)) == together
    finally:
        sampler.max_rows = 512
    other = sampler.sample(
        SampleRequest(prompts(), n=6, seeds=[s + 100 for s in seeds], **SETTINGS)
    )
    assert other != together


def test_samples_follow_the_models_distribution(sampler):
    ids = encode_prompt(sampler.tokenizer, "Who is Mara?")
    ids += sampler.tokenizer("Mara plays the")["input_ids"]
    with torch.no_grad():
        probs = torch.softmax(sampler.model(input_ids=torch.tensor([ids])).logits[0, -1], -1)
    n = 4000
    got = sampler.sample(SampleRequest(
        ["Who is Mara?\nMara plays the"], n=n, seeds=[5], raw=True,
        max_tokens=1, temperature=1.0, top_p=1.0,
    ))[0]  # fmt: skip
    counts = Counter(s.text for s in got)
    for token in probs.topk(2).indices.tolist():
        p = probs[token].item()
        share = counts[sampler.tokenizer.decode([token])] / n
        assert abs(share - p) < 5 * (p * (1 - p) / n) ** 0.5 + 1e-3


def test_stop_cuts_the_text_and_ends_the_sample(sampler):
    settings = {"n": 1, "seeds": [0], "max_tokens": 12, "temperature": 0, "top_p": 1}
    full = sampler.sample(SampleRequest(["Who is Mara?"], **settings))[0][0]
    assert full.text.split("\n")[1] == "End."
    line = sampler.sample(SampleRequest(["Who is Mara?"], stop=("\n",), **settings))[0][0]
    assert line.text == full.text.split("\n")[0] and line.finished and line.tokens < full.tokens
    inside = sampler.sample(SampleRequest(["Who is Mara?"], stop=("s the",), **settings))[0][
        0
    ]  # two tokens' edge
    assert inside.text == full.text[: full.text.index("s the")] and inside.finished
    several = ("End", "s the", "\n")
    first = sampler.sample(SampleRequest(["Who is Mara?"], stop=several, **settings))[0][0]
    assert first == inside, "the first stop of the text counts, not the first of the list"
    with pytest.raises(ValueError, match="none empty"):
        SampleRequest(["Who is Mara?"], stop=("",), **settings)
    short = sampler.sample(SampleRequest(["Who is Mara?"], **(settings | {"max_tokens": 2})))[0][0]
    assert short[:3] == (full.text[: full.text.index(" the")], 2, False)


def test_each_prompt_has_its_own_limit(sampler):
    limits = [1, 12, 3, 2, 7]
    settings = {"n": 3, "seeds": [1, 2, 3, 4, 5], "temperature": 0, "top_p": 1.0}
    together = sampler.sample(SampleRequest(prompts(), max_tokens=limits, **settings))
    for i, (prompt, limit) in enumerate(zip(prompts(), limits, strict=True)):
        alone = sampler.sample(
            SampleRequest([prompt], max_tokens=limit, **(settings | {"seeds": [i]}))
        )[0]
        assert together[i] == alone
        assert all(s.tokens <= limit and s.finished == (s.tokens < limit) for s in alone)
    assert [s.tokens for s in together[0] + together[2]] == [1] * 3 + [3] * 3
    with pytest.raises(UserError, match="5 prompts but 2 max_tokens"):
        sampler.sample(SampleRequest(prompts(), max_tokens=[1, 2], **settings))


def test_a_beginning_is_continued_and_not_repeated(sampler):
    settings = {"n": 1, "seeds": [0], "max_tokens": 12, "temperature": 0, "top_p": 1}
    full = sampler.sample(SampleRequest(["Who is Mara?"], **settings))[0][0].text
    words = full.split(" ")
    for cut in (words[0], " ".join(words[:3])):
        rest = sampler.sample(SampleRequest(["Who is Mara?"], beginnings=[cut], **settings))[0][0]
        spaced = sampler.sample(
            SampleRequest(["Who is Mara?"], beginnings=[cut + " "], **settings)
        )[0][0]
        raw = sampler.sample(
            SampleRequest(["Who is Mara?\n"], beginnings=[cut], raw=True, **settings)
        )[0][0]
        assert cut + rest.text == full and rest == spaced == raw
    none = sampler.sample(SampleRequest(["Who is Mara?"], beginnings=[""], **settings))[0][0]
    assert none.text == full
    with pytest.raises(ValueError, match="prefix"):
        sampler.sample(SampleRequest(["Who is Mara?"], beginnings=["Mara"], prefix="Q", **settings))
    with pytest.raises(ValueError, match="1 prompts but 0 beginnings"):
        sampler.sample(SampleRequest(["Who is Mara?"], beginnings=[], **settings))


def test_a_tokenizer_that_drops_leading_spaces_glues_no_words(tmp_path):
    """As in SentencePiece, "▁" stands before a word, and decoding drops the first space."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    pieces = ["<unk>", "</s>", "▁", "▁born", "▁in", "▁Os", "trava", "▁Rome", "\n", "a"]
    tok = Tokenizer(models.Unigram([(p, -1.0 - 0.1 * i) for i, p in enumerate(pieces)], unk_id=0))
    tok.pre_tokenizer = pre_tokenizers.Metaspace()
    tok.decoder = decoders.Metaspace()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tok, eos_token="</s>")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=10, num_hidden_layers=1, **sizes))
    wrapped.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    sampler = TransformersSampler(str(tmp_path))
    settings = {"n": 60, "seeds": [0], "max_tokens": 1, "temperature": 1.0, "top_p": 1.0}
    texts = {
        s.text
        for s in sampler.sample(SampleRequest(["a"], beginnings=["born in Os"], **settings))[0]
    }
    assert {"trava", " Rome"} <= texts and "Rome" not in texts
    whole = {s.text for s in sampler.sample(SampleRequest(["a"], beginnings=[""], **settings))[0]}
    assert {"trava", "Rome"} <= whole  # a response begins without a space
    assert sampler.count_tokens(["Rome", "Ostrava", "in Rome", ""]) == [1, 2, 2, 0]
    assert sampler.count_tokens([]) == []


def test_running_out_of_memory_halves_a_pass_and_changes_nothing(sampler):
    settings = SETTINGS | {"n": 6, "seeds": [21, 22, 23, 24, 25]}
    prefix = "Who is Tiko?\nTiko plays the harp.\n"
    expected = sampler.sample(SampleRequest(prompts(), prefix=prefix, **settings))
    rows_seen: list[int] = []
    most = 4

    def forward(module, args, kwargs):
        rows_seen.append(kwargs["input_ids"].shape[0])
        if rows_seen[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    hook = sampler.model.register_forward_pre_hook(forward, with_kwargs=True)
    try:
        assert sampler.sample(SampleRequest(prompts(), prefix=prefix, **settings)) == expected
        assert max(rows_seen) > most
        rows_seen.clear()
        assert sampler.sample(SampleRequest(prompts(), prefix=prefix, **settings)) == expected
        assert max(rows_seen) <= most  # what does not fit is not tried again
        most = 0
        with pytest.raises(UserError, match=r"one sequence .* smaller model.*sampling\.max_rows"):
            sampler.sample(SampleRequest(prompts(), **settings))
    finally:
        hook.remove()
        sampler._rows_that_fitted = None


PREFIX = "Who is Tiko?\nTiko plays the harp.\n"


@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.7, 1.0), (1.5, 0.8), (1.0, 0.9)])
def test_draws_agree_with_generate(sampler, temperature, top_p):
    """Chi-square test on 2,000 short answers a question behind a shared prefix."""
    asked = ["Who is Mara?", "Who is Ana Zed Bru?"]
    n, length = 2000, 3
    begun = [f"{a}\n{a[7:-1]} plays" for a in asked]
    got = sampler.sample(SampleRequest(
        begun, n=n, seeds=[1, 2], max_tokens=length, temperature=temperature, top_p=top_p,
        prefix=PREFIX,
    ))  # fmt: skip
    tok = sampler.tokenizer
    torch.manual_seed(0)
    for prompt, samples in zip(begun, got, strict=True):
        made = sampler.model.generate(
            **tok(PREFIX + prompt, return_tensors="pt", return_token_type_ids=False),
            do_sample=True, temperature=temperature, top_p=top_p, top_k=0,
            num_return_sequences=n, max_new_tokens=length, pad_token_id=tok.eos_token_id,
        )[:, -length:]  # fmt: skip
        theirs = Counter(tok.batch_decode(made, skip_special_tokens=True))
        assert len(theirs) >= 2
        assert p_equal(Counter(s.text for s in samples), theirs) > 1e-4


def p_equal(a: Counter, b: Counter) -> float:
    """p of the chi-square test of two samples of equal size; rare texts are one cell."""
    cells = [(a[k], b[k]) for k in a.keys() | b.keys() if a[k] + b[k] >= 20]
    rest = (sum(a.values()) - sum(x for x, _ in cells), sum(b.values()) - sum(y for _, y in cells))
    cells += [rest] if sum(rest) >= 20 else []
    chi2 = sum((x - y) ** 2 / (x + y) for x, y in cells)
    half = torch.tensor([(len(cells) - 1) / 2, chi2 / 2], dtype=torch.float64)
    return torch.special.gammaincc(half[0], half[1]).item() if len(cells) > 1 else 1.0


def test_the_chi_square_tells_distributions_apart():
    assert p_equal(Counter(x=1000, y=1000), Counter(x=1000, y=1000)) == 1
    assert p_equal(Counter(x=1000, y=1000), Counter(x=1150, y=850)) < 1e-4
    # chi2 = 2 * 30^2 / 1970 + ...: one degree of freedom, 3.6000 by hand
    assert p_equal(Counter(x=1000, y=1000), Counter(x=1060, y=940)) == pytest.approx(
        0.0577, abs=1e-3
    )


def test_bad_settings_are_one_line(sampler, tmp_path):
    good = {"n": 1, "seeds": [0]} | SETTINGS
    for bad, said in [
        ({"seeds": []}, "1 prompts but 0 seeds"),
        ({"n": 0}, "n is 0"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"temperature": -1.0}, "temperature is -1"),
    ]:
        with pytest.raises(UserError, match=said):
            sampler.sample(SampleRequest(["Who is Mara?"], **(good | bad)))
    with pytest.raises(UserError, match="no such folder"):
        TransformersSampler(str(tmp_path / "absent"))
    assert sampler.sample(SampleRequest([], **(good | {"seeds": []}))) == []
