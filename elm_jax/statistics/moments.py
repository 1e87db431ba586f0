"""Statistics: what RegMean and Fisher know of an expert's data, summed up batch by batch.

A method that reads statistics takes one tree an expert, nested or flat, of plain arrays at the paths of the
base's parameters (of LoRA at P/kernel) or of (IA)³ vectors, with the layers of a stack in one array.

    RegMean   at a kernel [L, I, O]   [L, I, I]  the Gram matrix X'X of what goes into it, `add_gram`
              at a vector [L, D]      [L, D]     the squares of what it multiplies, `add_squares`
    Fisher    at everything, ΔW's shape          the squared gradients of single examples, `add_squares`

They are got by running an expert over a few hundred of its own training examples, no labels needed for
RegMean: what goes into a projection is taken from the forward pass, without padding. Gradients are those of
one example's log-likelihood by the base's parameters, taken with the expert in place. Whether sums or means
are kept decides whether an expert counts by how much data it has; of one size for all, either will do.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from elm_jax.errors import UserError

Values = Float[Array | np.ndarray, "*batch D"]


def add_gram(inputs: Values, before: Float[Array | np.ndarray, "D D"] | None = None) -> Float[Array, "D D"]:
    """Returns the Gram matrix X'X of inputs, all axes but the last being rows, added to that of before."""
    rows = jnp.asarray(inputs, jnp.float32).reshape(-1, inputs.shape[-1])
    # In full precision: accelerators would multiply in bfloat16, and the matrix is to be inverted.
    gram = jnp.matmul(rows.T, rows, precision="highest")
    return gram if before is None else gram + before


def add_squares(
    values: Float[Array | np.ndarray, "B *shape"], before: Float[Array | np.ndarray, "*shape"] | None = None
) -> Float[Array, "*shape"]:
    """Returns the sum over the first axis of squares, added to that of before."""
    squares = jnp.square(jnp.asarray(values, jnp.float32)).sum(axis=0)
    return squares if before is None else squares + before


def require_squares(owner: str, path: str, squares: np.ndarray) -> None:
    """Raises a UserError if there is among them what no sum of squares can be."""
    if not bool(np.all(np.isfinite(squares)) and np.all(squares >= 0)):
        raise UserError(
            f"The statistics of {owner!r} for {path} should be sums of squares, finite and not negative, but "
            "some are not. Sum them up anew."
        )
