"""Tries: the answer choices of a prompt as one tree of tokens, in which a shared beginning stands once.

A node is a beginning of some answer, the empty one included: what a decoder reads before it predicts a next
token. An edge is a node with one of the tokens that follow it. So every distinct (beginning, token) is
predicted once, whatever the number of answers that hold it, and an answer's score is the sum over its edges.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from elm_jax.axes import PAD
from elm_jax.errors import UserError

Tokens = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class Trie:
    """N nodes, parents before children and the empty beginning first, and M edges that leave them.

    Attributes:
        tokens: the last token of each node's beginning; padding for the empty one.
        parents: the node of the beginning without its last token; -1 for the empty one.
        edge_nodes: the node that predicts each edge's token.
        edge_tokens: the token of each edge.
        paths: the edges of each answer.
    """

    tokens: Int[np.ndarray, " N"]
    parents: Int[np.ndarray, " N"]
    edge_nodes: Int[np.ndarray, " M"]
    edge_tokens: Int[np.ndarray, " M"]
    paths: tuple[Int[np.ndarray, " _"], ...]

    @functools.cached_property
    def depths(self) -> Int[np.ndarray, " N"]:
        """How many tokens each beginning has, which is its position in the decoder."""
        found = np.zeros(len(self.parents), np.int32)
        for node, parent in enumerate(self.parents[1:], start=1):
            found[node] = found[parent] + 1
        return found

    @functools.cached_property
    def ancestor_mask(self) -> Bool[np.ndarray, "N N"]:
        """Which nodes a node attends to: itself and the beginnings of its beginning."""
        found = np.eye(len(self.parents), dtype=bool)
        for node, parent in enumerate(self.parents[1:], start=1):
            found[node] |= found[parent]
        return found


def build_trie(answers: Sequence[Tokens]) -> Trie:
    """Returns the trie of a prompt's answers, each a list of at least one token without padding.

    >>> trie = build_trie([[5, 7, 1], [5, 1], [5, 7, 1]])
    >>> trie.tokens.tolist(), trie.parents.tolist()
    ([0, 5, 7], [-1, 0, 1])
    >>> [path.tolist() for path in trie.paths]
    [[0, 1, 2], [0, 3], [0, 1, 2]]
    """
    tokens, parents = [PAD], [-1]
    edges: dict[tuple[int, int], int] = {}  # (node, token) -> edge
    child: dict[tuple[int, int], int] = {}  # (node, token) -> the node that it leads to
    paths = []
    for answer in answers:
        if not len(answer):
            raise UserError("Expected an answer choice of at least one token, got an empty one.")
        node, path = 0, []
        for place, token in enumerate(map(int, answer)):
            step = (node, token)
            path.append(edges.setdefault(step, len(edges)))
            if place < len(answer) - 1:
                if step not in child:
                    child[step] = len(tokens)
                    tokens.append(token)
                    parents.append(node)
                node = child[step]
        paths.append(np.array(path, np.int32))
    followed = np.array(list(edges), np.int32).reshape(-1, 2)
    return Trie(
        np.array(tokens, np.int32),
        np.array(parents, np.int32),
        followed[:, 0],
        followed[:, 1],
        tuple(paths),
    )
