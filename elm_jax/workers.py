"""Workers: processes on this machine that do parts of a command, and end when it ends, however it ends."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import TypeVar

from elm_jax.errors import UserError

T = TypeVar("T")
Result = TypeVar("Result")


def run_in_workers(function: Callable[[T], Result], items: Sequence[T], count: int) -> Iterator[Result]:
    """Yields what a function returns for each item, in the order in which the calls end.

    Args:
        function: Of a module, since new processes import it.
        items: Its arguments, which have to be picklable.
        count: How many processes work side by side, at most.

    Raises:
        UserError: If a process is killed.
    """
    context = multiprocessing.get_context("spawn")
    count = max(1, min(count, len(items)))
    others = multiprocessing.active_children()
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_end_with_parent)
    try:
        with _interrupts_of_parent():
            futures = [pool.submit(function, item) for item in items]
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "Expected the processes that work for this one to end by themselves, got one that was killed, "
            "perhaps because memory ran out. Fix: run the same command again, with fewer processes; what is "
            "done is kept."
        ) from error
    finally:
        # Nobody waits for what workers are still at: then the command was stopped, or its caller is.
        for worker in multiprocessing.active_children():
            if worker not in others:
                worker.kill()
        pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_of_parent() -> Generator[None, None, None]:
    """Has processes that start now leave Ctrl-C, which a terminal sends to all, to this one.

    The signal is blocked, as new processes inherit. If it were ignored, one that comes now would be lost.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """Ends this process when the one that started it does, which its pool would not see."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
