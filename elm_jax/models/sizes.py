"""Sizes: the shapes of the T5 family by name, and the record that holds one."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from elm_jax import names

ACTIVATIONS = ("gelu", "linear", "relu", "silu")


@dataclass(frozen=True)
class T5Config:
    """The shape of a T5; field names are T5X's.

    `dtype` is what matrix products compute in; norms, softmax and logits are always float32, and float16 is
    refused because T5's activations overflow it.
    """

    vocab_size: int = 32128
    emb_dim: int = 512
    num_heads: int = 6
    num_encoder_layers: int = 8
    num_decoder_layers: int = 8
    head_dim: int = 64
    mlp_dim: int = 1024
    mlp_activations: tuple[str, ...] = ("gelu", "linear")  # a single one is T5 1.0's feed-forward, ("relu",)
    logits_via_embedding: bool = False  # the output layer is the table of embeddings, as in T5 1.0
    scale_decoder_outputs: bool = True  # logits of a tied output layer are divided by sqrt(emb_dim)
    relpos_buckets: int = 32
    relpos_max_distance: int = 128
    relpos_per_layer: bool = (
        False  # every layer has a table of its own, as in umT5 and T5X's scanned networks
    )
    dropout_rate: float = 0.1
    norm_epsilon: float = 1e-6
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "mlp_activations", tuple(self.mlp_activations))  # JSON has lists
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"Expected dtype float32 or bfloat16, got {self.dtype!r}.")
        unknown = set(self.mlp_activations) - set(ACTIVATIONS)
        if unknown or not 1 <= len(self.mlp_activations) <= 2:
            raise ValueError(
                f"Expected one or two mlp_activations of {', '.join(ACTIVATIONS)}, got "
                f"{self.mlp_activations!r}."
            )


def _family(prefix: str, shapes: Mapping[str, tuple[int, ...]], **shared: Any) -> dict[str, T5Config]:
    """Returns the shapes of one family; a shape is told as the six numbers that `order` names."""
    order = ("emb_dim", "num_heads", "head_dim", "num_encoder_layers", "num_decoder_layers", "mlp_dim")
    return {
        prefix + name: T5Config(**dict(zip(order, shape, strict=True)), **shared)
        for name, shape in shapes.items()
    }


_T5_1_1 = {
    "small": (512, 6, 64, 8, 8, 1024),
    "base": (768, 12, 64, 12, 12, 2048),
    "large": (1024, 16, 64, 24, 24, 2816),
    "xl": (2048, 32, 64, 24, 24, 5120),
    "xxl": (4096, 64, 64, 24, 24, 10240),
}
_T5_1_0 = {
    "small": (512, 8, 64, 6, 6, 2048),
    "base": (768, 12, 64, 12, 12, 3072),
    "large": (1024, 16, 64, 24, 24, 4096),
    "3b": (1024, 32, 128, 24, 24, 16384),
    "11b": (1024, 128, 128, 24, 24, 65536),
}
_BYT5 = {
    "small": (1472, 6, 64, 12, 4, 3584),
    "base": (1536, 12, 64, 18, 6, 3968),
    "large": (1536, 16, 64, 36, 12, 3840),
    "xl": (2560, 32, 64, 36, 12, 6720),
    "xxl": (4672, 64, 64, 36, 12, 12352),
}

SIZES = {
    # Learns the embedded suite on a laptop's CPU.
    **_family("", {"tiny": (64, 4, 16, 2, 2, 128)}, vocab_size=1024, dropout_rate=0.0),
    **_family("", _T5_1_1),
    **_family("t5-", _T5_1_0, mlp_activations=("relu",), logits_via_embedding=True),
    **_family("mt5-", _T5_1_1, vocab_size=250112),
    **_family("byt5-", _BYT5, vocab_size=384),
}
"""T5 1.1's shapes go by their size alone, `small` to `xxl`; LM-adapted T5, T0 and Flan-T5 have the same.

Others carry their family: `t5-small` to `t5-11b` are T5 1.0 (Raffel et al., 2020), `mt5-small` to `mt5-xxl`
mT5 (Xue et al., 2021), `byt5-small` to `byt5-xxl` ByT5 (Xue et al., 2022), which reads bytes.
"""


def find_config(name: str, **changes: int | float | str | bool | tuple[str, ...]) -> T5Config:
    """Returns the shape of that name, with some fields changed.

    >>> find_config("t5-3b").head_dim, find_config("byt5-xl").num_decoder_layers
    (128, 12)
    """
    return replace(SIZES[names.resolve(name, SIZES, kind="model size", where="elm_jax")], **changes)
