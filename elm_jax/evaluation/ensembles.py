"""Ensembles: experts that answer a task together, by what they say and not by a merge of their parameters.

Every member scores the choices for itself, members of any kind, in the batches that all scorers share, and
the scores are kept as those of any expert; so an ensemble costs what its members lack. The output mean is the
usual baseline of merging ("Ensemble" of RegMean, arXiv 2212.09849). No released code of it works on scores of
answer choices; these formulas are held by their definition alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from elm_jax.merging.method import MergeOption
from elm_jax.records import TaskScores
from elm_jax.scoring import rank

ENSEMBLE = "ensemble"
"""What stands in a method's string in the place of a merge."""
ENSEMBLE_MEANS = ("probabilities", "log_probabilities")
ENSEMBLE_OPTIONS = {
    "of": MergeOption(
        str,
        ENSEMBLE_MEANS[0],
        "what the mean is of",
        " or ".join(ENSEMBLE_MEANS),
        is_valid=lambda value: value in ENSEMBLE_MEANS,
    )
}


@dataclass(frozen=True)
class Ensemble:
    """Experts that score a task's choices together.

    Attributes:
        members: their ids.
        weights: one a member, with sum 1.
        of: what the mean is of, one of `ENSEMBLE_MEANS`.
    """

    members: tuple[str, ...]
    weights: tuple[float, ...]
    of: str


def combine_scores(ensemble: Ensemble, scores: Float[np.ndarray, "E C"]) -> Float[np.ndarray, " C"]:
    """Returns a row's scores of C choices from those of E members.

    The mean of "probabilities" is log Σ w_e p_e, where p_e is the softmax of a member's scores over the row's
    choices, so that no member counts more for giving all of them more; that of "log_probabilities" is
    Σ w_e s_e, the scores' own mean.

    >>> two = Ensemble(("a/1", "b/1"), (0.5, 0.5), "probabilities")
    >>> np.exp(combine_scores(two, np.log([[0.2, 0.6], [0.9, 0.1]]))).round(3).tolist()
    [0.575, 0.425]
    """
    weights = np.asarray(ensemble.weights, np.float64)
    if ensemble.of == "log_probabilities":
        return weights @ np.asarray(scores, np.float64)
    return np.log(weights @ np.exp(rank.choice_log_softmax(scores)))


def combine_task_scores(ensemble: Ensemble, scores: Sequence[TaskScores]) -> TaskScores:
    """Returns a task's scores of an ensemble, from those of its members, which have the same rows."""
    rows = [
        combine_scores(ensemble, np.array(own)) for own in zip(*(each.scores for each in scores), strict=True)
    ]
    return replace(
        scores[0],
        scores=tuple(tuple(row.tolist()) for row in rows),
        predictions=tuple(map(rank.predict, rows)),
    )
