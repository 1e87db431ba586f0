"""Stacks: the encoder and the decoder of the T5, each one layer scanned over the parameters of all.

So compile time does not grow with depth. A layer takes `expert` and `rows` as `experts.by_layer` made them,
and gives every row its expert itself, so that no more than one layer's experts are ever spread over rows.
"""

# pyright: reportUninitializedInstanceVariable=false
# A module of Flax makes its parts in `setup`, which takes the place of `__init__`.

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from elm_jax.axes import Array, Encoded, ExpertOfRow
from elm_jax.models import experts as ex
from elm_jax.models.layers import (
    Attention,
    Biases,
    Dense,
    Dropout,
    FeedForward,
    KeysValues,
    Norm,
    RelativePositions,
    Tokens,
    bias_of_all,
    bias_of_depths,
    bias_of_one,
    mask,
)
from elm_jax.models.sizes import T5Config
from elm_jax.records import Params

# A stack this shallow compiles fast as it is, and XLA's CPU backend takes gradients of a loop at half speed.
UNROLLED = 4
Pair = tuple[Array, Array]  # keys and values


class Cache(NamedTuple):
    """What a decoder that goes token by token has seen; keys and values of L layers, B rows, H heads of P."""

    prompt: tuple[Float[Array, "L B S H P"], Float[Array, "L B S H P"]]  # computed once
    answer: tuple[Float[Array, "L B T H P"], Float[Array, "L B T H P"]]  # filled up to `position`
    real: Bool[Array, "B S"]  # the prompt's tokens, padding aside
    position: Int[Array, ""]  # tokens of the answer seen so far


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each with norm before, adapter after, and a residual around."""

    config: T5Config
    train: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        expert: Any,
        rows: Any,
        biases: Biases,
        tokens: Tokens | None,
    ) -> tuple[Array, None]:
        expert = ex.rows_of(expert, rows)
        drop = Dropout(self.config.dropout_rate, self.train)
        if self.config.relpos_per_layer:
            positions = RelativePositions(self.config, bidirectional=True, name="relpos_bias")
            biases = (bias_of_all(positions(x.shape[1])), *biases)
        normed = Norm(self.config, name="pre_attention_layer_norm")(
            x, ex.child(expert, "pre_attention_layer_norm")
        )
        attention = Attention(self.config, self.train, name="attention")
        own = ex.child(expert, "attention")
        attended = attention(normed, attention.keys_values(normed, own), biases, own, tokens, tokens)
        x = x + drop(ex.bottleneck(attended, ex.child(expert, "attention_adapter")), tokens)
        normed = Norm(self.config, name="pre_mlp_layer_norm")(x, ex.child(expert, "pre_mlp_layer_norm"))
        fed = FeedForward(self.config, self.train, name="mlp")(normed, ex.child(expert, "mlp"), tokens)
        return x + drop(ex.bottleneck(fed, ex.child(expert, "mlp_adapter")), tokens), None


class DecoderLayer(nn.Module):
    """As the encoder's, causal, with attention to the prompt between, whose keys all its answers share."""

    config: T5Config
    train: bool = False

    def setup(self) -> None:
        config = self.config
        self.pre_self_attention_layer_norm = Norm(config)
        self.self_attention = Attention(config, self.train)
        self.pre_cross_attention_layer_norm = Norm(config)
        self.encoder_decoder_attention = Attention(config, self.train)
        self.pre_mlp_layer_norm = Norm(config)
        self.mlp = FeedForward(config, self.train)
        self.drop = Dropout(config.dropout_rate, self.train)
        if config.relpos_per_layer:
            self.relpos_bias = RelativePositions(config, bidirectional=False)

    def __call__(
        self,
        x: Float[Array, "B C T D"],
        expert: Any,
        rows: Any,
        encoded: Encoded,
        self_biases: Biases,
        cross_biases: Biases,
        depths: Int[Array, "B T"] | None,
        tokens: Tokens | None,
        prompt_tokens: Tokens | None,
        prompt_rows: Any,
    ) -> tuple[Array, None]:
        """Takes all tokens of the answers; `prompt_rows` is None where the prompt's rows are `rows` too."""
        of_prompt = None if prompt_rows is None else ex.rows_of(expert, prompt_rows)
        expert = ex.rows_of(expert, rows)
        if self.config.relpos_per_layer:
            self_biases = (bias_of_depths(self.relpos_bias(x.shape[2]), depths), *self_biases)
        _, prompt = self.read_prompt(encoded, expert if of_prompt is None else of_prompt, None)
        seen = (tokens, prompt_tokens)
        return self._blocks(x, expert, lambda own: own, prompt, self_biases, cross_biases, *seen)[0], None

    def step(
        self,
        x: Float[Array, "B 1 1 D"],
        expert: Any,
        prompt: KeysValues,
        answer: KeysValues,
        rows: Any,
        position: Int[Array, ""],
        self_biases: Biases,
        cross_biases: Biases,
    ) -> tuple[Array, KeysValues]:
        """Takes the token at a position, with this layer's part of a cache; returns its keys and values."""
        expert = ex.rows_of(expert, rows)
        if self.config.relpos_per_layer:
            self_biases = (bias_of_one(self.relpos_bias(answer[0].shape[1]), position), *self_biases)
        seen = partial(_put, answer, position=position, axis=1)
        return self._blocks(x, expert, seen, prompt, self_biases, cross_biases)

    def read_prompt(self, encoded: Encoded, expert: Any, rows: Any) -> tuple[Encoded, KeysValues]:
        """Returns the prompt as it came, and its keys and values in this layer."""
        own = ex.child(ex.rows_of(expert, rows), "encoder_decoder_attention")
        return encoded, self.encoder_decoder_attention.keys_values(encoded, own)

    def _blocks(
        self,
        x: Array,
        expert: Params | None,
        seen: Callable[[KeysValues], KeysValues],
        prompt: KeysValues,
        self_biases: Biases,
        cross_biases: Biases,
        tokens: Tokens | None = None,
        prompt_tokens: Tokens | None = None,
    ) -> tuple[Array, KeysValues]:
        """Returns the layer's output, and the tokens' own keys and values; `seen` adds those before them."""
        own = ex.child(expert, "self_attention")
        normed = self.pre_self_attention_layer_norm(x, ex.child(expert, "pre_self_attention_layer_norm"))
        found = self.self_attention.keys_values(normed, own)
        attended = self.self_attention(normed, seen(found), self_biases, own, tokens, tokens)
        x = x + self.drop(ex.bottleneck(attended, ex.child(expert, "self_attention_adapter")), tokens)

        own = ex.child(expert, "encoder_decoder_attention")
        normed = self.pre_cross_attention_layer_norm(x, ex.child(expert, "pre_cross_attention_layer_norm"))
        attended = self.encoder_decoder_attention(normed, prompt, cross_biases, own, tokens, prompt_tokens)
        x = x + self.drop(attended, tokens)

        normed = self.pre_mlp_layer_norm(x, ex.child(expert, "pre_mlp_layer_norm"))
        fed = self.mlp(normed, ex.child(expert, "mlp"), tokens)
        return x + self.drop(ex.bottleneck(fed, ex.child(expert, "mlp_adapter")), tokens), found


def _put(old: Pair, new: Pair, position: Array, axis: int) -> Pair:
    """Returns keys and values with those of one token at its position."""
    put = partial(jax.lax.dynamic_update_slice_in_dim, start_index=position, axis=axis)
    return put(old[0], new[0]), put(old[1], new[1])


def _scanned(
    layer: type[nn.Module], config: T5Config, length: int, train: bool, **scans: tuple[Any, ...]
) -> Any:
    """Returns a stack of layers; `scans` has for every method the axes along which its inputs are cut."""
    unrolled = length <= UNROLLED
    if config.remat:
        # Where there is no loop, XLA would see that what is computed again was there already, and keep it.
        layer = nn.remat(layer, prevent_cse=unrolled)
    shared: Mapping[str, Any] = {
        "variable_axes": {"params": 0, "intermediates": 0},
        "split_rngs": {"params": True, "dropout": True},
        "length": length,
        "unroll": length if unrolled else 1,
    }
    methods = {method: {**shared, "in_axes": axes} for method, axes in scans.items()}
    return nn.scan(layer, methods=methods)(config, train)


class Encoder(nn.Module):
    """The stack that reads the prompt."""

    config: T5Config
    train: bool = False

    def setup(self) -> None:
        config = self.config
        if not config.relpos_per_layer:
            self.relpos_bias = RelativePositions(config, bidirectional=True)
        axes = (0, nn.broadcast, nn.broadcast, nn.broadcast)
        self.layers = _scanned(EncoderLayer, config, config.num_encoder_layers, self.train, __call__=axes)
        self.encoder_norm = Norm(config)
        self.drop = Dropout(config.dropout_rate, self.train)

    def __call__(
        self,
        x: Float[Array, "B S D"],
        seen: Bool[Array, "B #S S"],
        expert: Params | None,
        expert_of_row: ExpertOfRow | ex.Segmented | None,
        tokens: Tokens | None = None,
    ) -> Encoded:
        """`seen` is True where a query, [B, Q, K], or every query, [B, 1, K], may look at a key."""
        biases = (mask(seen)[:, None],)
        if not self.config.relpos_per_layer:
            biases = (bias_of_all(self.relpos_bias(x.shape[1])), *biases)
        layers = ex.by_layer(ex.child(expert, "layers"), expert_of_row)
        x, _ = self.layers(self.drop(x, tokens), *layers, biases, tokens)
        final = ex.rows_of(ex.child(expert, "encoder_norm"), expert_of_row)
        return self.drop(self.encoder_norm(x, final), tokens)


class Decoder(nn.Module):
    """The stack that reads the answers, and the output layer that predicts their next tokens."""

    config: T5Config
    train: bool = False

    def setup(self) -> None:
        config, shared = self.config, nn.broadcast
        if not config.relpos_per_layer:
            self.relpos_bias = RelativePositions(config, bidirectional=False)
        self.layers = _scanned(
            DecoderLayer,
            config,
            config.num_decoder_layers,
            self.train,
            __call__=(0, *[shared] * 8),
            step=(0, 0, 0, shared, shared, shared, shared),
            read_prompt=(0, shared),
        )
        self.decoder_norm = Norm(config)
        self.drop = Dropout(config.dropout_rate, self.train)
        if not config.logits_via_embedding:
            self.logits_dense = Dense(config.vocab_size, "float32")

    def __call__(
        self,
        x: Float[Array, "B C T D"],
        encoded: Encoded,
        seen: Bool[Array, "N #T T"],
        prompt_seen: Bool[Array, "B _ S"],
        expert: Params | None,
        expert_of_row: ExpertOfRow | ex.Segmented | None,
        depths: Int[Array, "B T"] | None = None,
        tokens: Tokens | None = None,
        prompt_tokens: Tokens | None = None,
        prompt_segments: Int[Array, "B S"] | None = None,
    ) -> Float[Array, "B C T D"]:
        """Returns the states before the output layer.

        `seen` says which tokens of an answer see which before them, [1, T, T] or by answer [B * C, T, T],
        `prompt_seen` which see which tokens of the prompt, [B, 1, S] or [B, C * T, S]. `depths` are the
        positions of tokens that do not stand one after the other.
        """
        biases = (mask(seen)[:, None],)
        if not self.config.relpos_per_layer:
            biases = (bias_of_depths(self.relpos_bias(x.shape[2]), depths), *biases)
        cut, rows = ex.by_layer(ex.child(expert, "layers"), expert_of_row)
        prompt_rows = ex.of_other_tokens(rows, prompt_segments)
        cross = (mask(prompt_seen)[:, None],)
        dropped = (tokens, prompt_tokens)
        x, _ = self.layers(
            self.drop(x, tokens), cut, rows, encoded, biases, cross, depths, *dropped, prompt_rows
        )
        return self._finish(x, expert, expert_of_row, tokens)

    def start(
        self,
        encoded: Encoded,
        real: Bool[Array, "B S"],
        length: int,
        expert: Params | None,
        expert_of_row: ExpertOfRow | None,
    ) -> Cache:
        """Returns the cache before the first token of answers of at most `length` tokens."""
        config = self.config
        layers = ex.by_layer(ex.child(expert, "layers"), expert_of_row)
        _, prompt = self.layers.read_prompt(encoded, *layers)
        shape = (config.num_decoder_layers, real.shape[0], length, config.num_heads, config.head_dim)
        empty = jnp.zeros(shape, config.dtype)
        return Cache(prompt, (empty, empty), jnp.asarray(real), jnp.zeros((), jnp.int32))

    def step(
        self,
        x: Float[Array, "B 1 1 D"],
        cache: Cache,
        expert: Params | None,
        expert_of_row: ExpertOfRow | None,
    ) -> tuple[Float[Array, "B 1 1 D"], Cache]:
        """Returns the state of one more token of every row, and the cache that has it."""
        length, position = cache.answer[0].shape[2], cache.position
        biases = (mask((jnp.arange(length) <= position)[None, None, None]),)
        if not self.config.relpos_per_layer:
            biases = (bias_of_one(self.relpos_bias(length), position), *biases)
        cut, rows = ex.by_layer(ex.child(expert, "layers"), expert_of_row)
        x, found = self.layers.step(
            self.drop(x),
            cut,
            cache.prompt,
            cache.answer,
            rows,
            position,
            biases,
            (mask(cache.real)[:, None, None],),
        )
        answer = _put(cache.answer, found, position, axis=2)
        return self._finish(x, expert, expert_of_row), cache._replace(answer=answer, position=position + 1)

    def project(self, hidden: Float[Array, "*places D"]) -> Float[Array, "*places V"]:
        """Returns float32 logits by the decoder's own output layer."""
        return self.logits_dense(hidden)

    def _finish(
        self,
        x: Array,
        expert: Params | None,
        expert_of_row: ExpertOfRow | ex.Segmented | None,
        tokens: Tokens | None = None,
    ) -> Array:
        final = ex.rows_of(ex.child(expert, "decoder_norm"), expert_of_row)
        return self.drop(self.decoder_norm(x, final), tokens)
