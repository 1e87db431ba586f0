"""Kinds: every way for an expert to own parameters: the fresh tree it starts from, the axes of its leaves.

The layout of the trees is told in `experts`. A kind is a function `(key, base, **options)` that looks at the
base's shapes, and for norm scales at its values; options are plain values, so a recipe can give them.
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
# The blocks that a bottleneck follows, by stack; cross-attention has none.
ADAPTED = {"encoder": ("attention", "mlp"), "decoder": ("self_attention", "mlp")}
# What a kernel leads from and to, by the name of its owner: T5X's logical axes, and "rank", an expert's own.
KERNELS = {
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
_TABLES = {"embedding": ("vocab", "embed"), "rel_embedding": ("heads", "relpos_buckets"), "scale": ("embed",)}


def init_bottleneck(key: jax.Array, base: Params, width: int | None = None) -> dict[str, Any]:
    """Returns a fresh bottleneck expert for a base: adapters near zero, norm scales as the base has them.

    Kernels are drawn from N(0, 0.01²), biases are zero (arXiv 2302.03202, as its released code has it).
    `width` is the bottleneck's R; the original's, and the default, is `emb_dim // 32`, at least 1.
    """
    emb_dim = base["token_embedder"]["embedding"].shape[1]
    width = max(1, emb_dim // REDUCTION) if width is None else _at_least_one("bottleneck's width", width)
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


def init_lora(
    key: jax.Array, base: Params, rank: int = 8, projections: Sequence[str] = ("query", "value")
) -> dict[str, Any]:
    """Returns a fresh LoRA expert, which changes nothing: `lora_a` is drawn, `lora_b` is zero.

    `lora_a` is Kaiming-uniform with a = √5, as the authors' release and `peft` draw it: uniform within
    1 / √I of I inputs. `projections` are names such as `query` or `wo`, in both stacks and all attentions, or
    ends of paths such as `encoder_decoder_attention/value`; `rank` is R (Hu et al. 2021, section 4).

    There is no alpha: scaling lora_b by s is, to an optimiser that normalises gradients, a learning rate of
    lora_b that is s times as large, and a factor of its own would be one more thing to save, merge and lose.
    """
    rank = _at_least_one("rank", rank)
    flat: dict[str, Any] = {}
    for path, (layers, inputs, outputs) in _chosen(base, projections).items():
        key, own = jax.random.split(key)
        bound = 1 / math.sqrt(inputs)
        flat[f"{path}/lora_a"] = jax.random.uniform(own, (layers, inputs, rank), minval=-bound, maxval=bound)
        flat[f"{path}/lora_b"] = jnp.zeros((layers, rank, outputs))
    return paths.unflatten(flat)


def init_ia3(
    key: jax.Array, base: Params, projections: Sequence[str] = ("key", "value", "wo")
) -> dict[str, Any]:
    """Returns a fresh (IA)³ expert, which changes nothing: vectors of ones. `key` goes unused.

    They scale keys, values and the feed-forward's inner activation, which is what `wo` takes, in every
    attention of both stacks (Liu et al. 2022, section 3.3). `projections` are named as for LoRA; all but `wo`
    are scaled in what they give.
    """
    del key
    flat: dict[str, Any] = {}
    for path, (layers, inputs, outputs) in _chosen(base, projections).items():
        inner = path.endswith("/wo")
        flat[f"{path}/{'ia3_in' if inner else 'ia3_out'}"] = jnp.ones((layers, inputs if inner else outputs))
    return paths.unflatten(flat)


def init_full(key: jax.Array, base: Params) -> dict[str, Any]:
    """Returns a full expert: a float32 copy of every parameter of the base. `key` goes unused."""
    del key
    return jax.tree.map(lambda value: jnp.array(value, jnp.float32), dict(base))


KINDS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "bottleneck": init_bottleneck,
    "lora": init_lora,
    "ia3": init_ia3,
    "full": init_full,
}


def axes_of(path: str) -> tuple[str, ...]:
    """Returns the logical axes of a leaf of an expert or of the base; a stack of experts has one more before.

    >>> axes_of("decoder/layers/self_attention/query/lora_a")
    ('layers', 'embed', 'rank')
    >>> axes_of("decoder/decoder_norm/scale")
    ('embed',)
    """
    *parents, owner, leaf = ["", *path.split("/")]
    known = {**_TABLES}
    if owner in KERNELS:
        into, out = KERNELS[owner]
        known |= {"kernel": (into, out), "lora_a": (into, "rank"), "lora_b": ("rank", out)}
        known |= {"bias": (out,), "ia3_in": (into,), "ia3_out": (out,)}
    if leaf not in known:
        raise UserError(
            f"A parameter of a T5 or of an expert is wanted, but {path!r} came, which is neither."
        )
    return (("layers",) if paths.STACK in parents else ()) + known[leaf]


def _chosen(base: Params, projections: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """Returns path -> (layers, inputs, outputs) of the layers' projections that are named."""
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
                f"Projections of the base are wanted, by names such as {', '.join(names)}; {name!r} came."
            )
        chosen |= named
    if not chosen:
        raise UserError("At least one projection is wanted, but none came.")
    return {path: known[path] for path in sorted(chosen)}


def _at_least_one(what: str, value: int) -> int:
    if value < 1:
        raise UserError(f"A {what} of at least 1 is wanted, but {value} came.")
    return value
