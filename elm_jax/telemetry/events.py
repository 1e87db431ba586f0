"""Events: what training reports after every batch of a group.

A batch moves the experts whose step it completes. Losses are read one batch late, so that the device never
waits for the host: the event of a batch comes while the next one runs.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class StepMetrics:
    """Metrics of one step of one expert.

    Attributes:
        expert: its id.
        step: of the expert's own, from 1.
        steps: of the expert, in all.
        loss: mean over the real target tokens of the step's rows, in nats.
        learning_rate: of the step.
    """

    expert: str
    step: int
    steps: int
    loss: float
    learning_rate: float


@dataclass(frozen=True)
class Validation:
    """What one expert reaches on rows that it does not train on.

    Attributes:
        expert: its id.
        step: of the expert's own, from 1.
        loss: mean over all real target tokens, in nats.
        accuracy: of rank classification; None if the rows have no choices.
        best: whether no step before was as good.
    """

    expert: str
    step: int
    loss: float
    accuracy: float | None = None
    best: bool = False


@dataclass(frozen=True)
class Failure:
    """An expert that was stopped because its loss or gradient was not finite.

    Attributes:
        expert: its id.
        step: of the expert's own, from 1.
        rows: of the step, by their number among the expert's rows.
    """

    expert: str
    step: int
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Event:
    """One batch of a group.

    Attributes:
        batch: its number in the run, from 1; a run that is resumed counts on.
        steps_done: of all experts of the run, those of earlier processes too.
        steps: of all experts of the run, in all.
        metrics: of the experts whose step the batch completed.
        prompt_tokens: real ones, of all experts.
        answer_tokens: likewise.
        padded_tokens: that were computed, prompts and answers, padding among them.
        waiting: experts that have not begun.
        finished: experts that are done since the last event.
        failed: experts that were stopped since the last event.
        validations: since the last event.
    """

    batch: int
    steps_done: int
    steps: int
    metrics: tuple[StepMetrics, ...]
    prompt_tokens: int
    answer_tokens: int
    padded_tokens: int
    waiting: int
    finished: tuple[str, ...] = ()
    failed: tuple[Failure, ...] = ()
    validations: tuple[Validation, ...] = ()


EventHandler = Callable[[Event], None]
