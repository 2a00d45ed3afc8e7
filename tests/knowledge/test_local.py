from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time

import pytest

from facttune_ray.errors import UserError
from facttune_ray.knowledge.articles import Articles
from facttune_ray.knowledge.local import local_copy


@pytest.fixture
def remote(tmp_path):
    path = tmp_path / "bucket" / "k.db"
    path.parent.mkdir()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE documents (title PRIMARY KEY, text)")
        database.execute("INSERT INTO documents VALUES ('A', 'one')")
    database.close()
    return path


def test_a_local_path_is_not_copied(tmp_path):
    assert local_copy("out/k.db") == "out/k.db"
    assert local_copy(str(tmp_path / "gone.db")) == str(tmp_path / "gone.db")


def test_a_file_is_copied_once_and_again_when_it_changes(remote, tmp_path):
    cache = tmp_path / "cache"
    copy = local_copy(remote.as_uri(), str(cache))
    assert Articles(copy).passages("A") == ["one"]
    changed = os.stat(copy).st_mtime_ns, os.stat(copy).st_ino
    assert local_copy(remote.as_uri(), str(cache)) == copy
    assert (os.stat(copy).st_mtime_ns, os.stat(copy).st_ino) == changed
    os.utime(remote, ns=(1, 1))
    again = local_copy(remote.as_uri(), str(cache))
    assert again != copy and open(again, "rb").read() == remote.read_bytes()
    assert not list(cache.rglob("*.tmp"))


def test_the_index_beside_a_file_is_copied(remote, tmp_path):
    from facttune_ray.knowledge.store import add_index

    before = local_copy(remote.as_uri(), str(tmp_path / "cache"))
    add_index(remote)
    copy = local_copy(remote.as_uri(), str(tmp_path / "cache"))
    assert copy != before and Articles(copy).search("one", 1)[0].title == "A"


def test_a_missing_file_and_an_unwritable_cache_are_refused(remote, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        local_copy((tmp_path / "gone.db").as_uri(), str(tmp_path / "cache"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be copied to"):
        local_copy(remote.as_uri(), str(tmp_path / "file"))


FETCH = """
import sys
from facttune_ray.knowledge.local import local_copy
from facttune_ray.storage.folders import Folder
download = Folder.download
def counted(source, target):
    print("fetched", flush=True)
    sys.stdin.readline()  # until the test writes a line
    download(source, target)
Folder.download = counted
print("ready", flush=True)
print(local_copy(*sys.argv[1:]), flush=True)
"""


def test_one_of_two_processes_copies(remote, tmp_path):
    command = [sys.executable, "-c", FETCH, remote.as_uri(), str(tmp_path / "cache")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    one, two = subprocess.Popen(command, **pipes), subprocess.Popen(command, **pipes)
    assert one.stdout.readline() == two.stdout.readline() == "ready\n"
    time.sleep(0.3)  # both wait at the lock now
    for process in (one, two):
        process.stdin.write("\n")
        process.stdin.flush()
    said = [p.stdout.read().splitlines() for p in (one, two)]
    assert one.wait() == two.wait() == 0
    assert sorted(map(len, said)) == [1, 2]  # one of them copied
    assert said[0][-1] == said[1][-1] and os.path.isfile(said[0][-1])


def test_a_killed_copy_is_restarted(remote, tmp_path):
    command = [sys.executable, "-c", FETCH, remote.as_uri(), str(tmp_path / "cache")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert [process.stdout.readline() for _ in range(2)] == ["ready\n", "fetched\n"]
    process.kill()
    process.communicate()
    copy = local_copy(remote.as_uri(), str(tmp_path / "cache"))
    assert Articles(copy).passages("A") == ["one"]
