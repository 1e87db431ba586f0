"""Worker pool: processes that work side by side, and end when their parent does."""

import multiprocessing
import os
import threading
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager


@contextmanager
def open_pool(processes: int) -> Generator[ProcessPoolExecutor, None, None]:
    """Opens a pool of new (spawned) processes.

    They end with their parent, whatever ends it: of SIGKILL, SIGTERM or a lack of memory it cannot tell them.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_end_with_parent) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _end_with_parent() -> None:
    """Waits, in a thread, for the parent's end, and ends this process at once."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
