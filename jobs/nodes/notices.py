"""Turn a cloud's notice that this host will be taken away into `ray drain-node`.

    nohup python jobs/nodes/notices.py >> /tmp/notices.log 2>&1 &

Runs beside Ray on every worker host of cluster.yaml and conf/clusters/gcp.yaml. A host that drains
gets no new task, and Ray Train sees it. The program never ends Ray. It ends when the host drains;
until then it goes on, whether the metadata server, Ray or the head answers or not. Pods need no
such program: Ray drains a pod that gets SIGTERM.
"""

from __future__ import annotations

import argparse
import email.utils
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

METADATA = "http://169.254.169.254"  # the address of every cloud's metadata server
POLL_S = 2.0
ANSWER_S = 2.0  # timeout of a metadata server
DRAIN_S = 20.0  # timeout of one `ray drain-node`
# what a metadata server that is away, is another cloud's, or is broken makes
OUTAGES = (OSError, ValueError, LookupError, TypeError, http.client.HTTPException)
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy


class Notice(NamedTuple):
    text: str
    deadline_s: float  # Unix time at which the host is taken away


def _get(url: str, method: str = "GET", **headers: str) -> str:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, headers=named, method=method)
    with _direct.open(request, timeout=ANSWER_S) as reply:
        return reply.read().decode().strip()


def aws(url: str) -> Notice | None:
    """A spot instance gets two minutes."""
    token = _get(f"{url}/latest/api/token", "PUT", X_aws_ec2_metadata_token_ttl_seconds="60")
    try:
        found = _get(f"{url}/latest/meta-data/spot/instance-action", X_aws_ec2_metadata_token=token)
    except urllib.error.HTTPError as e:
        if e.code == 404:  # no notice
            return None
        raise
    notice = json.loads(found)
    when = datetime.fromisoformat(notice["time"])
    return Notice(f"AWS: {notice['action']}", when.timestamp())


def google(url: str) -> Notice | None:
    """A spot machine gets 30 seconds, and one with GPUs an hour before its host is maintained."""
    instance = f"{url}/computeMetadata/v1/instance"
    if _get(f"{instance}/preempted", Metadata_Flavor="Google") == "TRUE":
        return Notice("Google: preempted", time.time() + 30)
    event = _get(f"{instance}/maintenance-event", Metadata_Flavor="Google")
    if event == "TERMINATE_ON_HOST_MAINTENANCE":
        return Notice(f"Google: {event}", time.time() + 3600)
    return None


def azure(url: str) -> Notice | None:
    """A spot machine gets 30 seconds, and more before other events."""
    compute = f"{url}/metadata/instance/compute/name?api-version=2021-02-01&format=text"
    name = _get(compute, Metadata="true")
    events = _get(f"{url}/metadata/scheduledevents?api-version=2020-07-01", Metadata="true")
    for event in json.loads(events)["Events"]:  # of all machines of a scale set
        kind, when = event["EventType"], event["NotBefore"]  # "" once the event has begun
        if name in event["Resources"] and kind in ("Preempt", "Terminate", "Redeploy", "Reboot"):
            begins = email.utils.parsedate_to_datetime(when) if when else datetime.now(UTC)
            return Notice(f"Azure: {kind}", begins.timestamp())
    return None


# Each function returns the notice, or None, and raises one of OUTAGES on another cloud's host.
CLOUDS: dict[str, Callable[[str], Notice | None]] = {"aws": aws, "google": google, "azure": azure}


def say(text: str) -> None:
    print(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {text}", flush=True)


def wait_for_notice(clouds: Sequence[str], url: str) -> Notice:
    """Return this host's notice. The first cloud that answers is this host's."""
    silent = False
    while True:
        why = ""
        for name in clouds:
            try:
                notice = CLOUDS[name](url)
            except OUTAGES as e:
                why += f"; {name}: {e}"
                continue
            if notice:
                return notice
            if silent or len(clouds) > 1:
                say(f"waits for a notice of {name}")
            clouds, silent = [name], False
            break
        else:
            if not silent:
                say(f"no metadata server answers, asks again{why}")
            silent = True
        time.sleep(POLL_S)


def nodes_here() -> dict[str, str]:
    """Id of every Ray node that runs on this host (in this network namespace) -> its head's
    address. Like Ray itself, this reads the command line of the raylet: it needs no answer of the
    head, whose dashboard other hosts cannot reach."""
    found: dict[str, str] = {}
    here = os.stat("/proc/self/ns/net").st_ino
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            inside = os.stat(process / "ns/net").st_ino == here
        except OSError:  # it has ended, or is another user's
            continue
        line = " ".join(words)
        node, head = (re.search(rf" --{n}=(\S+)", line) for n in ("node_id", "gcs-address"))
        if inside and Path(words[0].split(" ")[0]).name == "raylet" and node and head:
            found[node[1]] = head[1]
    return found


def drain(notice: Notice) -> None:
    """Tell the head that this host's nodes drain; return when it knows of every one."""
    drained: set[str] = set()
    while not drained or nodes_here().keys() - drained:  # or Ray is about to start
        for node, head in nodes_here().items():
            left = max(0, int(notice.deadline_s - time.time()))
            if node in drained:
                continue
            if why := _drain(node, head, notice.text, left):
                say(f"node {node} cannot be drained yet, tries again: {why}")
            else:
                say(f"node {node} drains, {left} s are left: {notice.text}")
                drained.add(node)
        time.sleep(POLL_S)


def _drain(node: str, head: str, text: str, left_s: int) -> str:
    """Drain one node. -> why that failed; "" when the head has taken it."""
    words = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", head]
    words += ["--node-id", node, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    words += ["--reason-message", text, "--deadline-remaining-seconds", str(left_s)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=DRAIN_S)
    except subprocess.TimeoutExpired:
        return f"no answer in {DRAIN_S:g} s"
    return (done.stderr.strip().splitlines() or ["no reason"])[-1] if done.returncode else ""


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cloud", choices=CLOUDS, help="default: the one that answers")
    parser.add_argument("--url", default=METADATA, help="of the metadata server")
    options = parser.parse_args(words)
    lock = socket.socket(socket.AF_UNIX)
    try:
        lock.bind("\0facttune_ray_notices")  # a name without a file, one in a network namespace
    except OSError:
        say("another process of this host waits for notices already")
        return
    drain(wait_for_notice([options.cloud] if options.cloud else list(CLOUDS), options.url))


if __name__ == "__main__":
    main()
