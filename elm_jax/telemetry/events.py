"""Events: what training tells whoever watches it, after every round of a group.

A round is one batch; the experts whose step it made whole have moved. Losses are read a round late, so that
the device never waits for the host: the event of a round comes while the next one runs.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Standing:
    """Where one expert stands after one of its steps."""

    expert: str
    step: int  # of the expert's own, from 1
    steps: int  # in all
    loss: float  # mean over the real target tokens of the step's rows, in nats
    rate: float  # the learning rate of the step


@dataclass(frozen=True)
class Validation:
    """What one expert was worth on rows that it does not train on."""

    expert: str
    step: int
    loss: float  # mean over all real target tokens, in nats
    accuracy: float | None = None  # rank classification, where the rows have choices
    best: bool = False  # no step before was as good


@dataclass(frozen=True)
class Failure:
    """An expert that was stopped, for its loss or its gradient was no longer finite."""

    expert: str
    step: int  # of the expert's own, from 1
    rows: tuple[int, ...]  # that the step took, by number among the expert's rows


@dataclass(frozen=True)
class Event:
    """One round of a group."""

    round: int  # of the run, from 1; a run that goes on counts on
    steps_done: int  # of all experts of the run, those of earlier processes too
    steps: int  # of all experts of the run
    standings: tuple[Standing, ...]  # of the experts that moved
    prompt_tokens: int  # real ones, of all experts
    answer_tokens: int
    padded_tokens: int  # that were computed, prompts and answers, padding among them
    waiting: int  # experts without a place yet
    finished: tuple[str, ...] = ()
    failed: tuple[Failure, ...] = ()
    validations: tuple[Validation, ...] = ()


Watch = Callable[[Event], None]
