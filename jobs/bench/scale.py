"""The whole pipeline over a generated world of N topics: time, memory, and their growth with N.

    write(folder, 1000)      people.jsonl (two responses a topic) and knowledge.jsonl, as a stream
    measure(folder, 1000, hosts=2)
    -> {"prompts": 1000, "hosts": 2, "wall_s": 61.0, "requests": 9876, "peak_mb": {"driver": 310.0,
        "worker": 352.1, ...}, "bytes": {"tables": 1834112, "ledger": 912331, ...}, "stages": {...}}

A run is `ray job submit jobs/pipeline.py` on a cluster of namespaces (hosts.py), so driver and
workers are separate processes. The memory of a process is its anonymous pages (RssAnon); mapped
files are not counted, because the system can drop them from its cache.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench import hosts
from facttune_ray.quickstart import base_model
from facttune_ray.quickstart.annotator import AnnotatorOptions, running
from facttune_ray.sources.world import ATTRIBUTES, VALUES, biography_prompt, statement
from facttune_ray.storage.tables import MANIFEST

LIMIT = 12_000  # requests a minute of the limited run
CPUS = 3  # of each host, so that Ray Data makes pools of actors, as on the hosts of a real cluster
RESPONSES, SENTENCES = 2, 1  # per topic, per response: few, so that many topics can be run
_SYLLABLES = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]  # 70
PRESET = """
run: {name: scale, max_error_fraction: 0.0}
data: {source: factscore, files: [people.jsonl], knowledge: knowledge.jsonl, val: 0.01, test: 0.01}
llm: {usd_per_million_input: 0.15, usd_per_million_output: 0.60, budget_usd: 1000}
sampling:
  engine: api
  choices: 2
  llm: {model: annotator, usd_per_million_input: 0.15, usd_per_million_output: 0.60}
verdicts: {estimator: chat, passages: 1}
answers: {samples: 2, max_tokens: 8, top_p: 1.0, examples: none}
train: {max_steps: 20, groups_per_step: 4, max_length: 96, lr: 1.0e-5, warmup_steps: 2}
tune:
  facttune_fs: {reward: factscore, rounds: 1}
rewards: {gamma: 0, columns: [max_conf]}  # so there are questions and answers, too
evaluation: {tuned: false, resamples: 100}
"""


def name_of(number: int) -> str:
    """ "Babaka Dodilu": two words of three syllables; different numbers below 70^6 differ."""
    spread = number * 41_000_000_003 % 70**6  # all different: 41,000,000,003 is prime to 70
    parts = [_SYLLABLES[spread // 70**i % 70] for i in range(6)]
    return f"{''.join(parts[:3]).capitalize()} {''.join(parts[3:]).capitalize()}"


def people(count: int) -> Iterator[tuple[str, list[str], list[str]]]:
    """(name, true statements, responses, whose statements are true or false)"""
    for number in range(count):
        chance, name = random.Random(f"scale/{number}"), name_of(number)
        true = {a: chance.choice(VALUES[a]) for a in ATTRIBUTES}
        stated = [chance.sample(ATTRIBUTES, RESPONSES) for _ in range(SENTENCES)]
        texts = []
        for chosen in zip(*stated, strict=True):
            value = {
                a: true[a] if chance.random() < 0.5 else chance.choice(VALUES[a]) for a in chosen
            }
            texts.append(" ".join(statement(name, a, value[a]) for a in chosen))
        yield name, [statement(name, a, v) for a, v in true.items()], texts


def write(folder: Path, count: int) -> None:
    """Write the world's files line by line; existing files are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "preset.yaml").write_text(PRESET)
    if (folder / "knowledge.jsonl").exists():
        return
    growing = folder / "knowledge.tmp"
    with (folder / "people.jsonl").open("w") as said, growing.open("w") as known:
        for name, true, responses in people(count):
            known.write(json.dumps({"title": name, "text": " ".join(true)}) + "\n")
            for text in responses:
                row = {"topic": name, "input": biography_prompt(name), "output": text}
                said.write(json.dumps(row) + "\n")
    growing.rename(folder / "knowledge.jsonl")
    texts = [f"{biography_prompt(n)}\n{' '.join(t)}" for n, t, _ in people(200)]
    base_model.pretrain(texts, folder / "model", seed=0, epochs=0, hidden=64, layers=2, heads=2)


def measure(
    folder: Path, count: int, workers: int, limit: int | None = None, words: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Figures of one run on a head and so many worker hosts; `limit`: the annotator's
    requests a minute, by the second, with answers that take 150 to 400 ms."""
    write(folder, count)
    options = AnnotatorOptions()
    if limit:
        options = AnnotatorOptions(
            requests_per_minute=limit, burst_s=1.0, latency_min_ms=150, latency_max_ms=400
        )
    out = folder / f"run_{workers}{'_limited' if limit else ''}"
    shutil.rmtree(out, ignore_errors=True)  # finished tables would take no time
    with hosts.cluster([CPUS] * workers) as cluster:
        with running(AnnotatorOptions(**vars(options) | {"host": cluster.gateway})) as url:
            given = [f"data.folder={folder}", f"run.out={out}", f"model.path={folder / 'model'}"]
            given += [f"llm.base_url={url}", f"sampling.llm.base_url={url}", *words]
            if limit:
                given.append(f"llm.requests_per_minute={limit}")
            began = time.monotonic()
            job = cluster.submit("jobs/pipeline.py", str(folder / "preset.yaml"), *given)
            with Watch(cluster) as seen:
                said, _ = job.communicate()
            wall_s = time.monotonic() - began
    if job.returncode:
        raise RuntimeError(said[-4000:])
    stages = _stages(out)
    calls = sum(s["calls"] for s in stages.values())
    found = {} if limit is None else {"share_of_limit": _share(out, calls, limit)}
    return found | {
        "prompts": count,
        "hosts": workers,
        "wall_s": round(wall_s, 1),
        "requests": calls,
        "requests_per_s": round(calls / wall_s, 1),
        "peak_mb": {k: round(v / 2**20, 1) for k, v in sorted(seen.peak.items())},
        "object_store_mb": round(seen.store / 2**20, 1),
        "cpu_s": {k: round(v, 1) for k, v in sorted(seen.cpu_s().items())},
        "bytes": _bytes(out),
        "stages": stages,
    }


class Watch:
    """Peak memory and CPU seconds of each kind of process on a cluster's hosts."""

    def __init__(self, cluster: hosts.Cluster) -> None:
        self.cluster, self.peak, self.store = cluster, Counter[str](), 0
        self._cpu: dict[tuple[str, int], float] = {}
        self._done = threading.Event()

    def __enter__(self) -> Watch:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()

    def cpu_s(self) -> dict[str, float]:
        total: dict[str, float] = {}
        for (kind, _), seconds in self._cpu.items():
            total[kind] = total.get(kind, 0.0) + seconds
        return total

    def _watch(self) -> None:
        looks = 0
        while not self._done.wait(0.25):
            for host in (self.cluster.head, *self.cluster.workers):
                for pid in host.pids():
                    self._look(pid)
            if looks % 20 == 0:
                self._look_at_stores()
            looks += 1

    def _look(self, pid: int) -> None:
        try:
            title = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            status = Path(f"/proc/{pid}/status").read_text()
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return
        if (kind := kind_of(title)) and "RssAnon:" in status:
            held = int(status.split("RssAnon:")[1].split()[0]) * 1024
            self.peak[kind] = max(self.peak[kind], held)
            self._cpu[kind, pid] = (int(fields[11]) + int(fields[12])) / 100

    def _look_at_stores(self) -> None:
        try:
            nodes = self.cluster.ask("/nodes?view=summary")["data"]["summary"]
        except OSError:
            return
        used = (n["raylet"].get("objectStoreUsedMemory") or 0 for n in nodes)
        self.store = max(self.store, sum(map(int, used)))


def kind_of(title: str) -> str:
    """Kind of a process by its title: driver, worker, trainer, limiter, ray; "" for others."""
    if "jobs/pipeline.py" in title and "JobSupervisor" not in title:
        return "driver"
    if title.startswith(("ray::MapBatches", "ray::IDLE")):
        return "worker"
    if title.startswith("ray::RayTrainWorker"):
        return "trainer"
    if title.startswith(("ray::LimiterActor", "ray::MeterActor")):
        return "limiter"
    return "ray" if "ray" in title else ""


def _stages(out: Path) -> dict[str, dict[str, float]]:
    keys = ("rows", "wall_s", "calls", "shards")
    found = {m.parent: json.loads(m.read_text()) for m in out.rglob(MANIFEST)}
    return {
        str(folder.relative_to(out)): {k: m.get(k) or 0 for k in keys}
        for folder, m in sorted(found.items(), key=lambda item: item[0].stat().st_mtime)
    }


def _share(out: Path, calls: float, limit: int) -> float:
    """Share of the permitted requests that was used between the import and the last reward."""
    began, ended = (
        (out / "imported/all" / table / MANIFEST).stat().st_mtime
        for table in ("responses", "rewards")
    )
    return round(calls / (limit / 60 * (ended - began)), 4)


def _bytes(out: Path) -> dict[str, int]:
    """Bytes of tables, of the ledger, and of the rest (models, knowledge, reports)."""
    sizes: Counter[str] = Counter()
    for file in out.rglob("*"):
        if file.is_file():
            part = file.relative_to(out).parts[0]
            kind = "ledger" if part == "ledger" else "rest"
            sizes["tables" if file.suffix == ".parquet" else kind] += file.stat().st_size
    return dict(sizes)


def growth(few: dict[str, Any], many: dict[str, Any]) -> dict[str, Any]:
    """Growth between two sizes: the b of time ~ prompts^b, and the growth of the peaks. CPU seconds
    measure the work where a shared machine makes wall time uncertain; Ray's own are left out."""
    times = math.log(many["prompts"] / few["prompts"])

    def exponent(of: Callable[[dict], float]) -> float:
        return round(math.log(of(many) / of(few)) / times, 3)

    own = ("driver", "worker", "limiter", "trainer")
    return {
        "prompts": [few["prompts"], many["prompts"]],
        "exponent_wall": exponent(lambda r: r["wall_s"]),
        "exponent_cpu": exponent(lambda r: sum(r["cpu_s"].get(k, 0.0) for k in own)),
        "peak_growth": {
            k: round(many["peak_mb"][k] / few["peak_mb"][k] - 1, 3)
            for k in few["peak_mb"].keys() & many["peak_mb"].keys()
        },
    }
