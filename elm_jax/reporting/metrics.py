"""Metrics: the share of rows a method gets right, averaged over prompts and datasets, and how sure that is.

All accuracies are fractions in [0, 1]. A row whose best choices score the same counts 1 / number of them if
the right one is among them: nothing but their order says which is predicted. Two means are in use and both
are named: the macro mean (prompts within a dataset first, then datasets; the paper's) and the micro mean (all
prompts alike; what the original's scripts print as overall). They differ by points where datasets have
different numbers of prompts.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf, sqrt
from statistics import NormalDist, fmean
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Int
from scipy.special import stdtrit

from elm_jax.errors import UserError
from elm_jax.names import split_id
from elm_jax.records import TaskScores

CONFIDENCE = 0.95
"""The confidence of every interval."""


@dataclass(frozen=True)
class Accuracy:
    """A share of right rows with its 95 % interval."""

    n: int  # distinct rows of the datasets behind it
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class CorrectCount:
    """How many rows of a task a method got right, where the rows themselves are not at hand."""

    task: str
    method: str
    n: int
    right: int | float  # the sum of `row_credits`
    seen: bool = False  # as in TaskScores
    tied: int = 0  # rows whose best choices score the same


@dataclass(frozen=True)
class PromptSpread:
    """How far the prompts of one dataset lie apart."""

    prompts: int
    lowest: float
    median: float
    highest: float
    deviation: float  # standard deviation over prompts; 0 for a single one


def row_credits(scores: TaskScores) -> Float[np.ndarray, " rows"]:
    """Returns what every row counts, after checking that the scores are whole.

    A row counts 1 if its right choice alone scores best, 1 / n if n score best and it is one, or else 0.
    Scores of the choices may be missing altogether, as where only what was right is kept of a run.

    Raises:
      UserError: no rows, columns of different lengths, a row twice, a label or prediction that is no choice.
    """
    name = f"the scores of {scores.task!r} by {scores.method!r}"
    n = len(scores.row_ids)
    if n == 0:
        raise UserError(f"Expected rows in {name}, got none.")
    lengths = {len(scores.scores or scores.labels), len(scores.predictions), len(scores.labels)}
    if lengths != {n}:
        raise UserError(f"Expected {n} of each column in {name}, got {sorted(lengths)}.")
    if len(set(scores.row_ids)) != n:
        raise UserError(f"Expected each row once in {name}, got {n - len(set(scores.row_ids))} again.")
    predictions, labels = np.asarray(scores.predictions), np.asarray(scores.labels)
    if not scores.scores:
        return (predictions == labels) / count_tied_choices(scores)
    choices = np.fromiter(map(len, scores.scores), int, n)
    for what, index in (("label", labels), ("prediction", predictions)):
        wrong = (index < 0) | (index >= choices)
        if wrong.any():
            row = int(wrong.argmax())
            raise UserError(
                f"Expected a {what} among {choices[row]} choices in {name}, got {index[row]} in row "
                f"{scores.row_ids[row]!r}."
            )
    columns = zip(scores.scores, scores.predictions, scores.labels, strict=True)
    is_best = np.fromiter((own[label] == own[prediction] for own, prediction, label in columns), bool, n)
    return is_best / count_tied_choices(scores)


def count_tied_choices(scores: TaskScores) -> Int[np.ndarray, " rows"]:
    """Returns how many choices of every row score what its prediction does; 1 where it is the best alone."""
    if not scores.scores:
        return np.array(scores.tied or [1] * len(scores.row_ids), int)
    columns = zip(scores.scores, scores.predictions, strict=True)
    return np.fromiter((own.count(own[prediction]) for own, prediction in columns), int)


def wilson_interval(share: float, n: float | int, *, level: float = CONFIDENCE) -> tuple[float, float]:
    """Returns Wilson's interval for a share seen in n independent rows (Wilson 1927).

    It stays inside [0, 1] and keeps its width at shares of 0 and 1. With level 0.95 and 8 right of 10:

    >>> tuple(round(end, 3) for end in wilson_interval(0.8, 10))
    (0.49, 0.943)
    """
    z2_n = NormalDist().inv_cdf(0.5 + level / 2) ** 2 / n
    centre = (share + z2_n / 2) / (1 + z2_n)
    half = sqrt(z2_n) * sqrt(share * (1 - share) + z2_n / 4) / (1 + z2_n)
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def count_correct(scores: TaskScores) -> CorrectCount:
    """Returns how many rows are right, and how many tied; raises what `row_credits` raises."""
    right = row_credits(scores)
    tied = int((count_tied_choices(scores) > 1).sum())
    return CorrectCount(scores.task, scores.method, len(right), float(right.sum()), scores.seen, tied)


def accuracy(scores: TaskScores | CorrectCount) -> Accuracy:
    """Returns one task's share of right rows with its Wilson interval."""
    counted = scores if isinstance(scores, CorrectCount) else count_correct(scores)
    share = counted.right / counted.n
    return Accuracy(counted.n, share, *wilson_interval(share, counted.n))


Scored = TypeVar("Scored", TaskScores, CorrectCount)


def group_by_dataset(scores: Sequence[Scored]) -> dict[str, list[Scored]]:
    """Groups one method's scores by dataset, in order of first appearance."""
    found: dict[str, list[Scored]] = {}
    for task in scores:
        found.setdefault(split_id(task.task)[0], []).append(task)
    return found


def macro_mean(scores: Sequence[TaskScores]) -> Accuracy:
    """Returns the mean over datasets of the mean over prompts, with an interval that knows of shared rows."""
    return _mean(scores, lambda prompts, datasets, _: 1 / (prompts * datasets))


def macro_accuracy(counts: Sequence[CorrectCount]) -> float:
    """Returns the macro mean alone, of one task or more."""
    datasets = group_by_dataset(counts).values()
    of_each = (fmean(prompt.right / prompt.n for prompt in prompts) for prompts in datasets)
    return fmean(of_each)


def micro_mean(scores: Sequence[TaskScores]) -> Accuracy:
    """Returns the mean over prompts, whatever dataset they belong to, with an interval alike."""
    return _mean(scores, lambda _, __, every: 1 / every)


def _mean(scores: Sequence[TaskScores], weigh: Callable[[int, int, int], float]) -> Accuracy:
    """Returns the weighted mean over prompts.

    `weigh` says what a prompt counts, given the prompts of its dataset, the datasets, and all prompts.
    Prompts of a dataset share its rows, so fifteen prompts are not fifteen times the evidence. The variance
    is that of row totals (each row one cluster, each dataset one stratum); Wilson's interval is then taken
    at the effective number of rows, share * (1 - share) / variance, never more than there are outcomes
    (Korn and Graubard 1998, for surveys). For one prompt this is exactly the plain Wilson interval; where
    prompts share rows the variance is an estimate, and as in their paper Student's t is in the place of the
    normal distribution.
    """
    datasets = group_by_dataset(scores)
    if not datasets:
        raise UserError("Expected a task to average over, got none.")
    mean, rows, outcomes = 0.0, 0, 0
    variances: list[tuple[float, int]] = []
    shares_rows = any(len(prompts) > 1 for prompts in datasets.values())
    for prompts in datasets.values():
        ids = {row: index for index, row in enumerate(dict.fromkeys(r for p in prompts for r in p.row_ids))}
        influence = np.zeros(len(ids))
        weight = weigh(len(prompts), len(datasets), len(scores))
        for prompt in prompts:
            right = row_credits(prompt)
            share = float(right.mean())
            influence[[ids[row] for row in prompt.row_ids]] += weight * (right - share) / right.size
            mean += weight * share
            outcomes += right.size
        own = float(influence @ influence)
        variances.append((own, max(1, len(ids) - 1)))
        rows += len(ids)
    variance = sum(own for own, _ in variances)
    mean = min(1.0, mean)  # the weights' sum may be a rounding more than 1
    # Without any variance (all right, all wrong) only the number of rows says how much was seen.
    independent = mean * (1 - mean)
    effective = min(outcomes, independent / variance) if variance else (outcomes if independent else rows)
    if shares_rows and variance:
        # No less than if the prompts of a row told nothing new.
        least = min(rows, independent / variance)
        tail = 0.5 + CONFIDENCE / 2
        ratio = NormalDist().inv_cdf(tail) / stdtrit(degrees_of_freedom(variance, variances), tail)
        effective = max(least, effective * ratio**2)
    return Accuracy(rows, mean, *wilson_interval(mean, effective))


def degrees_of_freedom(variance: float, terms: Iterable[tuple[float, int]]) -> float:
    """Returns the degrees of freedom of a variance that is made of others (Satterthwaite 1946).

    Args:
        variance: Their sum, or what else is made of them with factors of 1 and -1.
        terms: Each with its own degrees of freedom; infinity comes where all are nothing.
    """
    fourth = sum(term**2 / freedom for term, freedom in terms)
    return variance**2 / fourth if fourth else inf


def chance_accuracy(scores: TaskScores) -> float:
    """Returns the accuracy of guessing: the mean over rows of 1 / number of choices."""
    row_credits(scores)
    return float(np.mean([1 / len(choices) for choices in scores.scores]))


def prompt_spread(scores: Sequence[TaskScores]) -> PromptSpread:
    """Returns how far the accuracies of one dataset's prompts lie apart."""
    if not scores:
        raise UserError("Expected a prompt to average over, got none.")
    shares = np.array([row_credits(task).mean() for task in scores])
    deviation = float(shares.std(ddof=1)) if len(shares) > 1 else 0.0
    return PromptSpread(
        len(shares), float(shares.min()), float(np.median(shares)), float(shares.max()), deviation
    )
