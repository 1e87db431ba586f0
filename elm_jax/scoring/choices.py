"""Choices: the scores of answer choices that come as padded arrays, for those who bring their own tokens."""

from typing import Any

import jax
import numpy as np

from elm_jax.axes import PAD
from elm_jax.errors import UserError
from elm_jax.models import expert_layers as ex
from elm_jax.models import paths
from elm_jax.records import Expert, Params
from elm_jax.scoring import scorer
from elm_jax.scoring.buckets import PromptWithChoices
from elm_jax.weights import t5x_experts as fitting
from elm_jax.weights.base_model import Base


def score_choices(
    model: Base, prompts: Any, answers: Any, experts: Params | Expert | None = None
) -> np.ndarray:
    """Returns the summed log-probability of every answer's real tokens.

    End-of-sequence counts if it is among an answer's tokens, and no length is divided by (T0, Sanh et al.
    2022).

    Args:
        model: what `load_model` returns.
        prompts: token ids [B, S], NumPy's or JAX's integers, padded with 0 at the end.
        answers: token ids [B, C, T], padded alike; one of padding alone is no answer.
        experts: one expert for all rows, a tree beside the base or a record. Default: the base alone.

    Returns:
        Scores in nats, float32 [B, C]; -inf where there is no answer, so that it is never the best.

    Raises:
        UserError: arrays of another rank or type, token ids that the model does not have, batches that
            differ, or an expert of another base.
    """
    prompts = _require_token_array("prompts", prompts, "[B, S]", model)
    answers = _require_token_array("answers", answers, "[B, C, T]", model)
    if len(prompts) != len(answers):
        raise UserError(
            f"Expected a row of answers for each of {len(prompts)} prompts, got {len(answers)}. Fix: pass as "
            "many of both."
        )
    empty = np.flatnonzero(~(prompts != PAD).any(axis=1))
    if empty.size:
        raise UserError(f"Expected a token in every prompt, got padding alone in row {empty[0]}.")
    params, owned = resolve_params(model, experts)
    rows = [
        PromptWithChoices(prompt[prompt != PAD], [answer[answer != PAD] for answer in own if answer.any()])
        for prompt, own in zip(prompts, answers, strict=True)
    ]
    scores = np.full(answers.shape[:2], -np.inf, np.float32)
    held = [number for number, row in enumerate(rows) if row.answers]
    if held:
        stack = None if owned is None else jax.tree.map(lambda leaf: leaf[None], owned)
        found = scorer.score_rows(model.config, params, [rows[number] for number in held], stack)
        for number, own in zip(held, found, strict=True):
            scores[number, answers[number].any(axis=-1)] = own
    return scores


def _require_token_array(name: str, value: Any, axes: str, model: Base) -> np.ndarray:
    """Returns token ids as an array on the host, or says what they are instead."""
    try:
        tokens = np.asarray(value)
    except ValueError:
        raise UserError(
            f"Expected {name} {axes}, got rows of different lengths. Fix: pad them with 0."
        ) from None
    if tokens.dtype.kind not in "iu" or tokens.ndim != axes.count(",") + 1:
        raise UserError(f"Expected {name} as integers {axes}, got {tokens.dtype} of shape {tokens.shape}.")
    vocabulary = model.config.vocab_size
    if tokens.size and not (tokens.min() >= 0 and tokens.max() < vocabulary):
        wrong = tokens.min() if tokens.min() < 0 else tokens.max()
        raise UserError(
            f"Expected token ids from 0 to {vocabulary - 1} in {name}, got {wrong}. Fix: tokenise with the "
            "model's own vocabulary."
        )
    real = tokens != PAD
    if (real[..., 1:] & ~real[..., :-1]).any():
        raise UserError(
            f"Expected padding (0) at the end of a row of {name}, got it before other tokens. Fix: pad at "
            "the end."
        )
    return tokens.astype(np.int32)


def resolve_params(model: Base, experts: Params | Expert | None) -> tuple[Params, Params | None]:
    """Returns the parameters to score with and the expert's tree beside them, for an expert of any kind."""
    if experts is None:
        return model.params, None
    if isinstance(experts, Expert):
        kind, tree = experts.spec.kind, experts.params
        if experts.spec.base != model.fingerprint:
            raise UserError(
                f"Expected an expert of base {model.fingerprint!r}, got {experts.spec.id!r} of base "
                f"{experts.spec.base!r}. Fix: load its own base, or train the expert on this one."
            )
    else:
        whole = set(paths.flatten(experts)) == set(paths.flatten(model.params))
        kind, tree = "full" if whole else "", experts
    fitting.require_matching_shapes(tree, model.config, what="the expert")
    return ex.split_base_and_expert(kind, model.params, tree)
