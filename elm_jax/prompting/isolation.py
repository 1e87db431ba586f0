"""Isolation: templates of strangers run in a process of their own, with limits on time and memory.

A stranger's is every template but the package's own, PromptSource's fetched release, and one that a program
makes itself. Jinja's sandbox keeps it from Python; what no sandbox can tell beforehand is how long it runs
and how much it makes, so the system limits the process (`template_worker`) and ends it. Rows travel in
batches, which keeps ordinary templates fast. What comes back is JSON, checked by the types of what was asked
for: nothing that the process writes is unpickled here.
"""

import atexit
import functools
import itertools
import os
import pickle
import subprocess
import sys
import threading
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from elm_jax import errors, schema
from elm_jax.errors import UserError

P = ParamSpec("P")
T = TypeVar("T")

TIMEOUT_SECONDS = 20
"""Of the processor, for a batch of rows."""
MEMORY_BYTES = 1 << 30
"""Beyond what the process needs before it renders anything."""
BATCH_ROWS, BATCH_BYTES = 256, 1 << 23
MOST_ANSWER_BYTES = 1 << 28
VALUE, ERROR, MORE = b"V", b"E", b"M"
"""What the process writes: a result, what is wrong, or that it has used up its rows."""
LENGTH_BYTES = 8
_PACKAGES = Path(__file__).parents[2]
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "LANG", "TMPDIR")


@dataclass(frozen=True)
class _ErrorForm(schema.Form):
    kind: schema.Text
    message: str
    fields: Mapping[str, str | None] = field(default_factory=dict)


class _DeadError(Exception):
    """The process ended before it answered."""


def isolate_foreign_templates(position: int) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Lets a function run in the process for strangers' templates if its template is one.

    Args:
        position: The template's position among the arguments. At 1 it comes after the rows, which travel
            batch by batch as they are used.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            template: Any = args[position]
            if not template.foreign:
                return function(*args, **kwargs)
            own = [*args[:position], replace(template, foreign=False), *args[position + 1 :]]
            rows = iter(typing.cast("Iterable[Any]", own[0])) if position else None
            called = (function.__module__, function.__qualname__, own[position:], kwargs)
            answer = _shared_process().ask(called, rows, f"Template {template.name!r}")
            returned = typing.get_type_hints(function)["return"]
            return schema.parse(answer, returned, what="a rendering", fix="correct the template")

        return run

    return decorate


@functools.cache
def _shared_process() -> "TemplateProcess":
    process = TemplateProcess()
    atexit.register(process.stop)
    return process


class TemplateProcess:
    """The process, which is started for the first template and again after one that had to be stopped."""

    def __init__(self, seconds: int = TIMEOUT_SECONDS, memory_bytes: int = MEMORY_BYTES) -> None:
        self.seconds, self.memory_bytes = seconds, memory_bytes
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, called: Any, rows: Iterator[Any] | None, what: str) -> bytes:
        """Returns the result of a call there, as JSON.

        Args:
            called: The function's module, its name, its arguments, and those by name.
            rows: Rows that the function is given before its other arguments.
            what: The template, in errors.

        Raises:
            UserError: What the function raises; or if the process has to be stopped.
        """
        with self._lock:
            sent = 0
            try:
                self._send(_pickle((*called, rows is not None), what))
                while True:
                    kind, content = self._receive()
                    if kind != MORE or rows is None:
                        break
                    batch = list(_take_batch(rows, what))
                    self._send(pickle.dumps(batch))
                    sent += len(batch)
            except (_DeadError, BrokenPipeError):
                self.stop()
                where = f", rows up to number {sent}" if sent else ""
                raise UserError(
                    f"{what}{where}: expected it to render {BATCH_ROWS} rows within {self.seconds} seconds "
                    f"and {self.memory_bytes >> 20} MiB, got no end of it. Fix: correct the template."
                ) from None
            except BaseException:
                self.stop()  # what it still writes belongs to this question
                raise
        if kind == ERROR:
            raise _make_error(content)
        return content

    def stop(self) -> None:
        """Ends the process, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    @property
    def _limits(self) -> tuple[str, str]:
        return str(self.seconds), str(self.memory_bytes)

    def _send(self, content: bytes) -> None:
        if self._process is None:
            kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "elm_jax.prompting.template_worker", *self._limits],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                # No tokens, and one thread: those of a mathematics library would count as memory.
                env={**kept, "PYTHONPATH": str(_PACKAGES), "OPENBLAS_NUM_THREADS": "1"},
            )
        stream = typing.cast("typing.IO[bytes]", self._process.stdin)
        stream.write(len(content).to_bytes(LENGTH_BYTES, "little") + content)
        stream.flush()

    def _receive(self) -> tuple[bytes, bytes]:
        stream = typing.cast("typing.IO[bytes]", typing.cast("subprocess.Popen[bytes]", self._process).stdout)
        head = stream.read(1 + LENGTH_BYTES)
        length = int.from_bytes(head[1:], "little")
        if len(head) <= LENGTH_BYTES or length > MOST_ANSWER_BYTES:
            raise _DeadError
        content = stream.read(length)
        if len(content) < length:
            raise _DeadError
        return head[:1], content


def _take_batch(rows: Iterator[Any], what: str) -> Iterator[bytes]:
    """Yields the next rows, pickled, as many as travel together; none at the end."""
    size = 0
    for row in itertools.islice(rows, BATCH_ROWS):
        content = _pickle(row, what)
        yield content
        size += len(content)
        if size > BATCH_BYTES:
            return


def _pickle(value: Any, what: str) -> bytes:
    try:
        return pickle.dumps(value)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UserError(
            f"{what}: expected rows of plain values, got one that cannot be handed on ({error}). Fix: make "
            "it a text, a number or a list."
        ) from None


def _make_error(content: bytes) -> UserError:
    told: _ErrorForm = schema.parse(content, _ErrorForm, what="a rendering", fix="correct the template")
    kind = getattr(errors, told.kind, UserError)
    is_known = isinstance(kind, type) and issubclass(kind, UserError)
    return kind(told.message, **told.fields) if is_known else UserError(told.message)
