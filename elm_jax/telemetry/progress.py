"""Progress: a bar for every stage on a terminal, plain lines elsewhere, and the seconds of each stage.

Everything goes to standard error, so that the result of a command can be piped.
"""

import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment

from elm_jax.controls import escape_controls

Advance = Callable[[int, str], None]  # how many are done, and a remark such as the loss
PLAIN_EVERY = 10.0  # seconds between lines where there is no terminal
_is_hidden: ContextVar[bool] = ContextVar("progress is hidden", default=False)


class SafeConsole(Console):
    """A console that escapes the control characters of texts, but not those that rich itself draws with."""

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        """Yields the segments of whatever is printed."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=escape_controls(segment.text))


@contextmanager
def hidden() -> Generator[None, None, None]:
    """Lets stages that are begun while it lasts show nothing."""
    token = _is_hidden.set(True)
    try:
        yield
    finally:
        _is_hidden.reset(token)


def _make_console() -> Console:
    return SafeConsole(stderr=True, quiet=_is_hidden.get())


@dataclass
class Stages:
    """The stages of one run.

    Attributes:
        console: where they are shown.
        seconds: that each stage took, by title.
    """

    console: Console = field(default_factory=_make_console)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, title: str, total: int) -> Generator[Advance, None, None]:
        """Shows one stage while it lasts, and notes the seconds that it took."""
        with self.timed(title):
            if self.console.is_terminal:
                with _make_bar(self.console) as progress:
                    task = progress.add_task(title, total=total, remark="")
                    yield lambda done, remark="": progress.update(task, completed=done, remark=remark)
                    progress.update(task, completed=total)
            else:
                yield self._print_lines(title, total)

    @contextmanager
    def timed(self, title: str) -> Generator[None, None, None]:
        """Notes the seconds that a stage took, and prints them in a log; the caller shows the rest."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[title] = self.seconds.get(title, 0.0) + time.monotonic() - started
        if not self.console.is_terminal:
            self.console.print(f"{title}: done in {self.seconds[title]:.1f} s", highlight=False, markup=False)

    def _print_lines(self, title: str, total: int) -> Advance:
        last = time.monotonic()

        def advance(done: int, remark: str = "") -> None:
            nonlocal last
            if time.monotonic() - last >= PLAIN_EVERY:
                last = time.monotonic()
                self.console.print(
                    f"{title}: {done} of {total} {remark}".rstrip(), highlight=False, markup=False
                )

        return advance


def _make_bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<28}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[remark]}", markup=False),
        console=console,
    )
