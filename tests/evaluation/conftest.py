import itertools
import random
from types import SimpleNamespace

import pyarrow as pa
import pytest

READY = "#cards[aria-busy=false], #topic[aria-busy=false]"  # of the report, of a comparison


@pytest.fixture
def opened(chromium):
    """page = opened(file, at="#fact=f1", **context): the page, with its console messages and
    requests. `file`: a path or an address."""
    contexts = []

    def open_page(file, at="", **kinds):
        contexts.append(chromium.new_context(**kinds))
        page = contexts[-1].new_page()
        page.said, page.asked = [], []
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("dialog", lambda dialog: (page.said.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto((file if isinstance(file, str) else file.as_uri()) + at)
        page.wait_for_selector(READY)
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def counts_of():
    """counts_of({topic: [(correct, incorrect) or (correct, incorrect, words, prompt), ...]});
    `unknown`: facts of each response that have no verdict"""

    def make(topics, unknown=0):
        rows = [(t, c, i, *w) for t, some in topics.items() for c, i, *w in some]
        judged = [r[1] + r[2] for r in rows]
        said = [n + unknown for n in judged]
        no, zeros = [False] * len(rows), [0] * len(rows)
        whole = {
            "correct": [r[1] for r in rows],
            "incorrect": [r[2] for r in rows],
            "supported": [r[1] for r in rows],
            "words": [r[3] if len(r) > 3 else 0 for r in rows],
            "judged": judged,
            "unknown": [unknown] * len(rows),
            "repeated": zeros,
            **dict.fromkeys(("facts", "total_facts"), said),
        }
        return pa.table(
            {
                "topic": pa.array([r[0] for r in rows], pa.string()),
                "prompt_id": pa.array([r[4] if len(r) > 4 else r[0] for r in rows], pa.string()),
                **{k: pa.array(v, pa.int64()) for k, v in whole.items()},
                **dict.fromkeys(
                    ("no_facts", "no_article", "failed", "abstained"), pa.array(no, pa.bool_())
                ),
            }
        )

    return make


@pytest.fixture(scope="session")
def measured_run(tmp_path_factory):
    """folder = measured_run(topics=3, samples=1, facts=4, noise=8, text="..."): a run's tables of a
    base and a tuned model, measured and reported; no cluster. `noise`: random words in each fact,
    ten times as many in each passage, so that nothing can be compressed away."""
    from facttune_ray import config
    from facttune_ray.evaluation import measure
    from facttune_ray.storage import tables
    from facttune_ray.storage.tables import Folder

    def make(topics=3, samples=1, facts=4, noise=0, text="", traces=None):
        rng = random.Random(0)

        def words(n):
            return "".join(f" {rng.getrandbits(32):x}" for _ in range(n))

        out = tmp_path_factory.mktemp("run")
        root, manifests = Folder.of(str(out)), {}

        def write(name, rows, recipe=None):
            table = name.rsplit("/", 1)[-1]
            tables.write_part(root / name, table, 0, rows, {})
            made = tables.write_manifest(root / name, table, recipe or {}, 1, 1.5)
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
            traces=traces,
        )
        return out

    return make


def interval(value, spread=0.1):
    return {"value": value, "low": value - spread, "high": value + spread}


def model(correct, incorrect, words=18.0):
    return {
        "correct": interval(correct),
        "incorrect": interval(incorrect),
        "error_rate": interval(incorrect / (correct + incorrect), 0.02),
        **{k: interval(0.0, 0) for k in ("no_facts", "repeated", "unknown", "abstained")},
        "f1@12": interval(0.5),
        "recall@12": interval(0.4),
        "length": interval(words),
        "topics": 100,
        "responses": 1000,
        "failed": 0,
        "no_article": 0,
        "factscore": {
            "factscore": interval(0.6),
            "factscore_lp": interval(0.512),
            "respond_ratio": interval(0.9),
            "facts_per_response": interval(12.3),
            "abstained": 100,
            "gamma": 10.0,
        },
    }


def hacking(name_only, frames, fragments):
    """Signs of reward hacking, as a summary has them."""
    shares = {"name_only": name_only, "frames": frames, "fragments": fragments}
    signs = {k: {"value": v, "count": round(100 * v), "of": 100} for k, v in shares.items()}
    return signs | {"common": [{"frame": "… is a <b>", "topics": 7, "sentences": 9}]}


def comparison(reduction, spread, correct_change):
    return {
        "error_rate_reduction": interval(reduction, spread),
        "correct_change": interval(correct_change),
        "incorrect_change": interval(-0.9),
        "p": {"error_rate": 0.004},
        "p_holm": {"error_rate": 0.0002},
        "wins": {"error_rate": {"win_rate": interval(0.8)}},
    }


def training_log(rounds, steps):
    return [
        {
            "round": r,
            "step": s,
            "loss": 0.6931 - 0.003 * s,
            "reward_accuracy": 0.0 if s == 1 else 0.8,
            "margin": 0.01 * (s - 1),
        }
        for r in range(1, rounds + 1)
        for s in range(1, steps + 1)
    ]


def candidate(name, value, error_rate):
    figures = {"error_rate": error_rate, "correct": 2.5, "incorrect": 0.5}
    return {"round": name, "value": value} | figures


@pytest.fixture(scope="session")
def made():
    """What a summary is made of, as functions."""
    return SimpleNamespace(
        interval=interval,
        model=model,
        comparison=comparison,
        hacking=hacking,
        training_log=training_log,
        candidate=candidate,
    )


@pytest.fixture
def summary():
    stage = {"rows": 1000, "errors": 0, "wall_s": 61.5, "calls": 900, "cached": 100}
    return {
        "run": {
            "name": "quickstart",
            "seed": 0,
            "created": "2026-01-01T00:00:00+00:00",
            "fingerprint": "abc",
            "config": {
                "run": {"seed": 0, "note": "</pre><script>"},
                "evaluation": {"k": [], "resamples": 2000, "most": 65536},
                "groups": {"max_pairs": 0},
            },
            "versions": {"ray": "2.60.0"},
            "wall_s": 300.0,
            "splits": dict.fromkeys(("base", "facttune_fs", "facttune_mc"), "test"),
            "estimator": "chat",
            "rewarded": ["facttune_fs"],
            "judge": "gpt",
            "fingerprints": {"base/test/facts": "f00"},
        },
        "k": [12],
        "second_opinion": {
            "estimator": "lexical",
            "models": {
                n: model(1.2, e) | {"facts": 90, "agree": 0.9, "kappa": 0.8}
                for n, e in (("base", 1.1), ("facttune_fs", 0.5))
            },
            "comparisons": {"facttune_fs": comparison(0.51, 0.04, 0.5)},
        },
        "judged": {},
        "hacking": {
            n: hacking(own, frames, 0.01)
            for n, own, frames in (
                ("base", 0.01, 0.2),
                ("facttune_fs", 0.02, 0.22),
                ("facttune_mc", 0.0, 0.1),
            )
        },
        "length_matched": {},
        "groups": [],
        "kinds": [],
        "lengths": {},
        "human": {},
        "rewards": {},
        "reward_agreement": {},
        "heldout": {},
        "errors": [],
        "models": {
            "base": model(1.63, 1.37),
            "facttune_fs": model(2.51, 0.46),
            "facttune_mc": model(1.9, 1.5),
        },
        "comparisons": {
            "facttune_fs": comparison(0.63, 0.05, 0.88),
            "facttune_mc": comparison(0.03, 0.05, 0.27),
        },
        "selection": {
            "facttune_fs": {
                "chosen": "facttune_fs/round_2",
                "metric": "val correct - incorrect",
                "candidates": [
                    candidate("facttune_fs/round_1", 1.2, 0.25),
                    candidate("facttune_fs/round_2", 2.0, 0.15),
                    candidate("facttune_fs/round_3", None, None),
                ],
            }
        },
        "training": {"facttune_fs": training_log(3, 80), "facttune_mc": training_log(1, 6)},
        "stages": [
            {"table": "base/test/facts", "tokens": 5, "cost_usd": 0.25} | stage,
            {"table": "base/test/verdicts", "tokens": 7, "cost_usd": 1.0} | stage | {"errors": 3},
        ],
    }


@pytest.fixture
def human():
    """Agreement with human labels, as a summary has it."""
    return {
        "ChatGPT": {
            "auroc": 0.834,
            "accuracy": 0.75,
            "kappa": 0.5,
            "ece": 0.07,
            "prr": 0.6,
            "human_supported": 0.65,
            "estimated_supported": 0.6,
            "pearson_score": 0.867,
            "pearson_supported": None,
            "facts": 4877,
            "responses": 157,
            "no_verdict": 9,
            "no_article": 2,
            "abstained": 26,
        }
    }
