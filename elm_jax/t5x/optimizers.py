"""The optimizers that T5X trains an expert with: AdamW on what the expert owns, nothing on its base.

T5X's own wrapper for optax does not pass a learning rate on, so that the schedule is part of the optimizer;
it counts the steps of its own state, which T5X saves and restores. T5X's `MultiOptimizer` would freeze too,
but cannot be resumed from an Orbax checkpoint.
"""

import importlib
from collections.abc import Callable
from typing import Any

import jax
import optax

from elm_jax import names
from elm_jax.weights import t5x_experts


def linear(rate: float, steps: int, warmup: int = 0) -> Callable[[Any], Any]:
    """Returns the schedule that rises to `rate` over `warmup` steps and falls to 0 at `steps`."""
    fall = optax.linear_schedule(rate, 0.0, max(1, steps - warmup))
    if not warmup:
        return fall
    return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), fall], [warmup])


def adamw(
    rate: Callable[[Any], Any] | float,
    kind: str,
    *,
    clip: float = 1.0,
    weight_decay: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> Any:
    """Returns AdamW for the parameters of an expert of a kind, as T5X takes optimizers.

    `clip` is the largest norm of all the expert's gradients together; the base's stay out of it, and their
    parameters stay as they are to the bit, without any state.
    """
    names.resolve(kind, t5x_experts.OWNED, kind="expert kind", where="elm_jax.weights.t5x_experts")
    of_expert = optax.chain(
        optax.clip_by_global_norm(clip), optax.adamw(rate, b1, b2, eps, weight_decay=weight_decay)
    )
    parts: dict[Any, Any] = {"expert": of_expert, "base": optax.set_to_zero()}
    wrapper: Any = importlib.import_module("t5x.optimizers")
    return wrapper.OptaxWrapper(optax.multi_transform(parts, lambda params: owners(params, kind)))


def owners(params: Any, kind: str) -> Any:
    """Returns, in the tree of the parameters, who owns each: "expert" or "base"."""

    def owner(keys: Any, _: Any) -> str:
        path = "/".join(str(key.key) for key in keys)
        return "expert" if t5x_experts.OWNED[kind].fullmatch(path) else "base"

    return jax.tree_util.tree_map_with_path(owner, params)
