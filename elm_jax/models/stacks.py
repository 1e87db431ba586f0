"""Stacks: the encoder and the decoder of the T5, each one layer scanned over the parameters of all.

So compile time does not grow with depth. A layer gets `expert` and `rows` from `expert_layers.split_by_layer`
and gathers the experts of its rows itself, so that only one layer's experts are ever copied for each row.
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
from elm_jax.models import expert_layers as ex
from elm_jax.models.all_experts import SegmentExperts
from elm_jax.models.dropout import Dropout, TokenSeeds
from elm_jax.models.expert_kinds import VERA
from elm_jax.models.layers import (
    Attention,
    Biases,
    Dense,
    FeedForward,
    KeysValues,
    Norm,
    RelativePositions,
    add_positions,
    mask_biases,
    position_bias,
    step_position_bias,
    tree_position_bias,
)
from elm_jax.models.masks import Mask, mask_bias
from elm_jax.models.products import REMAT_SAVE_NAME
from elm_jax.models.sizes import T5Config
from elm_jax.records import Params

# So few layers compile fast without a loop, and XLA's CPU backend computes gradients of a loop at half speed.
MAX_UNROLLED = 4
Pair = tuple[Array, Array]  # keys and values


class DecodeCache(NamedTuple):
    """Keys and values of a decoder that decodes token by token; L layers, B rows, W the width of all heads.

    Attributes:
        prompt: Keys and values of cross-attention, computed once.
        answer: Keys and values of self-attention, filled up to `position`.
        real: Whether a token of the prompt is not padding.
        position: How many tokens of the answer were decoded.
    """

    prompt: tuple[Float[Array, "L B S W"], Float[Array, "L B S W"]]
    answer: tuple[Float[Array, "L B T W"], Float[Array, "L B T W"]]
    real: Bool[Array, "B S"]
    position: Int[Array, ""]


class DecoderSeeds(NamedTuple):
    """What dropout of the decoder draws from: the seeds of the answers' tokens and of the prompts'."""

    answer: TokenSeeds | None = None
    prompt: TokenSeeds | None = None


NO_SEEDS = DecoderSeeds()


class DecoderContext(NamedTuple):
    """What all layers of the decoder share.

    Attributes:
        rows: From `expert_layers.split_by_layer`, for the answers' tokens.
        prompt_rows: The same for the prompts' tokens; None if it is equal to `rows`.
        encoded: The encoder's output.
        self_biases: Biases of self-attention.
        cross_biases: Biases of cross-attention.
        depths: The positions of tokens that do not follow one another.
        seeds: Of dropout.
    """

    rows: Any
    prompt_rows: Any
    encoded: Encoded
    self_biases: Biases
    cross_biases: Biases
    depths: Int[Array, "B T"] | None
    seeds: DecoderSeeds


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
        tokens: TokenSeeds | None,
    ) -> tuple[Array, None]:
        expert = ex.gather_row_experts(expert, rows)
        drop = Dropout(self.config.dropout_rate, self.train)
        if self.config.relpos_per_layer:
            positions = RelativePositions(self.config, bidirectional=True, name="relpos_bias")
            biases = add_positions(biases, position_bias(positions(x.shape[1])))
        normed = Norm(self.config, name="pre_attention_layer_norm")(
            x, ex.get_child(expert, "pre_attention_layer_norm")
        )
        attention = Attention(self.config, self.train, name="attention")
        own = ex.get_child(expert, "attention")
        attended = attention(normed, attention.keys_values(normed, own), biases, own, tokens, tokens)
        x = x + drop(ex.apply_bottleneck(attended, ex.get_child(expert, "attention_adapter")), tokens)
        normed = Norm(self.config, name="pre_mlp_layer_norm")(x, ex.get_child(expert, "pre_mlp_layer_norm"))
        fed = FeedForward(self.config, self.train, name="mlp")(normed, ex.get_child(expert, "mlp"), tokens)
        return x + drop(ex.apply_bottleneck(fed, ex.get_child(expert, "mlp_adapter")), tokens), None


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
        context: DecoderContext,
    ) -> tuple[Array, None]:
        """Computes all tokens of the answers at once."""
        prompt_expert = (
            None if context.prompt_rows is None else ex.gather_row_experts(expert, context.prompt_rows)
        )
        expert = ex.gather_row_experts(expert, context.rows)
        self_biases = context.self_biases
        if self.config.relpos_per_layer:
            positions = tree_position_bias(self.relpos_bias(x.shape[2]), context.depths)
            self_biases = add_positions(self_biases, positions)
        _, prompt = self.read_prompt(
            context.encoded, expert if prompt_expert is None else prompt_expert, None
        )
        x, _ = self._blocks(
            x, expert, lambda own: own, prompt, self_biases, context.cross_biases, context.seeds
        )
        return x, None

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
        """Computes the token at a position with this layer's part of a cache; returns its keys and values."""
        expert = ex.gather_row_experts(expert, rows)
        if self.config.relpos_per_layer:
            positions = step_position_bias(self.relpos_bias(answer[0].shape[1]), position)
            self_biases = add_positions(self_biases, positions)
        add_earlier = partial(_insert_by_select, answer, position)
        return self._blocks(x, expert, add_earlier, prompt, self_biases, cross_biases, NO_SEEDS)

    def read_prompt(self, encoded: Encoded, expert: Any, rows: Any) -> tuple[Encoded, KeysValues]:
        """Returns the encoded prompt unchanged, and its keys and values in this layer."""
        own = ex.get_child(ex.gather_row_experts(expert, rows), "encoder_decoder_attention")
        # With another shape than the encoder's, what is kept for the gradient needs no zeros on a TPU: XLA
        # leaves them out unless two loops begin with the same.
        return encoded, self.encoder_decoder_attention.keys_values(encoded[:, None], own)

    def _blocks(
        self,
        x: Array,
        expert: Params | None,
        add_earlier: Callable[[KeysValues], KeysValues],
        prompt: KeysValues,
        self_biases: Biases,
        cross_biases: Biases,
        seeds: DecoderSeeds,
    ) -> tuple[Array, KeysValues]:
        """Returns the layer's output, and the tokens' keys and values, to which `add_earlier` adds others."""
        tokens = seeds.answer
        own = ex.get_child(expert, "self_attention")
        normed = self.pre_self_attention_layer_norm(x, ex.get_child(expert, "pre_self_attention_layer_norm"))
        keys_values = self.self_attention.keys_values(normed, own)
        attended = self.self_attention(normed, add_earlier(keys_values), self_biases, own, tokens, tokens)
        x = x + self.drop(
            ex.apply_bottleneck(attended, ex.get_child(expert, "self_attention_adapter")), tokens
        )

        own = ex.get_child(expert, "encoder_decoder_attention")
        normed = self.pre_cross_attention_layer_norm(
            x, ex.get_child(expert, "pre_cross_attention_layer_norm")
        )
        attended = self.encoder_decoder_attention(normed, prompt, cross_biases, own, tokens, seeds.prompt)
        x = x + self.drop(attended, tokens)

        normed = self.pre_mlp_layer_norm(x, ex.get_child(expert, "pre_mlp_layer_norm"))
        fed = self.mlp(normed, ex.get_child(expert, "mlp"), tokens)
        return x + self.drop(
            ex.apply_bottleneck(fed, ex.get_child(expert, "mlp_adapter")), tokens
        ), keys_values


def _insert_by_select(old: KeysValues, position: Array, new: KeysValues) -> KeysValues:
    """Returns the keys and values of a layer with those of one token among them.

    Chosen and not written, so that a product reads the cache where it lies.
    """
    is_new = (jnp.arange(old[0].shape[1]) == position)[None, :, None]
    return jnp.where(is_new, new[0], old[0]), jnp.where(is_new, new[1], old[1])


def _write_at(old: Pair, new: Pair, position: Array, axis: int) -> Pair:
    """Writes the keys and values of one token at its position."""
    put = partial(jax.lax.dynamic_update_slice_in_dim, start_index=position, axis=axis)
    return put(old[0], new[0]), put(old[1], new[1])


def _split_layers(
    config: T5Config, expert: Params | None, expert_of_row: ExpertOfRow | SegmentExperts | None
) -> Any:
    """Returns an expert's part for a stack as a scan over its layers takes it."""
    layers, shared = ex.get_child(expert, "layers"), ex.get_child(expert, VERA)
    return ex.split_by_layer(layers, expert_of_row, shared, config.dtype)


def _scan_layers(
    layer: type[nn.Module], config: T5Config, length: int, train: bool, **scans: tuple[Any, ...]
) -> Any:
    """Returns a stack of layers; `scans` has the axes along which the inputs of each method are split."""
    unrolled = length <= MAX_UNROLLED
    policy = None if config.remat else jax.checkpoint_policies.save_only_these_names(REMAT_SAVE_NAME)
    # Without a loop, XLA would merge the two computations and keep the result in memory.
    layer = nn.remat(layer, prevent_cse=unrolled and config.remat, policy=policy)
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
        self.layers = _scan_layers(EncoderLayer, config, config.num_encoder_layers, self.train, __call__=axes)
        self.encoder_norm = Norm(config)
        self.drop = Dropout(config.dropout_rate, self.train)

    def __call__(
        self,
        x: Float[Array, "B S D"],
        seen: Mask,
        expert: Params | None,
        expert_of_row: ExpertOfRow | SegmentExperts | None,
        tokens: TokenSeeds | None = None,
    ) -> Encoded:
        """Returns the states of all tokens.

        Args:
            x: The embeddings of the tokens.
            seen: Whether a query, [B, Q, K], or every query, [B, 1, K], attends to a key.
            expert: The expert's part for the encoder, or that of stacked experts.
            expert_of_row: Which of the stacked experts every row or segment has; None for one expert.
            tokens: What dropout draws from.
        """
        biases = mask_biases(self.config, seen, x.shape[1], x.shape[1])
        if not self.config.relpos_per_layer:
            biases = add_positions(biases, position_bias(self.relpos_bias(x.shape[1])))
        layers = _split_layers(self.config, expert, expert_of_row)
        x, _ = self.layers(self.drop(x, tokens), *layers, biases, tokens)
        final = ex.gather_row_experts(ex.get_child(expert, "encoder_norm"), expert_of_row)
        return self.drop(self.encoder_norm(x, final), tokens)


class Decoder(nn.Module):
    """The stack that reads the answers, and the output layer that predicts their next tokens."""

    config: T5Config
    train: bool = False

    def setup(self) -> None:
        config, shared = self.config, nn.broadcast
        if not config.relpos_per_layer:
            self.relpos_bias = RelativePositions(config, bidirectional=False)
        self.layers = _scan_layers(
            DecoderLayer,
            config,
            config.num_decoder_layers,
            self.train,
            __call__=(0, shared),
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
        seen: Mask,
        prompt_seen: Mask,
        expert: Params | None,
        expert_of_row: ExpertOfRow | SegmentExperts | None,
        depths: Int[Array, "B T"] | None = None,
        seeds: DecoderSeeds = NO_SEEDS,
        prompt_segments: Int[Array, "B S"] | None = None,
    ) -> Float[Array, "B C T D"]:
        """Returns the states before the output layer.

        Args:
            x: The embeddings of the answers' tokens.
            encoded: The encoder's output.
            seen: Whether a token of an answer attends to another, [1, T, T] or [B * C, T, T].
            prompt_seen: Whether it attends to a token of the prompt, [B, 1, S] or [B, C * T, S].
            expert: The expert's part for the decoder, or that of stacked experts.
            expert_of_row: Which of the stacked experts every row or segment has; None for one expert.
            depths: The positions of tokens that do not follow one another.
            seeds: What dropout draws from.
            prompt_segments: The segments of the prompts' tokens, in packed rows.
        """
        length = x.shape[2]
        biases = mask_biases(self.config, seen, length, length)
        if not self.config.relpos_per_layer:
            biases = add_positions(biases, tree_position_bias(self.relpos_bias(length), depths))
        layer_params, rows = _split_layers(self.config, expert, expert_of_row)
        prompt_rows = ex.replace_segments(rows, prompt_segments)
        queries = x.shape[0] * x.shape[1] * length // encoded.shape[0]
        cross_biases = mask_biases(self.config, prompt_seen, queries, encoded.shape[1])
        context = DecoderContext(rows, prompt_rows, encoded, biases, cross_biases, depths, seeds)
        x, _ = self.layers(self.drop(x, seeds.answer), layer_params, context)
        return self._finish(x, expert, expert_of_row, seeds.answer)

    def start(
        self,
        encoded: Encoded,
        real: Bool[Array, "B S"],
        length: int,
        expert: Params | None,
        expert_of_row: ExpertOfRow | None,
    ) -> DecodeCache:
        """Returns the cache before the first token of answers of at most `length` tokens."""
        config = self.config
        layers = _split_layers(self.config, expert, expert_of_row)
        _, prompt = self.layers.read_prompt(encoded, *layers)
        shape = (config.num_decoder_layers, real.shape[0], length, config.num_heads * config.head_dim)
        empty = jnp.zeros(shape, config.dtype)
        return DecodeCache(prompt, (empty, empty), jnp.asarray(real), jnp.zeros((), jnp.int32))

    def step(
        self,
        x: Float[Array, "B 1 1 D"],
        cache: DecodeCache,
        expert: Params | None,
        expert_of_row: ExpertOfRow | None,
    ) -> tuple[Float[Array, "B 1 1 D"], DecodeCache]:
        """Returns the state of one more token of every row, and the cache with that token."""
        length, position = cache.answer[0].shape[2], cache.position
        biases: Biases = (mask_bias((jnp.arange(length) <= position)[None, None, None]),)
        if not self.config.relpos_per_layer:
            biases = add_positions(biases, step_position_bias(self.relpos_bias(length), position))
        layer_params, rows = _split_layers(self.config, expert, expert_of_row)
        x, keys_values = self.layers.step(
            self.drop(x),
            layer_params,
            cache.prompt,
            cache.answer,
            rows,
            position,
            biases,
            (mask_bias(cache.real)[:, None, None],),
        )
        answer = _write_at(cache.answer, keys_values, position, axis=2)
        return self._finish(x, expert, expert_of_row), cache._replace(answer=answer, position=position + 1)

    def project(self, hidden: Float[Array, "*places D"]) -> Float[Array, "*places V"]:
        """Returns float32 logits of the decoder's own output layer."""
        return self.logits_dense(hidden)

    def _finish(
        self,
        x: Array,
        expert: Params | None,
        expert_of_row: ExpertOfRow | SegmentExperts | None,
        tokens: TokenSeeds | None = None,
    ) -> Array:
        final = ex.gather_row_experts(ex.get_child(expert, "decoder_norm"), expert_of_row)
        return self.drop(self.decoder_norm(x, final), tokens)
