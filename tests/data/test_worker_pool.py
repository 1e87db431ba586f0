"""The worker pool: its processes end with the process that started them, and leave Ctrl-C to it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from elm_jax.data import worker_pool
from elm_jax.launch import interrupts

SCRIPT = """
import os, time
from elm_jax.data import worker_pool
from elm_jax.launch import interrupts

def work(item):
    print(os.getpid(), flush=True)
    time.sleep(300)

if __name__ == "__main__":
    with interrupts.exit_on_signals():
        with worker_pool.open_pool(2) as pool:
            list(pool.map(work, [1, 2]))
"""


@pytest.fixture
def started(ctrl_c, tmp_path):
    """A process in a session of its own, and the ids of its two workers."""
    (tmp_path / "script.py").write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, tmp_path / "script.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])},
    )
    assert process.stdout is not None
    yield process, [int(process.stdout.readline()) for _ in range(2)]
    process.kill()
    process.communicate()


def are_gone(ids):
    until = time.monotonic() + 120
    while any(Path(f"/proc/{each}").exists() for each in ids) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(Path(f"/proc/{each}").exists() for each in ids)


def test_every_item_gives_a_result():
    with worker_pool.open_pool(2) as pool:
        assert list(pool.map(abs, [-1, 2, -3])) == [1, 2, 3]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes as Linux lists them")
def test_workers_of_a_killed_process_are_gone(started):
    process, ids = started
    process.kill()
    process.wait()
    assert are_gone(ids)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes as Linux lists them")
def test_at_an_interrupt_of_the_terminal_one_sentence_is_said_and_workers_are_gone(started):
    process, ids = started
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert (process.returncode, said) == (130, f"{interrupts.MESSAGE}\n")
    assert are_gone(ids)
