"""The journal: what happened in training, one JSON object a line, for whoever reads it later.

A line has a `kind`: "run" where a process starts, "step" of an expert, its "finished" or "failed", and
"validation". Lines are only ever added, so a run that was killed and goes on repeats the steps after its last
checkpoint, and `read` keeps the later ones. `tokens` are real ones of the round, of all experts together, and
`tokens_per_second` and `mfu` (None where unknown) are those of the whole run.
"""

import json
import math
import os
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from etils import epath

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.telemetry.events import Event, Standing
from elm_jax.telemetry.throughput import Reading

EVERY = 10  # of an expert's own steps
WHOLE_EVERY = 60.0  # seconds between writes where a file can only be written whole
Record = dict[str, Any]


def due(event: Event, every: int = EVERY) -> list[Standing]:
    """Returns the standings worth a line: every so many of an expert's own steps, and its last."""
    return [s for s in event.standings if s.step % every == 0 or s.step == s.steps]


def records(event: Event, reading: Reading, every: int = EVERY) -> list[Record]:
    """Returns what a journal says of one event, without the time."""
    measured = {
        "tokens": event.prompt_tokens + event.answer_tokens,
        "tokens_per_second": reading.tokens_per_second,
        "mfu": reading.mfu,
    }
    standing = {s.expert: asdict(s) for s in event.standings}
    unknown = dict.fromkeys(("step", "steps", "loss", "rate"))

    def record(kind: str, expert: str, told: Mapping[str, Any]) -> Record:
        return {"kind": kind, "round": event.round, "expert": expert, **told}

    return [
        *(record("step", s.expert, asdict(s) | measured) for s in due(event, every)),
        *(record("validation", v.expert, asdict(v)) for v in event.validations),
        *(record("finished", name, standing.get(name, unknown) | measured) for name in event.finished),
        *(record("failed", f.expert, standing.get(f.expert, {}) | asdict(f)) for f in event.failed),
    ]


class Journal:
    """An open journal."""

    def __init__(
        self,
        where: epath.Path,
        *,
        every: int = EVERY,
        whole: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Opens a file to go on with, or a new one; a last line that a killed process left half is cut off.

        `whole` writes the file anew, now and then and at the end: objects in a bucket cannot grow.
        """
        self.where, self.every, self._clock, self._now = where, every, clock, now
        storage.writable_directory(where.parent)
        self._kept, half = _halved(where)
        self._written = clock()
        self._file = None
        if not ("://" in os.fspath(where) if whole is None else whole):
            if half:
                storage.write_bytes(where, self._kept)
            self._kept = b""
            self._file = open(os.fspath(where), "ab")  # noqa: SIM115, closed by `close`

    def __call__(self, event: Event, reading: Reading) -> None:
        """Writes what is worth a line."""
        self.write(records(event, reading, self.every))

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds records, all of one moment; they are with the system before this returns."""
        at = self._now().isoformat(timespec="milliseconds")
        content = b"".join(_line({"time": at, **row}) for row in rows)
        if not content:
            return
        if self._file is None:
            self._kept += content
            if self._clock() - self._written >= WHOLE_EVERY:
                self._write_whole()
            return
        with writing(self.where):
            self._file.write(content)
            self._file.flush()

    def close(self) -> None:
        """Ends the journal; to be called once."""
        if self._file is None:
            self._write_whole()
        else:
            with writing(self.where):
                self._file.close()

    def _write_whole(self) -> None:
        self._written = self._clock()
        storage.write_bytes(self.where, self._kept)


@contextmanager
def opened(where: epath.Path, start: Mapping[str, Any], **options: Any) -> Generator[Journal, None, None]:
    """Opens a journal, with a record of kind "run" of what starts now."""
    journal = Journal(where, **options)
    try:
        journal.write([{"kind": "run", **start}])
        yield journal
    finally:
        journal.close()


@contextmanager
def writing(where: epath.Path) -> Generator[None, None, None]:
    """Says what was to be written where the system refuses."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"A log of training was to be written in {os.fspath(where)!r}, but the system refused "
            f"({error.strerror or error}). Free space there, or choose another output directory."
        ) from error


def read(where: storage.PathLike) -> list[Record]:
    """Returns a journal's records in their order, of those of one kind, expert and step the last.

    A last line without an end, of a process that was killed or still writes, is a record of kind "unfinished"
    with its `text`; any other line that is no JSON is a UserError with its number.
    """
    try:
        content = storage.path(where).read_bytes()
    except FileNotFoundError:
        raise UserError(
            f"Training's journal is wanted at {os.fspath(where)!r}, but no file is there."
        ) from None
    *lines, last = content.split(b"\n")
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(json.loads(line))
        except ValueError as error:
            raise UserError(
                f"Training's journal at {os.fspath(where)!r}, line {number}, is no JSON ({error})."
            ) from None
    found += [{"kind": "unfinished", "text": last.decode(errors="replace")}] if last else []
    latest = {_key(record, place): place for place, record in enumerate(found)}
    return [found[place] for place in sorted(latest.values())]


def _key(record: Record, place: int) -> tuple[Any, ...]:
    if "expert" not in record:
        return (place,)
    return (record["kind"], record["expert"], record["step"])


def _line(record: Mapping[str, Any]) -> bytes:
    """Returns strict JSON: a number that is not finite is null, and the record says so."""
    odd = {name for name, v in record.items() if isinstance(v, float) and not math.isfinite(v)}
    plain = {name: None if name in odd else value for name, value in record.items()}
    told = plain | ({"finite": False} if odd else {})
    return json.dumps(told, allow_nan=False, ensure_ascii=False).encode() + b"\n"


def _halved(where: epath.Path) -> tuple[bytes, bytes]:
    """Returns what a file holds up to the end of its last whole line, and what comes after."""
    content = where.read_bytes() if where.exists() else b""
    end = content.rfind(b"\n") + 1
    return content[:end], content[end:]
