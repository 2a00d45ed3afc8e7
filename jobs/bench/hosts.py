"""A Ray cluster of several hosts on one machine: each is a network namespace with its own address.

    with hosts.cluster([2, 2]) as cluster:              # a head without CPUs, two workers
        job = cluster.submit("jobs/pipeline.py", "quickstart", f"run.out={shared}/run")
        cluster.workers[0].kill()                       # as when its power fails

Hosts share this machine's files, as cloud hosts share a mounted folder. Every connection carries
Ray's token. Linux, root and `ip` (iproute2) are needed; `allowed()` says whether they are here.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

REPO = Path(__file__).resolve().parents[2]
GCS_PORT, DASHBOARD_PORT = 6379, 8265
# A host without power or network does not close its connections. Ray's head gives the host up after
# these health checks. A process that waits for a task there gives up when the connection's pings
# are not answered; by default that takes 7 minutes.
SILENT = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "4000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_grpc_client_keepalive_time_ms": "10000",
    "RAY_grpc_client_keepalive_timeout_ms": "10000",
}
# Gives a host a name that leads to 127.0.0.1, as the names of many real hosts do.
LOOPBACK = (
    "unshare",
    "--uts",
    "sh",
    "-c",
    'echo localhost > /proc/sys/kernel/hostname && exec "$@"',
    "sh",
)
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")  # states of a job
START_S = 180  # longest start of a host, on a machine with other work
STORE_BYTES = 96 * 2**20  # object store of a host: tables travel as files


def allowed() -> str:
    """Why namespaces cannot be made here; "" when they can."""
    if not shutil.which("ip"):
        return "no `ip`: install iproute2"
    name = f"ft-{secrets.token_hex(3)}"
    for command in (["netns", "add", name], ["link", "add", name, "type", "bridge"]):
        made = subprocess.run(["ip", *command], capture_output=True, text=True)
        if made.returncode:
            _ip("netns", "del", name, check=False)
            return f"ip {' '.join(command)}: {made.stderr.strip()}"
    _ip("link", "del", name)
    _ip("netns", "del", name)
    return ""


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:  # it has ended
        return ""


def _ip(*words: str, check: bool = True) -> str:
    done = subprocess.run(["ip", *words], check=check, capture_output=True, text=True)
    return done.stdout


@dataclass
class Host:
    """One host: a network namespace and the processes in it."""

    name: str  # of the namespace, and of its link at the bridge
    address: str
    folder: Path  # Ray's files, and ray.log
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None

    def up(self, bridge: str) -> None:
        _ip("netns", "add", self.name)
        _ip("link", "add", self.name, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        _ip("link", "set", self.name, "master", bridge, "up")
        for words in (
            ["addr", "add", f"{self.address}/24", "dev", "eth0"],
            ["link", "set", "eth0", "up"],
            ["link", "set", "lo", "up"],
        ):
            _ip("-n", self.name, *words)

    def start(self, *words: str) -> None:
        """`ray start` with these words, in the foreground of this host."""
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
        ray += [f"--node-ip-address={self.address}", f"--temp-dir={self.folder}"]
        ray += [f"--object-store-memory={STORE_BYTES}", "--disable-usage-stats", *words]
        self.process = self.run(ray)

    def run(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """A process on this host; its output goes to ray.log."""
        with (self.folder / "ray.log").open("ab") as log:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, *LOOPBACK, *command],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def pids(self) -> list[int]:
        return [int(pid) for pid in _ip("netns", "pids", self.name, check=False).split()]

    def running(self, name: str) -> list[int]:
        """Ids of this host's processes whose command line contains `name`."""
        return [pid for pid in self.pids() if name in _title(pid)]

    def kill(self) -> None:
        """Cut the network first, so that no process can say goodbye, then kill every process."""
        _ip("link", "set", self.name, "down", check=False)
        while pids := self.pids():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        if self.process is not None:
            self.process.wait()

    def remove(self) -> None:
        """Kill the host and remove its namespace."""
        self.kill()
        _ip("netns", "del", self.name, check=False)
        _ip("link", "del", self.name, check=False)


@dataclass
class Cluster:
    """A head without CPUs, and workers."""

    bridge: str
    gateway: str  # this machine's address at the bridge
    folder: Path
    environment: dict[str, str]
    head: Host = field(init=False)
    workers: list[Host] = field(default_factory=list)
    started: int = 0

    def _host(self) -> Host:
        self.started += 1
        name = f"{self.bridge}-{self.started}"
        address = f"{self.gateway.rsplit('.', 1)[0]}.{9 + self.started}"
        folder = self.folder / str(self.started)
        folder.mkdir()
        host = Host(name, address, folder, self.environment)
        host.up(self.bridge)
        return host

    def start_head(self) -> None:
        self.head = self._host()
        words = ["--head", "--num-cpus=0", f"--port={GCS_PORT}", "--include-dashboard=true"]
        words += [f"--dashboard-host={self.head.address}", f"--dashboard-port={DASHBOARD_PORT}"]
        self.head.start(*words)
        _until(self.answers, START_S, "the head", self.head)

    def start_worker(self, cpus: float, *words: str) -> Host:
        """Start another host; `wait_for` returns when it has joined."""
        host = self._host()
        host.start(f"--address={self.head.address}:{GCS_PORT}", f"--num-cpus={cpus:g}", *words)
        self.workers.append(host)
        return host

    def answers(self) -> bool:
        """Whether the head answers."""
        try:
            return bool(self.ask("/api/version"))
        except (urllib.error.URLError, OSError):
            return False

    def ask(self, path: str) -> Any:
        """JSON answer of Ray's dashboard."""
        token = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        request = urllib.request.Request(self.url + path, headers=token)
        with urllib.request.urlopen(request, timeout=30) as reply:
            return json.load(reply)

    def tasks(self, name: str) -> Counter[str]:
        """Address of a host -> number of tasks there whose name contains `name`."""
        nodes = self.ask("/api/v0/nodes?detail=1")["data"]["result"]["result"]
        address = {n["node_id"]: n["node_ip"] for n in nodes}
        tasks = self.ask("/api/v0/tasks?detail=1&limit=10000")["data"]["result"]["result"]
        return Counter(address[t["node_id"]] for t in tasks if name in t["name"] and t["node_id"])

    @property
    def url(self) -> str:
        return f"http://{self.head.address}:{DASHBOARD_PORT}"

    def wait_for(self, nodes: int, timeout_s: float = START_S) -> None:
        """Return when the cluster has this many hosts, with the head."""
        words = [sys.executable, "-c", _COUNT, f"{self.head.address}:{GCS_PORT}"]

        def complete() -> bool:
            done = subprocess.run(words, env=self.environment, capture_output=True, text=True)
            return done.returncode == 0 and int(done.stdout) == nodes

        _until(complete, timeout_s, f"{nodes} hosts", self.head)

    def submit(self, *words: str) -> subprocess.Popen[str]:
        """`ray job submit` of a file under this repository, from outside the cluster."""
        ray = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit"]
        ray += ["--address", self.url, "--submission-id", f"job-{secrets.token_hex(6)}"]
        ray += ["--working-dir", str(REPO), "--", "python", *words]
        return subprocess.Popen(
            ray,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, job: subprocess.Popen[str], timeout_s: float = 600) -> str:
        """Wait until a submitted job has succeeded. -> what it printed. RuntimeError if it has not.

        Ray itself is asked whether the job has ended. After the loss of a host, the client that
        submitted the job may wait for ever for the end of its log.
        """
        deadline = time.monotonic() + timeout_s
        while (status := self._status(job)) not in ENDED and job.poll() is None:
            if time.monotonic() > deadline:
                break
            time.sleep(1)
        with contextlib.suppress(subprocess.TimeoutExpired):
            job.wait(20)  # it may still print
        job.kill()
        said, _ = job.communicate()
        if self._status(job) != "SUCCEEDED":
            raise RuntimeError(f"the job has not succeeded ({status}):\n{said[-6000:]}")
        return said

    def _status(self, job: subprocess.Popen[str]) -> str:
        """Ray's word for the state of a submitted job; "" before Ray knows the job."""
        words = cast(list[str], job.args)
        try:
            return self.ask(f"/api/jobs/{words[words.index('--submission-id') + 1]}")["status"]
        except urllib.error.HTTPError:
            return ""

    def drain(self, host: Host, seconds: float) -> None:
        """Give the notice of a spot host: it will be taken away in `seconds`."""
        nodes = self.ask("/api/v0/nodes?detail=1")["data"]["result"]["result"]
        node = next(n["node_id"] for n in nodes if n["node_ip"] == host.address)
        words = [sys.executable, "-m", "ray.scripts.scripts", "drain-node"]
        words += ["--address", f"{self.head.address}:{GCS_PORT}", "--node-id", node]
        words += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        words += ["--deadline-remaining-seconds", f"{seconds:g}"]
        subprocess.run(words, env=self.environment, check=True, capture_output=True)

    def up(self, cpus: Sequence[float]) -> None:
        """Start a head, and one worker for each number of CPUs."""
        self.start_head()
        for n in cpus:
            self.start_worker(n)
        self.wait_for(1 + len(cpus))

    def down(self) -> None:
        """Remove every host."""
        for host in (*self.workers, self.head):
            host.remove()
        self.workers.clear()


_COUNT = """
import sys
from ray._raylet import GcsClient
nodes = GcsClient(address=sys.argv[1]).get_all_node_info(timeout=5)
print(sum(n.state == 0 for n in nodes.values()))
"""


def _until(ready, timeout_s: float, what: str, host: Host) -> None:
    deadline = time.monotonic() + timeout_s
    while not ready():
        log = (host.folder / "ray.log").read_text(errors="replace")
        over = host.process is not None and host.process.poll() is not None
        if over or time.monotonic() > deadline:
            raise RuntimeError(f"{what} did not come up within {timeout_s:g} s:\n{log[-3000:]}")
        time.sleep(0.3)


def until(
    what: str, there: Callable[[], object], job: subprocess.Popen[str], timeout_s: float = 300
) -> None:
    """Return as soon as `there()` is true. RuntimeError if the job ends before, or time is up."""
    deadline = time.monotonic() + timeout_s
    while not there():
        if job.poll() is not None:
            raise RuntimeError(f"the job ended before: {what}:\n{job.communicate()[0][-6000:]}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"never: {what}")
        time.sleep(0.005)


@contextlib.contextmanager
def network() -> Iterator[tuple[str, str]]:
    """(name, this machine's address) of a bridge that connects the hosts."""
    name = f"ft{secrets.token_hex(3)}"
    routes = _ip("-4", "addr")
    third = next(n for n in range(1, 255) if f" 10.213.{n}." not in routes)
    _ip("link", "add", name, "type", "bridge")
    try:
        _ip("addr", "add", f"10.213.{third}.1/24", "dev", name)
        _ip("link", "set", name, "up")
        yield name, f"10.213.{third}.1"
    finally:
        _ip("link", "del", name, check=False)


@contextlib.contextmanager
def cluster(cpus: Sequence[float], **environment: str) -> Iterator[Cluster]:
    """A head, and one worker for each number of CPUs. `environment`: further variables of every
    process."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    variables |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    variables |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    variables |= SILENT | {"RAY_raylet_start_wait_time_s": f"{START_S}"}
    folder = Path(
        tempfile.mkdtemp(prefix="ft", dir="/tmp")
    )  # a short path, because the names of sockets are long
    with network() as (bridge, gateway):
        cluster = Cluster(bridge, gateway, folder, variables | environment)
        try:
            cluster.up(cpus)
            yield cluster
        finally:
            cluster.down()
            shutil.rmtree(folder, ignore_errors=True)
