"""Experts: small trees of parameters beside a frozen base, one kind for every way to own some.

A bottleneck expert is the original's adapter (arXiv 2302.03202, as its released code has it): after
self-attention and after feed-forward of both stacks `y = x + up(gelu(down(x)))`, width `emb_dim // 32`, with
biases, weights drawn from N(0, 0.01²), none on cross-attention; and a scale of its own for every norm. A full
expert owns every parameter of the base.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from elm_jax.axes import Array, ExpertOfRow
from elm_jax.errors import UserError
from elm_jax.models import paths
from elm_jax.records import Params

REDUCTION = 32
INITIAL_STD = 0.01
# The blocks that an adapter follows, by stack; cross-attention has none.
ADAPTED = {"encoder": ("attention", "mlp"), "decoder": ("self_attention", "mlp")}


def init_bottleneck(key: jax.Array, base: Params, width: int | None = None) -> dict[str, Any]:
    """Returns a fresh bottleneck expert for a base: adapters near zero, norm scales as the base has them.

    `width` is the bottleneck's R; the original's, and the default, is `emb_dim // 32`, at least 1.
    """
    emb_dim = base["token_embedder"]["embedding"].shape[1]
    width = width or max(1, emb_dim // REDUCTION)
    flat: dict[str, Any] = {}
    for stack, blocks in ADAPTED.items():
        layers = base[stack]["layers"]["mlp"]["wo"]["kernel"].shape[0]
        for block in blocks:
            key, down, up = jax.random.split(key, 3)
            at = f"{stack}/layers/{block}_adapter"
            flat[f"{at}/down/kernel"] = INITIAL_STD * jax.random.normal(down, (layers, emb_dim, width))
            flat[f"{at}/down/bias"] = jnp.zeros((layers, width))
            flat[f"{at}/up/kernel"] = INITIAL_STD * jax.random.normal(up, (layers, width, emb_dim))
            flat[f"{at}/up/bias"] = jnp.zeros((layers, emb_dim))
    scales = {path: value for path, value in paths.flatten(base).items() if path.endswith("norm/scale")}
    flat |= {path: jnp.asarray(value, jnp.float32) for path, value in scales.items()}
    return paths.unflatten(flat)


def init_full(key: jax.Array, base: Params, width: int | None = None) -> dict[str, Any]:
    """Returns a full expert: a float32 copy of every parameter of the base. `key` and `width` go unused."""
    del key, width
    return jax.tree.map(lambda value: jnp.array(value, jnp.float32), dict(base))


KINDS: Mapping[str, Callable[..., dict[str, Any]]] = {"bottleneck": init_bottleneck, "full": init_full}


def init(kind: str, key: jax.Array, base: Params, width: int | None = None) -> dict[str, Any]:
    """Returns a fresh expert of a kind by name."""
    if kind not in KINDS:
        raise UserError(f"An expert kind is wanted, one of {', '.join(KINDS)}; {kind!r} came.")
    return KINDS[kind](key, base, width)


def neutral(expert: Params, base: Params) -> dict[str, Any]:
    """Returns the expert of `expert`'s shape that leaves every logit of the base as it is.

    Its adapters are zero and its norm scales the base's, so rows of the base alone can share a batch with
    rows of experts.
    """
    of_base = paths.flatten(base)
    flat = paths.flatten(expert)
    return paths.unflatten({path: of_base.get(path, value * 0) for path, value in flat.items()})


def place(kind: str, base: Params, owned: Params | None) -> tuple[Params, Params | None]:
    """Returns what the network takes: its parameters, and the expert that stands beside them."""
    return (owned, None) if kind == "full" and owned is not None else (base, owned)


def child(expert: Params | None, name: str) -> Params | None:
    """Returns the part of an expert below a name, or None where it owns nothing there."""
    return None if expert is None else expert.get(name)


def rows_of(params: Params | None, expert_of_row: ExpertOfRow | None) -> Params | None:
    """Gives every row its expert: [E, …] becomes [B, …]; without an index the one expert serves all rows."""
    if params is None or expert_of_row is None:
        return params
    return jax.tree.map(lambda value: jnp.take(value, expert_of_row, axis=0), params)


def spread(value: Float[Array, "..."], like: Array) -> Array:
    """Shapes a vector, [D] for all rows or [B, D] row by row, so that it meets `like` [B, …, D]."""
    between = like.ndim - value.ndim
    if value.ndim == 1:
        return value.reshape((1,) * between + value.shape)
    return value.reshape(value.shape[:1] + (1,) * between + value.shape[1:])


def bottleneck(x: Array, adapter: Params | None) -> Array:
    """Applies an adapter to [B, …, D]; its kernels are [D, R] for all rows, or [B, D, R] row by row."""
    if adapter is None:
        return x
    hidden = jax.nn.gelu(_dense(x, adapter["down"]), approximate=True)
    return x + _dense(hidden, adapter["up"])


def _dense(x: Array, params: Params) -> Array:
    kernel = params["kernel"].astype(x.dtype)
    equation = "...d,dr->...r" if kernel.ndim == 2 else "b...d,bdr->b...r"
    return jnp.einsum(equation, x, kernel) + spread(params["bias"].astype(x.dtype), x)
