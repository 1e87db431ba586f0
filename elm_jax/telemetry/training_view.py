"""The view of training: a live view of all experts on a terminal, plain lines elsewhere, and the logs.

All of it goes to standard error and to files below `logs`; a process that shows nothing writes nothing.
"""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any

from etils import epath
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from elm_jax.errors import UserError
from elm_jax.models.flops import FlopsPerToken
from elm_jax.telemetry import jsonl_log
from elm_jax.telemetry import trackers as tracker_registry
from elm_jax.telemetry.events import Event, EventHandler, Failure, StepMetrics, Validation
from elm_jax.telemetry.progress import PLAIN_EVERY, Stages
from elm_jax.telemetry.throughput import Throughput, ThroughputMeter, time_compilations

Observer = Callable[[Event, Throughput], None]
MAX_EXPERTS = 12  # in the table; the rest are counted
LINES_BELOW = 8  # that the view has beside the table
MAX_ROWS = 8  # of a step that are named; the journal has them all
MIN_SHOWN_FLOPS_PER_SECOND = 1e10  # of a second that are shown: a tiny network on a CPU says nothing by them
JOURNAL = "training.jsonl"


@contextmanager
def training(
    stages: Stages,
    title: str,
    *,
    cost: FlopsPerToken | None = None,
    peak: float | None = None,
    logs: epath.Path | None = None,
    trackers: Sequence[str] = (),
    every: int = jsonl_log.STEPS_BETWEEN_LINES,
    shows: bool = True,
    clock: Callable[[], float] = time.monotonic,
    rows: Mapping[str, Mapping[str, Any]] | None = None,
) -> Generator[EventHandler, None, None]:
    """Shows a stage of training while it lasts, and yields a function that takes its events.

    Args:
        stages: of the run.
        title: of the stage.
        cost: model FLOPs of a token. Default: they are shown as unknown.
        peak: FLOP/s of all devices together. Default: the utilisation is shown as unknown.
        logs: directory of the journal and of what trackers write. Default: neither is written.
        trackers: names of trackers.
        every: steps of an expert between two lines of the journal.
        shows: whether this process shows and writes anything; one of several does.
        clock: seconds.
        rows: what became of the rows that were read for each expert, for the journal.
    """
    if trackers and logs is None:
        raise UserError(
            f"Expected a directory of logs for {', '.join(trackers)}, got none. Fix: give `logs`."
        )
    if not shows:
        yield lambda event: None
        return
    with stages.timed(title), ExitStack() as stack:
        meter = ThroughputMeter(cost, peak, clock, stack.enter_context(time_compilations()))
        settings: dict[str, Any] = {
            "title": title,
            "formula": cost.formula if cost else None,
            "flops_per_prompt_token": cost.prompt if cost else None,
            "flops_per_answer_token": cost.answer if cost else None,
            "peak_flops_per_second": peak,
        }
        if rows:
            settings["rows"] = rows
        observers: list[Observer] = []
        if logs is not None:
            observers.append(
                stack.enter_context(jsonl_log.open_journal(logs / JOURNAL, settings, every=every))
            )
            opened = [
                stack.enter_context(tracker_registry.open_tracker(name, logs, settings)) for name in trackers
            ]
            observers += [tracker_registry.track_training(write, every) for write in opened]
        if stages.console.is_terminal:
            observers.append(stack.enter_context(_show_live(LiveView(stages.console, title, cost, clock))))
        else:
            observers.append(LineView(stages.console, title, cost, clock))
        yield event_handler(meter, *observers)


def event_handler(meter: ThroughputMeter, *observers: Observer) -> EventHandler:
    """Returns a function that measures the throughput at every event and passes both to all observers."""

    def handle(event: Event) -> None:
        throughput = meter.measure(event)
        for observer in observers:
            observer(event, throughput)

    return handle


class LiveView:
    """What a terminal shows; rich redraws it as time passes."""

    def __init__(
        self, console: Console, title: str, cost: FlopsPerToken | None, clock: Callable[[], float]
    ) -> None:
        self.console, self.title, self._cost, self._clock = console, title, cost, clock
        self._started = clock()
        self._latest: tuple[Event, Throughput, float] | None = None
        self._validations: dict[str, Validation] = {}

    def __call__(self, event: Event, throughput: Throughput) -> None:
        """Takes an event; the line of an expert that fails is printed above the view, and stays there."""
        self._validations |= {validation.expert: validation for validation in event.validations}
        self._latest = event, throughput, self._clock()
        for failure in event.failed:
            self.console.print(Text(_format_failure(failure), style="red"))

    def __rich__(self) -> RenderableType:
        now = self._clock()
        head = Table.grid(padding=(0, 2))
        elapsed = _format_duration(now - self._started)
        if self._latest is None:
            head.add_row(Text(self.title, style="bold"), elapsed, "preparing and compiling the first step")
            return head
        event, throughput, at = self._latest
        left = throughput.seconds_left and max(0.0, throughput.seconds_left - (now - at))
        head.add_row(
            ProgressBar(event.steps, event.steps_done, width=24),
            f"{event.steps_done:,}/{event.steps:,} steps",
            elapsed,
            f"{_format_duration(left)} left",
        )
        return Group(
            Text(self.title, style="bold"),
            head,
            Text(_format_speed(throughput, self._cost)),
            Text(_format_counts(event, throughput)),
            *([self._table(throughput.training)] if throughput.training else []),
        )

    def _table(self, training: Sequence[StepMetrics]) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, expand=True)
        table.add_column("expert", ratio=1, min_width=12, no_wrap=True, overflow="ellipsis")
        validated = any(metrics.expert in self._validations for metrics in training)
        for name in ("step", "loss", "lr", *(["validation"] if validated else [])):
            table.add_column(name, justify="right", no_wrap=True)
        shown = max(1, min(MAX_EXPERTS, self.console.height - LINES_BELOW))
        for metrics in training[:shown]:
            validation = self._validations.get(metrics.expert)
            table.add_row(
                Text(metrics.expert),
                f"{metrics.step:,}/{metrics.steps:,}",
                f"{metrics.loss:.3f}",
                f"{metrics.learning_rate:.1e}",
                *([_format_validation(validation, " ") if validation else ""] if validated else []),
            )
        if len(training) > shown:
            table.add_row(f"and {len(training) - shown} more")
        return table


class LineView:
    """What a log shows: a line now and then, and one for every expert that ends and every validation."""

    def __init__(
        self, console: Console, title: str, cost: FlopsPerToken | None, clock: Callable[[], float]
    ) -> None:
        self._console, self._title, self._cost, self._clock = console, title, cost, clock
        self._last = clock()

    def __call__(self, event: Event, throughput: Throughput) -> None:
        """Takes an event."""
        metrics = {each.expert: each for each in event.metrics}
        for validation in event.validations:
            best = ", the best so far" if validation.best else ""
            score = _format_validation(validation, ", accuracy ")
            self._print(f"{validation.expert}: step {validation.step:,}, validation loss {score}{best}")
        for name in event.finished:
            self._print(f"{name}: finished{_format_step(metrics.get(name))}")
        for failure in event.failed:
            self._print(_format_failure(failure))
        if self._clock() - self._last >= PLAIN_EVERY:
            self._last = self._clock()
            self._print(
                f"{self._title}: {event.steps_done:,}/{event.steps:,} steps, "
                f"{_format_speed(throughput, self._cost)}, {_format_duration(throughput.seconds_left)} left, "
                f"{_format_counts(event, throughput)}"
            )

    def _print(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)


@contextmanager
def _show_live(view: LiveView) -> Generator[LiveView, None, None]:
    """Shows a view; results that are printed meanwhile go to standard output."""
    with Live(view, console=view.console, refresh_per_second=2, redirect_stdout=False):
        yield view


def _format_step(metrics: StepMetrics | None) -> str:
    return "" if metrics is None else f" after {metrics.step:,} steps, loss {metrics.loss:.3f}"


def _format_speed(now: Throughput, cost: FlopsPerToken | None) -> str:
    parts = [
        "loss unknown" if now.loss is None else f"loss {now.loss:.3f}",
        "padding unknown" if now.fill_ratio is None else f"{now.fill_ratio:.0%} real",
    ]
    if now.tokens_per_second is None:
        parts.append("speed after the next batch")
    else:
        parts.append(f"{now.tokens_per_second:,.0f} tokens/s")
        flops = now.flops_per_second if cost else None
        if flops is not None and cost is not None and flops >= MIN_SHOWN_FLOPS_PER_SECOND:
            parts.append(f"{flops / 1e12:,.3g} TFLOP/s ({cost.formula})")
        if now.mfu is not None:
            parts.append(f"{now.mfu:.1%} of peak FLOP/s")
        elif flops is None or flops >= MIN_SHOWN_FLOPS_PER_SECOND:
            parts.append("utilisation unknown")
    if now.compile_seconds >= 1:
        parts.append(f"compiling took {now.compile_seconds:,.0f} s")
    return ", ".join(parts)


def _format_counts(event: Event, now: Throughput) -> str:
    counts = f"{len(now.training)} training, {event.waiting} waiting, {now.finished} finished"
    return f"{counts}, {now.failed} failed" if now.failed else counts


def _format_failure(failure: Failure) -> str:
    rows = ", ".join(map(str, failure.rows[:MAX_ROWS]))
    more = f" and {len(failure.rows) - MAX_ROWS} more" if len(failure.rows) > MAX_ROWS else ""
    return f"{failure.expert}: stopped at step {failure.step:,}, no longer finite, on rows {rows}{more}"


def _format_validation(validation: Validation, separator: str) -> str:
    accuracy = "" if validation.accuracy is None else f"{separator}{validation.accuracy:.1%}"
    return f"{validation.loss:.3f}{accuracy}"


def _format_duration(seconds: float | None) -> str:
    """Returns hours, minutes and seconds, or dashes if they are unknown."""
    return "-:--:--" if seconds is None else str(timedelta(seconds=round(seconds)))
