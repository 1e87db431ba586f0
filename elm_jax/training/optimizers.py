"""Optimisers and schedules: optax's, without a learning rate, which every expert of a group has of its own.

The update they give is a direction to walk against; the step multiplies it by that expert's rate.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache

import optax

from elm_jax import names


def adamw(*, clip: float = 1.0, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, decay: float = 0.0):
    """The prompt expert's: AdamW without decay, gradients clipped to norm 1, as the original trains it."""
    steps = [optax.clip_by_global_norm(clip), optax.scale_by_adam(b1=b1, b2=b2, eps=eps)]
    if decay:
        steps.append(optax.add_decayed_weights(decay))
    return optax.chain(*steps)


def adafactor(*, clip: float = 0.5):
    """The full dataset expert's: Adafactor without parameter scaling, gradients clipped to norm 0.5."""
    return optax.chain(
        optax.clip_by_global_norm(clip), optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)
    )


OPTIMIZERS: Mapping[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": adamw,
    "adafactor": adafactor,
}


def linear(step: int, steps: int, rate: float, warmup: int = 0) -> float:
    """Rises over `warmup` steps, then falls in a line to 0 at `steps`.

    >>> [linear(step, 4, 1.0) for step in range(5)]
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if step < min(warmup, steps):
        return rate * (step + 1) / warmup
    return rate * max(0, steps - step) / max(1, steps - warmup)


def constant(step: int, steps: int, rate: float, warmup: int = 0) -> float:
    """Rises over `warmup` steps, then stays until `steps`, where it ends."""
    return (rate * min(1.0, (step + 1) / warmup) if warmup else rate) if step < steps else 0.0


SCHEDULES: Mapping[str, Callable[..., float]] = {"linear": linear, "constant": constant}


@lru_cache
def optimizer(name: str, **options: float) -> optax.GradientTransformation:
    """Returns an optimiser by name, the same object every time: compiled steps are kept by it."""
    return OPTIMIZERS[names.resolve(name, OPTIMIZERS, kind="optimiser", where="elm_jax")](**options)


def schedule(name: str) -> Callable[..., float]:
    """Returns a schedule by name."""
    return SCHEDULES[names.resolve(name, SCHEDULES, kind="schedule", where="elm_jax")]
