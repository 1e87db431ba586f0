"""Sizes: the shapes of the T5 family by name, and the record that holds one."""

from dataclasses import dataclass, replace

from elm_jax import names


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
    dropout_rate: float = 0.1
    norm_epsilon: float = 1e-6
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "mlp_activations", tuple(self.mlp_activations))  # JSON has lists
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"T5 computes in float32 or bfloat16, but {self.dtype!r} came.")


def _t5_1_1(emb_dim: int, heads: int, layers: int, mlp_dim: int) -> T5Config:
    return T5Config(
        emb_dim=emb_dim,
        num_heads=heads,
        num_encoder_layers=layers,
        num_decoder_layers=layers,
        mlp_dim=mlp_dim,
    )


SIZES = {
    # Learns the embedded suite on a laptop's CPU.
    "tiny": T5Config(
        vocab_size=1024,
        emb_dim=64,
        num_heads=4,
        num_encoder_layers=2,
        num_decoder_layers=2,
        head_dim=16,
        mlp_dim=128,
        dropout_rate=0.0,
    ),
    "small": _t5_1_1(512, 6, 8, 1024),
    "base": _t5_1_1(768, 12, 12, 2048),
    "large": _t5_1_1(1024, 16, 24, 2816),
    "xl": _t5_1_1(2048, 32, 24, 5120),
    "xxl": _t5_1_1(4096, 64, 24, 10240),
}


def size(name: str, **changes: int | float | str | bool) -> T5Config:
    """Returns the T5 1.1 shape of that name, with some fields changed."""
    return replace(SIZES[names.resolve(name, SIZES, kind="model size", where="elm_jax")], **changes)
