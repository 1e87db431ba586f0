"""Throughput: how fast training goes, by its events of the last seconds."""

import math
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from elm_jax.models.flops import FlopsPerToken
from elm_jax.telemetry.events import Event, StepMetrics

WINDOW_SECONDS = 30.0  # seconds
_COMPILED = "/jax/core/compile/backend_compile_duration"  # what JAX calls it


@dataclass(frozen=True)
class Throughput:
    """How fast training goes, after an event. None is not known, as no speed is after the first batch.

    Attributes:
        training: the last step of each expert that has moved and goes on.
        loss: mean of their losses that are finite, in nats.
        tokens_per_second: real ones, of prompts and answers.
        fill_ratio: share of the tokens computed that is no padding.
        flops_per_second: model FLOPs, see `models.flops`.
        mfu: their share of what the devices could reach.
        seconds_left: until the last step.
        compile_seconds: that XLA took so far.
        finished: experts so far.
        failed: experts so far.
    """

    training: tuple[StepMetrics, ...] = ()
    loss: float | None = None
    tokens_per_second: float | None = None
    fill_ratio: float | None = None
    flops_per_second: float | None = None
    mfu: float | None = None
    seconds_left: float | None = None
    compile_seconds: float = 0.0
    finished: int = 0
    failed: int = 0


@dataclass(frozen=True)
class _Sample:
    at: float
    compile_seconds: float
    steps: int
    tokens: int = 0
    padded: int = 0
    flops: float = 0.0
    finished: int = 0
    failed: int = 0


class CompileTimer:
    """Adds up the seconds that XLA takes to compile."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def add_duration(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        """Takes a duration that JAX reports of itself."""
        del kwargs
        if event == _COMPILED:
            self.seconds += duration_secs


@contextmanager
def time_compilations() -> Generator[CompileTimer, None, None]:
    """Adds up the seconds of compilations while it lasts."""
    from jax import monitoring

    timer = CompileTimer()
    monitoring.register_event_duration_secs_listener(timer.add_duration)
    try:
        yield timer
    finally:
        monitoring.unregister_event_duration_listener(timer.add_duration)


@dataclass
class ThroughputMeter:
    """Measures throughput over the last WINDOW seconds, or over one batch if batches take longer.

    It starts with the end of the first batch, so what comes before, and its compilation, does not count; the
    seconds of later compilations are taken out.

    Attributes:
        cost: model FLOPs of a token.
        peak: FLOP/s of all devices together.
        clock: seconds.
        compile_timer: of the run.
    """

    cost: FlopsPerToken | None = None
    peak: float | None = None
    clock: Callable[[], float] = time.monotonic
    compile_timer: CompileTimer = field(default_factory=CompileTimer)
    _samples: deque[_Sample] = field(default_factory=deque)
    _training: dict[str, StepMetrics] = field(default_factory=dict)

    def measure(self, event: Event) -> Throughput:
        """Takes the event of a batch that has just ended."""
        new = self._sample(event)
        self._samples.append(new)
        while len(self._samples) > 2 and new.at - self._samples[1].at >= WINDOW_SECONDS:
            self._samples.popleft()
        old = self._samples[0]
        self._training |= {each.expert: each for each in event.metrics}
        losses = [each.loss for each in self._training.values() if math.isfinite(each.loss)]
        for name in (*event.finished, *(failure.expert for failure in event.failed)):
            self._training.pop(name, None)
        known = Throughput(
            training=tuple(self._training.values()),
            loss=sum(losses) / len(losses) if losses else None,
            fill_ratio=_ratio(event.prompt_tokens + event.answer_tokens, event.padded_tokens),
            compile_seconds=new.compile_seconds,
            finished=new.finished,
            failed=new.failed,
        )
        seconds = new.at - old.at - (new.compile_seconds - old.compile_seconds)
        if seconds <= 0:
            return known
        flops = (new.flops - old.flops) / seconds if self.cost else None
        steps = (new.steps - old.steps) / seconds
        return replace(
            known,
            tokens_per_second=(new.tokens - old.tokens) / seconds,
            fill_ratio=_ratio(new.tokens - old.tokens, new.padded - old.padded),
            flops_per_second=flops,
            mfu=None if flops is None or self.peak is None else flops / self.peak,
            seconds_left=(event.steps - event.steps_done) / steps if steps > 0 else None,
        )

    def _sample(self, event: Event) -> _Sample:
        last = self._samples[-1] if self._samples else _Sample(0.0, 0.0, 0)
        flops = self.cost.total(event.prompt_tokens, event.answer_tokens) if self.cost else 0.0
        return _Sample(
            self.clock(),
            self.compile_timer.seconds,
            event.steps_done,
            last.tokens + event.prompt_tokens + event.answer_tokens,
            last.padded + event.padded_tokens,
            last.flops + flops,
            last.finished + len(event.finished),
            last.failed + len(event.failed),
        )


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
