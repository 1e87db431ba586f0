"""Trackers: where training's metrics go beside the journal, such as TensorBoard and Weights & Biases.

Both come with the extra `track`, and are imported when they are first asked for. A tracker of your own is a
class with the methods of `Tracker`, registered from anywhere by `@elm_jax.register_tracker("name")`.

The series of an expert are its `loss`, its learning `rate`, and its `validation` loss and `accuracy`; "total"
has those of all together. TensorBoard has a run for every expert over the expert's own steps, so that one
chart has them all. W&B has one run, with series such as `loss/<expert>` over the batches, for all lines of
its charts share an axis.
"""

import time
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from etils import epath

from elm_jax import names, schema, storage
from elm_jax.errors import UserError
from elm_jax.extras import install_command
from elm_jax.telemetry.events import Event
from elm_jax.telemetry.jsonl_log import STEPS_BETWEEN_LINES, explain_write_errors, metrics_to_log
from elm_jax.telemetry.throughput import Throughput

TOTAL = "total"


@dataclass(frozen=True)
class _IdForm(schema.FileForm):
    id: schema.Text


@dataclass(frozen=True)
class MetricPoint:
    """Metrics of one expert, or of all, at one of their steps.

    Attributes:
        series: the expert's id, or "total".
        step: of the expert's own, or of all experts together.
        values: by name.
    """

    series: str
    step: int
    values: Mapping[str, float]


class Tracker(Protocol):
    """What takes training's metrics."""

    def add(self, batch: int, points: Sequence[MetricPoint]) -> None:
        """Adds metrics of one batch."""

    def end(self, series: Sequence[str]) -> None:
        """Ends the series of experts that train no more."""

    def close(self) -> None:
        """Ends this process's part of the run."""


TrackerFactory = Callable[[epath.Path, Mapping[str, Any]], Tracker]
Factory = TypeVar("Factory", bound=TrackerFactory)
TRACKERS: dict[str, TrackerFactory] = {}


def register_tracker(name: str) -> Callable[[Factory], Factory]:
    """Registers a tracker under a name that `--track`, TRACKERS and `LogConfig.trackers` then take.

    The class is called with the directory that it writes to and the run's settings, and has the methods of
    `Tracker`.

    Args:
        name: Name of the tracker.

    Returns:
        The decorator of the class.

    Raises:
        UserError: If another tracker has this name.
    """

    def register(factory: Factory) -> Factory:
        if TRACKERS.get(name, factory) is not factory:
            raise UserError(f"Expected a new name for a tracker, got {name!r} again. Fix: choose another.")
        TRACKERS[name] = factory
        return factory

    return register


def require_trackers(wanted: Sequence[str]) -> None:
    """Raises a UserError if there is no tracker of a name."""
    for name in wanted:
        names.resolve(name, TRACKERS, kind="tracker", where="elm_jax")


def metric_points(
    event: Event, throughput: Throughput, every: int = STEPS_BETWEEN_LINES
) -> list[MetricPoint]:
    """Returns the metrics of an event; totals come every so many batches, and with the last step."""
    points = [
        MetricPoint(each.expert, each.step, {"loss": each.loss, "rate": each.learning_rate})
        for each in metrics_to_log(event, every)
    ]
    for validation in event.validations:
        values = {"validation": validation.loss, "accuracy": validation.accuracy}
        points.append(MetricPoint(validation.expert, validation.step, _without_unknown(values)))
    if event.batch % every == 0 or event.steps_done == event.steps:
        totals = {
            "loss": throughput.loss,
            "tokens_per_second": throughput.tokens_per_second,
            "real": throughput.fill_ratio,
            "mfu": throughput.mfu,
        }
        points.append(MetricPoint(TOTAL, event.steps_done, _without_unknown(totals)))
    return points


Write = Callable[[int, Sequence[MetricPoint], Sequence[str]], None]
"""Takes the number of a batch, its points, and the series that end with it."""


@contextmanager
def open_tracker(name: str, logs: epath.Path, settings: Mapping[str, Any]) -> Generator[Write, None, None]:
    """Opens a tracker by name, and yields a function that takes points.

    Args:
        name: under which it is registered.
        logs: directory, in which the tracker writes to one of its name.
        settings: of the run; W&B shows them as its configuration.

    Raises:
        UserError: there is no such tracker, or a package that it needs is not installed.
    """
    factory = TRACKERS[names.resolve(name, TRACKERS, kind="tracker", where="elm_jax")]
    directory = logs / name
    with ExitStack() as stack:
        try:
            tracker = factory(directory, settings)
        except ImportError as error:
            raise UserError(
                f"Expected the packages of the tracker {name!r}, got an error ({error}). Fix: "
                f"{install_command('track')}."
            ) from error
        stack.enter_context(explain_write_errors(directory))
        stack.callback(tracker.close)

        def write(batch: int, points: Sequence[MetricPoint], ended: Sequence[str]) -> None:
            with explain_write_errors(directory):
                if points:
                    tracker.add(batch, points)
                tracker.end(ended)

        yield write


def track_training(write: Write, every: int = STEPS_BETWEEN_LINES) -> Callable[[Event, Throughput], None]:
    """Returns a function that writes the metrics of events, with `every` steps between an expert's points."""

    def track(event: Event, throughput: Throughput) -> None:
        ended = (*event.finished, *(failure.expert for failure in event.failed))
        write(event.batch, metric_points(event, throughput, every), ended)

    return track


@register_tracker("tensorboard")
class TensorBoard:
    """Event files as TensorBoard reads them, one for every process and series.

    TensorBoard's own writer would import TensorFlow where it is installed, which training never does.
    """

    def __init__(self, directory: epath.Path, settings: Mapping[str, Any]) -> None:
        from tensorboard.compat.proto import event_pb2  # pyright: ignore[reportMissingImports]
        from tensorboard.summary.writer import record_writer  # pyright: ignore[reportMissingImports]

        del settings
        event: Any = event_pb2  # its classes are made when it is imported
        self._directory, self._event, self._writer = directory, event.Event, record_writer.RecordWriter
        self._open: dict[str, Any] = {}

    def add(self, batch: int, points: Sequence[MetricPoint]) -> None:
        """Adds points, each at its own step."""
        del batch
        for point in points:
            event = self._event(wall_time=time.time(), step=point.step)
            for tag, value in point.values.items():
                event.summary.value.add(tag=tag, simple_value=value)
            writer = self._writer_of(point.series)
            writer.write(event.SerializeToString())
            writer.flush()

    def end(self, series: Sequence[str]) -> None:
        """Closes the files of experts that train no more."""
        for name in series:
            if name in self._open:
                self._open.pop(name).close()

    def close(self) -> None:
        """Closes all files."""
        self.end(tuple(self._open))

    def _writer_of(self, series: str) -> Any:
        if series not in self._open:
            directory = self._directory.joinpath(*map(names.directory_name, series.split("/", 1)))
            storage.writable_directory(directory)
            file = (directory / f"events.out.tfevents.{time.time():.6f}.{uuid.uuid4().hex}").open("wb")
            writer = self._open[series] = self._writer(file)
            writer.write(self._event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        return self._open[series]


@register_tracker("wandb")
class WandB:
    """One run of Weights & Biases for a directory; a process that resumes training adds to its series."""

    def __init__(self, directory: epath.Path, settings: Mapping[str, Any]) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        storage.writable_directory(directory)
        id_file = directory / "run.json"
        if not id_file.exists():
            storage.write_json(id_file, {"id": uuid.uuid4().hex})
        try:
            self._run = wandb.init(
                project="elm_jax",
                id=schema.read(id_file, _IdForm, what="The id of a W&B run", fix="delete it").id,
                resume="allow",
                dir=None
                if "://" in str(directory)
                else str(directory.parent),  # where it makes a folder `wandb`
                config=dict(settings),
                # Its console would save every frame of the live view, and its farewell lists every series.
                settings=wandb.Settings(console="off", quiet=True),
            )
        except wandb.Error as error:
            raise UserError(
                f"Expected W&B to start, got an error ({error}). Fix: run `wandb login`, or set "
                "WANDB_MODE=offline."
            ) from error
        self._run.define_metric("*", step_metric="round")

    def add(self, batch: int, points: Sequence[MetricPoint]) -> None:
        """Adds points, all at one batch."""
        named = {f"{tag}/{p.series}": value for p in points for tag, value in p.values.items()}
        self._run.log({"round": batch, **named})

    def end(self, series: Sequence[str]) -> None:
        """Does nothing: W&B's series have no end."""

    def close(self) -> None:
        """Ends this process's part of the run."""
        self._run.finish()


def _without_unknown(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}
