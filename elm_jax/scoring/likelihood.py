"""Likelihood: the score of every answer choice under the network, each prompt encoded once."""

from collections.abc import Callable
from functools import lru_cache

import jax
import jax.numpy as jnp

from elm_jax.axes import PAD, Answers, ChoiceMask, ChoiceScores, ExpertOfRow, Prompts
from elm_jax.models.sizes import T5Config
from elm_jax.models.t5 import T5
from elm_jax.records import Params
from elm_jax.scoring import rank


def score(
    config: T5Config,
    params: Params,
    prompts: Prompts,
    answers: Answers,
    choice_mask: ChoiceMask,
    experts: Params | None = None,
    expert_of_row: ExpertOfRow | None = None,
) -> ChoiceScores:
    """Returns the summed log-probability of every choice's real tokens, in nats.

    `experts` is one expert's tree for all rows, or with `expert_of_row` a stack of E trees. Rows of padding
    alone give finite numbers without meaning; choices outside `choice_mask` give -inf.
    """
    logits = T5(config).apply({"params": params}, prompts, answers, experts, expert_of_row)
    logp = rank.token_log_probs(jnp.asarray(logits), answers)
    return rank.score_choices(logp, answers != PAD, choice_mask)


@lru_cache(maxsize=8)
def compiled(config: T5Config) -> Callable[..., ChoiceScores]:
    """Returns `score` for one shape of network, compiled once for each shape of batch.

    One function a shape of network, so that its compilations are shared by every caller and can be counted
    (`compiled(config)._cache_size()`).
    """
    return jax.jit(lambda *arguments: score(config, *arguments))
