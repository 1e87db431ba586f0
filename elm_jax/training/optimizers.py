"""Optimisers and schedules: optax's, without a learning rate, which every expert of a group has of its own.

The update that an optimiser gives is a direction to walk against; the step multiplies it by the expert's
learning rate.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, cast

import jax
import optax

from elm_jax import names
from elm_jax.training.config import OptimizerConfig, ScheduleConfig


def adamw(config: OptimizerConfig) -> optax.GradientTransformation:
    """Returns AdamW without decay, gradients clipped to norm 1 by default, as the original trains prompts."""
    clip = 1.0 if config.clip is None else config.clip
    return optax.chain(optax.clip_by_global_norm(clip), optax.scale_by_adam())


def adafactor(config: OptimizerConfig) -> optax.GradientTransformation:
    """Returns Adafactor without parameter scaling, gradients clipped to norm 0.5 by default.

    The original trains the full dataset expert with it.
    """
    clip = 0.5 if config.clip is None else config.clip
    return optax.chain(
        optax.clip_by_global_norm(clip), optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)
    )


OPTIMIZERS: Mapping[str, Callable[[OptimizerConfig], optax.GradientTransformation]] = {
    "adamw": adamw,
    "adafactor": adafactor,
}


def linear(step: int, schedule: ScheduleConfig) -> float:
    """Rises over the warmup, then falls in a line to 0 at the last step.

    >>> falling = ScheduleConfig(steps=4, learning_rate=1.0)
    >>> [linear(step, falling) for step in range(5)]
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    steps, peak, warmup = schedule.total_steps, schedule.peak, schedule.warmup
    if step < min(warmup, steps):
        return peak * (step + 1) / warmup
    return peak * max(0, steps - step) / max(1, steps - warmup)


def constant(step: int, schedule: ScheduleConfig) -> float:
    """Rises over the warmup, then stays until the last step."""
    steps, peak, warmup = schedule.total_steps, schedule.peak, schedule.warmup
    return (peak * min(1.0, (step + 1) / warmup) if warmup else peak) if step < steps else 0.0


SCHEDULES: Mapping[str, Callable[[int, ScheduleConfig], float]] = {"linear": linear, "constant": constant}


@lru_cache
def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Returns an optimiser, the same object for the same configuration: compiled steps are cached by it."""
    return OPTIMIZERS[names.resolve(config.name, OPTIMIZERS, kind="optimiser", where="elm_jax")](config)


@lru_cache
def optimize_scaled_params(
    optimizer: optax.GradientTransformation, factors: tuple[tuple[str, float], ...]
) -> optax.GradientTransformation:
    """Returns an optimiser that moves parameters as it would move them divided by factors.

    A network that multiplies a parameter p by s trains as one that has s p in its place and this optimiser.

    Args:
        optimizer: the optimiser, whose state is that of the divided parameters.
        factors: end of a path -> factor, see `models.expert_kinds.param_factors`.
    """
    if not factors:
        return optimizer
    by_leaf, inner = dict(factors), optax.with_extra_args_support(optimizer)

    def scale(tree: Any, power: int) -> Any:
        def of_leaf(keys: Any, leaf: Any) -> Any:
            return leaf * by_leaf.get(str(keys[-1].key), 1.0) ** power

        return jax.tree_util.tree_map_with_path(of_leaf, tree)

    def update(gradient: Any, state: Any, params: Any = None, **more: Any) -> tuple[Any, Any]:
        divided = None if params is None else scale(params, -1)
        direction, state = inner.update(scale(gradient, 1), state, divided, **more)
        return scale(direction, 1), state

    return optax.GradientTransformationExtraArgs(
        lambda params: optimizer.init(scale(params, -1)), cast(Any, update)
    )


def require_schedule(schedule: ScheduleConfig) -> None:
    """Refuses a schedule whose name does not exist."""
    names.resolve(schedule.name, SCHEDULES, kind="schedule", where="elm_jax")


def learning_rate_at(schedule: ScheduleConfig, step: int) -> float:
    """Returns the learning rate of a step, the first of which is 0."""
    return SCHEDULES[schedule.name](step, schedule)
