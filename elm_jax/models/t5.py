"""The T5 network: an encoder-decoder of T5 1.1's shape with room for experts beside it.

Parameters carry T5X's names, with the layers of a stack in one scanned array, so that compile time does not
grow with depth. An expert comes as a separate tree: its norm scales take the place of the base's and its
adapters follow self-attention and feed-forward. Either one expert serves all rows (`expert_of_row` is None
and the tree has no leading axis), or the trees of E experts are stacked and every row names its own.

A prompt is encoded once and all of its C answers are decoded against it.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from elm_jax.axes import PAD, Answers, Array, Encoded, ExpertOfRow, Prompts
from elm_jax.models import experts as ex
from elm_jax.models.layers import MASKED, Attention, Dense, Dropout, FeedForward, Norm, RelativePositions
from elm_jax.models.sizes import T5Config
from elm_jax.records import Params

# A stack this shallow compiles fast as it is, and XLA's CPU backend takes gradients of a loop at half speed.
UNROLLED = 4


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each with norm before, adapter after, and a residual around."""

    config: T5Config
    train: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        expert: Params | None,
        expert_of_row: ExpertOfRow | None,
        bias: Float[Array, "B H S S"],
    ) -> tuple[Array, None]:
        expert = ex.rows_of(expert, expert_of_row)
        drop = Dropout(self.config.dropout_rate, self.train)
        normed = Norm(self.config, name="pre_attention_layer_norm")(
            x, ex.child(expert, "pre_attention_layer_norm")
        )
        attended = Attention(self.config, self.train, name="attention")(
            normed, normed, bias, ex.child(expert, "attention")
        )
        x = x + drop(ex.bottleneck(attended, ex.child(expert, "attention_adapter")))
        normed = Norm(self.config, name="pre_mlp_layer_norm")(x, ex.child(expert, "pre_mlp_layer_norm"))
        fed = FeedForward(self.config, self.train, name="mlp")(normed, ex.child(expert, "mlp"))
        return x + drop(ex.bottleneck(fed, ex.child(expert, "mlp_adapter"))), None


class DecoderLayer(nn.Module):
    """As the encoder's, causal, with attention to the prompt between, whose keys all its answers share."""

    config: T5Config
    train: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B C T D"],
        expert: Params | None,
        expert_of_row: ExpertOfRow | None,
        encoded: Encoded,
        self_bias: Float[Array, "1 H T T"],
        cross_bias: Float[Array, "B 1 1 S"],
    ) -> tuple[Array, None]:
        expert = ex.rows_of(expert, expert_of_row)
        drop = Dropout(self.config.dropout_rate, self.train)
        shape = x.shape
        apart = (shape[0] * shape[1], *shape[2:])  # every answer sees itself alone
        abreast = (shape[0], shape[1] * shape[2], shape[3])  # all answers look at one prompt

        normed = Norm(self.config, name="pre_self_attention_layer_norm")(
            x, ex.child(expert, "pre_self_attention_layer_norm")
        ).reshape(apart)
        attended = Attention(self.config, self.train, name="self_attention")(
            normed, normed, self_bias, ex.child(expert, "self_attention")
        )
        x = x + drop(ex.bottleneck(attended.reshape(shape), ex.child(expert, "self_attention_adapter")))

        normed = Norm(self.config, name="pre_cross_attention_layer_norm")(
            x, ex.child(expert, "pre_cross_attention_layer_norm")
        ).reshape(abreast)
        attended = Attention(self.config, self.train, name="encoder_decoder_attention")(
            normed, encoded, cross_bias, ex.child(expert, "encoder_decoder_attention")
        )
        x = x + drop(attended.reshape(shape))

        normed = Norm(self.config, name="pre_mlp_layer_norm")(x, ex.child(expert, "pre_mlp_layer_norm"))
        fed = FeedForward(self.config, self.train, name="mlp")(normed, ex.child(expert, "mlp"))
        return x + drop(ex.bottleneck(fed, ex.child(expert, "mlp_adapter"))), None


def _scanned(
    layer: type[nn.Module], config: T5Config, length: int, stacked: bool, broadcast: int, **fields: Any
):
    """Runs one layer `length` times over its parameters; a stack of experts, [E, L, …], is cut along L."""
    layer = nn.remat(layer, prevent_cse=False) if config.remat else layer
    return nn.scan(
        layer,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(1 if stacked else 0, *[nn.broadcast] * broadcast),  # pyright: ignore[reportArgumentType]
        length=length,
        unroll=length if length <= UNROLLED else 1,
    )(config, name="layers", **fields)


class Encoder(nn.Module):
    """The stack that reads the prompt."""

    config: T5Config
    train: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        real: Bool[Array, "B S"],
        expert: Params | None,
        expert_of_row: ExpertOfRow | None,
    ) -> Encoded:
        config = self.config
        drop = Dropout(config.dropout_rate, self.train)
        bias = RelativePositions(config, bidirectional=True, name="relpos_bias")(x.shape[1])
        bias = bias + jnp.where(real, 0.0, MASKED)[:, None, None, :]
        layers = _scanned(
            EncoderLayer,
            config,
            config.num_encoder_layers,
            expert_of_row is not None,
            2,
            train=self.train,
        )
        x, _ = layers(drop(x), ex.child(expert, "layers"), expert_of_row, bias)
        final = ex.rows_of(ex.child(expert, "encoder_norm"), expert_of_row)
        return drop(Norm(config, name="encoder_norm")(x, final))


class Decoder(nn.Module):
    """The stack that reads the answers and predicts their next tokens."""

    config: T5Config
    train: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B C T D"],
        encoded: Encoded,
        real: Bool[Array, "B S"],
        expert: Params | None,
        expert_of_row: ExpertOfRow | None,
    ) -> Float[Array, "B C T V"]:
        config = self.config
        drop = Dropout(config.dropout_rate, self.train)
        length = x.shape[2]
        causal = np.where(np.tril(np.ones((length, length), bool)), 0.0, MASKED).astype(np.float32)
        self_bias = RelativePositions(config, bidirectional=False, name="relpos_bias")(length)
        self_bias = self_bias + causal[None, None]
        cross_bias = jnp.where(real, 0.0, MASKED)[:, None, None, :]
        layers = _scanned(
            DecoderLayer,
            config,
            config.num_decoder_layers,
            expert_of_row is not None,
            4,
            train=self.train,
        )
        x, _ = layers(drop(x), ex.child(expert, "layers"), expert_of_row, encoded, self_bias, cross_bias)
        final = ex.rows_of(ex.child(expert, "decoder_norm"), expert_of_row)
        x = drop(Norm(config, name="decoder_norm")(x, final))
        return Dense(config.vocab_size, "float32", name="logits_dense")(x)


class Embedder(nn.Module):
    """The table of token embeddings that both stacks read from."""

    config: T5Config

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        shape = (self.config.vocab_size, self.config.emb_dim)
        table = self.param("embedding", nn.initializers.normal(1.0), shape)
        return jnp.take(table.astype(self.config.dtype), tokens, axis=0)


class T5(nn.Module):
    """Logits of answers given prompts; `encode` alone serves embedders."""

    config: T5Config
    train: bool = False  # dropout on; wants an rng named "dropout"

    def setup(self) -> None:
        self.token_embedder = Embedder(self.config)
        self.encoder = Encoder(self.config, self.train)
        self.decoder = Decoder(self.config, self.train)

    def encode(
        self, prompts: Prompts, experts: Params | None = None, expert_of_row: ExpertOfRow | None = None
    ) -> Encoded:
        """Returns the encoder's output; what stands at padding has no meaning."""
        return self.encoder(
            self.token_embedder(prompts), prompts != PAD, ex.child(experts, "encoder"), expert_of_row
        )

    def decode(
        self,
        encoded: Encoded,
        prompts: Prompts,
        answers: Answers,
        experts: Params | None = None,
        expert_of_row: ExpertOfRow | None = None,
    ) -> Float[Array, "B C T V"]:
        """Returns float32 logits of every token of every answer, each seeing the tokens before it."""
        shifted = jnp.pad(answers[..., :-1], ((0, 0), (0, 0), (1, 0)), constant_values=PAD)
        return self.decoder(
            self.token_embedder(shifted), encoded, prompts != PAD, ex.child(experts, "decoder"), expert_of_row
        )

    def __call__(
        self,
        prompts: Prompts,
        answers: Answers,
        experts: Params | None = None,
        expert_of_row: ExpertOfRow | None = None,
    ) -> Float[Array, "B C T V"]:
        """Encodes every prompt once and returns float32 logits of all of its answers."""
        encoded = self.encode(prompts, experts, expert_of_row)
        return self.decode(encoded, prompts, answers, experts, expert_of_row)


def init_params(key: jax.Array, config: T5Config) -> dict[str, Any]:
    """Returns fresh float32 parameters, drawn as T5X draws them."""

    def init(key: jax.Array) -> dict[str, Any]:
        tokens = jnp.ones((1, 1), jnp.int32)
        return dict(T5(config).init(key, tokens, tokens[:, :, None])["params"])

    return jax.jit(init)(key)
