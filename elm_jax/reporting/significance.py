"""Significance: whether two methods differ by more than the choice of rows explains.

Two methods are compared on the same rows only. The same row under two prompts is one cluster: fifteen prompts
over 56 rows are 56 pieces of evidence, not 840.
"""

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from elm_jax.errors import UserError
from elm_jax.names import split_id
from elm_jax.records import TaskScores
from elm_jax.reporting.metrics import row_credits


@dataclass(frozen=True)
class PairedDifference:
    """Macro mean of a minus that of b, as a fraction, with its 95 % interval and two-sided p."""

    a: str
    b: str
    difference: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class McNemarResult:
    """Rows right under more prompts with one of two methods than the other, and the exact two-sided p."""

    better_a: int
    better_b: int
    p: float


@dataclass(frozen=True)
class GapClosed:
    """How much of the way from a baseline to an oracle a method goes, with a 95 % interval if it has one."""

    share: float
    low: float | None
    high: float | None


def paired_difference(
    a: Sequence[TaskScores], b: Sequence[TaskScores], *, samples: int = 2000, seed: int = 0
) -> PairedDifference:
    """Compares two methods' macro means on the same tasks and rows by a paired, clustered bootstrap.

    Every sample draws each dataset's rows anew, with replacement, a row bringing its outcomes under all
    prompts along. The interval holds the middle 95 % of the samples. The p is twice the share of samples on
    the far side of zero, so that it falls below 0.05 where the interval leaves zero out; it is never below
    what so few differing rows could show in a sign test (2 / 2^rows), nor below 2 / (samples + 1).

    Raises:
      UserError: the sides differ in tasks, rows or labels.
    """
    observed, resampled, differing = _bootstrap([_paired(a, b)], samples, seed)
    resampled = resampled[0].round(12)  # sums in another order must not make zeros look like tiny differences
    below, above = (int((sign * resampled >= 0).sum()) for sign in (-1, 1))
    share = (min(below, above) + 1) / (samples + 1)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return PairedDifference(
        a=a[0].method,
        b=b[0].method,
        difference=float(observed[0]),
        low=float(low),
        high=float(high),
        p=min(1.0, max(2 * share, 2.0 ** (1 - differing))),
    )


def gap_closed(
    method: Sequence[TaskScores],
    baseline: Sequence[TaskScores],
    oracle: Sequence[TaskScores],
    *,
    samples: int = 2000,
    seed: int = 0,
) -> GapClosed | None:
    """Returns which share of the gap between the macro means of baseline and oracle a method closes.

    The interval is of the same clustered bootstrap, which draws the rows of all three alike. There is none
    where the gap may as well be nothing (more than one sample in forty has none); without a gap there is no
    share either, and None comes.
    """
    sides = [_paired(method, baseline), _paired(oracle, baseline)]
    (own, whole), (owns, wholes), _ = _bootstrap(sides, samples, seed)
    if whole <= 0:
        return None
    gaps = wholes > 1e-12  # a sample without a gap says nothing about the share
    if gaps.mean() < 0.975:
        return GapClosed(float(own / whole), None, None)
    low, high = np.quantile(owns[gaps] / wholes[gaps], [0.025, 0.975])
    return GapClosed(float(own / whole), float(low), float(high))


def mcnemar_test(a: Sequence[TaskScores], b: Sequence[TaskScores]) -> McNemarResult:
    """Compares two methods by McNemar's exact test: a coin thrown for each row on which they differ.

    A row counts once, for the method that gets it right under more of its prompts; where both do under
    equally many it does not count. For a single prompt this is the plain test.

    Raises:
      UserError: the sides differ in tasks, rows or labels.
    """
    from scipy.stats import binomtest  # half a second of imports that the bootstrap does not need

    totals: dict[tuple[str, str], float] = defaultdict(float)
    for task, differences in _paired(a, b).items():
        dataset, _ = split_id(task)
        for row, difference in differences.items():
            totals[dataset, row] += difference
    # Thirds of tied rows must not make a difference of rounding.
    better_a = sum(total > 1e-9 for total in totals.values())
    better_b = sum(total < -1e-9 for total in totals.values())
    p = binomtest(better_a, better_a + better_b).pvalue if better_a + better_b else 1.0
    return McNemarResult(better_a, better_b, max(float(p), sys.float_info.min))


def holm_correction(ps: Iterable[float]) -> tuple[float, ...]:
    """Returns p values corrected for their number (Holm 1979), in the order they came.

    >>> holm_correction([0.01, 0.04, 0.03])
    (0.03, 0.06, 0.06)
    """
    given = list(ps)
    if not all(0 <= p <= 1 for p in given):
        raise UserError(f"Expected p values between 0 and 1, got {given}.")
    corrected, so_far = [0.0] * len(given), 0.0
    for rank, index in enumerate(sorted(range(len(given)), key=given.__getitem__)):
        so_far = max(so_far, min(1.0, (len(given) - rank) * given[index]))
        corrected[index] = so_far
    return tuple(corrected)


def _paired(a: Sequence[TaskScores], b: Sequence[TaskScores]) -> dict[str, dict[str, float]]:
    """Returns task -> row id -> right under a minus right under b; refuses sides that do not match."""
    if not a or not b:
        raise UserError("Expected scores of both methods, got none of one.")
    name_a, name_b = repr(a[0].method), repr(b[0].method)
    sides = []
    for side in (a, b):
        tasks = {scores.task: scores for scores in side}
        if len(tasks) != len(side):
            raise UserError(f"Expected each task once, got one twice by {side[0].method!r}.")
        sides.append(tasks)
    of_a, of_b = sides
    for task in sorted(of_a.keys() ^ of_b.keys()):
        only = name_a if task in of_a else name_b
        raise UserError(
            f"Expected {name_a} and {name_b} on the same tasks, got {task!r} by {only} alone. Fix: score it "
            "for both, or leave it out of both."
        )
    return {task: _row_differences(of_a[task], of_b[task]) for task in of_a}


def _row_differences(a: TaskScores, b: TaskScores) -> dict[str, float]:
    sides = []
    for side in (a, b):
        columns = zip(side.row_ids, row_credits(side).tolist(), side.labels, strict=True)
        sides.append({row: (credit, label) for row, credit, label in columns})
    of_a, of_b = sides
    expected = f"Expected {a.method!r} and {b.method!r} on the same rows of {a.task!r}"
    unmatched = of_a.keys() ^ of_b.keys()
    if unmatched:
        first = min(unmatched)
        only = a.method if first in of_a else b.method
        raise UserError(
            f"{expected}, got row {first!r} by {only!r} alone ({len(unmatched)} such rows). Fix: score "
            "both on the same rows."
        )
    for row, (_, label) in of_a.items():
        if label != of_b[row][1]:
            raise UserError(
                f"{expected}, got labels {label} and {of_b[row][1]} in row {row!r}. Fix: score both on the "
                "same data."
            )
    return {row: credit - of_b[row][0] for row, (credit, _) in of_a.items()}


def _bootstrap(
    sides: Sequence[Mapping[str, Mapping[str, float]]], samples: int, seed: int
) -> tuple[Float[np.ndarray, " sides"], Float[np.ndarray, "sides samples"], int]:
    """Returns the macro means of row differences, those of every sample, and how many rows differ.

    Each side maps task -> row -> difference, all over the same rows, which are drawn alike for all sides.
    """
    if samples < 1:
        raise UserError(f"Expected at least one bootstrap sample, got {samples}.")
    datasets: dict[str, list[str]] = {}
    for task in sides[0]:
        datasets.setdefault(split_id(task)[0], []).append(task)
    rng = np.random.default_rng(seed)
    observed, resampled, differing = np.zeros(len(sides)), np.zeros((len(sides), samples)), 0
    for tasks in datasets.values():
        clusters = _clusters([[side[task] for task in tasks] for side in sides])
        differing += int(np.any(clusters[:, : -len(tasks)], axis=1).sum())
        observed += _prompt_means(clusters.sum(axis=0, keepdims=True), len(sides))[:, 0] / len(datasets)
        resampled += _resampled(clusters, len(sides), samples, rng) / len(datasets)
    return observed, resampled, differing


def _clusters(sides: Sequence[Sequence[Mapping[str, float]]]) -> Float[np.ndarray, "rows columns"]:
    """Returns one line a row: its differences under each prompt, side by side; then 1 for a prompt it has."""
    every = [row for prompt in sides[0] for row in prompt]
    ids = {row: index for index, row in enumerate(dict.fromkeys(every))}
    prompts = len(sides[0])
    lines = np.zeros((len(ids), (len(sides) + 1) * prompts))
    for number, side in enumerate(sides):
        for column, prompt in enumerate(side):
            at = [ids[row] for row in prompt]
            lines[at, number * prompts + column] = list(prompt.values())
            lines[at, len(sides) * prompts + column] = 1
    return lines


def _resampled(
    clusters: Float[np.ndarray, "rows columns"], sides: int, samples: int, rng: np.random.Generator
) -> Float[np.ndarray, "sides samples"]:
    """Returns the dataset's mean over prompts in each of the bootstrap's samples.

    Rows with equal lines are interchangeable, and most are equal: drawing how often each distinct line comes
    up has the same distribution as drawing rows, at a fraction of the cost.
    """
    lines, counts = np.unique(clusters, axis=0, return_counts=True)
    draws = rng.multinomial(len(clusters), counts / len(clusters), size=samples)
    return _prompt_means(draws.astype(float) @ lines, sides)


def _prompt_means(totals: Float[np.ndarray, "N columns"], sides: int) -> Float[np.ndarray, "sides N"]:
    """Returns the mean over prompts of sum / count; a prompt that a sample left without rows is left out."""
    *sums, counts = np.split(totals, sides + 1, axis=1)
    present = counts > 0
    means = [np.divide(own, counts, out=np.zeros(own.shape), where=present) for own in sums]
    return np.stack([own.sum(axis=1) for own in means]) / present.sum(axis=1)[None]
