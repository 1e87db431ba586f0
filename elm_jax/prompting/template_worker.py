"""Template worker: the process in which templates of strangers are rendered (`isolation`).

It reads questions that its parent pickled, and writes JSON. Before each answer it limits what it may take:
the processor's time, memory, and no file that it writes may grow. The system ends it beyond these.
"""

import functools
import importlib
import json
import pickle
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from typing import IO, Any

from elm_jax.errors import UserError
from elm_jax.prompting import isolation


def main(seconds: int, memory_bytes: int) -> None:
    """Answers until its input ends; with so many seconds for a batch of rows, and so much memory for all."""
    source, target = sys.stdin.buffer, sys.stdout.buffer
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _preload_imports()
    memory = _address_space() + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    while (question := _read(source)) is not None:
        _limit_seconds(seconds)
        try:
            kind, content = isolation.VALUE, _answer(question, _iterate_rows(source, target, seconds))
        except (UserError, MemoryError, RecursionError) as error:
            known = type(error).__name__ if isinstance(error, UserError) else "UserError"
            message = str(error) or type(error).__name__
            told = {"kind": known, "message": message, "fields": vars(error)}
            kind, content = isolation.ERROR, json.dumps(told, default=str).encode()
        _write(target, kind, content)


def _answer(question: bytes, rows: Iterator[Any]) -> bytes:
    """Returns the result of the function that is asked for, as JSON."""
    module, name, args, kwargs, has_rows = pickle.loads(question)
    function: Any = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    function = getattr(function, "func", function)  # of a cached property
    value = function(rows, *args, **kwargs) if has_rows else function(*args, **kwargs)
    return json.dumps(value, default=_to_plain).encode()


def _iterate_rows(source: IO[bytes], target: IO[bytes], seconds: int) -> Iterator[Any]:
    """Yields the parent's rows, asking for more when they are used up."""
    while True:
        _write(target, isolation.MORE, b"")
        batch = _read(source)
        rows = [] if batch is None else pickle.loads(batch)
        if not rows:
            return
        _limit_seconds(seconds)
        for row in rows:
            yield pickle.loads(row)


def _to_plain(value: Any) -> Any:
    if isinstance(value, frozenset):
        return sorted(value)
    return {each.name: getattr(value, each.name) for each in fields(value)}


def _read(source: IO[bytes]) -> bytes | None:
    head = source.read(isolation.LENGTH_BYTES)
    return source.read(int.from_bytes(head, "little")) if len(head) == isolation.LENGTH_BYTES else None


def _write(target: IO[bytes], kind: bytes, content: bytes) -> None:
    target.write(kind + len(content).to_bytes(isolation.LENGTH_BYTES, "little") + content)
    target.flush()


def _limit_seconds(seconds: int) -> None:
    """Lets the process go on for so many seconds of the processor from now."""
    last = int(time.process_time()) + 1 + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (last, resource.RLIM_INFINITY))


def _preload_imports() -> None:
    """Imports what rendering needs, so that it is no part of the memory that is limited."""
    importlib.import_module("elm_jax.prompting.render")


def _address_space() -> int:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:  # not Linux
        return 0


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
