"""BERT's encoder and its kin: the network of MiniLM, of SimCSE (BERT or RoBERTa) and of MPNet.

The kin differ in how positions are told. BERT counts them from 0 (Devlin et al., 2019; MiniLM is a small one,
Wang et al., 2020), RoBERTa from the id of padding plus 1, and MPNet (Song et al., 2020) also adds a bias per
distance to the attention of every layer, in T5's buckets. Norms come after each residual, gelu is exact.
Parameters are a tree of plain arrays with the layers of the stack in one, queries, keys and values in one
product, and the embedding of the only token type in use added to those of the positions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from elm_jax.aot.program import traced_platform
from elm_jax.axes import Array, Encoded, Prompts
from elm_jax.models import attention_kernel, products
from elm_jax.models.layers import FusedAttentionBias, attend_by_kernel, relative_bucket
from elm_jax.models.masks import NEVER_ATTENDED, SegmentMask, mask_bias
from elm_jax.records import Params

RELPOS_DISTANCE = 128  # beyond it all distances share MPNet's last bucket


def _gelu(x: Array) -> jax.Array:
    """Returns exact gelu; on a TPU by erf, as erfc, which is exact in more digits near zero, takes longer."""
    if traced_platform() == "tpu":
        return jnp.asarray(0.5 * x * (1 + jax.lax.erf(x * np.float32(0.5**0.5))))
    return jax.nn.gelu(x, approximate=False)


ACTIVATIONS: Mapping[str, Callable[[Array], jax.Array]] = {
    "gelu": _gelu,
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}


@dataclass(frozen=True)
class BertConfig:
    """The shape of an encoder; `dtype` is what matrix products take in, all else is float32."""

    vocab_size: int
    emb_dim: int
    num_heads: int
    num_layers: int
    mlp_dim: int
    positions: int  # rows of the table of positions
    activation: str = "gelu"
    norm_epsilon: float = 1e-12
    pad: int | None = None  # where positions are counted from it: RoBERTa, MPNet
    relpos_buckets: int = 0  # MPNet's 32; 0 is no bias
    dtype: str = "float32"

    @property
    def longest(self) -> int:
        """Tokens of the longest text that has a position for each."""
        return self.positions if self.pad is None else self.positions - self.pad - 1


def param_shapes(config: BertConfig) -> dict[str, Any]:
    """Returns the shapes of an encoder's parameters, float32; kernels are in `dtype`."""
    width, layers, wide = config.emb_dim, config.num_layers, config.mlp_dim

    def vector(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    def norm(*before: int) -> dict[str, Any]:
        return {"scale": vector(*before, width), "bias": vector(*before, width)}

    def dense(inputs: int, outputs: int) -> dict[str, Any]:
        kernel = jax.ShapeDtypeStruct((layers, inputs, outputs), jnp.dtype(config.dtype))
        return {"kernel": kernel, "bias": vector(layers, outputs)}

    embedder = {"token": vector(config.vocab_size, width), "position": vector(config.positions, width)}
    found: dict[str, Any] = {
        "embedder": embedder | {"norm": norm()},
        "layers": {
            "attention": {"qkv": dense(width, 3 * width), "out": dense(width, width)},
            "mlp": {"wi": dense(width, wide), "wo": dense(wide, width)},
            "attention_norm": norm(layers),
            "mlp_norm": norm(layers),
        },
    }
    if config.relpos_buckets:
        found["relpos"] = vector(config.relpos_buckets, config.num_heads)
    return found


def encode(config: BertConfig, params: Params, tokens: Prompts, lengths: Int[Array, " B"]) -> Encoded:
    """Returns the last layer's float32 states; what stands beyond a text's length has no meaning.

    Lengths come beside the tokens because no id is padding in all of these vocabularies: 0 is MPNet's first.
    """
    x = jnp.take(params["embedder"]["token"], tokens, axis=0)
    x = x.astype(jnp.float32) + _positions(config, params["embedder"]["position"], tokens)
    seen = jnp.arange(tokens.shape[1])[None] < jnp.asarray(lengths)[:, None]
    positions = None
    if config.relpos_buckets:
        positions = _by_distance(config, params["relpos"], tokens.shape[1])
    length, heads = x.shape[1], config.num_heads
    if attention_kernel.should_use_kernel(length, length, heads, config.emb_dim // heads):
        mask = SegmentMask(None, jnp.where(seen, 0, NEVER_ATTENDED))
        biases = FusedAttentionBias(None if positions is None else positions.swapaxes(1, 2), mask)
    else:
        biases = mask_bias(seen)[:, None, None]
        biases = biases if positions is None else biases + positions[None]
    # The norm after a layer is computed in the next one, into its products: states are written once.
    norms = params["embedder"]["norm"], params["layers"]["mlp_norm"]
    norms = jax.tree.map(lambda first, others: jnp.concatenate([first[None], others]), *norms)
    before, last = (jax.tree.map(lambda leaf, at=at: leaf[at], norms) for at in (slice(-1), -1))

    def step(state: _Measured, layer: tuple[Params, Params]) -> tuple[_Measured, None]:
        return _measure(_layer(config, layer[0], _normalize(config, layer[1], state), biases)), None

    state, _ = jax.lax.scan(step, _measure(x), (params["layers"], before))
    return _normalize(config, last, state)


def _positions(config: BertConfig, table: Array, tokens: Prompts) -> Float[Array, "#B S D"]:
    """Returns the embeddings of positions, those of RoBERTa's kin counted over what is not padding."""
    table = jnp.asarray(table, jnp.float32)
    if config.pad is None:
        return table[None, : tokens.shape[1]]
    real = (jnp.asarray(tokens) != config.pad).astype(jnp.int32)
    return jnp.take(table, jnp.cumsum(real, axis=1) * real + config.pad, axis=0, mode="clip")


def _by_distance(config: BertConfig, table: Array, length: int) -> Float[Array, "H S S"]:
    place = np.arange(length, dtype=np.int32)
    buckets = relative_bucket(
        place[None] - place[:, None],
        bidirectional=True,
        buckets=config.relpos_buckets,
        max_distance=RELPOS_DISTANCE,
    )
    return jnp.moveaxis(jnp.asarray(table, jnp.float32)[buckets], -1, 0)


def _layer(
    config: BertConfig,
    layer: Params,
    x: Float[Array, "B S D"],
    biases: Float[Array, "B _ _ S"] | FusedAttentionBias,
) -> Float[Array, "B S D"]:
    """Returns the states after a layer, before the norm that follows."""
    own = config, layer["attention"]["qkv"], _narrowed(config, x)
    if traced_platform() == "cpu" and not isinstance(biases, FusedAttentionBias):
        attended = _attend_on_cpu(*own, biases)
    else:
        attended = _attend(*own, biases)
    x = x + _dense(config, layer["attention"]["out"], attended)
    x = _normalize(config, layer["attention_norm"], _measure(x))
    inside = ACTIVATIONS[config.activation](_dense(config, layer["mlp"]["wi"], x))
    return x + _dense(config, layer["mlp"]["wo"], _narrowed(config, inside))


def _narrowed(config: BertConfig, x: Array) -> Array:
    """Returns what enters products in their type; a TPU computes it once for all their tiles."""
    return products.materialize(x.astype(config.dtype)) if traced_platform() == "tpu" else x


def _attend(
    config: BertConfig,
    params: Params,
    x: Float[Array, "B S D"],
    biases: Float[Array, "B _ _ S"] | FusedAttentionBias,
) -> Float[Array, "B S D"]:
    """Returns what tokens read of one another, before the output projection; a TPU copies nothing between."""
    kernels, offsets = (jnp.split(params[name], 3, axis=-1) for name in ("kernel", "bias"))
    q, k, v = (
        _dense(config, {"kernel": kernel, "bias": bias}, x)
        for kernel, bias in zip(kernels, offsets, strict=True)
    )
    width = config.emb_dim // config.num_heads
    q = q * width**-0.5
    if isinstance(biases, FusedAttentionBias):
        states = (each.astype(config.dtype) for each in (q, k, v))
        segments = biases.mask.to_segments(x.shape[0], x.shape[1], x.shape[1])
        own = attention_kernel.Arguments._make((*states, *segments, biases.positions, None, None))
        return attend_by_kernel(width, False, 0.0, own)
    q, k, v = (each.reshape(*x.shape[:2], config.num_heads, width) for each in (q, k, v))
    logits = _product(config, "bqhp,bkhp->bhqk", q, k) + biases
    weights = jax.nn.softmax(logits, axis=-1)
    return _product(config, "bhqk,bkhp->bqhp", weights, v).reshape(x.shape)


def _attend_on_cpu(
    config: BertConfig, params: Params, x: Float[Array, "B S D"], biases: Float[Array, "B _ _ S"]
) -> Float[Array, "B S D"]:
    """Returns the same in the form that is fast on a CPU: one product, and heads before tokens."""
    qkv = _dense(config, params, x).reshape(*x.shape[:2], 3, config.num_heads, -1)
    q, k, v = jnp.moveaxis(qkv, (2, 3), (0, 2))
    logits = _product(config, "bhqp,bhkp->bhqk", q * q.shape[-1] ** -0.5, k) + biases
    weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    attended = _product(config, "bhqk,bhkp->bhqp", weights, v)
    # Divided late: what is divided is smaller by the length over the width of a head.
    attended = attended / weights.sum(axis=-1, keepdims=True)
    return jnp.moveaxis(attended, 1, 2).reshape(x.shape)


def _dense(config: BertConfig, params: Params, x: Float[Array, "B S _"]) -> Float[Array, "B S _"]:
    if traced_platform() == "cpu":  # where products of two matrices are the fastest
        y = _product(config, "md,de->me", x.reshape(-1, x.shape[-1]), params["kernel"])
        y = y.reshape(*x.shape[:2], -1)
    else:
        y = _product(config, "bsd,de->bse", x, params["kernel"])
    return y + params["bias"][None, None].astype(jnp.float32)


def _product(config: BertConfig, axes: str, left: Array, right: Array) -> jax.Array:
    return jnp.einsum(
        axes,
        left.astype(config.dtype),
        right.astype(config.dtype),
        # Else an accelerator would round float32 to TF32 or bfloat16.
        precision=jax.lax.Precision.HIGHEST if config.dtype == "float32" else None,
        preferred_element_type=jnp.float32,
    )


class _Measured(NamedTuple):
    """States before a norm, with what it needs to know of them."""

    x: Float[Array, "B S D"]
    mean: Float[Array, "B S 1"]
    variance: Float[Array, "B S 1"]


def _measure(x: Float[Array, "B S D"]) -> _Measured:
    mean = x.mean(axis=-1, keepdims=True)
    if traced_platform() == "tpu":  # Where x is made both sums are; else it would be read once more.
        return _Measured(x, mean, jnp.maximum((x * x).mean(axis=-1, keepdims=True) - mean * mean, 0))
    centred = x - mean
    return _Measured(x, mean, (centred * centred).mean(axis=-1, keepdims=True))


def _normalize(config: BertConfig, params: Params, state: _Measured) -> Float[Array, "B S D"]:
    scaled = (state.x - state.mean) * jax.lax.rsqrt(state.variance + config.norm_epsilon)
    scale, bias = (params[name][None, None].astype(jnp.float32) for name in ("scale", "bias"))
    return scaled * scale + bias
