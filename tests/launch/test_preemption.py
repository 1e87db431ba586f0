"""Stopping: SIGTERM is noted and told once, and a second one ends the process as it always does."""

import os
import signal
import subprocess
import sys
import threading

from elm_jax.launch.preemption import watch_for_preemption


def test_a_signal_is_told_after_the_round_and_the_handler_before_comes_back():
    before = signal.getsignal(signal.SIGTERM)
    with watch_for_preemption() as stop:
        assert not stop(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop(2)
        assert signal.getsignal(signal.SIGTERM) == before
    assert signal.getsignal(signal.SIGTERM) == before


def test_outside_the_main_thread_nothing_is_listened_to():
    told = []

    def run():
        with watch_for_preemption() as stop:
            told.append(stop(1))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert told == [False]


def test_a_second_signal_ends_the_process():
    script = (
        "import os, signal\n"
        "from elm_jax.launch.preemption import watch_for_preemption\n"
        "with watch_for_preemption():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('noted', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('never')\n"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert told.stdout == "noted\n"
    assert told.returncode == -signal.SIGTERM
