"""The tracker: series of training's numbers for TensorBoard and for Weights & Biases, where they are wanted.

Both come with the extra `track`, and are imported when they are first asked for. Series of an expert are its
`loss`, its learning `rate`, and its `validation` loss and `accuracy`; "total" has those of all together.
TensorBoard has a run for every expert over the expert's own steps, so that one chart has them all. W&B has
one run, with series such as `loss/<expert>` over the rounds, for all lines of its charts share an axis.
"""

import time
import uuid
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from etils import epath

from elm_jax import names, storage
from elm_jax.errors import UserError
from elm_jax.telemetry.events import Event
from elm_jax.telemetry.jsonl_log import EVERY, due, writing
from elm_jax.telemetry.throughput import Reading

TOTAL = "total"


@dataclass(frozen=True)
class Point:
    """Numbers of one expert, or of all, at one of their steps."""

    series: str
    step: int
    values: Mapping[str, float]


def points(event: Event, reading: Reading, every: int = EVERY) -> list[Point]:
    """Returns what an event adds to the series; totals come every so many rounds, and with the last step."""
    found = [Point(s.expert, s.step, {"loss": s.loss, "rate": s.rate}) for s in due(event, every)]
    for validation in event.validations:
        worth = {"validation": validation.loss, "accuracy": validation.accuracy}
        found.append(Point(validation.expert, validation.step, _known(worth)))
    if event.round % every == 0 or event.steps_done == event.steps:
        totals = {
            "loss": reading.loss,
            "tokens_per_second": reading.tokens_per_second,
            "real": reading.real,
            "mfu": reading.mfu,
        }
        found.append(Point(TOTAL, event.steps_done, _known(totals)))
    return found


@contextmanager
def tracked(
    name: str, where: epath.Path, told: Mapping[str, Any], *, every: int = EVERY
) -> Generator[Callable[[Event, Reading], None], None, None]:
    """Opens a tracker by name, "tensorboard" or "wandb", that writes below a directory; yields its watcher.

    `told` is what W&B shows as the run's configuration. A package that is not installed is a UserError.
    """
    kind = TRACKERS[names.resolve(name, TRACKERS, kind="tracker", where="elm_jax")]
    with ExitStack() as stack:
        try:
            tracker = kind(where / name, told)
        except ImportError as error:
            raise UserError(
                f"Training was to be tracked with {name!r}, but a package of it is not installed ({error}). "
                "Install the extra: pip install 'elm_jax[track]'."
            ) from error
        stack.enter_context(writing(where / name))
        stack.callback(tracker.close)

        def watch(event: Event, reading: Reading) -> None:
            with writing(where / name):
                if found := points(event, reading, every):
                    tracker.add(event.round, found)
                tracker.end((*event.finished, *(failure.expert for failure in event.failed)))

        yield watch


class Board:
    """Event files as TensorBoard reads them, one for every process and series.

    TensorBoard's own writer would import TensorFlow where it is installed, which training never does.
    """

    def __init__(self, where: epath.Path, told: Mapping[str, Any]) -> None:
        from tensorboard.compat.proto import event_pb2  # pyright: ignore[reportMissingImports]
        from tensorboard.summary.writer import record_writer  # pyright: ignore[reportMissingImports]

        del told
        event: Any = event_pb2  # its classes are made when it is imported
        self._where, self._event, self._writer = where, event.Event, record_writer.RecordWriter
        self._open: dict[str, Any] = {}

    def add(self, round: int, found: list[Point]) -> None:
        """Adds points, each at its own step."""
        del round
        for point in found:
            event = self._event(wall_time=time.time(), step=point.step)
            for tag, value in point.values.items():
                event.summary.value.add(tag=tag, simple_value=value)
            writer = self._of(point.series)
            writer.write(event.SerializeToString())
            writer.flush()

    def end(self, series: tuple[str, ...]) -> None:
        """Closes the files of experts that train no more."""
        for name in series:
            if name in self._open:
                self._open.pop(name).close()

    def close(self) -> None:
        """Closes all files."""
        self.end(tuple(self._open))

    def _of(self, series: str) -> Any:
        if series not in self._open:
            place = self._where.joinpath(*map(names.directory_name, series.split("/", 1)))
            storage.writable_directory(place)
            file = (place / f"events.out.tfevents.{time.time():.6f}.{uuid.uuid4().hex}").open("wb")
            writer = self._open[series] = self._writer(file)
            writer.write(self._event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        return self._open[series]


class WandB:
    """One run of Weights & Biases for a directory: a process that goes on adds to its series."""

    def __init__(self, where: epath.Path, told: Mapping[str, Any]) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        storage.writable_directory(where)
        known = where / "run.json"
        if not known.exists():
            storage.write_json(known, {"id": uuid.uuid4().hex})
        try:
            self._run = wandb.init(
                project="elm_jax",
                id=storage.read_json(known, what="The id of a W&B run")["id"],
                resume="allow",
                dir=None if "://" in str(where) else str(where.parent),  # where it makes a folder `wandb`
                config=dict(told),
                # Its console would keep every frame of the live view, its farewell tells every series.
                settings=wandb.Settings(console="off", quiet=True),
            )
        except wandb.Error as error:
            raise UserError(
                f"Training was to be tracked with W&B, but it could not start ({error}). Run `wandb login`, "
                "or set WANDB_MODE=offline."
            ) from error
        self._run.define_metric("*", step_metric="round")

    def add(self, round: int, found: list[Point]) -> None:
        """Adds points, all at one round."""
        named = {f"{tag}/{p.series}": value for p in found for tag, value in p.values.items()}
        self._run.log({"round": round, **named})

    def end(self, series: tuple[str, ...]) -> None:
        """Does nothing: W&B's series have no end."""

    def close(self) -> None:
        """Ends this process's part of the run."""
        self._run.finish()


TRACKERS: Mapping[str, Callable[[epath.Path, Mapping[str, Any]], Board | WandB]] = {
    "tensorboard": Board,
    "wandb": WandB,
}


def _known(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}
