"""Attention check: how far the attention kernel is from the formula on the devices that are here.

The kernel was compiled for TPUs and run by an interpreter; whoever has a chip can ask it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from elm_jax.axes import Array
from elm_jax.models import attention_kernel
from elm_jax.models.attention_kernel import Arguments
from elm_jax.models.dropout import is_kept
from elm_jax.models.masks import MASKED

_ROWS, _HEADS, _HEAD_DIM, _QUERIES, _KEYS, _RATE = 2, 4, 64, 256, 384, 0.1


def attend_plainly(head_dim: int, causal: bool, rate: float, given: Arguments) -> Float[Array, "N Q W"]:
    """Returns what `attention_kernel.attend` does, by the formula, in float32."""
    rows, queries, width = given.query.shape
    query, key, value = (
        x.astype(jnp.float32).reshape(rows, -1, width // head_dim, head_dim) for x in given[:3]
    )
    logits = jnp.einsum("nqhd,nkhd->nhqk", query, key, precision="highest")
    if given.bias is not None:
        logits = logits + given.bias.swapaxes(1, 2)[None]
    seen = given.query_segments[:, :, None] == given.key_segments[:, None]
    if causal:
        seen = seen & np.tril(np.ones(seen.shape[1:], bool))
    weights = jax.nn.softmax(jnp.where(seen[:, None], logits, MASKED), axis=-1)
    if given.query_dropout_seeds is not None and given.key_dropout_seeds is not None:
        words = given.query_dropout_seeds[..., None] + given.key_dropout_seeds[:, None, None]
        weights = jnp.where(is_kept(words, rate), weights / (1 - rate), 0.0)
    return jnp.einsum("nhqk,nkhd->nqhd", weights, value, precision="highest").reshape(rows, queries, width)


def largest_difference(seed: int = 0) -> float:
    """Returns how far results and gradients of the kernel are from those of the formula.

    In float32, with segments, a bias and dropout, on the default device.

    Returns:
        The largest difference of an array, as a share of its largest value, over all arrays.
    """
    rng, width = np.random.default_rng(seed), _HEADS * _HEAD_DIM

    def draw(*shape: int) -> Array:
        return jnp.asarray(0.5 * rng.normal(size=shape), jnp.float32)

    def draw_words(*shape: int) -> Array:
        return jnp.asarray(rng.integers(0, 2**32, shape, np.uint32))

    def halves(length: int) -> Array:
        return jnp.asarray(np.tile(np.repeat(np.arange(2, dtype=np.int32), length // 2), (_ROWS, 1)))

    given = Arguments(
        draw(_ROWS, _QUERIES, width),
        draw(_ROWS, _KEYS, width),
        draw(_ROWS, _KEYS, width),
        halves(_QUERIES),
        halves(_KEYS),
        draw(_HEADS, _KEYS, _QUERIES),
        draw_words(_ROWS, _HEADS, _QUERIES),
        draw_words(_ROWS, _KEYS),
    )
    aim = draw(_ROWS, _QUERIES, width)

    def results(attend: Callable[..., Array]) -> list[np.ndarray]:
        def loss(query: Array, key: Array, value: Array, bias: Array) -> tuple[Array, Array]:
            own = given._replace(query=query, key=key, value=value, bias=bias)
            found = attend(_HEAD_DIM, False, _RATE, own)
            return (found * aim).sum(), found

        gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True))
        return [np.asarray(x) for x in jax.tree.leaves(gradient(*given[:3], given.bias))]

    pairs = zip(results(attention_kernel.attend), results(attend_plainly), strict=True)
    return max(float(np.abs(one - other).max() / np.abs(other).max()) for one, other in pairs)
