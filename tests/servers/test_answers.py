"""Recorded replies of real servers to odd requests: each refusal shows the server's message.

answers_*.jsonl: one line per request, with its body and the reply's status, headers and body.
`{long}` stands for a text that is longer than the model's context.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from facttune_ray.llm.replies import HTTPReply, Meaning, read

LINES = [
    pytest.param(json.loads(line), id=f"{file.stem}-{json.loads(line)['case']}")
    for file in sorted(Path(__file__).parent.glob("answers_*.jsonl"))
    for line in file.read_text().splitlines()
]


def meaning(line: dict) -> Meaning:
    try:
        asked = json.loads(line["request"] or "{}")
    except ValueError:
        asked = {}
    headers = {name.lower(): value for name, value in line["headers"].items()}
    reply = HTTPReply(line["status"], headers, line["body"].encode())
    return read(reply, asked if isinstance(asked, dict) else {})


@pytest.mark.parametrize("line", [p for p in LINES if p.values[0]["status"] >= 400])
def test_a_refusal_is_read_with_the_servers_message(line):
    found = meaning(line)
    assert found.kind == ("retry" if line["status"] >= 500 else "refused")
    said = found.message.removeprefix(f"HTTP {line['status']}: ")
    assert len(said) >= 9 and not said.startswith("{")


@pytest.mark.parametrize(
    "line",
    [
        p
        for p in LINES
        if p.values[0]["status"] == 200
        and p.values[0]["path"].endswith("completions")
        and p.values[0]["case"] != "stream"
    ],
)
def test_an_answer_is_read_with_its_tokens(line):
    found = meaning(line)
    assert found.kind == "answer"
    assert {r.counted for r in found.replies} == {"usage"}
    used = json.loads(line["body"])["usage"]
    assert sum(r.prompt_tokens for r in found.replies) == used["prompt_tokens"]
    assert sum(r.completion_tokens for r in found.replies) == used["completion_tokens"]
