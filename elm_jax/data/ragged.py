"""Lists: many token lists or texts of different lengths, end to end in one array."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import SupportsIndex, overload

import numpy as np
from jaxtyping import Int, UInt8


@dataclass(frozen=True, eq=False)
class TokenLists(Sequence[np.ndarray]):
    """Lists of token ids; list i is a view of the array."""

    tokens: Int[np.ndarray, " tokens"]  # int32
    offsets: Int[np.ndarray, " edges"]  # int64; list i is tokens[offsets[i]:offsets[i + 1]]

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
        edges = self.offsets.tolist()
        return (self.tokens[a:b] for a, b in itertools.pairwise(edges))


@dataclass(frozen=True, eq=False)
class Texts(Sequence[str]):
    """Texts in UTF-8; text i is decoded when it is asked for."""

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


def of_tokens(lists: Iterable[Sequence[int] | np.ndarray]) -> TokenLists:
    """Lays lists of token ids end to end."""
    kept = [np.asarray(tokens, np.int32) for tokens in lists]
    return TokenLists(np.concatenate([np.zeros(0, np.int32), *kept]), edges(map(len, kept)))


def of_texts(texts: Iterable[str]) -> Texts:
    """Lays texts end to end."""
    encoded = [text.encode(errors="surrogatepass") for text in texts]
    return Texts(np.frombuffer(b"".join(encoded), np.uint8), edges(map(len, encoded)))


def edges(lengths: Iterable[int]) -> Int[np.ndarray, " edges"]:
    """Returns where lists of these lengths begin and end.

    >>> edges([2, 0, 3]).tolist()
    [0, 2, 2, 5]
    """
    return np.cumsum([0, *lengths], dtype=np.int64)
