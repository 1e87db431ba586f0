"""Embedding: a vector for every text, of a published sentence encoder or of a run's own T5.

Texts of similar length share batches of few shapes, so that there is little padding and few compilations.
They are tokenised while earlier batches are computed.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from elm_jax import storage
from elm_jax.aot.program import Program, get_platform, jit, with_replication, with_shardings
from elm_jax.axes import PAD, Array, Embeddings, Prompts
from elm_jax.data.tokenized_rows import pad
from elm_jax.errors import UserError
from elm_jax.models import bert_encoder, pooling, sharding
from elm_jax.models.bert_encoder import BertConfig
from elm_jax.models.shapes import shapes_of
from elm_jax.models.sizes import T5Config
from elm_jax.models.t5 import T5
from elm_jax.records import Params
from elm_jax.scoring.buckets import BUCKET_LENGTHS, smallest_bucket
from elm_jax.weights import embedders
from elm_jax.weights.embedders import SentenceEncoder

TEXTS_PER_CHUNK = 2048  # that are tokenised together
BATCHES_AHEAD = 4  # that are computed before the first of them is fetched
# On a CPU a batch of so few tokens reuses its memory: the allocator gives larger arrays back to the system,
# which clears them again for every batch.
CPU_BATCH_TOKENS, ACCELERATOR_BATCH_TOKENS = 1024, 65536
# What a TPU computes at once of a batch: the activations of a small encoder's layer then stay on the chip.
TPU_TOKENS_AT_ONCE = 16384
T5_BATCH_ROWS = 64


@dataclass(frozen=True)
class Embedder:
    """Turns texts into vectors; called with texts, it returns float32 [N, D] in their order.

    Attributes:
        name: Its kind and fingerprint, stored with keys; the same wherever its files are.
        fingerprint: Of everything that decides what vector a text gets.
        dimension: D.
        max_length: How many tokens of a text are read, special ones included.
        embed: What computes the vectors.
    """

    name: str
    fingerprint: str
    dimension: int
    max_length: int
    embed: Callable[[Sequence[str]], np.ndarray]

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        are_texts = all(isinstance(text, str) for text in texts)  # pyright: ignore[reportUnnecessaryIsInstance]
        if isinstance(texts, str) or not are_texts:
            raise UserError(f"Expected a list of texts to embed, got {texts!r:.100}.")
        return self.embed(texts)


def load_embedder(
    path_or_name: storage.PathLike,
    *,
    pooling: str | None = None,
    dtype: str = "float32",
    batch_tokens: int | None = None,
    ignore: Collection[str] = (),
) -> Embedder:
    """Loads a sentence encoder, whose configuration is understood or refused.

    Args:
        path_or_name: A directory in sentence-transformers' layout, whose network is BERT's, RoBERTa's,
            MPNet's or the encoder of a T5; or a name on the Hugging Face hub, where one without an owner, as
            `all-MiniLM-L6-v2`, is sentence-transformers'. What is in the hub's cache needs no network.
        pooling: "mean", "cls", "max" or "pooler", for plain checkpoints, which do not say it.
        dtype: With "bfloat16" parameters and matrix products are in that type.
        batch_tokens: How many tokens are computed at once, padding included; the default fits the device.
        ignore: Fields of the encoder's configuration that were looked at and do not change what it computes.

    Returns:
        The embedder, texts -> float32 [N, D].

    Raises:
        UserError: If a file is missing; it names the file, its repository and where to put it.
    """
    directory = embedders.find_encoder(path_or_name, pooling=pooling)
    encoder = embedders.load_encoder(directory, pooling=pooling, dtype=dtype, ignore=ignore)
    arrays = jax.device_put((encoder.params, list(encoder.projections)))
    budget = batch_tokens or _default_batch_tokens(jax.default_backend())
    head = PoolingHead(encoder.pooling, encoder.activations, encoder.normalized)

    def run(tokens: np.ndarray, lengths: np.ndarray) -> jax.Array:
        return embed_program(encoder.network, arrays, *tokens.shape, head=head)(arrays, tokens, lengths)

    kernels = [projection["kernel"].shape[1] for projection in encoder.projections]
    dimension = [encoder.network.emb_dim, *kernels][-1]
    return Embedder(
        name=f"{encoder.kind}-{encoder.pooling}/{encoder.fingerprint}" + _dtype_suffix(encoder.network.dtype),
        fingerprint=encoder.fingerprint,
        dimension=dimension,
        max_length=encoder.max_length,
        embed=lambda texts: _embed_texts(encoder, run, dimension, texts, budget),
    )


def embed_rows(
    config: T5Config,
    params: Params,
    rows: Sequence[Sequence[int] | np.ndarray],
    *,
    batch_size: int = T5_BATCH_ROWS,
) -> np.ndarray:
    """Embeds tokenised texts by a T5's encoder: the mean of its states, divided by its length.

    Args:
        config: The T5's network.
        params: Its parameters.
        rows: The token ids of each text.
        batch_size: How many texts are computed at once.

    Returns:
        Vectors of length 1 in the order of the texts, float32 [N, D].
    """
    vectors = np.zeros((len(rows), config.emb_dim), np.float32)
    order = sorted(range(len(rows)), key=lambda position: len(rows[position]))
    for start in range(0, len(order), batch_size):
        members = order[start : start + batch_size]
        length = smallest_bucket(len(rows[members[-1]]), BUCKET_LENGTHS, what="text length")
        tokens = np.zeros((batch_size, length), np.int32)
        tokens[: len(members)] = pad([np.asarray(rows[position]) for position in members], length)
        counts = (tokens != PAD).sum(axis=1, dtype=np.int32)
        run = embed_program(config, (params, []), *tokens.shape)
        vectors[members] = np.asarray(run((params, []), tokens, counts))[: len(members)]
    return vectors


def _dtype_suffix(dtype: str) -> str:
    return "" if dtype == "float32" else f"/{dtype}"


def name_t5_embedder(fingerprint: str, dtype: str | None = None) -> str:
    """Returns the name of a base's own embedder, stored with keys; vectors of two bases do not compare.

    Args:
        fingerprint: The base's.
        dtype: What the base computes in, if that is not the type that it is stored in.
    """
    return f"t5-encoder-mean/{fingerprint}{f'/{dtype}' if dtype else ''}"


class PoolingHead(NamedTuple):
    """How one vector is made of the states of a text's tokens.

    Attributes:
        pooling: "mean", "cls", "max" or "pooler".
        activations: One after each projection.
        normalized: Whether vectors are divided by their length.
    """

    pooling: str = "mean"
    activations: tuple[str, ...] = ()
    normalized: bool = True


T5_HEAD = PoolingHead()
"""For a run's own T5: the mean of a text's tokens, of length 1."""


def embed_program(
    network: BertConfig | T5Config,
    arrays: Any,
    rows: int,
    length: int,
    *,
    head: PoolingHead = T5_HEAD,
    mesh: Mesh | None = None,
) -> Program:
    """Returns the program that embeds a batch.

    Args:
        network: A sentence encoder, or a T5 whose encoder is used.
        arrays: The parameters and the head's projections, or their shapes, whole on every device.
        rows: How many texts the batch has.
        length: How many tokens a text has.
        head: How one vector is made of a text's states.
        mesh: Devices that split the rows; by default the default device.
    """
    batch: Any = [jax.ShapeDtypeStruct(size, jnp.int32) for size in ((rows, length), (rows,))]
    if mesh is not None:
        batch = with_shardings(batch, sharding.batch_shardings(mesh, batch))
    run = _compile_embed(network, head, get_platform(mesh), mesh is None or mesh.size == 1)
    return Program("embed", run, (with_replication(mesh, shapes_of(arrays)), *batch))


@lru_cache(maxsize=16)
def _compile_embed(
    network: BertConfig | T5Config, head: PoolingHead, platform: str, alone: bool
) -> Callable[..., jax.Array]:
    """Returns the compiled embedding of a batch, tokens [B, S] and lengths [B] -> [B, D].

    Args:
        network: As of `embed_program`.
        head: As of `embed_program`.
        platform: What it is traced for.
        alone: Whether one device has all rows.
    """

    def embed(arrays: tuple[Params, list[Params]], tokens: Prompts, lengths: Int[Array, " B"]) -> Embeddings:
        params, projections = arrays
        if isinstance(network, BertConfig):
            hidden = bert_encoder.encode(network, params, tokens, lengths)
        else:
            hidden = T5(network).apply({"params": params}, tokens, method="encode")
        vectors = pooling.pool(jnp.asarray(hidden, jnp.float32), lengths, head.pooling)
        for projection, activation in zip(projections, head.activations, strict=True):
            vectors = pooling.project(vectors, projection, activation)
        return pooling.normalize(vectors) if head.normalized else vectors

    def embed_in_parts(
        arrays: tuple[Params, list[Params]], tokens: Prompts, lengths: Int[Array, " B"]
    ) -> Embeddings:
        least = min(tokens.shape[0], -(-tokens.size // TPU_TOKENS_AT_ONCE))
        parts = next(count for count in range(least, tokens.shape[0] + 1) if tokens.shape[0] % count == 0)
        if parts == 1:
            return embed(arrays, tokens, lengths)
        split = (jnp.asarray(x).reshape(parts, -1, *x.shape[1:]) for x in (tokens, lengths))
        found = jax.lax.map(lambda part: embed(arrays, *part), tuple(split))
        return found.reshape(tokens.shape[0], -1)

    return jit(embed_in_parts if platform == "tpu" and alone else embed, platform=platform)


def _embed_texts(
    encoder: SentenceEncoder,
    run: Callable[..., jax.Array],
    dimension: int,
    texts: Sequence[str],
    batch_tokens: int,
) -> np.ndarray:
    vectors = np.zeros((len(texts), dimension), np.float32)
    waiting: deque[tuple[list[int], jax.Array]] = deque()

    def fetch() -> None:
        members, batch = waiting.popleft()
        vectors[members] = np.asarray(batch)[: len(members)]

    for members, tokens, lengths in _batches(encoder, texts, batch_tokens):
        waiting.append((members, run(tokens, lengths)))
        if len(waiting) > BATCHES_AHEAD:
            fetch()
    while waiting:
        fetch()
    return vectors


def _batches(
    encoder: SentenceEncoder, texts: Sequence[str], batch_tokens: int
) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
    """Yields every text once, longest first: the positions of up to B texts, tokens [B, S], lengths [B]."""
    order = sorted(range(len(texts)), key=lambda position: -len(texts[position]))
    few = 1 << (len(texts) - 1).bit_length() if texts else 0
    rows: list[tuple[int, list[int]]] = []
    for start in range(0, len(order), TEXTS_PER_CHUNK):
        chunk = order[start : start + TEXTS_PER_CHUNK]
        prompted = [encoder.prompt + texts[position] for position in chunk]
        rows += zip(chunk, _tokenise(encoder, prompted), strict=True)
        # Characters say only roughly how many tokens there are.
        rows.sort(key=lambda row: -len(row[1]))
        while rows:
            length = _round_up_length(len(rows[0][1]), encoder.max_length)
            size = min(few, max(1, batch_tokens // length))
            if len(rows) < size and start + TEXTS_PER_CHUNK < len(order):
                break  # texts of the next chunk complete the batch
            batch, rows = rows[:size], rows[size:]
            tokens = np.zeros((size, length), np.int32)
            lengths = np.ones(size, np.int32)
            for row, (_, ids) in enumerate(batch):
                tokens[row, : len(ids)] = ids
                lengths[row] = len(ids)
            yield [position for position, _ in batch], tokens, lengths


def _tokenise(encoder: SentenceEncoder, texts: Sequence[str]) -> list[list[int]]:
    try:
        return [encoding.ids for encoding in encoder.tokenizer.encode_batch_fast(texts)]
    except TypeError:  # half of a surrogate pair is no character
        return _tokenise(encoder, [text.encode(errors="replace").decode() for text in texts])


def _round_up_length(tokens: int, longest: int) -> int:
    """Returns the padded length of a batch: one of few, and near the length of its longest text."""
    step = 16 if tokens <= 64 else 32 if tokens <= 256 else 64
    return min(-(-max(tokens, 1) // step) * step, longest)


def _default_batch_tokens(platform: str) -> int:
    return CPU_BATCH_TOKENS if platform == "cpu" else ACCELERATOR_BATCH_TOKENS
