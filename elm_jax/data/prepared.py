"""Prepared examples: one task's rows, rendered and tokenised once, as flat arrays in one file.

Rendering and tokenising are slow and always give the same, so they happen once; training and evaluation then
read token ids without jinja, SeqIO or TensorFlow. The file carries the fingerprint of everything that went
into it, and a reader that names the fingerprint it wants is never given another's rows. A local file is
mapped into memory: opening it costs next to nothing, and of a row only its own bytes are read.
"""

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex, overload

import numpy as np
from jaxtyping import Int

from elm_jax import storage
from elm_jax.axes import PAD
from elm_jax.data import ragged
from elm_jax.data.ragged import Texts, TokenLists
from elm_jax.errors import UserError
from elm_jax.records import PromptedExample
from elm_jax.safetensors_header import read_header
from elm_jax.tokenizers.sentencepiece import EOS, Vocabulary

WHAT = "A file of prepared rows"
RENDERING = 1
"""Raised whenever our own code comes to render or tokenise the same rows otherwise: older files are stale."""
_TOKENS = ("inputs", "targets", "choices")
_TEXTS = ("row_ids", "texts", "target_texts", "choice_texts")
_ARRAYS = {
    *("fingerprint", "choice_starts", "labels"),
    *(f"{name}/{of}" for name in _TOKENS for of in ("tokens", "offsets")),
    *(f"{name}/{of}" for name in _TEXTS for of in ("content", "offsets")),
}


@dataclass(frozen=True, eq=False)
class Prepared:
    """The N rows of one task in one split, as token ids; targets and choices end with end-of-sequence."""

    row_ids: Sequence[str]
    texts: Sequence[str]  # the inputs as text, which keys are embedded from
    target_texts: Sequence[str]
    choice_texts: Sequence[str]  # in the places of `choices`
    inputs: TokenLists
    targets: TokenLists
    choices: TokenLists  # the choices of all rows; row i has those from choice_starts[i] to [i + 1]
    choice_starts: Int[np.ndarray, " edges"]
    labels: Int[np.ndarray, " N"]  # index of the right choice; -1 where a row has none


@dataclass(frozen=True, eq=False)
class Examples(Sequence[PromptedExample]):
    """The prompted examples that rows were prepared from; each is made when it is asked for."""

    prepared: Prepared
    fingerprint: str

    def __len__(self) -> int:
        return len(self.prepared.row_ids)

    @overload
    def __getitem__(self, index: SupportsIndex) -> PromptedExample: ...
    @overload
    def __getitem__(self, index: slice) -> list[PromptedExample]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> PromptedExample | list[PromptedExample]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        made, row = self.prepared, range(len(self))[index]
        start, end = made.choice_starts[row : row + 2].tolist()
        label = int(made.labels[row])
        return PromptedExample(
            row_id=made.row_ids[row],
            input=made.texts[row],
            target=made.target_texts[row],
            choices=tuple(made.choice_texts[start:end]),
            label=None if label < 0 else label,
        )


def prepare(
    examples: Sequence[PromptedExample],
    vocabulary: Vocabulary,
    *,
    max_input: int,
    max_target: int,
    input_eos: bool = True,
) -> Prepared:
    """Tokenises rendered rows; lists that are too long are cut, and still end with end-of-sequence.

    `max_input` and `max_target` count tokens, end-of-sequence included. `input_eos` is whether inputs end
    with one too; one without tokens is end-of-sequence in any case. A row whose target is none of its
    choices has no label, and can be trained on all the same. Raises `UserError` for no rows, limits below 2,
    and labels outside a row's choices.
    """
    if not examples:
        raise UserError("Rendered rows to prepare are wanted, but none came; look at the split's name.")
    if min(max_input, max_target) < 2:
        raise UserError(
            f"Limits of at least 2 tokens are wanted, but max_input={max_input} and "
            f"max_target={max_target} came."
        )
    for example in examples:
        if example.label is not None and not 0 <= example.label < len(example.choices):
            raise UserError(
                f"Row {example.row_id!r} has {len(example.choices)} choices, but its label is "
                f"{example.label}; a label is the place of the right choice, from 0."
            )
    counts = [len(example.choices) for example in examples]
    inputs = tuple(example.input for example in examples)
    targets = tuple(example.target for example in examples)
    choices = tuple(text for example in examples for text in example.choices)
    return Prepared(
        row_ids=tuple(example.row_id for example in examples),
        texts=inputs,
        target_texts=targets,
        choice_texts=choices,
        inputs=_cut(vocabulary.encode_all(inputs), max_input, input_eos),
        targets=_cut(vocabulary.encode_all(targets), max_target),
        choices=_cut(vocabulary.encode_all(choices), max_target),
        choice_starts=np.cumsum([0, *counts], dtype=np.int64),
        labels=np.array([-1 if example.label is None else example.label for example in examples], np.int32),
    )


def choices_of(prepared: Prepared, row: int) -> list[np.ndarray]:
    """Returns the token ids of every choice of a row."""
    start, end = prepared.choice_starts[row : row + 2].tolist()
    return prepared.choices[start:end]


def rendering(data: Mapping[str, Any], template: Mapping[str, Any], **options: Any) -> str:
    """Returns what stands for rendered rows: where they come from, their template, `options` of rendering."""
    told = {"code": RENDERING, "data": dict(data), "template": dict(template), "options": options}
    return storage.fingerprint(told)


def fingerprint(
    rendering: str, vocabulary: Vocabulary, *, max_input: int, max_target: int, input_eos: bool = True
) -> str:
    """Returns what stands for prepared rows: the rendered ones' fingerprint, a dash, the tokenising's."""
    told = [storage.FORMAT, vocabulary.fingerprint, max_input, max_target, input_eos]
    return f"{rendering}-{storage.fingerprint(told)}"


def save(path: storage.PathLike, prepared: Prepared, fingerprint: str) -> None:
    """Writes prepared rows with the fingerprint of what they were made from."""
    arrays: dict[str, Any] = {
        # Not in the file's metadata, whose order is another each time: the same rows give the same bytes.
        "fingerprint": np.frombuffer(fingerprint.encode(), np.uint8),
        "choice_starts": prepared.choice_starts,
        "labels": prepared.labels,
    }
    for name in _TOKENS:
        value = getattr(prepared, name)
        arrays |= {f"{name}/tokens": value.tokens, f"{name}/offsets": value.offsets}
    for name in _TEXTS:
        texts = ragged.of_texts(getattr(prepared, name))
        arrays |= {f"{name}/content": texts.content, f"{name}/offsets": texts.offsets}
    storage.write_arrays(path, arrays)


def load(path: storage.PathLike, fingerprint: str | None = None) -> Prepared:
    """Reads prepared rows; with a fingerprint, only those that carry it.

    Raises `UserError` if the file is missing, broken, no file of ours, or stale: made from other rows,
    another template, vocabulary or options than the fingerprint stands for.
    """
    found, arrays = _read(path)
    if fingerprint is not None and found != fingerprint:
        raise UserError(
            f"{WHAT} with fingerprint {fingerprint} is wanted at {str(path)!r}, but {found} came: its rows, "
            "template, vocabulary or options have changed since. Prepare the task again."
        )

    def tokens(name: str) -> TokenLists:
        return TokenLists(arrays[f"{name}/tokens"], arrays[f"{name}/offsets"])

    def texts(name: str) -> Texts:
        return Texts(arrays[f"{name}/content"], arrays[f"{name}/offsets"])

    return Prepared(
        row_ids=texts("row_ids"),
        texts=texts("texts"),
        target_texts=texts("target_texts"),
        choice_texts=texts("choice_texts"),
        inputs=tokens("inputs"),
        targets=tokens("targets"),
        choices=tokens("choices"),
        choice_starts=arrays["choice_starts"],
        labels=arrays["labels"],
    )


def carried(path: storage.PathLike) -> str | None:
    """Returns the fingerprint of a whole file of prepared rows; None where there is none."""
    try:
        return _read(path)[0]
    except UserError:
        return None


def is_current(path: storage.PathLike, fingerprint: str) -> bool:
    """Whether a whole file with this fingerprint is there, so that nothing need be prepared again."""
    return carried(path) == fingerprint


def pad(rows: Sequence[np.ndarray], length: int) -> Int[np.ndarray, "N length"]:
    """Returns rows of token ids as int32 [N, length], filled up with padding at their ends.

    >>> pad([np.array([5, 1]), np.array([6, 7, 1])], 4).tolist()
    [[5, 1, 0, 0], [6, 7, 1, 0]]
    """
    lengths = np.fromiter((len(row) for row in rows), np.int64, len(rows))
    if lengths.size and lengths.max() > length:
        longest = int(lengths.argmax())
        raise UserError(
            f"Rows of at most {length} tokens are wanted, but row {longest} has {lengths[longest]}; "
            "prepare them with a lower limit, or choose a longer batch."
        )
    padded = np.full((len(rows), length), PAD, np.int32)
    if lengths.sum():
        padded[np.arange(length) < lengths[:, None]] = np.concatenate(rows)
    return padded


def _cut(found: Sequence[list[int]], longest: int, end: bool = True) -> TokenLists:
    """Cuts every list, ends it with end-of-sequence if asked or if it is empty, and lays all end to end."""
    kept = [[*tokens[: longest - 1], EOS] if end or not tokens else tokens[:longest] for tokens in found]
    flat = np.fromiter(itertools.chain.from_iterable(kept), np.int32)
    return TokenLists(flat, ragged.edges(map(len, kept)))


def _read(path: storage.PathLike) -> tuple[str, dict[str, np.ndarray]]:
    """Returns the fingerprint and the arrays of a file, which stay on disk until they are looked at."""
    where = storage.path(path)
    try:
        with where.open("rb") as stream:
            header = read_header(stream, file=str(path), fix="delete it and prepare the task again")
        if "://" in os.fspath(where):
            content = np.frombuffer(where.read_bytes(), np.uint8)
        else:
            content = np.memmap(os.fspath(where), np.uint8, "r").view(np.ndarray)
    except FileNotFoundError:
        raise UserError(f"{WHAT} is wanted at {str(path)!r}, but no file is there.") from None
    except OSError as error:
        raise UserError(f"{WHAT} is wanted at {str(path)!r}, but it cannot be read ({error}).") from error
    if header.metadata.get("format") != str(storage.FORMAT) or set(header.tensors) != _ARRAYS:
        raise UserError(f"{WHAT} is wanted at {str(path)!r}, but the file there is another kind.")
    arrays = {
        name: content[entry.start : entry.end].view(entry.dtype) for name, entry in header.tensors.items()
    }
    return arrays["fingerprint"].tobytes().decode(), arrays
