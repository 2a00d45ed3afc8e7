"""The starting model's log-probabilities of each group."""

import copy

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from facttune_ray.config import GroupsConfig
from facttune_ray.errors import UserError
from facttune_ray.quickstart.base_model import train_tokenizer
from facttune_ray.stages import groups, reference
from facttune_ray.text.sentences import split
from facttune_ray.training.batches import group_of
from facttune_ray.training.model import GroupModel

TEXTS = ["Mara plays the cello.", "Mara studied physics. She keeps a goat."]


@pytest.fixture(scope="module")
def trained():
    tokenizer = train_tokenizer([f"Who is Mara?\n{t}" for t in TEXTS], 500, 64)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=len(tokenizer),
    )
    return tokenizer, LlamaForCausalLM(config).eval()


def group(pid, responses):
    ids = {"prompt_id": pid, "topic": pid, "split": "train", "prompt": "Who is Mara?"}
    rewards = [float(i) for i in range(len(responses))]
    return ids | {"response_ids": responses, "responses": responses, "rewards": rewards, "pairs": 1}


@pytest.mark.parametrize("share", ["true", "false"])
@torch.no_grad()
def test_log_probabilities_are_those_of_the_plain_model(run_stage, trained, share):
    tokenizer, model = trained
    found = run_stage(
        reference,
        {"groups": [group("p", TEXTS), group("q", TEXTS[:1])]},
        [f"train.share_prefix={share}", "train.pass_tokens=40"],
        resources={"trained": (tokenizer, GroupModel(model))},
    )
    model.set_attn_implementation("sdpa")
    assert [(r["prompt_id"], r["pairs"], r["rewards"]) for r in found] == [
        ("p", 1, [0.0, 1.0]),
        ("q", 1, [0.0]),
    ]
    for r in found:
        for ids, logps in zip(r["response_tokens"], r["logps"], strict=True):
            whole = torch.tensor([r["prompt_tokens"] + ids])
            plain = model(input_ids=whole).logits[0, :-1].log_softmax(-1)
            expected = plain.gather(1, whole[0, 1:, None])[len(r["prompt_tokens"]) - 1 :, 0]
            assert logps == pytest.approx(expected.tolist(), abs=1e-5)
        assert tokenizer.decode(r["prompt_tokens"]) == "Who is Mara?\n"


def test_truncated_texts_are_counted(run_stage, trained):
    tokenizer, model = trained
    (found,) = run_stage(
        reference,
        {"groups": [group("p", TEXTS)]},
        ["train.max_length=9", "train.max_prompt_length=3"],
        resources={"trained": (tokenizer, GroupModel(model))},
    )
    assert (found["cut_prompt"], found["cut_responses"]) == (True, 1)
    assert len(found["prompt_tokens"]) == 3 and [len(x) for x in found["logps"]] == [6, 6]


def test_more_tokens_than_the_model_has_places_for_are_one_clear_line(run_stage, trained):
    tokenizer, _ = trained
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=8, n_embd=16, n_layer=1, n_head=2)
    model = GroupModel(GPT2LMHeadModel(config).eval())
    with pytest.raises(UserError, match="places for 8 tokens, .* have [0-9]+: lower train.max_len"):
        run_stage(
            reference,
            {"groups": [group("p", TEXTS)]},
            resources={"trained": (tokenizer, model)},
        )


def test_a_tokenizer_of_another_model_is_one_clear_line(run_stage, trained):
    tokenizer, model = trained
    small = copy.deepcopy(model)
    small.resize_token_embeddings(20)
    with pytest.raises(UserError, match="its model knows 20 tokens: use the model's own tokenizer"):
        run_stage(
            reference,
            {"groups": [group("p", TEXTS)]},
            resources={"trained": (tokenizer, GroupModel(small))},
            model_path="models/other",
        )


def test_a_response_that_no_pass_takes_is_one_clear_line(run_stage, trained):
    tokenizer, model = trained
    with pytest.raises(UserError, match="train.pass_tokens=9: a response of .* do not fit"):
        run_stage(
            reference,
            {"groups": [group("p", TEXTS)]},
            ["train.pass_tokens=9"],
            resources={"trained": (tokenizer, GroupModel(model))},
        )


def judged(response_id, text, *supported):
    """Rows of `facts` and `verdicts` of a response, a fact a sentence, at the splitter's spans."""
    facts, verdicts = [], []
    for i, (sentence, right) in enumerate(zip(split(text), supported, strict=True)):
        ids = {"fact_id": f"{response_id}{i}", "response_id": response_id, "topic": "p"}
        facts.append(ids | {"split": "train", "start": sentence.start, "end": sentence.end})
        verdicts.append(ids | {"supported": right})
    return facts, verdicts


def masked_inputs(*supported):
    facts, verdicts = judged("b", TEXTS[1], *supported)
    return {"groups": [group("p", TEXTS) | {"response_ids": ["a", "b"]}]} | {
        "facts": facts,
        "verdicts": verdicts,
    }


def test_masks_mark_tokens_of_supported_and_unsupported_sentences(run_stage, trained):
    tokenizer, model = trained
    (found,) = run_stage(
        reference,
        masked_inputs(True, False),
        resources={"trained": (tokenizer, GroupModel(model))},
    )
    words = [tokenizer.decode([i]) for i in found["response_tokens"][1]]
    right = words.index(".") + 1  # tokens of "Mara studied physics."
    assert words[right].strip() == "She" and len(words) == right + 6  # She keeps a goat . end
    assert found["win_masks"][1] == [1] * right + [0] * 5 + [1]
    assert found["lose_masks"][1] == [0] * right + [1] * 6
    # the other response has no facts: all of it counts
    first = len(found["response_tokens"][0])
    assert found["win_masks"][0] == found["lose_masks"][0] == [1] * first
    of_training = group_of(found, GroupsConfig())
    assert of_training.masks == list(zip(found["win_masks"], found["lose_masks"], strict=True))


def test_masks_are_truncated_like_the_tokens(run_stage, trained):
    tokenizer, model = trained
    (found,) = run_stage(
        reference,
        masked_inputs(False, True),
        ["train.max_length=9", "train.max_prompt_length=3"],
        resources={"trained": (tokenizer, GroupModel(model))},
    )
    assert [len(ids) for ids in found["response_tokens"]] == [6, 6]
    assert found["win_masks"][1] == [0, 0, 0, 0, 1, 1]  # Mara studied physics . | She keeps
    assert found["lose_masks"][1] == [1, 1, 1, 1, 0, 0]


def test_without_verdicts_there_are_no_masks(run_stage, trained):
    tokenizer, model = trained
    inputs = {"groups": [group("p", TEXTS)]}
    (found,) = run_stage(reference, inputs, resources={"trained": (tokenizer, GroupModel(model))})
    assert (found["win_masks"], found["lose_masks"], found["given_pairs"]) == (None, None, None)


def test_facts_of_another_text_are_one_clear_line(run_stage, trained):
    tokenizer, model = trained
    inputs = masked_inputs(True, True)
    inputs["facts"][1]["end"] = 1000
    with pytest.raises(UserError, match="response b ends at character 1000, its text at 39"):
        run_stage(reference, inputs, resources={"trained": (tokenizer, GroupModel(model))})


def test_groups_do_not_strip_texts(run_stage, trained):
    """Sentences' characters are of `responses`: nothing may be stripped on the way to tokens."""
    tokenizer, model = trained
    texts = [f"  {TEXTS[1]} ", TEXTS[0]]
    rows = [
        {
            "response_id": i,
            "prompt_id": "p",
            "topic": "p",
            "split": "train",
            "prompt": "Who is Mara?",
            "text": text,
        }
        for i, text in zip("ab", texts, strict=True)
    ]
    rewards = [{"response_id": i, "factscore": x} for i, x in (("a", 0.5), ("b", 1.0))]
    made = run_stage(groups, {"responses": rows, "rewards": rewards}, reward="factscore")
    assert made[0]["responses"] == texts
    facts, verdicts = judged("a", texts[0], False, True)
    (found,) = run_stage(
        reference,
        {"groups": made, "facts": facts, "verdicts": verdicts},
        resources={"trained": (tokenizer, GroupModel(model))},
    )
    wrong = [i for i, on in zip(found["response_tokens"][0], found["win_masks"][0], strict=True)
             if not on]  # fmt: skip
    assert tokenizer.decode(wrong).strip() == "Mara studied physics."
