"""The T5 network: an encoder-decoder for all of the T5 family, with room for experts beside it.

Parameters carry T5X's names, with the layers of a stack in one scanned array. An expert comes as a separate
tree: its norm scales take the place of the base's, its adapters follow self-attention and feed-forward, and
what it has for a projection acts there. Either one expert serves all rows (`expert_of_row` is None and the
tree has no leading axis), or the trees of E experts are stacked and every row names its own.

A prompt is encoded once and all of its C answers are decoded against it. Rows may be packed: several short
examples in a row, told apart by segment ids, 1, 2, … in prompt and answer alike and 0 on padding; a packed
row has one expert, or one for each of its segments, and then one answer to a prompt. Answers may also be
decoded token by token, with a cache that the caller hands on.
"""

# pyright: reportUninitializedInstanceVariable=false
# A module of Flax makes its parts in `setup`, which takes the place of `__init__`.

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from elm_jax.aot.program import traced_platform
from elm_jax.axes import PAD, Answers, Array, Encoded, ExpertOfRow, ExpertOfSegment, Prompts, Seeds
from elm_jax.errors import UserError
from elm_jax.models import expert_layers as ex
from elm_jax.models import sharding, soft_prompts
from elm_jax.models.dropout import make_token_seeds
from elm_jax.models.masks import NEVER_ATTENDED, SegmentMask
from elm_jax.models.products import with_config_precision
from elm_jax.models.sizes import T5Config
from elm_jax.models.soft_prompts import insert_soft_tokens
from elm_jax.models.stacks import DecodeCache, Decoder, DecoderSeeds, Encoder
from elm_jax.records import Params

STACKS = ("encoder", "decoder")
MAX_SEGMENT_ANSWERS = 2**16  # answers to the prompt of one segment


class TokenEmbedder(nn.Module):
    """The table of token embeddings that both stacks read from, and T5 1.0's output layer."""

    config: T5Config

    def setup(self) -> None:
        shape = (self.config.vocab_size, self.config.emb_dim)
        self.embedding = self.param("embedding", nn.initializers.normal(1.0), shape)

    def __call__(self, tokens: Int[Array, "*places"]) -> Float[Array, "*places D"]:
        return sharding.lookup_embeddings(self.embedding, tokens).astype(self.config.dtype)

    def attend(self, hidden: Float[Array, "*places D"]) -> Float[Array, "*places V"]:
        """Returns float32 products of states with every token's embedding."""
        return sharding.multiply(hidden.astype(jnp.float32), self.embedding.T, "logits_dense")


class T5(nn.Module):
    """Logits of answers given prompts; `encode` alone serves embedders."""

    config: T5Config
    train: bool = False  # dropout on; wants an rng named "dropout", and a seed for every row

    def setup(self) -> None:
        self.token_embedder = TokenEmbedder(self.config)
        self.encoder = Encoder(self.config, self.train)
        self.decoder = Decoder(self.config, self.train)

    def __call__(
        self,
        prompts: Prompts,
        answers: Answers,
        experts: Params | None = None,
        expert_of_row: ExpertOfRow | ExpertOfSegment | None = None,
        prompt_segments: Prompts | None = None,
        answer_segments: Answers | None = None,
        seeds: Seeds | None = None,
    ) -> Float[Array, "B C T V"]:
        """Encodes every prompt once and returns float32 logits of all of its answers."""
        encoded = self.encode(prompts, experts, expert_of_row, prompt_segments, seeds)
        return self.decode(
            encoded, prompts, answers, experts, expert_of_row, prompt_segments, answer_segments, seeds
        )

    def prepare_experts(self, experts: Params | None) -> Params | None:
        """Returns experts with what does not depend on rows computed; every other method takes them too.

        Who calls a method many times, as decoding token by token does, begins with this.
        """
        if experts is None:
            return None
        return {**experts, **{stack: self._part(experts, stack) for stack in STACKS if stack in experts}}

    @with_config_precision
    def encode(
        self,
        prompts: Prompts,
        experts: Params | None = None,
        expert_of_row: ExpertOfRow | ExpertOfSegment | None = None,
        prompt_segments: Prompts | None = None,
        seeds: Seeds | None = None,
    ) -> Encoded:
        """Returns the encoder's output; what stands at padding has no meaning.

        Where experts have soft prompts, it is that much longer; other methods take it with the same prompts.
        """
        rows = insert_soft_tokens(prompts, prompt_segments, experts, expert_of_row)
        return self.encoder(
            soft_prompts.embed(rows, self.token_embedder(rows.token_ids)),
            SegmentMask(rows.segments, _segments_of_real(rows.tokens, rows.segments)),
            self._part(experts, "encoder"),
            ex.pair_with_segments(expert_of_row, rows.segments),
            make_token_seeds(seeds, rows.segments, rows.tokens.shape[1]),
        )

    def decode(
        self,
        encoded: Encoded,
        prompts: Prompts,
        answers: Answers,
        experts: Params | None = None,
        expert_of_row: ExpertOfRow | ExpertOfSegment | None = None,
        prompt_segments: Prompts | None = None,
        answer_segments: Answers | None = None,
        seeds: Seeds | None = None,
        answer_parts: Answers | None = None,
    ) -> Float[Array, "B C T V"]:
        """Returns float32 logits of every token of every answer, each seeing the tokens before it.

        A packed row may have several answers to a segment's prompt, which `answer_parts` tells apart.
        """
        return self.project(
            self.decode_hidden(
                encoded,
                prompts,
                answers,
                experts,
                expert_of_row,
                prompt_segments,
                answer_segments,
                seeds,
                answer_parts,
            )
        )

    @with_config_precision
    def decode_hidden(
        self,
        encoded: Encoded,
        prompts: Prompts,
        answers: Answers,
        experts: Params | None = None,
        expert_of_row: ExpertOfRow | ExpertOfSegment | None = None,
        prompt_segments: Prompts | None = None,
        answer_segments: Answers | None = None,
        seeds: Seeds | None = None,
        answer_parts: Answers | None = None,
    ) -> Float[Array, "B C T D"]:
        """Returns the decoder's states, of which `project` makes the logits."""
        if (prompt_segments is None) != (answer_segments is None):
            raise UserError(
                "Expected segment ids of prompts and of answers for packed rows, got only one of them. "
                "Fix: pass both."
            )
        rows = insert_soft_tokens(prompts, prompt_segments, experts, expert_of_row)
        prompts, prompt_segments = rows.tokens, rows.segments
        segments = None if answer_segments is None else answer_segments[:, 0]
        shifted = jnp.pad(answers[..., :-1], ((0, 0), (0, 0), (1, 0)), constant_values=PAD)
        of_answer = of_token = None
        if prompt_segments is not None and answer_segments is not None:
            parts = (
                answer_segments
                if answer_parts is None
                else answer_segments * MAX_SEGMENT_ANSWERS + answer_parts
            )
            before = jnp.pad(parts[..., :-1], ((0, 0), (0, 0), (1, 0)), constant_values=-1)
            shifted = jnp.where(parts == before, shifted, PAD)
            of_answer = parts.reshape(-1, answers.shape[2])
            of_token = answer_segments.reshape(answers.shape[0], -1)
        return self.decoder(
            self.token_embedder(shifted),
            encoded,
            SegmentMask(of_answer, of_answer, causal=True),
            SegmentMask(of_token, _segments_of_real(prompts, prompt_segments)),
            self._part(experts, "decoder"),
            ex.pair_with_segments(expert_of_row, segments),
            seeds=DecoderSeeds(
                make_token_seeds(seeds, segments, answers.shape[2]),
                make_token_seeds(seeds, prompt_segments, prompts.shape[1]),
            ),
            prompt_segments=prompt_segments,
        )

    @with_config_precision
    def decode_trie(
        self,
        encoded: Encoded,
        prompts: Prompts,
        nodes: Int[Array, "B N"],
        depths: Int[Array, "B N"],
        sees: Bool[Array, "B N N"],
        experts: Params | None = None,
        expert_of_row: ExpertOfRow | None = None,
    ) -> Float[Array, "B N D"]:
        """Returns the decoder's states at the nodes of a tree of answers, `scoring.tries`.

        A node holds the token that it reads (padding where an answer starts) and its position in its answers;
        `sees` says which nodes it attends to.
        """
        rows = insert_soft_tokens(prompts, None, experts, expert_of_row)
        hidden = self.decoder(
            self.token_embedder(nodes)[:, None],
            encoded,
            sees,
            SegmentMask(None, _segments_of_real(rows.tokens, None)),
            self._part(experts, "decoder"),
            expert_of_row,
            depths,
        )
        return hidden[:, 0]

    @with_config_precision
    def project(self, hidden: Float[Array, "*places D"]) -> Float[Array, "*places V"]:
        """Returns float32 logits of the decoder's states, all of them or those that are wanted."""
        if not self.config.logits_via_embedding:
            return self.decoder.project(hidden)
        logits = self.token_embedder.attend(hidden)
        return logits * self.config.emb_dim**-0.5 if self.config.scale_decoder_outputs else logits

    @with_config_precision
    def start_cache(
        self,
        encoded: Encoded,
        prompts: Prompts,
        length: int,
        experts: Params | None = None,
        expert_of_row: ExpertOfRow | None = None,
    ) -> DecodeCache:
        """Returns the cache before the first of at most `length` tokens, one answer to a row."""
        rows = insert_soft_tokens(prompts, None, experts, expert_of_row)
        return self.decoder.start(
            encoded, rows.tokens != PAD, length, self._part(experts, "decoder"), expert_of_row
        )

    def gather_experts(
        self, experts: Params | None, expert_of_row: ExpertOfRow | None
    ) -> tuple[Params | None, ExpertOfRow | None]:
        """Returns the last arguments of `decode_step` for who takes many steps with the same experts.

        On a TPU the experts of rows are gathered once for all steps. Elsewhere each layer gathers its own:
        those of all layers would be in memory at once.
        """
        part = self._part(experts, "decoder")
        if part is None or expert_of_row is None or traced_platform() != "tpu":
            return experts, expert_of_row
        return {"decoder": ex.gather_all_layers(part, expert_of_row)}, None

    @with_config_precision
    def decode_step(
        self,
        cache: DecodeCache,
        tokens: Int[Array, " B"],
        experts: Params | None = None,
        expert_of_row: ExpertOfRow | None = None,
    ) -> tuple[Float[Array, "B V"], DecodeCache]:
        """Returns float32 logits of the tokens after these, and the cache that has these.

        The first tokens are PAD, with which every answer starts. Experts are those that `start_cache` had. A
        cache of `length` tokens takes no more: the next would overwrite the last.
        """
        x = self.token_embedder(tokens)[:, None, None]
        hidden, cache = self.decoder.step(x, cache, self._part(experts, "decoder"), expert_of_row)
        return self.project(hidden[:, 0, 0]), cache

    def _part(self, experts: Params | None, stack: str) -> Params | None:
        """Returns the part of experts for a stack."""
        return None if experts is None else ex.prepare_stack(experts, self.variables["params"], stack)


def _segments_of_real(tokens: Prompts, segments: Prompts | None) -> Prompts:
    """Returns the segments of tokens that are seen as keys, all the same if rows are not packed."""
    return jnp.where(jnp.asarray(tokens) != PAD, 0 if segments is None else segments, NEVER_ATTENDED)


def init_params(key: jax.Array, config: T5Config) -> dict[str, Any]:
    """Returns fresh float32 parameters, drawn as T5X draws them."""

    def init(key: jax.Array) -> dict[str, Any]:
        tokens = jnp.ones((1, 1), jnp.int32)
        return dict(T5(config).init(key, tokens, tokens[:, :, None])["params"])

    return jax.jit(init)(key)
