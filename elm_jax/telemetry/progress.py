"""Progress: a bar for every stage on a terminal, plain lines elsewhere, and where the time went.

Everything goes to standard error, so that what a command prints as its result can be piped.
"""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Advance = Callable[[int, str], None]  # how many are done, and a remark such as the loss
PLAIN_EVERY = 10.0  # seconds between lines where there is no terminal


@dataclass
class Stages:
    """The stages of one run, as they end."""

    console: Console = field(default_factory=lambda: Console(stderr=True))
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, title: str, total: int) -> Generator[Advance, None, None]:
        """Shows one stage while it lasts and keeps the seconds it took."""
        with self.timed(title):
            if self.console.is_terminal:
                with _bar(self.console) as progress:
                    task = progress.add_task(title, total=total, remark="")
                    yield lambda done, remark="": progress.update(task, completed=done, remark=remark)
            else:
                yield self._lines(title, total)

    @contextmanager
    def timed(self, title: str) -> Generator[None, None, None]:
        """Keeps the seconds that a stage took, and says so in a log; what it shows is the caller's."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[title] = self.seconds.get(title, 0.0) + time.monotonic() - started
        if not self.console.is_terminal:
            self.console.print(f"{title}: done in {self.seconds[title]:.1f} s", highlight=False)

    def _lines(self, title: str, total: int) -> Advance:
        last = time.monotonic()

        def advance(done: int, remark: str = "") -> None:
            nonlocal last
            if time.monotonic() - last >= PLAIN_EVERY:
                last = time.monotonic()
                self.console.print(f"{title}: {done} of {total} {remark}".rstrip(), highlight=False)

        return advance


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<28}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[remark]}"),
        console=console,
    )
