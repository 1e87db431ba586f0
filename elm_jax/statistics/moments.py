"""Moments: the sums that RegMean and Fisher average of an expert's data, added up batch by batch.

A method that reads statistics takes one tree per expert, nested or flat, of plain arrays at the paths of the
base's parameters (for LoRA at P/kernel) or of (IA)³ vectors, with the layers of a stack in one array.

    RegMean   at a kernel [L, I, O]   [L, I, I]  the Gram matrix X'X of what goes into it, `add_gram`
              at a vector [L, D]      [L, D]     the squares of what it multiplies, `add_squares`
    Fisher    at everything, ΔW's shape          the squared gradients of single examples, `add_squares`

`estimators` computes them from a few hundred of an expert's own training examples; RegMean needs no labels.
What goes into a projection is taken from the forward pass, without padding. Gradients are those of one
example's log-likelihood by the base's parameters, with the expert in place. Both methods read means, over
tokens and over examples, by which an expert with many or long rows counts no more than another.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from elm_jax.errors import UserError

Values = Float[Array | np.ndarray, "*batch D"]


def add_gram(inputs: Values, before: Float[Array | np.ndarray, "D D"] | None = None) -> Float[Array, "D D"]:
    """Returns the Gram matrix X'X of inputs, of which all axes but the last are rows, plus `before`."""
    rows = jnp.asarray(inputs, jnp.float32).reshape(-1, inputs.shape[-1])
    # In full precision: accelerators would multiply in bfloat16, and the matrix is to be inverted.
    gram = jnp.matmul(rows.T, rows, precision="highest")
    return gram if before is None else gram + before


def sum_row_means(
    inputs: Float[Array | np.ndarray, "B N D"], real: Shaped[Array | np.ndarray, "B N"]
) -> Float[Array, " D"]:
    """Returns the sum over rows of the mean over their real tokens; a row of padding alone adds nothing."""
    mask = jnp.asarray(real, jnp.float32)[..., None]
    tokens = jnp.maximum(mask.sum(axis=1), 1.0)
    return ((jnp.asarray(inputs, jnp.float32) * mask).sum(axis=1) / tokens).sum(axis=0)


def add_squares(
    values: Float[Array | np.ndarray, "B *shape"], before: Float[Array | np.ndarray, "*shape"] | None = None
) -> Float[Array, "*shape"]:
    """Returns the sum over the first axis of squares, plus `before`."""
    squares = jnp.square(jnp.asarray(values, jnp.float32)).sum(axis=0)
    return squares if before is None else squares + before


def require_squares(expert_id: str, path: str, squares: np.ndarray) -> None:
    """Raises a UserError if a value cannot be a sum of squares."""
    if not bool(np.all(np.isfinite(squares)) and np.all(squares >= 0)):
        raise UserError(
            f"Expected finite statistics of {expert_id!r} for {path}, of at least 0, got others. Fix: take "
            "them again."
        )
