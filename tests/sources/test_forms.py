"""Preferences in the forms of well-known data sets: each by hand, and what is refused."""

from __future__ import annotations

import pytest

from facttune_ray.errors import RowError
from facttune_ray.sampling.templates import Turn
from facttune_ray.sources.forms import parsed

ASKED = [Turn("user", "Who is Ada?")]
TALK = [Turn("user", "Hi"), Turn("assistant", "Hello."), *ASKED]
PAIR = {"prompt": ASKED, "chosen": "a", "rejected": "b"}
SCORED = {"prompt": ASKED, "responses": ["a", "b"], "rewards": [5, 2.5]}


def message(role, content):
    return {"role": role, "content": content}


def said(speaker, text):
    return {"from": speaker, "value": text}


USER, ANSWERS = message("user", "Who is Ada?"), {"chosen": "a", "rejected": "b"}
FORMS = {
    "generations and ratings": (
        {"instruction": "Who is Ada?", "generations": ["a", "b"], "ratings": [5, 2.5]},
        SCORED,
    ),
    "rating": (
        {"input": "Who is Ada?", "generations": ["a", "b"], "rating": [5, 2.5]},
        SCORED,
    ),
    "rewards under another key": (
        {
            "prompt": "Who is Ada?",
            "generations": ["a", "b"],
            "rewards": [5, 2.5],
            "ratings": [0, 0],
        },
        SCORED,
    ),
    "UltraFeedback": (
        {
            "source": "x",
            "instruction": "Who is Ada? ",
            "completions": [
                {"model": "m", "response": "a", "overall_score": 5, "fine-grained_score": 1.0},
                {"model": "n", "response": "b", "fine-grained_score": 2.5},
            ],
        },
        SCORED,
    ),
    "UltraFeedback as pairs": (
        {
            "prompt": "Who is Ada?",
            "chosen": [USER, message("assistant", "a")],
            "rejected": [USER, message("assistant", "b")],
            "messages": [USER, message("assistant", "a")],
            "score_chosen": 8.0,
        },
        PAIR,
    ),
    "Argilla": (
        {"instruction": "Who is Ada?", "chosen_response": "a", "rejected_response": "b"},
        PAIR,
    ),
    "HH": (
        {
            "chosen": "\n\nHuman: Who is Ada?\n\nAssistant: a",
            "rejected": "\n\nHuman: Who is Ada?\n\nAssistant: b",
        },
        PAIR,
    ),
    "HH with turns": (
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Who is Ada?\n\nAssistant: a",
            "rejected": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Who is Ada?\n\nAssistant: b",
        },
        PAIR | {"prompt": TALK},
    ),
    "ShareGPT": (
        {
            "conversations": [
                said("human", "Hi"),
                said("gpt", "Hello."),
                said("human", "Who is Ada?"),
            ],
            "chosen": said("gpt", "a"),
            "rejected": said("gpt", "b"),
        },
        PAIR | {"prompt": TALK},
    ),
    "ShareGPT with a system message": (
        {
            "conversations": [said("human", "Who is Ada?")],
            "system": "Be kind.",
            "chosen": said("gpt", "a"),
            "rejected": said("gpt", "b"),
        },
        PAIR | {"prompt": [Turn("system", "Be kind."), *ASKED]},
    ),
    "Alpaca": (
        {"instruction": "Who is", "input": "Ada?", "system": "", **ANSWERS},
        PAIR | {"prompt": [Turn("user", "Who is\nAda?")]},
    ),
    "Alpaca with a history": (
        {"instruction": "Who is Ada?", "input": "", "history": [["Hi", "Hello."]], **ANSWERS},
        PAIR | {"prompt": TALK},
    ),
    "Alpaca with two outputs": ({"instruction": "Who is Ada?", "output": ["a", "b"]}, PAIR),
    "Orca": (
        {"system": "Be kind.", "question": "Who is Ada?", **ANSWERS},
        PAIR | {"prompt": [Turn("system", "Be kind."), *ASKED]},
    ),
    "OpenAI": (
        {
            "input": {"messages": [USER], "tools": []},
            "preferred_output": [message("assistant", "a")],
            "non_preferred_output": [message("assistant", "b")],
        },
        PAIR,
    ),
    "content parts": (
        {
            "prompt": [
                message(
                    "user", [{"type": "text", "text": "Who is "}, {"type": "text", "text": "Ada?"}]
                )
            ],
            "chosen": [message("assistant", [{"type": "text", "text": "a"}])],
            "rejected": "b",
        },
        PAIR,
    ),
    "turns before the answers": (
        {
            "prompt": "Who is Ada?",
            "chosen": [*(t._asdict() for t in TALK), message("assistant", "a")],
            "rejected": [*(t._asdict() for t in TALK), message("assistant", "b")],
        },
        PAIR | {"prompt": TALK},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_by_hand(form):
    row, expected = FORMS[form]
    found = parsed(row)
    assert {k: found[k] for k in expected} == expected


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            {**ANSWERS, "prompt": [message("user", [{"type": "image_url", "image_url": "x"}])]},
            "\"prompt\" has a part of type 'image_url': only texts are trained on",
        ),
        ({**ANSWERS, "prompt": [message("tool", "1")]}, "has a message of role 'tool'"),
        (
            {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "Human: c\n\nAssistant: d"},
            "are dialogues that begin differently",
        ),
        (
            {"instruction": "a", "output": "b"},
            '"output" must be a list of the better and the worse',
        ),
        ({"instruction": 5, **ANSWERS}, '"instruction" and "input" must be texts'),
        ({"instruction": "a", "completions": "b"}, '"completions" must be a list of objects'),
        ({"instruction": "a", "history": [["b"]], **ANSWERS}, '"history" must be a list of'),
        (
            {"prompt": [*(t._asdict() for t in TALK), message("assistant", "?")], **ANSWERS},
            '"prompt" must end with a user message, not user, assistant, user, assistant',
        ),
        (
            {
                "chosen": [USER, message("assistant", "a")],
                "rejected": [message("user", "Who?"), message("assistant", "b")],
            },
            '"rejected" must be an assistant message, alone or behind',
        ),
    ],
)
def test_a_row_of_no_form_says_why(row, says):
    with pytest.raises(RowError) as e:
        parsed(row)
    assert says in str(e.value)
