"""Interrupts: how a command ends on Ctrl-C and on SIGTERM: with one sentence, and an exit code of its own.

What is on disk is whole at any moment, so leaving needs no farewell. The interpreter's own would tear down
what threads of XLA still use.
"""

import atexit
import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Generator, Iterable, Sequence
from types import FrameType
from typing import Any

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
GRACE_SECONDS = 10.0
"""After a signal, the time in which a command may leave by itself, as where no Python code runs."""
IMPORTLIB = "<frozen importlib._bootstrap>"
MESSAGE = "elm: stopped. Run the same command again to continue."


@contextlib.contextmanager
def exit_on_signals(*, to_process_end: bool = False) -> Generator[None, None, None]:
    """Ends the process with 130 on Ctrl-C and 143 on SIGTERM; a second signal ends it at once.

    The signal is a `SystemExit` for the code that runs, which can tidy up; while a module is imported, the
    process ends at once, since native code may not survive an exception where it initializes itself. Signals
    that are ignored stay so. Outside of the main thread nothing is caught.

    Args:
        to_process_end: whether the process ends with what runs here. From then on, while the interpreter
            leaves, a signal only ends it sooner, with the code that it would have had.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signalled: list[int] = []
    ended: list[int] = []
    caught = [number for number in EXIT_CODES if signal.getsignal(number) is not signal.SIG_IGN]
    if to_process_end:
        # The first to be registered is called last: nothing that can take long comes after it.
        atexit.register(_ignore, caught)

    def leave(number: int, frame: FrameType | None) -> None:
        code = EXIT_CODES[signal.Signals(number)]
        if ended:
            _leave(ended[0])
        if signalled or _is_importing(frame):
            _leave(code, MESSAGE)
        signalled.append(code)
        os.write(writer, bytes([code]))
        raise SystemExit(code)

    def leave_unraisable(error: Any) -> None:
        """Leaves where an exception cannot, such as a callback of the garbage collector."""
        if signalled:
            _leave(signalled[0], MESSAGE)
        show(error)

    handlers = {number: signal.signal(number, leave) for number in caught}
    show, sys.unraisablehook = sys.unraisablehook, leave_unraisable
    # The system's part of a signal writes its number here, also while no Python code runs.
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(reader, ended), daemon=True)
    watcher.start()

    def restore() -> None:
        sys.unraisablehook = show
        signal.set_wakeup_fd(wakeup)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.write(writer, b"\0")
        watcher.join()
        os.close(reader)
        os.close(writer)

    code = 0
    try:
        yield
    except BaseException as error:  # whatever native code made of the `SystemExit`
        if signalled:
            _leave(signalled[0], MESSAGE)
        code = _exit_code(error)
        raise
    finally:
        if to_process_end:
            ended.append(code)
        else:
            restore()


def _is_importing(frame: FrameType | None) -> bool:
    """Tells whether a frame, or one that called it, imports a module."""
    while frame is not None:
        if frame.f_code.co_filename == IMPORTLIB:
            return True
        frame = frame.f_back
    return False


def _exit_code(error: BaseException) -> int:
    """Returns the code that the interpreter gives a process which ends with an exception."""
    if not isinstance(error, SystemExit):
        return 1
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    return 1


def _ignore(numbers: Iterable[int]) -> None:
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


def _watch(reader: int, ended: Sequence[int]) -> None:
    """Ends the process if it is still there some time after a signal, or at a second Ctrl-C.

    Once the command has ended, one signal is enough.
    """
    code, interrupts = 0, 0
    while select.select([reader], [], [], GRACE_SECONDS if code else None)[0]:
        for byte in os.read(reader, 64):
            if byte == 0:
                return
            if ended and byte in EXIT_CODES:
                _leave(ended[0])
            interrupts += byte == signal.SIGINT and signal.getsignal(byte) is not signal.SIG_IGN
            # SIGTERM counts once our handler has it: a training saves its state first.
            code = code or (byte if byte in EXIT_CODES.values() else EXIT_CODES[signal.SIGINT] * interrupts)
        if interrupts > 1:
            break
    _leave(code, MESSAGE)


def _leave(code: int, message: str | None = None) -> None:
    """Ends the process, after what was printed is out."""
    with contextlib.suppress(OSError, ValueError):
        if message is not None:
            print(message, file=sys.stderr, flush=True)
        sys.stdout.flush()
    os._exit(code)
