"""Stopping: how a run learns that its machine is about to be taken away, on one host or on all alike."""

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

import jax
from jax.experimental import multihost_utils

Stop = Callable[[int], bool]  # told the round's number, says whether to save and stop after it


@contextmanager
def preemption() -> Generator[Stop, None, None]:
    """Yields what says, after every round, whether SIGTERM has come; the next one ends the process at once.

    On several hosts the one that got the signal tells the others, and all stop after the same round: they
    wait for one another anyhow. Outside of a process's main thread nothing is listened to.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda round: False
        return
    came = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        came.set()
        signal.signal(number, before)

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield lambda round: came.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)
