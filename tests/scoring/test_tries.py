"""Tries: every answer comes back along its path, and what answers share stands once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elm_jax.errors import UserError
from elm_jax.scoring import tries

ANSWERS = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=5), min_size=1, max_size=8)


def read(trie, path):
    """The tokens along a path, told by its edges."""
    return [int(trie.edge_tokens[edge]) for edge in path]


def beginning(trie, node):
    """The tokens of a node's beginning, told by its parents."""
    tokens = []
    while trie.parents[node] >= 0:
        tokens.append(int(trie.tokens[node]))
        node = int(trie.parents[node])
    return tokens[::-1]


@given(ANSWERS)
def test_every_answer_is_read_along_its_path(answers):
    trie = tries.build_trie(answers)
    assert [read(trie, path) for path in trie.paths] == answers
    for path in trie.paths:
        tokens = read(trie, path)
        assert [beginning(trie, trie.edge_nodes[edge]) for edge in path] == [
            tokens[:place] for place in range(len(tokens))
        ]


@given(ANSWERS)
def test_every_beginning_and_every_continuation_stands_once(answers):
    trie = tries.build_trie(answers)
    assert len(trie.tokens) == len({tuple(answer[:n]) for answer in answers for n in range(len(answer))})
    assert len(trie.edge_tokens) == len(
        {tuple(answer[: n + 1]) for answer in answers for n in range(len(answer))}
    )


@given(ANSWERS)
def test_a_node_sees_itself_and_its_beginnings_and_stands_behind_them(answers):
    trie = tries.build_trie(answers)
    for node in range(len(trie.tokens)):
        own = beginning(trie, node)
        seen = [beginning(trie, other) for other in np.flatnonzero(trie.ancestor_mask[node])]
        assert sorted(seen, key=len) == [own[:place] for place in range(len(own) + 1)]
        assert trie.depths[node] == len(own)


def test_one_choice_equal_choices_and_a_choice_that_begins_another_are_tries_too():
    assert len(tries.build_trie([[5, 1]]).tokens) == 2
    equal = tries.build_trie([[5, 1], [5, 1]])
    assert equal.paths[0].tolist() == equal.paths[1].tolist()
    within = tries.build_trie([[5], [5, 6]])
    assert (within.edge_tokens.tolist(), within.tokens.tolist()) == ([5, 6], [0, 5])


def test_an_empty_answer_is_refused():
    with pytest.raises(UserError, match="got an empty one"):
        tries.build_trie([[5], []])
