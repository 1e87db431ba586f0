"""The meter: how fast training goes, read from its events of the last seconds."""

import math
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from elm_jax.models.flops import FlopsPerToken
from elm_jax.telemetry.events import Event, Standing

WINDOW = 30.0  # seconds
_COMPILED = "/jax/core/compile/backend_compile_duration"  # what JAX calls it


@dataclass(frozen=True)
class Reading:
    """What is known after an event; None where it is not known, as all rates are after the first round."""

    training: tuple[Standing, ...] = ()  # where each expert stands that has moved and goes on
    loss: float | None = None  # mean of their last losses that are finite, in nats
    tokens_per_second: float | None = None  # real ones, of prompts and answers
    real: float | None = None  # share of the tokens computed that is no padding
    flops_per_second: float | None = None  # model FLOPs, see `flops`
    mfu: float | None = None  # their share of what the devices could reach
    left: float | None = None  # seconds
    compiling: float = 0.0  # seconds that XLA took so far
    finished: int = 0  # experts so far
    failed: int = 0


@dataclass(frozen=True)
class _Sample:
    at: float
    compiling: float
    steps: int
    tokens: int = 0
    padded: int = 0
    flops: float = 0.0
    finished: int = 0
    failed: int = 0


class Compilations:
    """Seconds that XLA took to compile."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def heard(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        """Takes what JAX tells of itself."""
        del kwargs
        if event == _COMPILED:
            self.seconds += duration_secs


@contextmanager
def compilations() -> Generator[Compilations, None, None]:
    """Counts the seconds of compilations while it lasts."""
    from jax import monitoring

    counted = Compilations()
    monitoring.register_event_duration_secs_listener(counted.heard)
    try:
        yield counted
    finally:
        monitoring.unregister_event_duration_listener(counted.heard)


@dataclass
class Meter:
    """Rates over the last WINDOW seconds, or one round where rounds take longer.

    They start with the end of the first round, so what comes before, and its compilation, is no part of them;
    of later compilations the seconds are taken out. `peak` is in FLOP/s, of all devices together.
    """

    cost: FlopsPerToken | None = None
    peak: float | None = None
    clock: Callable[[], float] = time.monotonic
    compiled: Compilations = field(default_factory=Compilations)
    _samples: deque[_Sample] = field(default_factory=deque)
    _training: dict[str, Standing] = field(default_factory=dict)

    def read(self, event: Event) -> Reading:
        """Takes the event of a round that has just ended."""
        new = self._sample(event)
        self._samples.append(new)
        while len(self._samples) > 2 and new.at - self._samples[1].at >= WINDOW:
            self._samples.popleft()
        old = self._samples[0]
        self._training |= {standing.expert: standing for standing in event.standings}
        losses = [standing.loss for standing in self._training.values() if math.isfinite(standing.loss)]
        for name in (*event.finished, *(failure.expert for failure in event.failed)):
            self._training.pop(name, None)
        known = Reading(
            training=tuple(self._training.values()),
            loss=sum(losses) / len(losses) if losses else None,
            real=_share(event.prompt_tokens + event.answer_tokens, event.padded_tokens),
            compiling=new.compiling,
            finished=new.finished,
            failed=new.failed,
        )
        seconds = new.at - old.at - (new.compiling - old.compiling)
        if seconds <= 0:
            return known
        flops = (new.flops - old.flops) / seconds if self.cost else None
        steps = (new.steps - old.steps) / seconds
        return replace(
            known,
            tokens_per_second=(new.tokens - old.tokens) / seconds,
            real=_share(new.tokens - old.tokens, new.padded - old.padded),
            flops_per_second=flops,
            mfu=None if flops is None or self.peak is None else flops / self.peak,
            left=(event.steps - event.steps_done) / steps if steps > 0 else None,
        )

    def _sample(self, event: Event) -> _Sample:
        last = self._samples[-1] if self._samples else _Sample(0.0, 0.0, 0)
        flops = self.cost.total(event.prompt_tokens, event.answer_tokens) if self.cost else 0.0
        return _Sample(
            self.clock(),
            self.compiled.seconds,
            event.steps_done,
            last.tokens + event.prompt_tokens + event.answer_tokens,
            last.padded + event.padded_tokens,
            last.flops + flops,
            last.finished + len(event.finished),
            last.failed + len(event.failed),
        )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
