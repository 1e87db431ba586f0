"""Watching: one live view of all experts in training on a terminal, plain lines elsewhere, and what is kept.

All of it goes to standard error and to files below `logs`; the process that shows nothing writes nothing.
"""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta

from etils import epath
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from elm_jax.errors import UserError
from elm_jax.models.flops import FlopsPerToken
from elm_jax.telemetry import jsonl_log
from elm_jax.telemetry import trackers as track
from elm_jax.telemetry.events import Event, Failure, Standing, Validation, Watch
from elm_jax.telemetry.progress import PLAIN_EVERY, Stages
from elm_jax.telemetry.throughput import Meter, Reading, compilations

Watcher = Callable[[Event, Reading], None]
ROWS = 12  # experts in the table; the rest are counted
BESIDE = 8  # lines that the view has beside them
NAMED = 8  # rows of a step; the journal has them all
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
    every: int = jsonl_log.EVERY,
    shows: bool = True,
    clock: Callable[[], float] = time.monotonic,
) -> Generator[Watch, None, None]:
    """Shows a stage of training while it lasts, and yields what takes its events.

    `cost` and `peak` (FLOP/s of all devices together) are what model FLOPs and their utilisation come from;
    without one they are shown as unknown. With `logs` the journal is kept there, a line for every so many
    steps of an expert, and what `trackers` write. Of several processes one `shows`; the others do nothing.
    """
    if trackers and logs is None:
        raise UserError(f"A place for logs is wanted where {', '.join(trackers)} writes, but none came.")
    if not shows:
        yield lambda event: None
        return
    with stages.timed(title), ExitStack() as stack:
        meter = Meter(cost, peak, clock, stack.enter_context(compilations()))
        told = {
            "title": title,
            "formula": cost.formula if cost else None,
            "flops_per_prompt_token": cost.prompt if cost else None,
            "flops_per_answer_token": cost.answer if cost else None,
            "peak_flops_per_second": peak,
        }
        watchers: list[Watcher] = []
        if logs is not None:
            watchers.append(stack.enter_context(jsonl_log.opened(logs / JOURNAL, told, every=every)))
            watchers += [
                stack.enter_context(track.tracked(name, logs, told, every=every)) for name in trackers
            ]
        if stages.console.is_terminal:
            watchers.append(stack.enter_context(_live(View(stages.console, title, cost, clock))))
        else:
            watchers.append(Lines(stages.console, title, cost, clock))
        yield watch(meter, *watchers)


def watch(meter: Meter, *watchers: Watcher) -> Watch:
    """Returns what reads the meter at every event and tells all watchers."""

    def told(event: Event) -> None:
        reading = meter.read(event)
        for watcher in watchers:
            watcher(event, reading)

    return told


class View:
    """What a terminal shows; rich draws it anew while the time goes on."""

    def __init__(
        self, console: Console, title: str, cost: FlopsPerToken | None, clock: Callable[[], float]
    ) -> None:
        self.console, self.title, self._cost, self._clock = console, title, cost, clock
        self._started = clock()
        self._latest: tuple[Event, Reading, float] | None = None
        self._validations: dict[str, Validation] = {}

    def __call__(self, event: Event, reading: Reading) -> None:
        """Takes an event; an expert that fails is told above the view, and stays there."""
        self._validations |= {validation.expert: validation for validation in event.validations}
        self._latest = event, reading, self._clock()
        for failure in event.failed:
            self.console.print(Text(_failure(failure), style="red"))

    def __rich__(self) -> RenderableType:
        now = self._clock()
        head = Table.grid(padding=(0, 2))
        elapsed = _duration(now - self._started)
        if self._latest is None:
            head.add_row(Text(self.title, style="bold"), elapsed, "preparing and compiling the first step")
            return head
        event, reading, at = self._latest
        left = reading.left and max(0.0, reading.left - (now - at))
        head.add_row(
            ProgressBar(event.steps, event.steps_done, width=24),
            f"{event.steps_done:,}/{event.steps:,} steps",
            elapsed,
            f"{_duration(left)} left",
        )
        return Group(
            Text(self.title, style="bold"),
            head,
            Text(_rates(reading, self._cost)),
            Text(_counts(event, reading)),
            *([self._table(reading.training)] if reading.training else []),
        )

    def _table(self, training: Sequence[Standing]) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, expand=True)
        table.add_column("expert", ratio=1, min_width=12, no_wrap=True, overflow="ellipsis")
        validated = any(standing.expert in self._validations for standing in training)
        for name in ("step", "loss", "rate", *(["validation"] if validated else [])):
            table.add_column(name, justify="right", no_wrap=True)
        shown = max(1, min(ROWS, self.console.height - BESIDE))
        for standing in training[:shown]:
            worth = self._validations.get(standing.expert)
            table.add_row(
                Text(standing.expert),
                f"{standing.step:,}/{standing.steps:,}",
                f"{standing.loss:.3f}",
                f"{standing.rate:.1e}",
                *([_worth(worth, " ") if worth else ""] if validated else []),
            )
        if len(training) > shown:
            table.add_row(f"and {len(training) - shown} more")
        return table


class Lines:
    """What a log shows: a line now and then, and one for every expert that ends and every validation."""

    def __init__(
        self, console: Console, title: str, cost: FlopsPerToken | None, clock: Callable[[], float]
    ) -> None:
        self._console, self._title, self._cost, self._clock = console, title, cost, clock
        self._last = clock()

    def __call__(self, event: Event, reading: Reading) -> None:
        """Takes an event."""
        standing = {each.expert: each for each in event.standings}
        for validation in event.validations:
            best = ", the best so far" if validation.best else ""
            worth = _worth(validation, ", accuracy ")
            self._print(f"{validation.expert}: step {validation.step:,}, validation loss {worth}{best}")
        for name in event.finished:
            self._print(f"{name}: finished{_last(standing.get(name))}")
        for failure in event.failed:
            self._print(_failure(failure))
        if self._clock() - self._last >= PLAIN_EVERY:
            self._last = self._clock()
            self._print(
                f"{self._title}: {event.steps_done:,}/{event.steps:,} steps, {_rates(reading, self._cost)}, "
                f"{_duration(reading.left)} left, {_counts(event, reading)}"
            )

    def _print(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)


@contextmanager
def _live(view: View) -> Generator[View, None, None]:
    """Shows a view; results that are printed meanwhile go to standard output as ever."""
    with Live(view, console=view.console, refresh_per_second=2, redirect_stdout=False):
        yield view


def _last(standing: Standing | None) -> str:
    return "" if standing is None else f" after {standing.step:,} steps, loss {standing.loss:.3f}"


def _rates(reading: Reading, cost: FlopsPerToken | None) -> str:
    told = [
        "loss unknown" if reading.loss is None else f"loss {reading.loss:.3f}",
        "padding unknown" if reading.real is None else f"{reading.real:.0%} real",
    ]
    if reading.tokens_per_second is None:
        told.append("rates after the next round")
    else:
        told.append(f"{reading.tokens_per_second:,.0f} tokens/s")
        if reading.flops_per_second is not None and cost is not None:
            told.append(f"{reading.flops_per_second / 1e12:,.3g} TFLOP/s ({cost.formula})")
        told.append("utilisation unknown" if reading.mfu is None else f"{reading.mfu:.1%} of peak FLOP/s")
    if reading.compiling >= 1:
        told.append(f"compiling took {reading.compiling:,.0f} s")
    return ", ".join(told)


def _counts(event: Event, reading: Reading) -> str:
    told = f"{len(reading.training)} training, {event.waiting} waiting, {reading.finished} finished"
    return f"{told}, {reading.failed} failed" if reading.failed else told


def _failure(failure: Failure) -> str:
    rows = ", ".join(map(str, failure.rows[:NAMED]))
    more = f" and {len(failure.rows) - NAMED} more" if len(failure.rows) > NAMED else ""
    return f"{failure.expert}: stopped at step {failure.step:,}, no longer finite, on rows {rows}{more}"


def _worth(validation: Validation, between: str) -> str:
    accuracy = "" if validation.accuracy is None else f"{between}{validation.accuracy:.1%}"
    return f"{validation.loss:.3f}{accuracy}"


def _duration(seconds: float | None) -> str:
    """Returns hours, minutes and seconds, or that they are unknown."""
    return "-:--:--" if seconds is None else str(timedelta(seconds=round(seconds)))
