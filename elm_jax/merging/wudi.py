"""WUDI: the change that interferes least with the inputs of each expert (Cheng et al., arXiv 2503.08099).

A task vector spans about the space of its inputs. So τ minimises `Σ ‖(τ - ΔW) ΔWᵀ‖² / ‖ΔW‖²` over the
experts, by the authors' 300 steps of Adam with a learning rate of 1e-5 from the sum of all ΔW, which it does
not reach the end of. What is no kernel is averaged. The result is multiplied by λ, `scale`, 1 with the
authors.

Of kernels of LoRA the gradient is computed from the factors. Weights, which the authors do not have, multiply
the terms of the first sum and of the second.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from elm_jax.axes import Array
from elm_jax.merging.changes import RANK, SCALE, as_matrices, find_no_matrix
from elm_jax.merging.lowrank import decompose
from elm_jax.merging.method import MergeOption, Options
from elm_jax.merging.parameter_groups import (
    MergeInputs,
    ParameterGroup,
    Tensor,
    scale_to_unit_mean,
    weighted_sum,
)
from elm_jax.merging.registry import register_merge

STEPS, LEARNING_RATE = 300, 1e-5


def wudi(
    changes: Sequence[np.ndarray],
    roots: Sequence[Float[np.ndarray, "I R"]],
    weights: Sequence[float],
    steps: int = STEPS,
    learning_rate: float = LEARNING_RATE,
) -> Tensor:
    """Returns the merged change of a kernel.

    Args:
        changes: One [I, O] per expert.
        roots: One per expert, for which `root root'` is `ΔW ΔW'`: the change itself, or a matrix of its rank.
        weights: One per expert, by which changes and terms of the loss are multiplied.
        steps: How many steps of Adam are made.
        learning_rate: Of each.
    """
    # The gradient is 2 (G τ - H), of which neither G = Σ root root' nor H = Σ root root' ΔW changes.
    start, target = np.zeros(changes[0].shape), np.zeros(changes[0].shape)
    parts = []
    for change, root, weight in zip(changes, roots, weights, strict=True):
        square = np.square(root, dtype=np.float64).sum()
        if square > 0:
            start += weight * change
            parts.append(np.asarray(root, np.float64) * np.sqrt(weight / square))
            target += parts[-1] @ (parts[-1].T @ change)
    if not parts:
        return start.astype(np.float32)
    factor = np.concatenate(parts, axis=1)
    is_gram = factor.shape[1] >= factor.shape[0]
    factor = factor @ factor.T if is_gram else factor
    arrays = (jnp.asarray(array, jnp.float32) for array in (start, factor, target))
    return np.asarray(_descend(*arrays, is_gram=is_gram, steps=steps, learning_rate=learning_rate))


@partial(jax.jit, static_argnames=("is_gram", "steps", "learning_rate"))
def _descend(
    start: Float[Array, "I O"],
    factor: Float[Array, "I R"],
    target: Float[Array, "I O"],
    *,
    is_gram: bool,
    steps: int,
    learning_rate: float,
) -> Float[Array, "I O"]:
    """Returns where Adam is after so many steps; `factor` is G, or L for which G = L L'."""
    multiply = partial(jnp.matmul, precision="highest")
    optimizer = optax.adam(learning_rate)

    def step(_: Array, before: tuple[Array, optax.OptState]) -> tuple[Array, optax.OptState]:
        merged, state = before
        product = multiply(factor, merged if is_gram else multiply(factor.T, merged))
        updates, state = optimizer.update(2 * (product - target), state)
        return merged + jnp.asarray(updates), state

    return jax.lax.fori_loop(0, steps, step, (start, optimizer.init(start)))[0]


def _find_conflict(groups: Sequence[ParameterGroup], options: Options) -> str | None:
    if all(group.form == "value" and not group.path.endswith("/kernel") for group in groups):
        return "it works on kernels, and these experts change none"
    return find_no_matrix(groups, options)


@register_merge(
    "wudi",
    options={
        "rank": RANK,
        "steps": MergeOption(int, STEPS, "of Adam", "a whole number of at least 0", lambda value: value >= 0),
        "learning_rate": MergeOption(
            float, LEARNING_RATE, "of Adam", "a number above 0", lambda value: value > 0
        ),
        "scale": SCALE,
    },
    find_conflict=_find_conflict,
    shared_factor=lambda weights, options: options["scale"],
)
def _merge_wudi(
    changes: Sequence[np.ndarray], inputs: MergeInputs, *, steps: int, learning_rate: float, scale: float
) -> Tensor:
    """The change of each kernel that interferes least with what each expert does to its own inputs."""
    if not inputs.group.path.endswith("/kernel"):
        return np.float32(scale) * weighted_sum(changes, inputs.weights)
    roots: Sequence[np.ndarray] = changes
    if inputs.group.form == "lora":
        spectra = [decompose(factors) for factors in as_matrices(changes, inputs)]
        roots = [spectrum.left * spectrum.sizes for spectrum in spectra]
    return np.float32(scale) * wudi(changes, roots, scale_to_unit_mean(inputs.weights), steps, learning_rate)
