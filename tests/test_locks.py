"""Locks: one process at a time, the next learns who it is, and a dead one holds nothing."""

import json
import math
import subprocess
import sys
import time

import pytest

from elm_jax import locks, storage
from elm_jax.errors import UserError

HOLD = """
import sys, time
from elm_jax import locks
if sys.argv[2] == "object":
    locks._has_system_locks = lambda file: False
    locks.SETTLE_SECONDS = 0.05
with locks.hold(sys.argv[1], "elm train"):
    print("held", flush=True)
    time.sleep(float(sys.argv[3]))
"""


@pytest.fixture(params=["file", "object", "bucket"])
def kind(request, monkeypatch):
    """A lock of the system, one of a file system without locks, and one in a bucket."""
    if request.param != "file":
        monkeypatch.setattr(locks, "_has_system_locks", lambda file: False)
        monkeypatch.setattr(locks, "SETTLE_SECONDS", 0.05)
    return request.param


@pytest.fixture
def home(kind, request, tmp_path):
    """The directory of the lock."""
    return request.getfixturevalue("bucket") if kind == "bucket" else storage.path(tmp_path)


@pytest.fixture
def start(home, kind):
    started = []

    def start(seconds=60.0):
        arguments = [sys.executable, "-c", HOLD, str(home / "lock"), kind, str(seconds)]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_second_holder_is_refused_and_learns_who_the_first_is(home, start):
    process = start()
    said = rf"elm train \(process {process.pid} on .*, since 2.*Fix: give up"
    lock = locks.hold(home / "lock", "elm index", fix="give up")
    with pytest.raises(UserError, match=said), lock:
        pass


def test_a_lock_that_is_released_is_free_and_leaves_nothing(home):
    with locks.hold(home / "lock", "one"):
        assert (home / "lock").exists()
    with locks.hold(home / "lock", "two"):
        assert json.loads((home / "lock").read_text())["purpose"] == "two"
    assert list(home.iterdir()) == []


def test_who_waits_gets_the_lock_when_it_is_released(home, start, capsys):
    start(1.0)
    began = time.monotonic()
    with locks.hold(home / "lock", "elm index", seconds=math.inf):
        assert time.monotonic() - began < 10
    assert capsys.readouterr().err.startswith("elm: waiting for elm train")


def test_a_killed_holder_holds_nothing(home, start, kind, monkeypatch):
    process = start()
    process.kill()
    process.wait()
    assert (home / "lock").exists()
    if kind != "file":
        assert not locks.attempt(home / "lock", "elm index").__enter__()
        monkeypatch.setattr(locks, "EXPIRY_SECONDS", 0.0)
    with locks.hold(home / "lock", "elm index"):
        pass
    assert list(home.iterdir()) == []


def test_a_holder_of_an_object_rewrites_it(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_has_system_locks", lambda file: False)
    monkeypatch.setattr(locks, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(locks, "EXPIRY_SECONDS", 0.4)
    with locks.hold(tmp_path / "lock", "elm train"):
        first = json.loads((tmp_path / "lock").read_text())["alive"]
        time.sleep(0.6)
        assert json.loads((tmp_path / "lock").read_text())["alive"] > first
        with locks.attempt(tmp_path / "lock", "elm index") as held:
            assert not held


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 5000, b"\xff\xfe", b'"x"', b"{}"])
def test_a_damaged_lock_of_nobody_is_free(home, content):
    (home / "lock").write_bytes(content)
    with locks.hold(home / "lock", "one"):
        pass


@pytest.mark.parametrize(("kind", "times"), [("file", 50), ("bucket", 8)], indirect=["kind"])
def test_crowds_count_without_losing_one(home, times):
    script = """
import sys
from elm_jax import locks, storage
home = storage.path(sys.argv[1])
for _ in range(int(sys.argv[2])):
    with locks.hold(home / "lock", "count", seconds=60):
        (home / "count").write_text(str(int((home / "count").read_text()) + 1))
"""
    (home / "count").write_text("0")
    crowd = [subprocess.Popen([sys.executable, "-c", script, str(home), str(times)]) for _ in range(4)]
    assert [process.wait(timeout=120) for process in crowd] == [0] * 4
    assert (home / "count").read_text() == str(4 * times)
    assert [each.name for each in home.iterdir()] == ["count"]


def test_of_those_who_take_a_dead_holders_lock_at_once_one_gets_it(bucket):
    script = """
import sys, time
from elm_jax import locks, storage
print("ready", flush=True)
sys.stdin.readline()
with locks.attempt(sys.argv[1], "a contender") as held:
    print(held, flush=True)
    sys.stdin.readline()
"""
    (bucket / "lock").write_bytes(json.dumps({"token": "dead", "alive": 0.0}).encode())
    command = [sys.executable, "-c", script, str(bucket / "lock")]
    piped = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    crowd = [subprocess.Popen(command, **piped) for _ in range(4)]
    assert [process.stdout.readline() for process in crowd] == ["ready\n"] * 4
    for process in crowd:
        process.stdin.write("\n")
        process.stdin.flush()
    assert sorted(process.stdout.readline() for process in crowd) == ["False\n"] * 3 + ["True\n"]
    for process in crowd:
        process.communicate("\n")


def test_a_lock_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("in the way")
    lock = locks.hold(tmp_path / "file" / "lock", "one")
    with pytest.raises(UserError, match="Expected to write"), lock:
        pass
