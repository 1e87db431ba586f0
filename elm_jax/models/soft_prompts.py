"""Soft prompts: trained vectors that stand before the embeddings of a prompt (Lester et al. 2021).

They take part in the encoder as tokens do, with positions before the prompt's first, and the decoder attends
to what becomes of them. Rows are made longer inside the network, so that nobody outside knows of them. In the
longer rows a negative number stands for a soft token: -1 for the first, -2 for the second.

In a packed row every segment has the soft prompt of its own expert before its own tokens, so that positions
inside a segment are what they are in a row of its own. A vector of zeros is no token, and padding in a row.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from elm_jax.axes import PAD, Array, ExpertOfRow, ExpertOfSegment, Prompts
from elm_jax.errors import UserError
from elm_jax.models import expert_layers as ex
from elm_jax.models.expert_kinds import PROMPT
from elm_jax.records import Params


class PromptRows(NamedTuple):
    """Rows of prompts, with soft tokens before them if the experts have any.

    Attributes:
        tokens: Token ids; negative for soft tokens.
        segments: The segment of each token, in packed rows.
        soft: The vectors that soft tokens count in, for every segment of a packed row, or for its only one.
    """

    tokens: Int[Array, "B N"]
    segments: Int[Array, "B N"] | None = None
    soft: Float[Array, "B _ P D"] | None = None

    @property
    def token_ids(self) -> Int[Array, "B N"]:
        """The tokens that are of the vocabulary, and padding for soft ones."""
        return self.tokens if self.soft is None else jnp.maximum(self.tokens, PAD)


def insert_soft_tokens(
    prompts: Prompts,
    segments: Prompts | None,
    experts: Params | None,
    expert_of_row: ExpertOfRow | ExpertOfSegment | None,
) -> PromptRows:
    """Returns the rows of prompts with the soft tokens of their experts.

    Args:
        prompts: Token ids.
        segments: The segment of each token in packed rows, 1, 2, … one after the other.
        experts: One expert, or stacked ones.
        expert_of_row: Which of the stacked experts a row has, or each segment of a packed one.

    Raises:
        UserError: If packed rows do not say which expert each segment has.
    """
    vectors = None if experts is None else _find(experts)
    if vectors is None:
        return PromptRows(prompts, segments)
    own: Any = ex.gather_row_experts({"prompt": vectors}, ex.pair_with_segments(expert_of_row, segments))
    own = own["prompt"]
    if segments is None:
        soft = jnp.broadcast_to(own, (prompts.shape[0], *own.shape[-2:]))
        tokens = jnp.concatenate([_soft_token_ids(soft), jnp.asarray(prompts)], axis=1)
        return PromptRows(tokens, None, soft[:, None])
    if not isinstance(own, ex.PerSegmentParams):
        raise UserError(
            "Expected an expert for every segment of packed rows, before each of which a soft prompt stands, "
            "got one for whole rows. Fix: name an expert for each segment, or do not pack rows."
        )
    tokens, longer = jax.vmap(_lengthen)(
        jnp.asarray(prompts), jnp.asarray(segments), _soft_token_ids(own.value)
    )
    return PromptRows(tokens, longer, own.value)


def embed(rows: PromptRows, embedded: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
    """Returns the embeddings of rows, given those of their tokens, in which soft tokens have any."""
    if rows.soft is None:
        return embedded
    count, each = rows.soft.shape[1:3]
    place = -rows.tokens - 1
    if rows.segments is not None:
        place = place + jnp.maximum(rows.segments - 1, 0) * each
    vectors = rows.soft.astype(embedded.dtype).reshape(-1, count * each, embedded.shape[-1])
    chosen = jax.vmap(lambda own, at: own[at])(vectors, jnp.clip(place, 0, count * each - 1))
    return jnp.where((rows.tokens < 0)[..., None], chosen, embedded)


def _find(experts: Params) -> Any:
    node: Any = experts
    for name in PROMPT.split("/"):
        node = None if node is None else node.get(name)
    return node


def _soft_token_ids(vectors: Float[Array, "*axes P D"]) -> Int[Array, "*axes P"]:
    """Returns the numbers of soft tokens; padding for vectors of zeros."""
    numbers = jnp.arange(-1, -1 - vectors.shape[-2], -1, dtype=jnp.int32)
    return jnp.where((vectors != 0).any(axis=-1), jnp.broadcast_to(numbers, vectors.shape[:-1]), PAD)


def _lengthen(
    tokens: Int[Array, " S"], segments: Int[Array, " S"], soft: Int[Array, "G P"]
) -> tuple[Int[Array, " N"], Int[Array, " N"]]:
    """Returns the tokens and segments of a packed row, with the soft tokens of G segments before each."""
    count, length = soft.shape
    total = tokens.shape[0] + count * length
    # Segment g is g soft prompts further on; padding is left out, and so is a segment that is not there.
    place = jnp.arange(tokens.shape[0], dtype=jnp.int32) + segments * length
    place = jnp.where(segments > 0, place, total)
    number = jnp.arange(1, count + 1, dtype=jnp.int32)
    is_own = segments[None] == number[:, None]
    first = is_own.argmax(axis=1).astype(jnp.int32) + (number - 1) * length
    before = first[:, None] + jnp.arange(length, dtype=jnp.int32)[None]
    before = jnp.where(is_own.any(axis=1)[:, None], before, total)

    def put(own: Array, in_front: Array) -> Array:
        longer = jnp.zeros(total, jnp.int32).at[place].set(own, mode="drop")
        return longer.at[before].set(in_front, mode="drop")

    return put(tokens, soft), put(segments, jnp.broadcast_to(number[:, None], soft.shape))
