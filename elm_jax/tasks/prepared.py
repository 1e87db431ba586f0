"""Prepared examples: one task's rows, rendered and tokenised once, as flat arrays in one file.

Rendering and tokenising are slow and always give the same, so they happen once; training and evaluation then
read token ids without jinja, SeqIO or TensorFlow. The file carries the fingerprint of everything that went
into it, and a reader that names the fingerprint it wants is never given another's rows. A local file is
mapped into memory: opening it costs next to nothing, and of a row only its own bytes are read.
"""

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from jaxtyping import Int, UInt8

from elm_jax import storage
from elm_jax.axes import PAD
from elm_jax.errors import UserError
from elm_jax.records import PromptedExample
from elm_jax.tasks.vocabulary import EOS, Vocabulary

WHAT = "A file of prepared rows"
RENDERING = 1
"""Counts the changes of our own code that make the same rows read otherwise; what is older is stale."""


@dataclass(frozen=True, eq=False)
class TokenLists(Sequence[np.ndarray]):
    """Lists of token ids of different lengths, end to end in one array; list i is a view of it."""

    tokens: Int[np.ndarray, " tokens"]  # int32
    offsets: Int[np.ndarray, " edges"]  # int64; list i is tokens[offsets[i]:offsets[i + 1]]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        at = range(len(self))[index]  # counts from the end too, and raises IndexError beyond it
        return self.tokens[self.offsets[at] : self.offsets[at + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        edges = self.offsets.tolist()
        return (self.tokens[a:b] for a, b in itertools.pairwise(edges))


@dataclass(frozen=True, eq=False)
class Prepared:
    """The N rows of one task in one split, as token ids; targets and choices end with end-of-sequence."""

    row_ids: tuple[str, ...]
    texts: tuple[str, ...]  # the inputs as text, which keys are embedded from
    inputs: TokenLists
    targets: TokenLists
    choices: TokenLists  # the choices of all rows; row i has those from choice_starts[i] to [i + 1]
    choice_starts: Int[np.ndarray, " edges"]
    labels: Int[np.ndarray, " N"]  # index of the right choice; -1 where a row has none


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
    with one too. Raises `UserError` for no rows, limits below 2, and labels outside a row's choices.
    """
    if not examples:
        raise UserError("Rendered rows to prepare are wanted, but none came; look at the split's name.")
    if min(max_input, max_target) < 2:
        raise UserError(
            f"Limits of at least 2 tokens are wanted, but max_input={max_input} and "
            f"max_target={max_target} came."
        )
    for example in examples:
        if example.choices and (example.label is None or not 0 <= example.label < len(example.choices)):
            raise UserError(
                f"Row {example.row_id!r} has {len(example.choices)} choices, but its label is "
                f"{example.label}; only labelled rows can be prepared."
            )
    counts = [len(example.choices) for example in examples]
    encode = vocabulary.encode_all
    return Prepared(
        row_ids=tuple(example.row_id for example in examples),
        texts=tuple(example.input for example in examples),
        inputs=_joined(encode([example.input for example in examples]), max_input, input_eos),
        targets=_joined(encode([example.target for example in examples]), max_target),
        choices=_joined(encode([text for example in examples for text in example.choices]), max_target),
        choice_starts=np.cumsum([0, *counts], dtype=np.int64),
        labels=np.array([-1 if example.label is None else example.label for example in examples], np.int32),
    )


def choices_of(prepared: Prepared, row: int) -> list[np.ndarray]:
    """Returns the token ids of every choice of a row."""
    start, end = prepared.choice_starts[row : row + 2].tolist()
    return prepared.choices[start:end]


def fingerprint(
    rows: Sequence[Mapping[str, Any]],
    template: Mapping[str, Any],
    vocabulary: Vocabulary,
    **options: int | str | bool | None,
) -> str:
    """Returns what stands for everything that prepared rows depend on; `options` of rendering count too."""
    return storage.fingerprint(
        {
            "format": storage.FORMAT,
            "rows": list(rows),
            "template": dict(template),
            "vocabulary": vocabulary.fingerprint,
            "options": options,
        }
    )


def save(path: storage.PathLike, prepared: Prepared, fingerprint: str) -> None:
    """Writes prepared rows with the fingerprint of what they were made from."""
    about = {"fingerprint": fingerprint, "row_ids": prepared.row_ids, "texts": prepared.texts}
    lists = {name: getattr(prepared, name) for name in ("inputs", "targets", "choices")}
    arrays = {
        # Text travels as an array of bytes, so that reading goes through storage like any other array.
        "about": np.frombuffer(json.dumps(about, ensure_ascii=False).encode(), np.uint8),
        "choice_starts": prepared.choice_starts,
        "labels": prepared.labels,
        **{f"{name}/tokens": value.tokens for name, value in lists.items()},
        **{f"{name}/offsets": value.offsets for name, value in lists.items()},
    }
    storage.write_arrays(path, arrays, {"fingerprint": fingerprint})


def load(path: storage.PathLike, fingerprint: str | None = None) -> Prepared:
    """Reads prepared rows; with a fingerprint, only those that carry it.

    Raises `UserError` if the file is missing, broken, no file of ours, or stale: made from other rows,
    another template, vocabulary or options than the fingerprint stands for.
    """
    what = "A file of prepared rows"
    arrays = storage.read_arrays(path, what=what)
    try:
        about = json.loads(arrays["about"].tobytes())
        lists = {
            name: TokenLists(arrays[f"{name}/tokens"], arrays[f"{name}/offsets"])
            for name in ("inputs", "targets", "choices")
        }
        prepared = Prepared(
            row_ids=tuple(about["row_ids"]),
            texts=tuple(about["texts"]),
            choice_starts=arrays["choice_starts"],
            labels=arrays["labels"],
            **lists,
        )
        found = about["fingerprint"]
    except (KeyError, ValueError):
        raise UserError(f"{what} is wanted at {str(path)!r}, but the file there is another kind.") from None
    if fingerprint is not None and found != fingerprint:
        raise UserError(
            f"{what} with fingerprint {fingerprint} is wanted at {str(path)!r}, but {found} came: its rows, "
            "template, vocabulary or options have changed since. Prepare the task again."
        )
    return prepared


def is_current(path: storage.PathLike, fingerprint: str) -> bool:
    """Whether a whole file with this fingerprint is there, so that nothing need be prepared again."""
    try:
        load(path, fingerprint)
    except UserError:
        return False
    return True


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


def _joined(lists: Sequence[list[int]], longest: int, end: bool = True) -> TokenLists:
    """Cuts every list, ends it with end-of-sequence if asked, and lays all end to end."""
    kept = [[*tokens[: longest - 1], EOS] if end else tokens[:longest] for tokens in lists]
    flat = [token for tokens in kept for token in tokens]
    lengths = [len(tokens) for tokens in kept]
    return TokenLists(np.array(flat, np.int32), np.cumsum([0, *lengths], dtype=np.int64))
