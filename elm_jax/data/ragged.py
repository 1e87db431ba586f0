"""Ragged arrays: many token lists or texts of different lengths, end to end in one array."""

import bisect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import SupportsIndex, overload

import numpy as np
from jaxtyping import Int, UInt8


@dataclass(frozen=True, eq=False)
class RaggedTokens(Sequence[np.ndarray]):
    """Lists of token ids; list i is a view of the array.

    Attributes:
        tokens: All token ids, int32.
        offsets: Where the lists begin and end, int64: list i is `tokens[offsets[i]:offsets[i + 1]]`.
    """

    tokens: Int[np.ndarray, " tokens"]
    offsets: Int[np.ndarray, " edges"]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: SupportsIndex) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        at = range(len(self))[index]  # counts from the end too, and raises IndexError beyond it
        return self.tokens[self.offsets[at] : self.offsets[at + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.tokens[start:end] for start, end in itertools.pairwise(self.offsets.tolist()))


class JoinedTokens(Sequence[np.ndarray]):
    """Lists of token ids of several ragged arrays, one array after the other; none is copied.

    Attributes:
        parts: The arrays.
    """

    def __init__(self, parts: Sequence[RaggedTokens]) -> None:
        self.parts = tuple(parts)
        self._edges = [0, *itertools.accumulate(map(len, self.parts))]

    def __len__(self) -> int:
        return self._edges[-1]

    @overload
    def __getitem__(self, index: SupportsIndex) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        part = bisect.bisect_right(self._edges, at) - 1
        return self.parts[part][at - self._edges[part]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return itertools.chain.from_iterable(self.parts)


@dataclass(frozen=True, eq=False)
class RaggedTexts(Sequence[str]):
    """Texts in UTF-8; a text is decoded when it is read.

    Attributes:
        content: The bytes of all texts.
        offsets: Where the texts begin and end, int64: text i is `content[offsets[i]:offsets[i + 1]]`.
    """

    content: UInt8[np.ndarray, " bytes"]
    offsets: Int[np.ndarray, " edges"]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: SupportsIndex) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        return self.content[self.offsets[at] : self.offsets[at + 1]].tobytes().decode(errors="surrogatepass")


def pack_tokens(lists: Iterable[Sequence[int] | np.ndarray]) -> RaggedTokens:
    """Returns lists of token ids as one array."""
    arrays = [np.asarray(tokens, np.int32) for tokens in lists]
    return RaggedTokens(np.concatenate([np.zeros(0, np.int32), *arrays]), compute_offsets(map(len, arrays)))


def pack_texts(texts: Iterable[str]) -> RaggedTexts:
    """Returns texts as one array."""
    encoded = [text.encode(errors="surrogatepass") for text in texts]
    return RaggedTexts(np.frombuffer(b"".join(encoded), np.uint8), compute_offsets(map(len, encoded)))


def compute_offsets(lengths: Iterable[int]) -> Int[np.ndarray, " edges"]:
    """Returns where lists of these lengths begin and end.

    >>> compute_offsets([2, 0, 3]).tolist()
    [0, 2, 2, 5]
    """
    return np.cumsum([0, *lengths], dtype=np.int64)
