"""Interrupts: how a command ends on Ctrl-C and on SIGTERM: with one sentence, and an exit code of its own.

What is on disk is whole at any moment, so leaving needs no farewell. The interpreter's own would tear down
what threads of XLA still use.
"""

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Generator
from types import FrameType
from typing import Any

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
GRACE_SECONDS = 10.0
"""After a signal, the time in which a command may leave by itself, as where no Python code runs."""
MESSAGE = "elm: stopped. Run the same command again to continue."


@contextlib.contextmanager
def exit_on_signals() -> Generator[None, None, None]:
    """Ends the process with 130 on Ctrl-C and 143 on SIGTERM; a second signal ends it at once.

    The signal is a `SystemExit` for the code that runs, which can tidy up. Signals that are ignored stay so.
    Outside of the main thread nothing is caught.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signalled: list[int] = []

    def leave(number: int, frame: FrameType | None) -> None:
        del frame
        code = EXIT_CODES[signal.Signals(number)]
        if signalled:
            _leave(code, MESSAGE)
        signalled.append(code)
        os.write(writer, bytes([code]))
        raise SystemExit(code)

    def leave_unraisable(error: Any) -> None:
        """Leaves where an exception cannot, such as a callback of the garbage collector."""
        if signalled:
            _leave(signalled[0], MESSAGE)
        show(error)

    handlers = {number: signal.getsignal(number) for number in EXIT_CODES}
    caught = [number for number, handler in handlers.items() if handler is not signal.SIG_IGN]
    for number in caught:
        signal.signal(number, leave)
    show, sys.unraisablehook = sys.unraisablehook, leave_unraisable
    # The system's part of a signal writes its number here, also while no Python code runs.
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(reader,), daemon=True)
    watcher.start()
    try:
        yield
    except BaseException:  # whatever native code made of the `SystemExit`
        if signalled:
            _leave(signalled[0], MESSAGE)
        raise
    finally:
        sys.unraisablehook = show
        signal.set_wakeup_fd(wakeup)
        for number in caught:
            signal.signal(number, handlers[number])
        os.write(writer, b"\0")
        watcher.join()
        os.close(reader)
        os.close(writer)


def _watch(reader: int) -> None:
    """Ends the process if it is still there some time after a signal, or at a second Ctrl-C."""
    code, interrupts = 0, 0
    while select.select([reader], [], [], GRACE_SECONDS if code else None)[0]:
        for byte in os.read(reader, 64):
            if byte == 0:
                return
            interrupts += byte == signal.SIGINT and signal.getsignal(byte) is not signal.SIG_IGN
            # SIGTERM counts once our handler has it: a training saves its state first.
            code = code or (byte if byte in EXIT_CODES.values() else EXIT_CODES[signal.SIGINT] * interrupts)
        if interrupts > 1:
            break
    _leave(code, MESSAGE)


def _leave(code: int, message: str) -> None:
    """Ends the process, after what was printed is out."""
    with contextlib.suppress(OSError, ValueError):
        print(message, file=sys.stderr, flush=True)
        sys.stdout.flush()
    os._exit(code)
