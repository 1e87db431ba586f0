"""Tokenised rows: one task's rows, rendered and tokenised once, as flat arrays in one file.

Rendering and tokenising are slow and deterministic, so they happen once; training and evaluation then read
token ids without jinja, SeqIO or TensorFlow. The file holds the cache key of everything that went into it,
and a reader that names the key it expects never gets other rows. It holds a checksum too, so that a file that
was changed is not believed; those of the first versions have none. A local file is memory-mapped: after its
bytes were checked once, of a row only its own are read.
"""

import functools
import hashlib
import io
import itertools
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, SupportsIndex, overload

import numpy as np
from jaxtyping import Int, UInt8

from elm_jax import storage
from elm_jax.axes import PAD
from elm_jax.data import ragged, row_digests, token_losses
from elm_jax.data.ragged import RaggedTexts, RaggedTokens
from elm_jax.data.row_digests import RowDigests
from elm_jax.data.token_losses import TokenLosses
from elm_jax.errors import UserError
from elm_jax.prompting.render import Renderings
from elm_jax.records import PromptedExample, RowCounts
from elm_jax.safetensors_header import TensorEntry, read_header
from elm_jax.tasks import row_counts
from elm_jax.tasks.data_source import Lengths
from elm_jax.tokenizers.sentencepiece import EOS, Tokenizer

CODE_VERSION = 2
"""To be raised if our own code renders or tokenises the same rows differently: older files are then stale."""
_TOKENS = ("inputs", "targets", "choices")
COUNTS, LOSSES, _ACCEPTED = "counts", "losses", "accepted"
ABOUT = "about"
"""The array with the checksum of the others and the digests of the rows, as JSON."""
_LATER = {COUNTS, LOSSES, ABOUT, f"{_ACCEPTED}/content", f"{_ACCEPTED}/offsets"}
"""What files of the first versions lack."""
_TEXTS = ("row_ids", "texts", "target_texts", "choice_texts")
_ARRAYS = {
    *("fingerprint", "choice_starts", "labels"),
    *(f"{name}/{part}" for name in _TOKENS for part in ("tokens", "offsets")),
    *(f"{name}/{part}" for name in _TEXTS for part in ("content", "offsets")),
}
_CHUNK = 1 << 20


@dataclass(frozen=True, eq=False)
class TokenizedRows:
    """The N rows of one task and split as token ids; targets and choices end with end-of-sequence.

    Attributes:
        row_ids: Ids of the rows.
        texts: The inputs as text, which keys are embedded from.
        target_texts: The targets as text.
        choice_texts: The answer choices of all rows as text, in the order of `choices`.
        inputs: Token ids of the inputs.
        targets: Token ids of the targets.
        choices: Token ids of the choices of all rows; row i has `choice_starts[i]` to `choice_starts[i + 1]`.
        choice_starts: Where the choices of the rows begin and end, int64.
        labels: Index of the right choice, int32; -1 for a row without one.
        digests: Digests of the rows, if they were kept.
        counts: What became of the rows that these come from; None if that is not known.
        losses: What of the texts the model does not see; None in files that do not say.
        accepted: The accepted answers of each row as JSON, or an empty text; none if no file says.
    """

    row_ids: Sequence[str]
    texts: Sequence[str]
    target_texts: Sequence[str]
    choice_texts: Sequence[str]
    inputs: RaggedTokens
    targets: RaggedTokens
    choices: RaggedTokens
    choice_starts: Int[np.ndarray, " edges"]
    labels: Int[np.ndarray, " N"]
    digests: RowDigests | None = None
    counts: RowCounts | None = None
    losses: TokenLosses | None = None
    accepted: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class StoredExamples(Sequence[PromptedExample]):
    """The prompted examples of tokenised rows; an example is made when it is read.

    Attributes:
        rows: The tokenised rows.
        cache_key: The cache key that their file holds.
    """

    rows: TokenizedRows
    cache_key: str

    @property
    def counts(self) -> RowCounts:
        """What became of the rows that were read; all were used if the file does not say."""
        return self.rows.counts or RowCounts(len(self), len(self))

    def __len__(self) -> int:
        return len(self.rows.row_ids)

    @overload
    def __getitem__(self, index: SupportsIndex) -> PromptedExample: ...
    @overload
    def __getitem__(self, index: slice) -> list[PromptedExample]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> PromptedExample | list[PromptedExample]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        rows, row = self.rows, range(len(self))[index]
        start, end = rows.choice_starts[row : row + 2].tolist()
        label = int(rows.labels[row])
        return PromptedExample(
            row_id=rows.row_ids[row],
            input=rows.texts[row],
            target=rows.target_texts[row],
            choices=tuple(rows.choice_texts[start:end]),
            label=None if label < 0 else label,
            accepted=tuple(json.loads(rows.accepted[row] or "[]")) if rows.accepted else (),
        )


def tokenize_examples(
    examples: Sequence[PromptedExample], tokenizer: Tokenizer, lengths: Lengths
) -> TokenizedRows:
    """Returns examples as token ids; longer lists are cut, and still end with end-of-sequence.

    An example whose target is none of its choices has no label, and can be trained on all the same.

    Args:
        examples: The prompted examples.
        tokenizer: The tokenizer; its `input_eos` says whether inputs end with end-of-sequence. An input
            without tokens is end-of-sequence in any case.
        lengths: Tokens of inputs and of targets that are kept, end-of-sequence included.

    Raises:
        UserError: If there are no examples, a length is below 2, or a label is no index of the choices.
    """
    if not examples:
        raise UserError("Expected examples to tokenise, got none. Fix: check the name of the split.")
    if min(lengths.prompt, lengths.answer) < 2:
        raise UserError(f"Expected lengths of at least 2 tokens, got {lengths}. Fix: raise the lower one.")
    for example in examples:
        if example.label is not None and not 0 <= example.label < len(example.choices):
            raise UserError(
                f"Expected the label of row {example.row_id!r} to be the index of one of its "
                f"{len(example.choices)} choices, from 0, got {example.label}. Fix: correct the label."
            )
    inputs = tuple(example.input for example in examples)
    targets = tuple(example.target for example in examples)
    choices = tuple(text for example in examples for text in example.choices)
    starts = ragged.compute_offsets(len(example.choices) for example in examples)
    ids = [tokenizer.encode_all(texts) for texts in (inputs, targets, choices)]
    cut = [
        _cut(ids[0], lengths.prompt, tokenizer.input_eos),
        _cut(ids[1], lengths.answer),
        _cut(ids[2], lengths.answer),
    ]
    return TokenizedRows(
        row_ids=tuple(example.row_id for example in examples),
        texts=inputs,
        target_texts=targets,
        choice_texts=choices,
        inputs=cut[0],
        targets=cut[1],
        choices=cut[2],
        choice_starts=starts,
        labels=np.array([-1 if example.label is None else example.label for example in examples], np.int32),
        counts=get_counts(examples),
        losses=token_losses.count_losses((inputs, targets, choices), ids, starts, tokenizer, lengths),
        accepted=tuple(json.dumps(each.accepted) if each.accepted else "" for each in examples),
    )


def find_digests(examples: Sequence[PromptedExample]) -> RowDigests:
    """Returns the digests of examples: those that were prepared with them, or else computed now."""
    stored = examples.rows.digests if isinstance(examples, StoredExamples) else None
    return row_digests.digest_rows(examples) if stored is None else stored


def tokenize_inputs(inputs: Sequence[str], tokenizer: Tokenizer, lengths: Lengths) -> Any:
    """Returns the token ids of inputs, as `tokenize_examples` has them."""
    return _cut(tokenizer.encode_all(inputs), lengths.prompt, tokenizer.input_eos)


def get_counts(examples: Sequence[PromptedExample]) -> RowCounts:
    """Returns what became of the rows of examples; of a plain sequence all were used."""
    if isinstance(examples, Renderings | StoredExamples):
        return examples.counts
    return RowCounts(len(examples), len(examples))


def get_choices(rows: TokenizedRows, row: int) -> list[np.ndarray]:
    """Returns the token ids of every choice of a row."""
    start, end = rows.choice_starts[row : row + 2].tolist()
    return rows.choices[start:end]


def make_rendering_key(
    data: Mapping[str, Any], template: Mapping[str, Any], options: Mapping[str, Any]
) -> str:
    """Returns the cache key of rendered rows.

    Args:
        data: What the rows depend on.
        template: The template's fields.
        options: Options of rendering.
    """
    return storage.fingerprint(
        {"code": CODE_VERSION, "data": dict(data), "template": dict(template), "options": dict(options)}
    )


def make_cache_key(rendering_key: str, tokenizer: Tokenizer, lengths: Lengths) -> str:
    """Returns the cache key of tokenised rows: the rendering key, a dash, and the key of tokenising."""
    options = [storage.FORMAT, tokenizer.fingerprint, lengths.prompt, lengths.answer, tokenizer.input_eos]
    return f"{rendering_key}-{storage.fingerprint(options)}"


def save(path: storage.PathLike, rows: TokenizedRows, cache_key: str, *, is_part: bool = False) -> None:
    """Writes tokenised rows with the cache key of what they were made from; a part without digests."""
    arrays: dict[str, Any] = {
        # Not in the file's metadata, whose order varies: the same rows have to give the same bytes.
        "fingerprint": np.frombuffer(cache_key.encode(), np.uint8),
        "choice_starts": rows.choice_starts,
        "labels": rows.labels,
    }
    for name in _TOKENS:
        tokens = getattr(rows, name)
        arrays |= {f"{name}/tokens": tokens.tokens, f"{name}/offsets": tokens.offsets}
    for name in (*_TEXTS, _ACCEPTED):
        texts = ragged.pack_texts(getattr(rows, name) or ("",) * len(rows.row_ids))
        arrays |= {f"{name}/content": texts.content, f"{name}/offsets": texts.offsets}
    if rows.counts is not None:
        arrays[COUNTS] = pack_counts(rows.counts)
    if rows.losses is not None:
        arrays[LOSSES] = np.frombuffer(token_losses.dump_losses(rows.losses), np.uint8)
    if not is_part:
        digests = rows.digests or row_digests.digest_rows(StoredExamples(rows, cache_key))
        sizes = {name: array.nbytes for name, array in arrays.items()}
        arrays[ABOUT] = pack_about(digests, sizes, lambda name: [arrays[name]])
    storage.write_arrays(path, arrays)


def pack_counts(counts: RowCounts) -> UInt8[np.ndarray, " bytes"]:
    """Returns counts as a file has them."""
    return np.frombuffer(json.dumps(row_counts.to_json(counts), sort_keys=True).encode(), np.uint8)


def load(path: storage.PathLike, cache_key: str | None = None) -> TokenizedRows:
    """Reads tokenised rows.

    Args:
        path: The file.
        cache_key: The key that the file has to hold; default: any.

    Raises:
        UserError: If the file is missing, broken, of another kind, or stale: made from other rows, another
            template, tokenizer or options than the key's; or if it was changed after it was written.
    """
    stored_key, arrays, digests = _read(path)
    if cache_key is not None and stored_key != cache_key:
        raise UserError(
            f"Expected prepared rows of cache key {cache_key} at {str(path)!r}, got {stored_key}: the rows, "
            "template, tokenizer or options have changed. Fix: prepare the task again."
        )

    def tokens(name: str) -> RaggedTokens:
        return RaggedTokens(arrays[f"{name}/tokens"], arrays[f"{name}/offsets"])

    def texts(name: str) -> RaggedTexts:
        return RaggedTexts(arrays[f"{name}/content"], arrays[f"{name}/offsets"])

    return TokenizedRows(
        row_ids=texts("row_ids"),
        texts=texts("texts"),
        target_texts=texts("target_texts"),
        choice_texts=texts("choice_texts"),
        inputs=tokens("inputs"),
        targets=tokens("targets"),
        choices=tokens("choices"),
        choice_starts=arrays["choice_starts"],
        labels=arrays["labels"],
        digests=digests,
        counts=row_counts.from_json(json.loads(arrays[COUNTS].tobytes())) if COUNTS in arrays else None,
        losses=token_losses.parse_losses(arrays[LOSSES].tobytes()) if LOSSES in arrays else None,
        accepted=texts(_ACCEPTED) if f"{_ACCEPTED}/content" in arrays else (),
    )


def read_cache_key(path: storage.PathLike) -> str:
    """Returns the cache key of a whole file of tokenised rows; raises what `load` raises."""
    return _read(path)[0]


def is_current(path: storage.PathLike, cache_key: str) -> bool:
    """Returns whether a whole file with this cache key is there, so that nothing has to be prepared."""
    try:
        return read_cache_key(path) == cache_key
    except UserError:
        return False


def pad(rows: Sequence[np.ndarray], length: int) -> Int[np.ndarray, "N length"]:
    """Returns rows of token ids as int32 [N, length], padded at their ends.

    Raises:
        UserError: If a row is longer.

    >>> pad([np.array([5, 1]), np.array([6, 7, 1])], 4).tolist()
    [[5, 1, 0, 0], [6, 7, 1, 0]]
    """
    lengths = np.fromiter((len(row) for row in rows), np.int64, len(rows))
    if lengths.size and lengths.max() > length:
        longest = int(lengths.argmax())
        raise UserError(
            f"Expected rows of at most {length} tokens, got {lengths[longest]} in row {longest}. Fix: "
            "tokenise them with a lower limit, or choose a longer batch."
        )
    padded = np.full((len(rows), length), PAD, np.int32)
    if lengths.sum():
        padded[np.arange(length) < lengths[:, None]] = np.concatenate(rows)
    return padded


def _cut(lists: Sequence[list[int]], length: int, add_eos: bool = True) -> RaggedTokens:
    """Cuts every list; ends it with end-of-sequence if `add_eos` or if it is empty."""
    cut = [[*tokens[: length - 1], EOS] if add_eos or not tokens else tokens[:length] for tokens in lists]
    flat = np.fromiter(itertools.chain.from_iterable(cut), np.int32)
    return RaggedTokens(flat, ragged.compute_offsets(map(len, cut)))


def pack_about(
    digests: RowDigests, sizes: Mapping[str, int], parts_of: Callable[[str], Iterable[np.ndarray]]
) -> np.ndarray:
    """Returns the array that says what a file holds: digests of its rows, and a checksum of all its arrays.

    Args:
        digests: Of all rows.
        sizes: Array -> its bytes.
        parts_of: Returns an array in parts, so that none of them has to be in memory whole.
    """
    checksum = hashlib.sha256()
    for name in sorted(sizes):
        checksum.update(f"{name}:{sizes[name]};".encode())
        for part in parts_of(name):
            checksum.update(part.tobytes())
    about = {"checksum": checksum.hexdigest(), "digests": digests.to_json()}
    return np.frombuffer(json.dumps(about, sort_keys=True).encode(), np.uint8)


# Only digests are kept; the version of a file says whether it has to be read again.
@functools.lru_cache(maxsize=4096)
def _checksum_of_version(file: str, size: int, mtime: int) -> str:
    """Returns the checksum of a local file's arrays, read in parts so that none of it stays in memory."""
    del size, mtime
    with open(file, "rb") as stream:
        return _checksum_of_stream(stream, read_header(stream, file=file, fix="delete it").tensors)


def _checksum_of_stream(stream: IO[bytes], entries: Mapping[str, TensorEntry]) -> str:
    digest = hashlib.sha256()
    for name in sorted(entries.keys() - {ABOUT}):
        begin, end = entries[name].start, entries[name].end
        digest.update(f"{name}:{end - begin};".encode())
        stream.seek(begin)
        for at in range(begin, end, _CHUNK):
            digest.update(stream.read(min(_CHUNK, end - at)))
    return digest.hexdigest()


def _read(path: storage.PathLike) -> tuple[str, dict[str, np.ndarray], RowDigests | None]:
    """Returns the cache key of a file, its arrays, which stay on disk until they are read, and digests."""
    where, expected = storage.path(path), f"Expected a file of prepared rows at {str(path)!r}"
    try:
        with where.open("rb") as stream:
            header = read_header(stream, file=str(path), fix="delete it and prepare the task again")
        if "://" in os.fspath(where):
            content = np.frombuffer(where.read_bytes(), np.uint8)
        else:
            content = np.memmap(os.fspath(where), np.uint8, "r").view(np.ndarray)
    except FileNotFoundError:
        raise UserError(f"{expected}, got no file. Fix: run `elm prepare`.") from None
    except OSError as error:
        raise UserError(f"{expected}, got one that cannot be read ({error}). Fix: delete it.") from error
    if header.metadata.get("format") != str(storage.FORMAT) or set(header.tensors) - _LATER != _ARRAYS:
        raise UserError(f"{expected}, got a file of another kind. Fix: delete it.")
    arrays = {
        name: content[entry.start : entry.end].view(entry.dtype) for name, entry in header.tensors.items()
    }
    cache_key = arrays["fingerprint"].tobytes().decode(errors="replace")
    if ABOUT not in arrays:
        return cache_key, arrays, None
    if "://" in os.fspath(where):
        checksum = _checksum_of_stream(io.BytesIO(content.tobytes()), header.tensors)
    else:
        stat = os.stat(where)
        checksum = _checksum_of_version(os.fspath(where), stat.st_size, stat.st_mtime_ns)
    try:
        about = json.loads(arrays.pop(ABOUT).tobytes())
        is_whole, digests = about["checksum"] == checksum, row_digests.from_json(about["digests"])
    except (ValueError, KeyError, TypeError):
        is_whole, digests = False, None
    if not is_whole:
        raise UserError(
            f"{expected}, got one that was changed after it was written. Fix: delete it, and prepare the "
            "task again."
        )
    return cache_key, arrays, digests
