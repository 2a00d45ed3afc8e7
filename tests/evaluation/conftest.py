import itertools
import random

import pyarrow as pa
import pytest


@pytest.fixture(scope="session")
def counts_of():
    """counts_of({topic: [(correct, incorrect) or (correct, incorrect, words), ...]})"""

    def make(topics):
        rows = [(t, c, i, *w) for t, some in topics.items() for c, i, *w in some]
        judged = [r[1] + r[2] for r in rows]
        no, zeros = [False] * len(rows), [0] * len(rows)
        return pa.table(
            {
                "topic": [r[0] for r in rows],
                "correct": [r[1] for r in rows],
                "incorrect": [r[2] for r in rows],
                "supported": [r[1] for r in rows],
                "words": [r[3] if len(r) > 3 else 0 for r in rows],
                **dict.fromkeys(("facts", "total_facts", "judged"), judged),
                **dict.fromkeys(("unknown", "repeated"), zeros),
                **dict.fromkeys(("no_facts", "no_article", "failed", "abstained"), no),
            }
        )

    return make


@pytest.fixture(scope="session")
def measured_run(tmp_path_factory):
    """folder = measured_run(topics=3, samples=1, facts=4, noise=8, text="..."): a run's tables of a
    base and a tuned model, measured and reported; no cluster. `noise`: random words in each fact,
    ten times as many in each passage, so that nothing can be compressed away."""
    from facttune_ray import config, tables
    from facttune_ray.evaluation import measure
    from facttune_ray.tables import Folder

    def make(topics=3, samples=1, facts=4, noise=0, text=""):
        rng = random.Random(0)

        def words(n):
            return "".join(f" {rng.getrandbits(32):x}" for _ in range(n))

        out = tmp_path_factory.mktemp("run")
        root, manifests = Folder.of(str(out)), {}

        def write(name, rows, recipe=None):
            table = name.rsplit("/", 1)[-1]
            tables.write_part(root / name, table, 0, rows, {})
            made = tables.finish(root / name, table, recipe or {}, 1, 1.5)
            manifests[name] = made | {"calls": 3, "tokens": 30, "cost_usd": 0.01}

        def scope(folder, model, right, split="test"):
            responses, stated, verdicts, second = [], [], [], []
            for t in range(topics):
                topic = f"Topic {t:04d}"
                passages = [f"{topic} passage {k}.{words(10 * noise)}" for k in range(10)]
                head = {"topic": topic, "split": split}
                for sample in range(samples):
                    rid = f"{folder}/{t}/{sample}"
                    sentences = [
                        f"{topic} was born in {1900 + k}{words(noise)}." for k in range(facts)
                    ]
                    starts = list(itertools.accumulate((len(s) + 1 for s in sentences), initial=0))
                    said = " ".join(sentences) + text
                    made = {
                        "prompt_id": f"{split}{t}",
                        "prompt": f"Write about {topic}.",
                        "text": said,
                    }
                    responses.append(
                        head | made | {"response_id": rid, "model": model, "sample": sample}
                    )
                    for k, sentence in enumerate(sentences):
                        start = starts[k]
                        ids = head | {"response_id": rid, "fact_id": f"{rid}/{k}"}
                        place = {"start": start, "end": start + len(sentence), "repeated": False}
                        stated.append(ids | place | {"fact": sentence, "position": k})
                        true = (7 * t + 3 * sample + k) % 10 < right
                        passage = passages[k % 10]
                        score = {"supported": true, "score": 0.9 if true else 0.2}
                        where = {"evidence": passage, "title": topic}
                        verdicts.append(ids | score | where)
                        second.append(ids | {"supported": true or k == 0, "score": 0.5})
            write(f"{folder}/responses", responses)
            write(f"{folder}/facts", stated)
            write(f"{folder}/verdicts", verdicts)
            write(f"{folder}/second_opinion/verdicts", second, {"verdicts.estimator": "lexical"})
            return responses, stated

        names = [f"Topic {t:04d}" for t in range(topics)]
        kinds = ("rare", "frequent")
        write("prompts", [{"topic": n, "group": kinds[i % 2]} for i, n in enumerate(names)])
        base, _ = scope("base/test", "base", 5)
        tuned, _ = scope("facttune_fs/round_1/test", "facttune_fs/round_1", 8)
        pairs = [
            {
                "response_id": a["response_id"],
                "base_id": b["response_id"],
                "topic": a["topic"],
                "quality": quality,
                "shown_first": "tuned",
                "shown_second": "tuned" if i % 2 else "base",
                "preferred": "tuned" if i % 2 else "tie",
            }
            for i, (a, b) in enumerate(zip(tuned, base, strict=True))
            for quality in ("fluency", "helpfulness")
        ]
        write("facttune_fs/round_1/test/judgements", pairs)
        _, asked = scope("base/tune", "base", 5, "train")
        write(
            "base/tune/questions",
            [f | {"question_id": f["fact_id"], "question": "When was it?"} for f in asked],
        )
        answers = [{"question_id": f["fact_id"], "answers": ["1900", "1901", ""]} for f in asked]
        write("base/tune/answers", answers)
        units = [
            {"unit_id": f["fact_id"], "classes": [0, 0, -1], "originals": [], "shares": []}
            for f in asked
        ]
        write("base/tune/classes", units)
        measure.write(
            root,
            config.load(["quickstart"], [f"run.out={out}", "evaluation.resamples=50"]),
            measured={"base": "base/test", "facttune_fs": "facttune_fs/round_1/test"},
            imported="",
            rewards="base/tune",
            selection={},
            manifests=manifests,
            fingerprint="f00",
        )
        return out

    return make
