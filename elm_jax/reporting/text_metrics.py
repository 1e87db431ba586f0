"""Written answers: how good they are by ROUGE, BLEU, exact match, SQuAD's or one's own measures, how sure.

All values are percentages. A value carries the name of the tokeniser behind it, for the same answers score
otherwise with another. Intervals are of a bootstrap over rows. ROUGE and BLEU are computed by the packages of
the extra `generation`, which are imported when they are wanted.
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

Texts = Sequence[str]
MetricHook = Callable[[Texts, Texts, Texts], float | Sequence[float]]
"""Takes targets, predictions and inputs; returns a percentage, or one a row, whose mean is then the value."""
HOOKS: dict[str, MetricHook] = {}
"""Measures of one's own by name, to be filled: `written.HOOKS["sari"] = my_sari`."""
UNAVAILABLE = {
    "bert_score": "another network computes it: pip install bert-score",
    "sari": "it compares with the input too: pip install easse, or evaluate",
}
"""The catalogue's measures that are a hook only, and where they are had."""
BLEU_ORDER = 4  # BLEU's longest n-grams
BOOTSTRAP_SAMPLES = 1000
"""Draws of a bootstrap."""
ROWS_AT_ONCE = 2**17  # rows drawn at once


@dataclass(frozen=True)
class MetricValue:
    """What one measure makes of a task's answers, in percent."""

    measure: str  # with its tokeniser
    value: float  # of all rows
    low: float | None  # the 95 % interval; None where a hook says one value of all rows
    high: float | None
    rows: tuple[float, ...]  # of each row alone; empty where there is no interval


def compute_metric(
    metric: str,
    targets: Texts,
    predictions: Texts,
    inputs: Texts | None = None,
    *,
    swapped_bleu: bool = False,
    samples: int = BOOTSTRAP_SAMPLES,
    seed: int = 0,
) -> MetricValue:
    """Returns what a measure, as the catalogue calls it or a hook is called, makes of predictions.

    The value is the mean over rows, BLEU's that of all rows together. The interval holds the middle 95 % of
    the values of as many rows drawn anew with replacement; where all rows are alike it has no width. With
    `swapped_bleu` predictions and targets change places in BLEU, as in the original. Raises `UserError` for
    an unknown measure, one whose hook is empty, no rows, and columns of different lengths.
    """
    require_metric(metric)
    if not targets:
        raise UserError("Written answers are wanted to judge, but none came.")
    _same_length(targets, predictions)
    if metric in HOOKS:
        told = HOOKS[metric](targets, predictions, inputs if inputs is not None else [""] * len(targets))
        if not isinstance(told, Sequence | np.ndarray):
            return MetricValue(metric, float(told), None, None, ())
        _same_length(targets, told)
        measure, found = metric, _Measured(np.asarray(told, float)[:, None], _mean)
        rows = found.statistics[:, 0]
    else:
        measure, make = METRICS[metric]
        if swapped_bleu and metric == "bleu":
            measure, targets, predictions = "bleu (intl, swapped)", predictions, targets
        found = make(targets, predictions)
        rows = found.statistics[:, 0]
    rng = np.random.default_rng(seed)
    count, drawn = len(targets), []
    at_once = max(1, ROWS_AT_ONCE // count)
    for start in range(0, samples, at_once):
        chosen = rng.integers(0, count, (min(at_once, samples - start), count))
        drawn += map(found.of_all, found.statistics[chosen].mean(axis=1))
    low, high = np.quantile(drawn, [0.025, 0.975])
    value = found.of_all(found.statistics.mean(axis=0))
    return MetricValue(measure, value, float(low), float(high), tuple(map(float, rows)))


def require_metric(metric: str) -> None:
    """Refuses a measure that is not there, before anything is written that it should judge."""
    if metric in UNAVAILABLE and metric not in HOOKS:
        raise UserError(
            f"Answers are to be judged by {metric!r}, but no function for it is here; {UNAVAILABLE[metric]}, "
            f"and give it as elm_jax.reporting.text_metrics.HOOKS[{metric!r}], or judge by another."
        )
    names.resolve(metric, [*METRICS, *HOOKS], kind="measure", where="elm_jax.reporting.text_metrics")


@dataclass(frozen=True)
class _Measured:
    """Statistics of rows, the row's own value first, and the value of rows of which their mean is known."""

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

    >>> normalised(" The  Cat's (hat), an A.")
    'cats hat'
    """
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def word_f1(target: str, prediction: str) -> float:
    """Returns SQuAD's F1 of the words that both hold, in [0, 1]; 1 where both hold none (Rajpurkar 2018)."""
    wanted, told = normalize_answer(target).split(), normalize_answer(prediction).split()
    if not wanted or not told:
        return float(wanted == told)
    shared = sum((Counter(wanted) & Counter(told)).values())
    return 2 * shared / (len(wanted) + len(told))


def _value(make: "_Make", targets: Texts, predictions: Texts) -> float:
    _same_length(targets, predictions)
    if not targets:
        return 0.0
    found = make(targets, predictions)
    return found.of_all(found.statistics.mean(axis=0))


def _by_row(of_row: Callable[[str, str], float]) -> "_Make":
    """Makes a measure of a row, a share, into one of many rows, in percent."""

    def measured(targets: Texts, predictions: Texts) -> _Measured:
        found = [100 * of_row(target, told) for target, told in zip(targets, predictions, strict=True)]
        return _Measured(np.array(found, float)[:, None], _mean)

    return measured


_Make = Callable[[Texts, Texts], _Measured]
_exact_match = _by_row(lambda target, told: target.strip() == told.strip())
_squad_em = _by_row(lambda target, told: normalize_answer(target) == normalize_answer(told))
_squad_f1 = _by_row(word_f1)


def _rouge(kind: str) -> _Make:
    def measured(targets: Texts, predictions: Texts) -> _Measured:
        scorer = _package("rouge_score.rouge_scorer").RougeScorer([kind], use_stemmer=True)
        return _by_row(lambda target, told: scorer.score(target, told)[kind].fmeasure)(targets, predictions)

    return measured


def _bleu(targets: Texts, predictions: Texts) -> _Measured:
    """A row's own value is that of sacrebleu's sentences, which counts no longer n-grams than there are."""
    made = _package("sacrebleu").BLEU(tokenize="intl", effective_order=True)
    rows = []
    for target, told in zip(targets, predictions, strict=True):
        found = made.sentence_score(told, [target])
        rows.append([found.score, *found.counts, *found.totals, found.sys_len, found.ref_len])

    def of_all(means: np.ndarray) -> float:
        sums = np.rint(means[1:] * len(targets)).astype(int).tolist()  # sacrebleu asks for whole numbers
        counts, totals, lengths = sums[:BLEU_ORDER], sums[BLEU_ORDER : 2 * BLEU_ORDER], sums[2 * BLEU_ORDER :]
        return float(made.compute_bleu(counts, totals, *lengths, smooth_method="exp").score)

    return _Measured(np.array(rows, float), of_all)


METRICS: Mapping[str, tuple[str, _Make]] = {
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


def _same_length(targets: Sequence[Any], predictions: Sequence[Any]) -> None:
    if len(targets) != len(predictions):
        raise UserError(f"An answer is wanted for each of {len(targets)} rows, but {len(predictions)} came.")


def _package(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{module.partition('.')[0]} is wanted to judge written answers, but it is not installed. "
            "Install the extra: pip install 'elm_jax[generation]'."
        ) from error
