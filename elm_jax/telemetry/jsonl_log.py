"""The journal: what happened in training, one JSON object a line, for whoever reads it later.

A line has a `kind`: "run" where a process starts, "step" of an expert, its "finished" or "failed", and
"validation". Lines are only ever added, so a run that was killed and resumed repeats the steps after its
last checkpoint, and `read_journal` keeps the later ones. `round` is the number of the batch, `tokens` are
real ones of the batch, of all experts together, and `tokens_per_second` and `mfu` (null if unknown) are those
of the whole run.
"""

import json
import math
import os
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from etils import epath

from elm_jax import schema, storage
from elm_jax.controls import escape_controls
from elm_jax.errors import UserError
from elm_jax.telemetry.events import Event, StepMetrics
from elm_jax.telemetry.throughput import Throughput

STEPS_BETWEEN_LINES = 10  # of an expert's own steps
REWRITE_EVERY = 60.0  # seconds between writes of a file that can only be written whole
Record = dict[str, Any]


@dataclass(frozen=True)
class _RecordForm(schema.Form):
    """What every line of a journal has, or may have."""

    kind: schema.Text
    time: str = ""
    expert: schema.Text = "all"
    step: schema.Count | None = None
    steps: schema.Count | None = None
    loss: float | None = None
    rate: float | None = None
    accuracy: float | None = None


def metrics_to_log(event: Event, every: int = STEPS_BETWEEN_LINES) -> list[StepMetrics]:
    """Returns the metrics that are worth a line: every so many of an expert's own steps, and its last."""
    return [each for each in event.metrics if each.step % every == 0 or each.step == each.steps]


def journal_records(event: Event, throughput: Throughput, every: int = STEPS_BETWEEN_LINES) -> list[Record]:
    """Returns what a journal says of one event, without the time."""
    measured = {
        "tokens": event.prompt_tokens + event.answer_tokens,
        "tokens_per_second": throughput.tokens_per_second,
        "mfu": throughput.mfu,
    }
    steps = {each.expert: _step_fields(each) for each in event.metrics}
    unknown = dict.fromkeys(("step", "steps", "loss", "rate"))

    def record(kind: str, expert: str, fields: Mapping[str, Any]) -> Record:
        return {"kind": kind, "round": event.batch, "expert": expert, **fields}

    return [
        *(
            record("step", each.expert, _step_fields(each) | measured)
            for each in metrics_to_log(event, every)
        ),
        *(record("validation", each.expert, asdict(each)) for each in event.validations),
        *(record("finished", name, steps.get(name, unknown) | measured) for name in event.finished),
        *(record("failed", each.expert, steps.get(each.expert, {}) | asdict(each)) for each in event.failed),
    ]


class Journal:
    """An open journal."""

    def __init__(
        self,
        where: epath.Path,
        *,
        every: int = STEPS_BETWEEN_LINES,
        rewrite: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Opens a file to add to, or a new one; half a line that a killed process left at the end is cut off.

        Args:
            where: the file.
            every: steps of an expert between two lines.
            rewrite: whether the file is written anew, now and then and at the end. Default: in a bucket,
                whose objects cannot grow.
            clock: seconds.
            now: the time of a line.
        """
        self.where, self.every, self._clock, self._now = where, every, clock, now
        storage.writable_directory(where.parent)
        self._content, half_line = _split_half_line(where)
        self._written_at = clock()
        self._file = None
        if not ("://" in os.fspath(where) if rewrite is None else rewrite):
            if half_line:
                storage.write_bytes(where, self._content)
            self._content = b""
            self._file = open(os.fspath(where), "ab")  # noqa: SIM115, closed by `close`

    def __call__(self, event: Event, throughput: Throughput) -> None:
        """Writes what is worth a line."""
        self.write(journal_records(event, throughput, self.every))

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds records, all of one moment; they are with the system before this returns."""
        at = self._now().isoformat(timespec="milliseconds")
        content = b"".join(_line({"time": at, **row}) for row in rows)
        if not content:
            return
        if self._file is None:
            self._content += content
            if self._clock() - self._written_at >= REWRITE_EVERY:
                self._rewrite()
            return
        with explain_write_errors(self.where):
            self._file.write(content)
            self._file.flush()

    def close(self) -> None:
        """Ends the journal; to be called once."""
        if self._file is None:
            self._rewrite()
        else:
            with explain_write_errors(self.where):
                self._file.close()

    def _rewrite(self) -> None:
        self._written_at = self._clock()
        storage.write_bytes(self.where, self._content)


@contextmanager
def open_journal(
    where: epath.Path, start: Mapping[str, Any], *, every: int = STEPS_BETWEEN_LINES
) -> Generator[Journal, None, None]:
    """Opens a journal, with a record of kind "run" of what starts now."""
    journal = Journal(where, every=every)
    try:
        journal.write([{"kind": "run", **start}])
        yield journal
    finally:
        journal.close()


@contextmanager
def explain_write_errors(where: epath.Path) -> Generator[None, None, None]:
    """Turns the system's refusal to write a log into a UserError that names the file."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"Expected to write a log of training in {os.fspath(where)!r}, got {error.strerror or error}. "
            "Fix: free space there, or choose another output directory."
        ) from error


def read_journal(where: storage.PathLike) -> list[Record]:
    """Returns a journal's records in their order; of those of one kind, expert and step the last.

    A last line without an end, of a process that was killed or still writes, is a record of kind "unfinished"
    with its `text`.

    Raises:
        UserError: there is no such file, or another line is no JSON.
    """
    content = storage.read_content(where, what="A journal of training (a run's logs/training.jsonl)")
    *lines, last = content.split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        what = f"a record in line {number} of the journal at {os.fspath(where)!r}"
        schema.parse(line, _RecordForm, what=what, fix="remove the line")
        records.append(json.loads(line))
    records += [{"kind": "unfinished", "text": last.decode(errors="replace")}] if last else []
    latest = {_key(record, index): index for index, record in enumerate(records)}
    return [records[index] for index in sorted(latest.values())]


def _step_fields(metrics: StepMetrics) -> Record:
    """Returns the fields of a step by the journal's keys."""
    fields = asdict(metrics)
    return fields | {"rate": fields.pop("learning_rate")}


def _key(record: Record, index: int) -> tuple[Any, ...]:
    if "expert" not in record:
        return (index,)
    return (record["kind"], record["expert"], record.get("step"))


def _line(record: Mapping[str, Any]) -> bytes:
    """Returns strict JSON: a number that is not finite is null, and the record says so."""
    not_finite = {name for name, v in record.items() if isinstance(v, float) and not math.isfinite(v)}
    fields = {name: None if name in not_finite else value for name, value in record.items()}
    fields |= {"finite": False} if not_finite else {}
    text = json.dumps(fields, allow_nan=False, ensure_ascii=False)
    return escape_controls(text).encode() + b"\n"


def _split_half_line(where: epath.Path) -> tuple[bytes, bytes]:
    """Returns what a file holds up to the end of its last whole line, and what comes after."""
    content = storage.read_content(where, what="A journal of training") if where.exists() else b""
    end = content.rfind(b"\n") + 1
    return content[:end], content[end:]
