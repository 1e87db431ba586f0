"""Expert kinds: the initial parameters of every kind of expert, and the logical axes of parameters.

`expert_layers` describes the layout of the trees. A kind is a function `(key, base, **options)` that uses the
base's shapes and, for norm scales, its values. Options are plain values that a recipe can set.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from elm_jax.errors import UserError
from elm_jax.models import paths
from elm_jax.records import Params

REDUCTION = 32
INITIAL_STD = 0.01
# The blocks that an adapter follows, by stack; cross-attention has none.
ADAPTED_BLOCKS = {"encoder": ("attention", "mlp"), "decoder": ("self_attention", "mlp")}
_KERNELS = ("kernel", "lora_a", "lora_b")
# The logical axes of a kernel, by the name of its module: T5X's names, and "rank" of experts.
KERNEL_AXES = {
    "query": ("embed", "joined_kv"),
    "key": ("embed", "joined_kv"),
    "value": ("embed", "joined_kv"),
    "out": ("joined_kv", "embed"),
    "wi": ("embed", "mlp"),
    "wi_0": ("embed", "mlp"),
    "wi_1": ("embed", "mlp"),
    "wo": ("mlp", "embed"),
    "logits_dense": ("embed", "vocab"),
    "down": ("embed", "rank"),
    "up": ("rank", "embed"),
}
_OTHER_AXES = {
    "embedding": ("vocab", "embed"),
    "rel_embedding": ("heads", "relpos_buckets"),
    "scale": ("embed",),
}


def init_bottleneck(key: jax.Array, base: Params, width: int | None = None) -> dict[str, Any]:
    """Returns a new bottleneck expert: adapters near zero, and the base's norm scales.

    Kernels are drawn from N(0, 0.01²), biases are zero (released code of arXiv 2302.03202).

    Args:
        key: Draws initial values.
        base: The base's parameters.
        width: The width R of the bottleneck; default: that of the paper, `emb_dim // 32`, at least 1.
    """
    emb_dim = base["token_embedder"]["embedding"].shape[1]
    width = max(1, emb_dim // REDUCTION) if width is None else _require_positive("bottleneck's width", width)
    flat: dict[str, Any] = {}
    for stack, blocks in ADAPTED_BLOCKS.items():
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


def init_lora(
    key: jax.Array, base: Params, rank: int = 8, projections: Sequence[str] = ("query", "value")
) -> dict[str, Any]:
    """Returns a new LoRA expert, which changes nothing yet: `lora_a` is drawn, `lora_b` is zero.

    `lora_a` is Kaiming-uniform with a = √5, as in the authors' release and in `peft`: uniform within 1 / √I
    for I inputs (Hu et al. 2021, section 4).

    There is no alpha. To an optimiser that normalises gradients, scaling lora_b by s equals a learning rate
    of lora_b that is s times as large, and a factor would be one more value to save and merge.

    Args:
        key: Draws initial values.
        base: The base's parameters.
        rank: The rank R.
        projections: Names such as `query` or `wo`, in both stacks and all attentions, or ends of paths such
            as `encoder_decoder_attention/value`.
    """
    rank = _require_positive("rank", rank)
    flat: dict[str, Any] = {}
    for path, (layers, inputs, outputs) in _select_projections(base, projections).items():
        key, own = jax.random.split(key)
        bound = 1 / math.sqrt(inputs)
        flat[f"{path}/lora_a"] = jax.random.uniform(own, (layers, inputs, rank), minval=-bound, maxval=bound)
        flat[f"{path}/lora_b"] = jnp.zeros((layers, rank, outputs))
    return paths.unflatten(flat)


def init_ia3(
    key: jax.Array, base: Params, projections: Sequence[str] = ("key", "value", "wo")
) -> dict[str, Any]:
    """Returns a new (IA)³ expert, which changes nothing yet: vectors of ones. `key` is not used.

    They scale keys, values and the inner activation of the feed-forward, which is the input of `wo`, in every
    attention of both stacks (Liu et al. 2022, section 3.3). `projections` are named as for LoRA; the outputs
    of all but `wo` are scaled.
    """
    del key
    flat: dict[str, Any] = {}
    for path, (layers, inputs, outputs) in _select_projections(base, projections).items():
        inner = path.endswith("/wo")
        flat[f"{path}/{'ia3_in' if inner else 'ia3_out'}"] = jnp.ones((layers, inputs if inner else outputs))
    return paths.unflatten(flat)


def init_full(key: jax.Array, base: Params) -> dict[str, Any]:
    """Returns a full expert: a float32 copy of every parameter of the base. `key` is not used."""
    del key
    return jax.tree.map(lambda value: jnp.array(value, jnp.float32), dict(base))


KINDS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "bottleneck": init_bottleneck,
    "lora": init_lora,
    "ia3": init_ia3,
    "full": init_full,
}


def is_kernel(path: str) -> bool:
    """Returns whether a parameter is a kernel, which enters nothing but products, in the network's type."""
    return path.rpartition("/")[2] in _KERNELS


def logical_axes(path: str) -> tuple[str, ...]:
    """Returns the logical axes of a parameter of an expert or of the base, without an axis of experts.

    >>> logical_axes("decoder/layers/self_attention/query/lora_a")
    ('layers', 'embed', 'rank')
    >>> logical_axes("decoder/decoder_norm/scale")
    ('embed',)
    """
    *parents, owner, leaf = ["", *path.split("/")]
    known = {**_OTHER_AXES}
    if owner in KERNEL_AXES:
        into, out = KERNEL_AXES[owner]
        known |= {"kernel": (into, out), "lora_a": (into, "rank"), "lora_b": ("rank", out)}
        known |= {"bias": (out,), "ia3_in": (into,), "ia3_out": (out,)}
    if leaf not in known:
        raise UserError(f"Expected a parameter of a T5 or of an expert, got {path!r}. Fix: correct its path.")
    return (("layers",) if paths.STACK in parents else ()) + known[leaf]


def _select_projections(base: Params, projections: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """Returns path -> (layers, inputs, outputs) of the named projections."""
    known = {
        path.removesuffix("/kernel"): value.shape
        for path, value in paths.flatten(base).items()
        if f"/{paths.STACK}/" in path and path.endswith("/kernel")
    }
    chosen = set()
    for name in [projections] if isinstance(projections, str) else projections:
        named = {path for path in known if f"/{path}".endswith(f"/{name}")}
        if not named:
            names = sorted({path.rpartition("/")[2] for path in known})
            raise UserError(
                f"Expected the name of a projection, got {name!r}. Fix: name one of {', '.join(names)}."
            )
        chosen |= named
    if not chosen:
        raise UserError("Expected at least one projection, got none. Fix: name one, such as query.")
    return {path: known[path] for path in sorted(chosen)}


def _require_positive(what: str, value: int) -> int:
    if value < 1:
        raise UserError(f"Expected a {what} of at least 1, got {value}. Fix: raise it.")
    return value
