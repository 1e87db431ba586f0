"""Locks: one process at a time, the next learns who it is, and a dead one holds nothing."""

import json
import math
import subprocess
import sys
import time

import pytest

from elm_jax import locks
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


@pytest.fixture(params=["file", "object"])
def kind(request, monkeypatch):
    """A lock of the system, and one as a bucket has it."""
    if request.param == "object":
        monkeypatch.setattr(locks, "_has_system_locks", lambda file: False)
        monkeypatch.setattr(locks, "SETTLE_SECONDS", 0.05)
    return request.param


@pytest.fixture
def start(tmp_path, kind):
    started = []

    def start(seconds=60.0):
        arguments = [sys.executable, "-c", HOLD, str(tmp_path / "lock"), kind, str(seconds)]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_second_holder_is_refused_and_learns_who_the_first_is(tmp_path, start):
    process = start()
    said = rf"elm train \(process {process.pid} on .*, since 2.*Fix: give up"
    lock = locks.hold(tmp_path / "lock", "elm index", fix="give up")
    with pytest.raises(UserError, match=said), lock:
        pass


def test_a_lock_that_is_released_is_free_and_leaves_nothing(tmp_path, kind):
    with locks.hold(tmp_path / "lock", "one"):
        assert (tmp_path / "lock").exists()
    with locks.hold(tmp_path / "lock", "two"):
        assert json.loads((tmp_path / "lock").read_text())["purpose"] == "two"
    assert list(tmp_path.iterdir()) == []


def test_who_waits_gets_the_lock_when_it_is_released(tmp_path, start, capsys):
    start(1.0)
    began = time.monotonic()
    with locks.hold(tmp_path / "lock", "elm index", seconds=math.inf):
        assert time.monotonic() - began < 10
    assert capsys.readouterr().err.startswith("elm: waiting for elm train")


def test_a_killed_holder_holds_nothing(tmp_path, start, kind, monkeypatch):
    process = start()
    process.kill()
    process.wait()
    assert (tmp_path / "lock").exists()
    if kind == "object":
        assert not locks.attempt(tmp_path / "lock", "elm index").__enter__()
        monkeypatch.setattr(locks, "EXPIRY_SECONDS", 0.0)
    with locks.hold(tmp_path / "lock", "elm index"):
        pass
    assert list(tmp_path.iterdir()) == []


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
def test_a_damaged_lock_of_nobody_is_free(tmp_path, kind, content):
    (tmp_path / "lock").write_bytes(content)
    with locks.hold(tmp_path / "lock", "one"):
        pass


def test_crowds_count_without_losing_one(tmp_path):
    script = """
import sys, pathlib
from elm_jax import locks
file = pathlib.Path(sys.argv[1]) / "count"
for _ in range(50):
    with locks.hold(sys.argv[1] + "/lock", "count", seconds=60):
        file.write_text(str(int(file.read_text()) + 1))
"""
    (tmp_path / "count").write_text("0")
    crowd = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path)]) for _ in range(4)]
    assert [process.wait(timeout=120) for process in crowd] == [0] * 4
    assert (tmp_path / "count").read_text() == "200"


def test_a_lock_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("in the way")
    lock = locks.hold(tmp_path / "file" / "lock", "one")
    with pytest.raises(UserError, match="Expected to write"), lock:
        pass
