"""Preemption: how a run learns that its machine is about to be taken away, on one host or on all alike."""

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

import jax
from jax.experimental import multihost_utils

ShouldStop = Callable[[int], bool]  # from the number of a batch: whether to save and stop after it


@contextmanager
def watch_for_preemption() -> Generator[ShouldStop, None, None]:
    """Yields a function that tells, after every batch, whether SIGTERM has come.

    A second SIGTERM ends the process at once. On several hosts the one that got the signal informs the
    others, and all stop after the same batch. Outside of a process's main thread no signal is caught.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda batch: False
        return
    received = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        received.set()
        signal.signal(number, before)

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield lambda batch: received.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)
