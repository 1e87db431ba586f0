"""Prepared files: one task's rows, rendered and tokenised once, in one file.

Rendering and tokenising are slow and deterministic, so they happen once; training and evaluation then read
token ids without jinja, SeqIO or TensorFlow. The file holds the cache key of everything that went into it,
and a reader that names the key it expects never gets other rows. It holds a checksum too, so that a file that
was changed is not believed; those of the first versions have none. A local file is memory-mapped: after its
bytes were checked once, of a row only its own are read.
"""

import codecs
import functools
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping
from io import IOBase
from typing import IO, Any

import numpy as np
from jaxtyping import UInt8

from elm_jax import storage
from elm_jax.data import ragged, row_digests, token_losses
from elm_jax.data.ragged import RaggedTexts, RaggedTokens
from elm_jax.data.row_digests import RowDigests
from elm_jax.data.tokenized_rows import StoredExamples, TokenizedRows
from elm_jax.errors import UserError
from elm_jax.records import RowCounts
from elm_jax.safetensors_header import TensorEntry, read_header
from elm_jax.tasks import row_counts
from elm_jax.tasks.data_source import Lengths
from elm_jax.tokenizers.sentencepiece import Tokenizer

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
        is_lacking = name == _ACCEPTED and not rows.accepted
        texts = ragged.pack_texts(("",) * len(rows.row_ids) if is_lacking else getattr(rows, name))
        arrays |= {f"{name}/content": texts.content, f"{name}/offsets": texts.offsets}
    if rows.counts is not None:
        arrays[COUNTS] = pack_counts(rows.counts)
    if rows.losses is not None:
        arrays[LOSSES] = np.frombuffer(token_losses.dump_tokenization_report(rows.losses), np.uint8)
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
        counts=row_counts.parse_counts(arrays[COUNTS].tobytes()) if COUNTS in arrays else None,
        losses=token_losses.parse_tokenization_report(arrays[LOSSES].tobytes()) if LOSSES in arrays else None,
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


def _checksum_of_stream(stream: IO[bytes] | IOBase, entries: Mapping[str, TensorEntry]) -> str:
    """Returns the checksum of a file's arrays.

    Raises:
        UnicodeDecodeError: If texts are not UTF-8.
    """
    digest = hashlib.sha256()
    for name in sorted(entries.keys() - {ABOUT}):
        begin, end = entries[name].start, entries[name].end
        digest.update(f"{name}:{end - begin};".encode())
        stream.seek(begin)
        decoder = codecs.getincrementaldecoder("utf-8")("surrogatepass")
        for at in range(begin, end, _CHUNK):
            part = stream.read(min(_CHUNK, end - at))
            digest.update(part)
            if name.endswith("/content"):
                decoder.decode(part, final=at + _CHUNK >= end)
    return digest.hexdigest()


def _read(path: storage.PathLike) -> tuple[str, dict[str, np.ndarray], RowDigests | None]:
    """Returns the cache key of a file, its arrays, which stay on disk until they are read, and digests."""
    where, expected = storage.path(path), f"Expected a file of prepared rows at {str(path)!r}"
    try:
        if not storage.is_plain_file(where):
            raise UserError(f"{expected}, got no plain file. Fix: delete it.")
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
    names = set(header.tensors)
    halves = {f"{_ACCEPTED}/content", f"{_ACCEPTED}/offsets"} & names
    if header.metadata.get("format") != str(storage.FORMAT) or names - _LATER != _ARRAYS or len(halves) == 1:
        raise UserError(f"{expected}, got a file of another kind. Fix: delete it.")
    arrays = {
        name: content[entry.start : entry.end].view(entry.dtype) for name, entry in header.tensors.items()
    }
    fault = _find_fault(arrays)
    if fault:
        raise UserError(f"{expected}, got one whose {fault}. Fix: delete it, and prepare the task again.")
    cache_key = arrays["fingerprint"].tobytes().decode(errors="replace")
    if ABOUT not in arrays:
        return cache_key, arrays, None
    try:
        if "://" in os.fspath(where):
            checksum = _checksum_of_stream(io.BytesIO(content.tobytes()), header.tensors)
        else:
            stat = os.stat(where)
            checksum = _checksum_of_version(os.fspath(where), stat.st_size, stat.st_mtime_ns)
        about = json.loads(arrays.pop(ABOUT).tobytes())
        is_whole, digests = about["checksum"] == checksum, row_digests.from_json(about["digests"])
    except (ValueError, KeyError, TypeError, RecursionError):
        is_whole, digests = False, None
    if not is_whole:
        raise UserError(
            f"{expected}, got one that was changed after it was written. Fix: delete it, and prepare the "
            "task again."
        )
    return cache_key, arrays, digests


def _find_fault(arrays: Mapping[str, np.ndarray]) -> str | None:
    """Returns what does not fit the other arrays of a file, and how; None if all do."""
    types = {"labels": np.int32, "choice_starts": np.int64, "tokens": np.int32, "offsets": np.int64}
    for name, array in arrays.items():
        if array.dtype != types.get(name.rpartition("/")[2], np.uint8):
            return f"{name!r} has the type {array.dtype}"
    labels, lists = arrays["labels"], max(0, len(arrays["choices/offsets"]) - 1)
    fits = {"choice_starts": (len(labels), lists)}  # how many lists the edges bound, and where the last ends
    for name in (*_TOKENS, *_TEXTS, *([_ACCEPTED] if f"{_ACCEPTED}/offsets" in arrays else [])):
        content = arrays.get(f"{name}/{'tokens' if name in _TOKENS else 'content'}", np.zeros(0))
        fits[f"{name}/offsets"] = lists if name.startswith("choice") else len(labels), content.size
    if not lists and len(arrays["choice_texts/offsets"]) == len(labels) + 1:
        fits["choice_texts/offsets"] = len(labels), 0  # earlier files have an empty text for every row
    for name, (count, end) in fits.items():
        edges = arrays[name]
        if len(edges) != count + 1 or edges[0] or edges[-1] != end or (edges[1:] < edges[:-1]).any():
            return f"{name!r} fit no rows"
        texts = arrays.get(f"{name.removesuffix('/offsets')}/content", np.zeros(0, np.uint8))
        if (texts[edges[edges < texts.size]] & 0xC0 == 0x80).any():  # a byte that goes on with a letter
            return f"{name!r} cut letters in two"
    if ((labels < -1) | (labels >= np.diff(arrays["choice_starts"]))).any():
        return "labels are no choices"
    return None
