"""Embedding: a vector for every text, of a published sentence encoder or of a run's own T5.

Texts of one length go together in batches of few shapes, so that little is padding and compilations are few,
and are tokenised while the batches before them are computed.
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
from elm_jax.aot.program import Program, jit, platform_of, replicated, with_shardings
from elm_jax.axes import PAD, Array, Embeddings, Prompts
from elm_jax.data.prepared import pad
from elm_jax.errors import UserError
from elm_jax.models import minilm, pooling, sharding
from elm_jax.models.minilm import BertConfig
from elm_jax.models.shapes import shapes_of
from elm_jax.models.sizes import T5Config
from elm_jax.models.t5 import T5
from elm_jax.records import Params
from elm_jax.scoring.buckets import LADDER, rung
from elm_jax.weights import embedders
from elm_jax.weights.embedders import SentenceEncoder

CHUNK = 2048  # texts tokenised at once
AHEAD = 4  # batches that are computed before the first of them is fetched
# Tokens of a batch. On a CPU what a batch needs then stays in memory that is taken once: the allocator gives
# larger arrays back to the system, which clears them anew for every batch.
ON_CPU, ON_ACCELERATOR = 1024, 65536
T5_ROWS = 64  # of a batch that a run's own T5 embeds


@dataclass(frozen=True)
class Embedder:
    """What turns texts into vectors; called with texts, it returns float32 [N, D] in their order."""

    name: str  # kind and fingerprint: what keys remember, the same wherever the files lie
    fingerprint: str  # of all that decides what vector a text gets
    dimension: int
    max_length: int  # tokens of a text that are read, special ones included
    embed: Callable[[Sequence[str]], np.ndarray]

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        of_texts = all(isinstance(text, str) for text in texts)  # pyright: ignore[reportUnnecessaryIsInstance]
        if isinstance(texts, str) or not of_texts:
            raise UserError(f"An embedder wants a list of texts, but {texts!r:.100} came.")
        return self.embed(texts)


def load_embedder(
    path_or_name: storage.PathLike,
    *,
    pooling: str | None = None,
    dtype: str = "float32",
    batch_tokens: int | None = None,
    ignore: Collection[str] = (),
) -> Embedder:
    """Returns the sentence encoder in a directory, or of a name on the hub: texts -> float32 [N, D].

    `path_or_name` is either. A directory has sentence-transformers' layout; its network is BERT's, RoBERTa's,
    MPNet's or the encoder of a T5. A name without an owner, `all-MiniLM-L6-v2`, is one of
    sentence-transformers'; what the hub's cache holds is found without a network. `pooling` is for plain
    checkpoints, which do not tell it: "mean", "cls", "max" or "pooler". With `dtype` bfloat16 matrix
    products, and parameters, are in that. `batch_tokens` is how many tokens are computed at once, padding
    included. A configuration is understood or refused; `ignore` names fields of it that were looked at and do
    not change a vector.

    Raises a UserError that names the missing file, its repository and where to put it.
    """
    directory = embedders.find(path_or_name, pooling=pooling)
    encoder = embedders.read(directory, pooling=pooling, dtype=dtype, ignore=ignore)
    arrays = jax.device_put((encoder.params, list(encoder.projections)))
    budget = batch_tokens or _budget(jax.default_backend())
    head = Head(encoder.pooling, encoder.activations, encoder.normalized)

    def run(tokens: np.ndarray, lengths: np.ndarray) -> jax.Array:
        return embed_program(encoder.network, arrays, *tokens.shape, head=head)(arrays, tokens, lengths)

    kernels = [projection["kernel"].shape[1] for projection in encoder.projections]
    dimension = [encoder.network.emb_dim, *kernels][-1]
    return Embedder(
        name=f"{encoder.kind}-{encoder.pooling}/{encoder.fingerprint}" + _narrow(encoder.network.dtype),
        fingerprint=encoder.fingerprint,
        dimension=dimension,
        max_length=encoder.max_length,
        embed=lambda texts: _embed(encoder, run, dimension, texts, budget),
    )


def embed_rows(
    config: T5Config, params: Params, rows: Sequence[Sequence[int] | np.ndarray], *, batch_size: int = T5_ROWS
) -> np.ndarray:
    """Returns float32 [N, D] of length 1 for tokenised texts, in their order: a T5 encoder's masked mean."""
    vectors = np.zeros((len(rows), config.emb_dim), np.float32)
    order = sorted(range(len(rows)), key=lambda position: len(rows[position]))
    for start in range(0, len(order), batch_size):
        members = order[start : start + batch_size]
        length = rung(len(rows[members[-1]]), LADDER, what="text length")
        tokens = np.zeros((batch_size, length), np.int32)
        tokens[: len(members)] = pad([np.asarray(rows[position]) for position in members], length)
        counts = (tokens != PAD).sum(axis=1, dtype=np.int32)
        run = embed_program(config, (params, []), *tokens.shape)
        vectors[members] = np.asarray(run((params, []), tokens, counts))[: len(members)]
    return vectors


def _narrow(dtype: str) -> str:
    return "" if dtype == "float32" else f"/{dtype}"


def embedder_name(fingerprint: str, dtype: str | None = None) -> str:
    """Names the embedder that keys were made with: another base gives vectors of another space.

    `dtype` is what the base computes in, where that is not the type that it is stored in.
    """
    return f"t5-encoder-mean/{fingerprint}{f'/{dtype}' if dtype else ''}"


class Head(NamedTuple):
    """What makes one vector of the states of a text's tokens."""

    pooling: str = "mean"
    activations: tuple[str, ...] = ()  # one after each projection
    normalized: bool = True


HEAD = Head()
"""That of a run's own T5: the mean of a text's tokens, of length 1."""


def embed_program(
    network: BertConfig | T5Config,
    arrays: Any,
    rows: int,
    length: int,
    *,
    head: Head = HEAD,
    mesh: Mesh | None = None,
) -> Program:
    """Returns the program that embeds a batch.

    Args:
        network: a sentence encoder, or a T5 whose encoder is one.
        arrays: parameters and the head's projections, or their shapes, whole on every device.
        rows: texts of the batch.
        length: tokens of a text.
        head: what makes one vector of a text.
        mesh: of devices that split the rows; None is the default device.
    """
    batch: Any = [jax.ShapeDtypeStruct(size, jnp.int32) for size in ((rows, length), (rows,))]
    if mesh is not None:
        batch = with_shardings(batch, sharding.batch_shardings(mesh, batch))
    run = _compiled(network, head, platform_of(mesh))
    return Program("embed", run, (replicated(mesh, shapes_of(arrays)), *batch))


@lru_cache(maxsize=16)
def _compiled(network: BertConfig | T5Config, head: Head, platform: str) -> Callable[..., jax.Array]:
    """Returns the compiled embedding of a batch, tokens [B, S] and lengths [B] -> [B, D]."""

    def embed(arrays: tuple[Params, list[Params]], tokens: Prompts, lengths: Int[Array, " B"]) -> Embeddings:
        params, projections = arrays
        if isinstance(network, BertConfig):
            hidden = minilm.encode(network, params, tokens, lengths)
        else:
            hidden = T5(network).apply({"params": params}, tokens, method="encode")
        vectors = pooling.pool(jnp.asarray(hidden, jnp.float32), lengths, head.pooling)
        for projection, activation in zip(projections, head.activations, strict=True):
            vectors = pooling.project(vectors, projection, activation)
        return pooling.normalize(vectors) if head.normalized else vectors

    return jit(embed, platform=platform)


def _embed(
    encoder: SentenceEncoder,
    run: Callable[..., jax.Array],
    dimension: int,
    texts: Sequence[str],
    batch_tokens: int,
) -> np.ndarray:
    vectors = np.zeros((len(texts), dimension), np.float32)
    waiting: deque[tuple[list[int], jax.Array]] = deque()

    def fetch() -> None:
        members, made = waiting.popleft()
        vectors[members] = np.asarray(made)[: len(members)]

    for members, tokens, lengths in _batches(encoder, texts, batch_tokens):
        waiting.append((members, run(tokens, lengths)))
        if len(waiting) > AHEAD:
            fetch()
    while waiting:
        fetch()
    return vectors


def _batches(
    encoder: SentenceEncoder, texts: Sequence[str], batch_tokens: int
) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
    """Yields every text once, longest first: positions of at most B texts, tokens [B, S], lengths [B]."""
    order = sorted(range(len(texts)), key=lambda position: -len(texts[position]))
    few = 1 << (len(texts) - 1).bit_length() if texts else 0
    rows: list[tuple[int, list[int]]] = []
    for start in range(0, len(order), CHUNK):
        chunk = order[start : start + CHUNK]
        prompted = [encoder.prompt + texts[position] for position in chunk]
        rows += zip(chunk, _tokenise(encoder, prompted), strict=True)
        # Characters say only roughly how many tokens there are.
        rows.sort(key=lambda row: -len(row[1]))
        while rows:
            length = _length(len(rows[0][1]), encoder.max_length)
            size = min(few, max(1, batch_tokens // length))
            if len(rows) < size and start + CHUNK < len(order):
                break  # texts of the next chunk fill it up
            batch, rows = rows[:size], rows[size:]
            tokens = np.zeros((size, length), np.int32)
            lengths = np.ones(size, np.int32)
            for row, (_, ids) in enumerate(batch):
                tokens[row, : len(ids)] = ids
                lengths[row] = len(ids)
            yield [position for position, _ in batch], tokens, lengths


def _tokenise(encoder: SentenceEncoder, texts: Sequence[str]) -> list[list[int]]:
    try:
        return [found.ids for found in encoder.tokenizer.encode_batch_fast(texts)]
    except TypeError:  # half of a surrogate pair is no character
        return _tokenise(encoder, [text.encode(errors="replace").decode() for text in texts])


def _length(tokens: int, longest: int) -> int:
    """Returns the padded length of a text's batch: close enough that little is padding, and few in all."""
    step = 16 if tokens <= 64 else 32 if tokens <= 256 else 64
    return min(-(-max(tokens, 1) // step) * step, longest)


def _budget(platform: str) -> int:
    return ON_CPU if platform == "cpu" else ON_ACCELERATOR
