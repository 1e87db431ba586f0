"""Text metrics: how good answers in free text are by ROUGE, BLEU, exact match, SQuAD's or one's own metrics.

All values are percentages. A value carries the name of the tokeniser behind it, for the same answers score
otherwise with another. Intervals are of a bootstrap over rows. ROUGE and BLEU are computed by the packages of
the extra `generation`, which are imported when they are needed.
"""

import importlib
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from elm_jax import names
from elm_jax.errors import UserError
from elm_jax.extras import install_command

Texts = Sequence[str]
MetricHook = Callable[[Texts, Texts, Texts], float | Sequence[float]]
"""Takes targets, predictions and inputs; returns a percentage, or one a row, whose mean is then the value."""
HOOKS: dict[str, MetricHook] = {}
"""Metrics of one's own by name, to be filled: `text_metrics.HOOKS["sari"] = my_sari`."""
HOOK_ONLY_METRICS = {
    "bert_score": "another network computes it: pip install bert-score",
    "sari": "it compares with the input too: pip install easse, or evaluate",
}
"""The catalogue's metrics that are a hook only, and where they are found."""
BLEU_ORDER = 4  # BLEU's longest n-grams
BOOTSTRAP_SAMPLES = 1000
"""Draws of a bootstrap."""
ROWS_AT_ONCE = 2**17  # rows drawn at once


@dataclass(frozen=True)
class MetricValue:
    """What one metric makes of a task's answers, in percent.

    Attributes:
        measure: the metric with its tokeniser.
        value: of all rows.
        low: the lower end of the 95 % interval; None if a hook returns one value of all rows.
        high: the upper end.
        rows: the value of each row alone; empty if there is no interval.
    """

    measure: str
    value: float
    low: float | None
    high: float | None
    rows: tuple[float, ...]


def compute_metric(
    metric: str,
    targets: Texts,
    predictions: Texts,
    inputs: Texts | None = None,
    *,
    accepted: Sequence[Texts] | None = None,
    swapped_bleu: bool = False,
    samples: int = BOOTSTRAP_SAMPLES,
    seed: int = 0,
) -> MetricValue:
    """Returns the value of a metric with its interval.

    The value is the mean over rows; that of BLEU is of all rows together. The interval holds the middle 95 %
    of the values of as many rows drawn anew with replacement; if all rows are alike it has no width.

    Args:
        metric: as the catalogue calls it, or a hook's name.
        targets: the right answers.
        predictions: what was written, in the same order.
        accepted: all right answers of each row, of which the best counts; BLEU counts n-grams of any of them.
            Default: the targets.
        inputs: the prompts, which hooks may read.
        swapped_bleu: whether predictions and targets change places in BLEU, as in the original.
        samples: draws of the bootstrap.
        seed: of the draws.

    Raises:
        UserError: an unknown metric, one whose hook is not filled, no rows, or columns of different lengths.
    """
    require_metric(metric)
    if not targets:
        raise UserError("Expected answers to evaluate, got none.")
    _require_same_length(targets, predictions)
    if metric in HOOKS:
        value = HOOKS[metric](targets, predictions, inputs if inputs is not None else [""] * len(targets))
        if not isinstance(value, Sequence | np.ndarray):
            return MetricValue(metric, float(value), None, None, ())
        _require_same_length(targets, value)
        measure, found = metric, _RowStatistics(np.asarray(value, float)[:, None], _mean)
    else:
        measure, compute = METRICS[metric]
        if swapped_bleu and metric == "bleu":
            measure, targets, predictions = "bleu (intl, swapped)", predictions, targets
            accepted = None
        found = compute([[target] for target in targets] if accepted is None else accepted, predictions)
    rng = np.random.default_rng(seed)
    count, drawn = len(targets), []
    at_once = max(1, ROWS_AT_ONCE // count)
    for start in range(0, samples, at_once):
        chosen = rng.integers(0, count, (min(at_once, samples - start), count))
        drawn += map(found.of_all, found.statistics[chosen].mean(axis=1))
    low, high = np.quantile(drawn, [0.025, 0.975])
    value = found.of_all(found.statistics.mean(axis=0))
    return MetricValue(measure, value, float(low), float(high), tuple(map(float, found.statistics[:, 0])))


def require_metric(metric: str) -> None:
    """Raises a UserError for a metric that does not exist, before anything is generated."""
    if metric in HOOK_ONLY_METRICS and metric not in HOOKS:
        raise UserError(
            f"Expected a function for metric {metric!r}, got none: {HOOK_ONLY_METRICS[metric]}. Fix: set "
            f"elm_jax.reporting.text_metrics.HOOKS[{metric!r}], or choose another metric."
        )
    names.resolve(metric, [*METRICS, *HOOKS], kind="metric", where="elm_jax.reporting.text_metrics")


@dataclass(frozen=True)
class _RowStatistics:
    """Statistics of rows, the row's own value first, and how their mean becomes the value of all rows."""

    statistics: Float[np.ndarray, "rows K"]
    of_all: Callable[[np.ndarray], float]


def _mean(statistics: np.ndarray) -> float:
    return float(statistics[0])


def exact_match(targets: Texts, predictions: Texts) -> dict[str, float]:
    """Returns the share of predictions, in percent, that are their target but for white space around them."""
    return {"exact_match": _value(_exact_match, targets, predictions)}


def rouge(targets: Texts, predictions: Texts) -> dict[str, float]:
    """Returns the means of ROUGE-1, ROUGE-2 and ROUGE-L (F1), in percent, with words stemmed.

    They see the letters a to z and digits alone, as rouge-score does by default.
    """
    kinds = {"rouge1": "rouge_1", "rouge2": "rouge_2", "rougeL": "rouge_l"}
    return {kind: _value(METRICS[metric][1], targets, predictions) for kind, metric in kinds.items()}


def bleu(targets: Texts, predictions: Texts) -> dict[str, float]:
    """Returns the BLEU of all predictions together, in percent, by sacrebleu with its tokeniser `intl`."""
    return {"bleu": _value(_bleu, targets, predictions)}


def squad(targets: Texts, predictions: Texts) -> dict[str, float]:
    """Returns SQuAD's exact match and F1, in percent, of one right answer a row."""
    return {
        "em": _value(_squad_em, targets, predictions),
        "f1": _value(_squad_f1, targets, predictions),
    }


def normalize_answer(text: str) -> str:
    """Returns a text as SQuAD compares it: lower case, no punctuation, no articles, single spaces.

    >>> normalize_answer(" The  Cat's (hat), an A.")
    'cats hat'
    """
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def word_f1(target: str, prediction: str) -> float:
    """Returns SQuAD's F1 of the words that both hold, in [0, 1]; 1 where both hold none (Rajpurkar 2018)."""
    words, predicted = normalize_answer(target).split(), normalize_answer(prediction).split()
    if not words or not predicted:
        return float(words == predicted)
    shared = sum((Counter(words) & Counter(predicted)).values())
    return 2 * shared / (len(words) + len(predicted))


def _value(compute: "_Compute", targets: Texts, predictions: Texts) -> float:
    _require_same_length(targets, predictions)
    if not targets:
        return 0.0
    found = compute([[target] for target in targets], predictions)
    return found.of_all(found.statistics.mean(axis=0))


def _mean_over_rows(row_value: Callable[[str, str], float]) -> "_Compute":
    """Returns a metric of many rows, in percent, of one of a row, a fraction."""

    def compute(answers: Sequence[Texts], predictions: Texts) -> _RowStatistics:
        found = [
            100 * max(row_value(answer, predicted) for answer in own)
            for own, predicted in zip(answers, predictions, strict=True)
        ]
        return _RowStatistics(np.array(found, float)[:, None], _mean)

    return compute


_Compute = Callable[[Sequence[Texts], Texts], _RowStatistics]
_exact_match = _mean_over_rows(lambda target, predicted: target.strip() == predicted.strip())
_squad_em = _mean_over_rows(lambda target, predicted: normalize_answer(target) == normalize_answer(predicted))
_squad_f1 = _mean_over_rows(word_f1)


def _rouge(kind: str) -> _Compute:
    def compute(answers: Sequence[Texts], predictions: Texts) -> _RowStatistics:
        scorer = _package("rouge_score.rouge_scorer").RougeScorer([kind], use_stemmer=True)
        return _mean_over_rows(lambda target, predicted: scorer.score(target, predicted)[kind].fmeasure)(
            answers, predictions
        )

    return compute


def _bleu(answers: Sequence[Texts], predictions: Texts) -> _RowStatistics:
    """A row's own value is that of sacrebleu's sentences, which counts no longer n-grams than there are."""
    made = _package("sacrebleu").BLEU(tokenize="intl", effective_order=True)
    rows = []
    for own, predicted in zip(answers, predictions, strict=True):
        found = made.sentence_score(predicted, own)
        rows.append([found.score, *found.counts, *found.totals, found.sys_len, found.ref_len])

    def of_all(means: np.ndarray) -> float:
        sums = np.rint(means[1:] * len(answers)).astype(int).tolist()  # sacrebleu asks for whole numbers
        counts, totals, lengths = sums[:BLEU_ORDER], sums[BLEU_ORDER : 2 * BLEU_ORDER], sums[2 * BLEU_ORDER :]
        return float(made.compute_bleu(counts, totals, *lengths, smooth_method="exp").score)

    return _RowStatistics(np.array(rows, float), of_all)


METRICS: Mapping[str, tuple[str, _Compute]] = {
    "accuracy": ("exact match", _exact_match),
    "exact_match": ("exact match", _exact_match),
    "squad_em": ("squad_em (normalised)", _squad_em),
    "squad_f1": ("squad_f1 (normalised)", _squad_f1),
    "rouge_1": ("rouge_1 (a-z0-9, stemmed)", _rouge("rouge1")),
    "rouge_2": ("rouge_2 (a-z0-9, stemmed)", _rouge("rouge2")),
    "rouge_l": ("rouge_l (a-z0-9, stemmed)", _rouge("rougeL")),
    "bleu": ("bleu (intl)", _bleu),
}
"""A task's metric, as the catalogue calls it -> its full name, and what computes it."""


def _require_same_length(targets: Sequence[Any], predictions: Sequence[Any]) -> None:
    if len(targets) != len(predictions):
        raise UserError(f"Expected an answer for each of {len(targets)} rows, got {len(predictions)}.")


def _package(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"Expected the package {module.partition('.')[0]} for this metric, got none. Fix: "
            f"{install_command('generation')}."
        ) from error
