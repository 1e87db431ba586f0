"""The optimizer with which T5X trains an expert: AdamW on the expert's parameters, nothing on its base's.

T5X's own wrapper for optax does not pass a learning rate on, so the schedule is part of the optimizer. It
counts the steps of its own state, which T5X saves and restores. T5X's `MultiOptimizer` would freeze a base
too, but cannot be resumed from an Orbax checkpoint.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from elm_jax import names
from elm_jax.models.expert_kinds import VERA, param_factors
from elm_jax.training.optimizers import optimize_scaled_params
from elm_jax.weights import t5x_experts


def linear(learning_rate: float, steps: int, warmup: int = 0) -> Callable[[Any], Any]:
    """Returns the schedule that rises to the learning rate over `warmup` steps and falls to 0 at `steps`."""
    decay = optax.linear_schedule(learning_rate, 0.0, max(1, steps - warmup))
    if not warmup:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, learning_rate, warmup), decay], [warmup])


def adamw(
    learning_rate: Callable[[Any], Any] | float,
    kind: str,
    *,
    options: Mapping[str, Any] | None = None,
    clip: float = 1.0,
    weight_decay: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> Any:
    """Returns AdamW for an expert's parameters, as T5X takes optimizers.

    The base's parameters stay the same bit for bit, without optimizer state.

    Args:
        learning_rate: A number, or a schedule by step.
        kind: Kind of the expert.
        options: Of the kind; a LoRA's alpha acts here.
        clip: Largest norm of the expert's gradient; the base's is not part of it.
        weight_decay: Decoupled weight decay.
        b1: Decay of the first moment.
        b2: Decay of the second moment.
        eps: Added to the root of the second moment.

    Raises:
        UserError: If there is no such kind.
    """
    names.resolve(kind, t5x_experts.OWNED_PARAMS, kind="expert kind", where="elm_jax.weights.t5x_experts")
    expert_optimizer = optax.chain(
        optax.clip_by_global_norm(clip), optax.adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay)
    )
    factors = tuple(param_factors(kind, options or {}).items())
    expert_optimizer = optimize_scaled_params(expert_optimizer, factors)
    optimizers: dict[Any, Any] = {"expert": expert_optimizer, "base": optax.set_to_zero()}
    wrapper: Any = importlib.import_module("t5x.optimizers")
    return wrapper.OptaxWrapper(optax.multi_transform(optimizers, lambda params: param_labels(params, kind)))


def param_labels(params: Any, kind: str) -> Any:
    """Returns for each parameter, in their tree, whose it is: "expert", or "base" if it is not trained."""

    def label(keys: Any, _: Any) -> str:
        path = "/".join(str(key.key) for key in keys)
        trained = t5x_experts.OWNED_PARAMS[kind].fullmatch(path) and not path.startswith(f"{VERA}/")
        return "expert" if trained else "base"

    return jax.tree_util.tree_map_with_path(label, params)
