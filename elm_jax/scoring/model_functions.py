"""Model functions: scores and answers as SeqIO's `Evaluator` asks a model for them.

    functions = model_functions(model, expert)
    evaluator.evaluate(compute_metrics=True, **functions._asdict())

The evaluator's datasets hold an index with each example's features, one example a choice where choices are
ranked; choices of one prompt are scored together all the same.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from elm_jax.axes import PAD
from elm_jax.errors import UserError
from elm_jax.records import Expert, Params
from elm_jax.scoring import choices, generator, scorer
from elm_jax.scoring.buckets import PromptWithChoices
from elm_jax.scoring.decoding import NAN_TOKEN
from elm_jax.scoring.scorer import BATCH_TOKENS
from elm_jax.weights.base_model import Base


class ModelFunctions(NamedTuple):
    """What SeqIO calls; both take its dataset of (index, features).

    Attributes:
        predict_fn: returns the token ids of greedy answers by index.
        score_fn: returns log-probabilities in nats by index, end-of-sequence included.
    """

    predict_fn: Callable[[Any], list[tuple[int, list[int]]]]
    score_fn: Callable[[Any], list[tuple[int, float]]]


def model_functions(
    model: Base,
    expert: Params | Expert | None = None,
    *,
    length: int = 128,
    eos: int = 1,
    batch_tokens: int = BATCH_TOKENS,
) -> ModelFunctions:
    """Returns the functions of a base with an expert, a tree or a record, or of the base alone.

    Args:
        model: what `load_model` returns.
        expert: for all rows, a tree or a record.
        length: tokens of an answer, at most; answers are written greedily.
        eos: the token that ends an answer.
        batch_tokens: that a device works on at once.

    Returns:
        Functions of features as SeqIO's `EncDecFeatureConverter` makes them without packing.

    Raises:
        UserError: an expert of another base; the functions raise it for features of another form.
    """
    params, owned = choices.resolve_params(model, expert)
    stack = None if owned is None else jax.tree.map(lambda leaf: leaf[None], owned)

    def score(dataset: Any) -> list[tuple[int, float]]:
        examples = _read_tokens(dataset)
        rows = [PromptWithChoices(prompt, [target]) for _, prompt, target in examples]
        found = scorer.score_rows(model.config, params, rows, stack, batch_tokens=batch_tokens)
        return [(index, float(own[0])) for (index, _, _), own in zip(examples, found, strict=True)]

    def predict(dataset: Any) -> list[tuple[int, list[int]]]:
        examples = _read_tokens(dataset)
        prompts = [prompt for _, prompt, _ in examples]
        found = generator.generate_rows(
            model.config,
            params,
            prompts,
            generator.AnswerLimit(length, eos),
            stack,
            batch_tokens=batch_tokens,
        )
        if any(NAN_TOKEN in answer for answer in found):
            raise UserError(
                "Expected finite logits, got NaN. Fix: look at the weights, which hold NaN or infinity."
            )
        return [
            (index, answer[answer != PAD].tolist())
            for (index, _, _), answer in zip(examples, found, strict=True)
        ]

    return ModelFunctions(predict, score)


def _read_tokens(dataset: Any) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Returns index, prompt and target of every example, without padding."""
    found = []
    for index, features in dataset.as_numpy_iterator():
        missing = sorted({"encoder_input_tokens", "decoder_target_tokens"} - set(features))
        if missing or "encoder_segment_ids" in features:
            raise UserError(
                "Expected features of SeqIO's EncDecFeatureConverter(pack=False), got "
                + (f"none named {missing[0]!r}." if missing else "packed ones.")
            )
        prompt, target = features["encoder_input_tokens"], features["decoder_target_tokens"]
        found.append((int(index), prompt[prompt != PAD], target[target != PAD]))
    return found
