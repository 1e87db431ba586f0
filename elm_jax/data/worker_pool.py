"""Worker pool: processes that work side by side, and end when their parent does."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager


@contextmanager
def open_pool(processes: int) -> Generator[ProcessPoolExecutor, None, None]:
    """Opens a pool of new (spawned) processes.

    They end with their parent, whatever ends it: of SIGKILL, SIGTERM or a lack of memory it cannot tell them.
    """
    context, others = multiprocessing.get_context("spawn"), multiprocessing.active_children()
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_end_with_parent)
    try:
        with _interrupts_of_parent():
            pool.submit(os.getpid)  # the first call starts all processes
        yield pool
    except BaseException:
        # What they are still at, nobody waits for.
        for worker in multiprocessing.active_children():
            if worker not in others:
                worker.kill()
        raise
    finally:
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
    """Waits, in a thread, for the parent's end, and ends this process at once."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
