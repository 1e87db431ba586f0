"""Significance: whether two methods differ by more than the choice of rows, or of rows and prompts, explains.

Two methods are compared on the same rows only. The same row under two prompts is one cluster: fifteen prompts
over 56 rows are 56 pieces of evidence, not 840. By default what is said holds for these very prompts; over
prompts it holds for prompts like them.
"""

import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from elm_jax.errors import UserError
from elm_jax.names import split_id
from elm_jax.records import TaskScores
from elm_jax.reporting.metrics import degrees_of_freedom
from elm_jax.reporting.paired_rows import RowDifferences, group_tasks, pair_rows, tabulate_rows

Over = Literal["rows", "prompts"]
"""What a difference is to hold over: other rows under these prompts, or other rows and other prompts."""

TAIL_QUANTILES = (0.025, 0.975)


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
    a: Sequence[TaskScores],
    b: Sequence[TaskScores],
    *,
    over: Over = "rows",
    samples: int = 2000,
    seed: int = 0,
) -> PairedDifference:
    """Compares two methods' macro means on the same tasks and rows.

    Over rows by a paired, clustered bootstrap: every sample draws each dataset's rows anew, with replacement,
    a row bringing its outcomes under all prompts along. The interval is the expanded percentile interval
    (Hesterberg 2015, What Teachers Should Know about the Bootstrap): Student's t in the place of the normal
    distribution, and samples spread as few rows want it. The p belongs to it: it falls below 0.05 where the
    interval leaves zero out.

    Over prompts rows and prompts are drawn alike: the variance of a mean over rows and columns that are both
    random (Clark 1973), with Satterthwaite's degrees of freedom. A dataset of one prompt says nothing about
    other prompts, and counts as it does over rows.

    A p is never below what so few differing rows could show in a sign test (2 / 2^rows), nor below
    2 / (samples + 1).

    Args:
      a: scores of the first method, one record a task.
      b: those of the second.
      over: what the difference is to hold over.
      samples: of the bootstrap.
      seed: of the bootstrap.

    Raises:
      UserError: the sides differ in tasks, rows or labels; no dataset has two prompts to draw.
    """
    pairs = pair_rows(a, b)
    tables = [tabulate_rows([[pairs[task] for task in tasks]]) for tasks in group_tasks(pairs).values()]
    differing = sum(int(np.any(np.split(table, 2, axis=1)[0], axis=1).sum()) for table in tables)
    if over == "prompts":
        difference, low, high, p = _test_over_prompts(tables)
    else:
        difference, low, high, p = _test_over_rows(pairs, samples, seed)
    return PairedDifference(
        a=a[0].method,
        b=b[0].method,
        difference=difference,
        low=float(low),
        high=float(high),
        p=float(min(1.0, max(p, 2 / (samples + 1), 2.0 ** (1 - differing)))),
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
    sides = [pair_rows(method, baseline), pair_rows(oracle, baseline)]
    (own, whole), (owns, wholes), freedom = _bootstrap(sides, samples, seed)
    if whole <= 0:
        return None
    gaps = wholes > 1e-12  # a sample without a gap says nothing about the share
    if gaps.mean() < 0.975:
        return GapClosed(float(own / whole), None, None)
    low, high = np.quantile(owns[gaps] / wholes[gaps], ndtr(stdtrit(freedom, TAIL_QUANTILES)))
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
    for task, differences in pair_rows(a, b).items():
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


def _test_over_rows(pairs: RowDifferences, samples: int, seed: int) -> tuple[float, float, float, float]:
    """Returns a macro mean of differences, its interval over rows, and its two-sided p."""
    (difference,), resampled, freedom = _bootstrap([pairs], samples, seed)
    resampled = resampled[0].round(12)  # sums in another order must not make zeros look like tiny differences
    below, above = (int((sign * resampled >= 0).sum()) for sign in (-1, 1))
    share = (min(below, above) + 1) / (samples + 1)
    low, high = np.quantile(resampled, ndtr(stdtrit(freedom, TAIL_QUANTILES)))
    p = 2 * stdtr(freedom, ndtri(share)) if share < 0.5 else 1.0
    return float(difference), float(low), float(high), float(p)


def _test_over_prompts(
    tables: Sequence[Float[np.ndarray, "rows columns"]],
) -> tuple[float, float, float, float]:
    """Returns a macro mean of differences, its interval over rows and prompts, and its two-sided p."""
    if all(table.shape[1] == 2 for table in tables):
        raise UserError(
            "Expected a dataset with several prompts to draw prompts of, got one prompt each. Fix: compare "
            "over rows, or evaluate more prompts."
        )
    difference, variance, terms = 0.0, 0.0, []
    for table in tables:
        differences, present = np.split(table, 2, axis=1)
        rows, prompts = differences.shape
        counts = present.sum(axis=0)
        means = differences.sum(axis=0) / counts
        difference += float(means.mean()) / len(tables)
        # What every outcome adds to the macro mean beyond its prompt's mean.
        influence = (differences - means * present) / (counts * prompts * len(tables))
        by_row = influence.sum(axis=1)
        of_rows = float(by_row @ by_row) * rows / max(1, rows - 1)
        terms.append((of_rows, max(1, rows - 1)))
        if prompts == 1:
            variance += of_rows
            continue
        by_prompt = (means - means.mean()) / (prompts * len(tables))
        of_prompts = float(by_prompt @ by_prompt) * prompts / (prompts - 1)
        # Chance within a row and a prompt is in both; it counts once.
        rest = influence - by_row[:, None] / prompts
        of_rest = float((rest**2).sum()) * rows * prompts / (max(1, rows - 1) * (prompts - 1))
        terms += [(of_prompts, prompts - 1), (of_rest, max(1, rows - 1) * (prompts - 1))]
        variance += max(of_rows + of_prompts - of_rest, of_rows, of_prompts)
    freedom = degrees_of_freedom(variance, terms)
    error = float(np.sqrt(variance))
    low, high = difference + error * stdtrit(freedom, TAIL_QUANTILES)
    p = 2 * stdtr(freedom, -abs(difference) / error) if error else float(not difference)
    return difference, float(low), float(high), float(p)


def _bootstrap(
    sides: Sequence[RowDifferences], samples: int, seed: int
) -> tuple[Float[np.ndarray, " sides"], Float[np.ndarray, "sides samples"], float]:
    """Returns macro means of row differences, those of every sample, and degrees of freedom.

    All sides have the same rows, which are drawn alike for all. A bootstrap's variance is (n - 1) / n of the
    variance that it estimates, so that each dataset's samples are spread by the square root of n / (n - 1);
    the degrees of freedom are those of the first side.
    """
    if samples < 1:
        raise UserError(f"Expected at least one bootstrap sample, got {samples}.")
    datasets = group_tasks(sides[0])
    rng = np.random.default_rng(seed)
    observed, resampled = np.zeros(len(sides)), np.zeros((len(sides), samples))
    variances: list[tuple[float, int]] = []
    for tasks in datasets.values():
        clusters = tabulate_rows([[side[task] for task in tasks] for side in sides])
        rows = len(clusters)
        means = _prompt_means(clusters.sum(axis=0, keepdims=True), len(sides)) / len(datasets)
        draws = _resampled(clusters, len(sides), samples, rng) / len(datasets)
        draws = means + (draws - means) * np.sqrt(rows / max(1, rows - 1))
        observed += means[:, 0]
        resampled += draws
        variances.append((float(draws[0].var()), max(1, rows - 1)))
    return observed, resampled, degrees_of_freedom(sum(own for own, _ in variances), variances)


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
