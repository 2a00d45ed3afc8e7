"""What clusters are started from: files that Ray's and Kubernetes' own schemas accept, with the
same four pools everywhere, authentication on, and no secret inside.

KubeRay's schemas are on no package index: with KUBERAY_CRDS=FOLDER (its config/crd/bases) the
manifests are checked by them, without it by tests/kuberay.json.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement

REPO = Path(__file__).resolve().parents[2]
LAUNCHED = [REPO / "cluster.yaml", REPO / "conf" / "clusters" / "gcp.yaml"]
KUBERNETES = REPO / "conf" / "kubernetes"
POOLS = {"cpu", "gpu_spot", "gpu"}


def load(path: Path) -> dict:
    return yaml.safe_load(path.read_text())


def ray_cluster_of(name: str) -> dict:
    spec = load(KUBERNETES / name)["spec"]
    return spec.get("rayClusterSpec", spec)


@pytest.mark.parametrize("path", LAUNCHED, ids=lambda p: p.name)
def test_rays_schema_takes_the_cluster(path):
    import ray.autoscaler
    from ray.autoscaler._private.util import prepare_config, validate_config

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    cluster = load(path)
    jsonschema.validate(cluster, schema)
    validate_config(prepare_config(cluster))  # and its own checks: sums of workers, the head's type


@pytest.mark.parametrize("path", LAUNCHED, ids=lambda p: p.name)
def test_a_launched_cluster_is_what_it_says(path):
    cluster = load(path)
    types = cluster["available_node_types"]
    assert types.keys() == {"head"} | POOLS and cluster["head_node_type"] == "head"
    assert types["head"]["resources"] == {"CPU": 0, "GPU": 0}
    pools = [types[name] for name in sorted(POOLS)]
    assert all(p["min_workers"] == 0 < p["max_workers"] for p in pools)
    assert cluster["max_workers"] == sum(p["max_workers"] for p in pools)
    assert cluster["idle_timeout_minutes"] > 0
    assert "spot" in json.dumps(types["gpu_spot"]["node_config"]).lower()
    assert all("spot" not in json.dumps(types[n]["node_config"]).lower() for n in ("cpu", "gpu"))
    head, *workers = cluster["head_start_ray_commands"][-1:] + cluster["worker_start_ray_commands"]
    assert "--dashboard-host=127.0.0.1" in head and "--num-cpus=0" in head
    assert all("RAY_AUTH_MODE=token" in c for c in (head, workers[-1]))
    before, _, start = workers[-1].rpartition(" & ")
    cloud = {"cluster.yaml": "aws", "gcp.yaml": "google"}[path.name]
    assert f"jobs/nodes/notices.py --cloud={cloud} " in before and start.startswith("ray start ")
    assert "-e RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]
    images = re.findall(r"rayproject/ray:\S+?(?=[\"}\n])", path.read_text())
    assert images and {i.split(":")[1].split("-")[0] for i in images} == {version("ray")}


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_kuberays_schema_takes_the_manifest(name):
    manifest = load(KUBERNETES / name)
    jsonschema.validate(manifest, json.loads((REPO / "tests" / "kuberay.json").read_text()))
    if folder := os.environ.get("KUBERAY_CRDS"):
        definition = load(Path(folder) / f"ray.io_{manifest['kind'].lower()}s.yaml")
        (served,) = [v for v in definition["spec"]["versions"] if v["name"] == "v1"]
        jsonschema.validate(manifest, closed(served["schema"]["openAPIV3Schema"]))


def closed(schema: object) -> object:
    """The schema, which also refuses keys that it does not know, as the API server drops them."""
    if isinstance(schema, list):
        return [closed(s) for s in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {k: closed(v) for k, v in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        schema.pop("pattern", None)
    if schema.get("properties"):
        schema.setdefault("additionalProperties", False)
    return schema


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_kubernetes_schema_takes_every_pod(name):
    validate = pytest.importorskip("kubernetes_validate").validate
    cluster = ray_cluster_of(name)
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}}
        spec = group["template"]["spec"]
        validate(pod | {"spec": spec}, "1.30", strict=True)
        (container,) = spec["containers"]
        assert container["resources"]["limits"]["memory"]
        assert spec["securityContext"]["runAsNonRoot"]
        keys = {e["name"]: e["value"] for e in container["env"]}
        assert keys["OPENAI_API_KEY_FILE"].startswith("/run/keys/")
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in cluster["workerGroupSpecs"]:  # Ray drains a pod within its grace period
        spec = group["template"]["spec"]
        env = {e["name"]: e["value"] for e in spec["containers"][0]["env"]}
        left = float(env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert 0 < left < spec["terminationGracePeriodSeconds"]
    names = {g["groupName"].replace("-", "_") for g in cluster["workerGroupSpecs"]}
    assert names == POOLS and all(g["minReplicas"] == 0 for g in cluster["workerGroupSpecs"])
    assert cluster["authOptions"] == {"mode": "token"} and cluster["rayVersion"] == version("ray")


def test_kubernetes_schema_takes_the_rest():
    validate = pytest.importorskip("kubernetes_validate").validate
    parts = list(yaml.safe_load_all((KUBERNETES / "storage.yaml").read_text()))
    assert [p["kind"] for p in parts] == [
        "ServiceAccount",
        "PersistentVolumeClaim",
        "NetworkPolicy",
    ]
    for part in parts:
        validate(part, "1.30", strict=True)


def test_the_pod_that_submits_is_one_of_kubernetes():
    validate = pytest.importorskip("kubernetes_validate").validate
    spec = load(KUBERNETES / "rayjob.yaml")["spec"]["submitterPodTemplate"]["spec"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}
    validate(pod, "1.30", strict=True)
    head = ray_cluster_of("rayjob.yaml")["headGroupSpec"]["template"]["spec"]["containers"][0]
    (container,) = spec["containers"]
    assert container["image"] == head["image"] and "command" not in container  # the operator's


@pytest.mark.parametrize(
    ("labels", "port", "admitted"),
    [
        ({"app.kubernetes.io/name": "kuberay-operator"}, 8265, True),  # its Helm chart
        ({"app.kubernetes.io/component": "kuberay-operator"}, 8265, True),  # its manifests
        ({"app.kubernetes.io/name": "prometheus"}, 8080, True),
        ({"app.kubernetes.io/name": "prometheus"}, 8265, False),
        ({"ray.io/originated-from-crd": "RayJob"}, 8265, False),
        ({}, 8080, False),
    ],
)
def test_who_may_reach_the_pods(labels, port, admitted):
    assert reaches(labels, port) is admitted


def test_every_pod_of_ours_may_reach_the_others():
    templates = [load(KUBERNETES / "rayjob.yaml")["spec"]["submitterPodTemplate"]]
    for name in ("raycluster.yaml", "rayjob.yaml"):
        cluster = ray_cluster_of(name)
        groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
        templates += [g["template"] for g in groups]
    assert all(reaches(t["metadata"]["labels"], 8265) for t in templates)


def reaches(labels: dict[str, str], port: int) -> bool:
    """Whether the NetworkPolicy lets a pod with these labels in at this port."""
    (policy,) = (
        p
        for p in yaml.safe_load_all((KUBERNETES / "storage.yaml").read_text())
        if p["kind"] == "NetworkPolicy"
    )
    return any(
        source["podSelector"]["matchLabels"].items() <= labels.items()
        for rule in policy["spec"]["ingress"]
        for source in rule["from"]
        if port in [p["port"] for p in rule.get("ports", [{"port": port}])]
    )


def test_only_a_jobs_own_cluster_shows_its_dashboard_to_the_operator():
    shown = {
        name: ray_cluster_of(name)["headGroupSpec"]["rayStartParams"]["dashboard-host"]
        for name in ("raycluster.yaml", "rayjob.yaml")
    }
    assert shown == {"raycluster.yaml": "127.0.0.1", "rayjob.yaml": "0.0.0.0"}
    assert load(KUBERNETES / "rayjob.yaml")["spec"]["shutdownAfterJobFinishes"] is True


def test_every_dependency_is_pinned_to_a_version_that_the_project_takes():
    lines = (REPO / "conf" / "clusters" / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    for line in project["dependencies"]:
        wanted = Requirement(line)
        pin = {k.lower(): v for k, v in pins.items()}[wanted.name.lower()]
        assert wanted.specifier.contains(pin, prereleases=True), wanted


def test_the_image_holds_what_it_is_installed_from_and_nothing_else():
    """BuildKit reads the file of this name beside the Dockerfile. Of its rules the last wins."""
    rules = (KUBERNETES / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [r for r in rules if r and not r.startswith("#")]

    def taken(path: str) -> bool:
        kept = True
        for rule in rules:
            name = rule.removeprefix("!")
            inside = name.startswith("**/") and name[3:] in path.split("/")
            if name == "*" or inside or path == name or path.startswith(name + "/"):
                kept = rule.startswith("!")
        return kept

    left = (".venv/bin/python", ".git/config", "runs/a/ledger/x.arrow", "openai_api_key", "k.db")
    assert not any(map(taken, (*left, "facttune_ray/__pycache__/cli.pyc", "tests/conftest.py")))
    assert taken("facttune_ray/cli.py") and taken("jobs/pipeline.py") and taken("conf/bio.yaml")
    project = tomllib.loads((REPO / "pyproject.toml").read_text())
    built = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = [project["project"]["readme"], *project["project"]["license-files"]]
    assert all(map(taken, [*needed, *built["packages"], *built["force-include"], "pyproject.toml"]))


def test_no_secret_stands_in_what_is_shipped():
    shapes = r"sk-[A-Za-z0-9]{8}|AKIA[0-9A-Z]{12}|hf_[A-Za-z0-9]{8}|-----BEGIN|ghp_[A-Za-z0-9]{8}"
    for path in [*LAUNCHED, *(p for p in KUBERNETES.iterdir()), *(REPO / "jobs").glob("*.*")]:
        if path.is_file():
            assert not re.search(shapes, path.read_text(errors="ignore")), path
