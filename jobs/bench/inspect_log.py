"""Writes logs of Inspect. Its virtual environment has `inspect-ai`, and not this project.

python inspect_log.py data.json FOLDER
"""

import json
import sys
from datetime import UTC, datetime

from inspect_ai.event import ModelEvent
from inspect_ai.log import (
    EvalConfig,
    EvalDataset,
    EvalLog,
    EvalMetric,
    EvalPlan,
    EvalResults,
    EvalSample,
    EvalScore,
    EvalSpec,
    EvalStats,
    write_eval_log,
)
from inspect_ai.model import ChatMessageUser, GenerateConfig, ModelOutput
from inspect_ai.scorer import Score

NOW = datetime.now(UTC).isoformat()


def call(fact: dict) -> ModelEvent:
    """The judge's request and answer."""
    asked = f"Is this fact supported? {fact['fact']}\n\n{fact['evidence']}"
    return ModelEvent(
        model="judge",
        input=[ChatMessageUser(content=asked)],
        tools=[],
        tool_choice="none",
        config=GenerateConfig(),
        output=ModelOutput.from_content("judge", str(fact["supported"])),
        timestamp=NOW,
        completed=NOW,
    )


def sample(model: str, r: dict) -> EvalSample:
    said = "\n\n".join(f"{f['supported']}: {f['fact']} {f['evidence']}" for f in r["facts"])
    return EvalSample(
        id=f"{r['topic']} {r['sample']}",
        epoch=1,
        input=r["prompt"],
        target="",
        messages=[ChatMessageUser(content=r["prompt"])],
        output=ModelOutput.from_content(model, r["text"]),
        scores={"factual": Score(value=r["score"], answer=r["text"], explanation=said)},
        events=[call(f) for f in r["facts"]],
    )


def main() -> None:
    data, folder = sys.argv[1:]
    with open(data) as file:
        found = json.load(file)
    for model, rows in found.items():
        mean = EvalMetric(name="mean", value=sum(r["score"] for r in rows) / len(rows))
        scored = [EvalScore(name="factual", scorer="factual", metrics={"mean": mean})]
        count = {"total_samples": len(rows), "completed_samples": len(rows)}
        log = EvalLog(
            status="success",
            eval=EvalSpec(
                created=NOW,
                task="biographies",
                dataset=EvalDataset(name="test", samples=len(rows)),
                model=f"local/{model}",
                config=EvalConfig(),
            ),
            plan=EvalPlan(),
            results=EvalResults(**count, scores=scored),
            stats=EvalStats(started_at=NOW, completed_at=NOW),
            samples=[sample(model, r) for r in rows],
        )
        write_eval_log(log, f"{folder}/{model}.eval")


if __name__ == "__main__":
    main()
