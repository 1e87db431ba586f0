"""Buckets: every prompt once with all its answers, in few shapes with little padding."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elm_jax.errors import UserError
from elm_jax.scoring import buckets
from elm_jax.scoring.buckets import PromptWithChoices

TOKENS = st.integers(1, 9)
ROWS = st.lists(
    st.tuples(
        st.lists(TOKENS, min_size=1, max_size=20),
        st.lists(st.lists(TOKENS, min_size=1, max_size=5), min_size=1, max_size=7),
    ),
    max_size=12,
)


def rows_of(drawn) -> list[PromptWithChoices]:
    """Made in the test, since making a row checks its types by chance, which hypothesis does not allow."""
    return [PromptWithChoices(*fields) for fields in drawn]


@given(ROWS)
def test_every_choice_is_in_the_item_of_its_prompt_exactly_once(drawn):
    rows = rows_of(drawn)
    found = buckets.group_by_prompt(rows)
    assert len(found) == len({tuple(row.prompt) for row in rows})
    told = {}
    for item in found:
        for answer, path in zip(item.answers, item.trie.paths, strict=True):
            assert answer not in told
            told[answer] = (list(item.prompt), item.trie.edge_tokens[path].tolist())
    assert told == {
        (number, choice): (row.prompt, tokens)
        for number, row in enumerate(rows)
        for choice, tokens in enumerate(row.answers)
    }


def test_answers_too_many_for_one_trie_are_spread_over_several_items(monkeypatch):
    monkeypatch.setattr(buckets, "MAX_TRIE_NODES", 5)
    found = buckets.group_by_prompt([PromptWithChoices([7], [[1, 2], [3, 4], [5, 6], [7, 8, 9, 1, 2, 3]])])
    assert [item.answers for item in found] == [((0, 0), (0, 1)), ((0, 2),), ((0, 3),)]


@settings(deadline=None)
@given(ROWS)
def test_what_is_laid_out_is_the_item_and_padding(drawn):
    found = buckets.group_by_prompt(rows_of(drawn))
    among = buckets.choose_shapes(found)
    for item in found:
        shape = buckets.find_shape(item, among)
        laid, paths = buckets.pack_tries([item], shape)
        nodes, edges = len(item.trie.tokens), len(item.trie.edge_tokens)
        assert laid.prompts.shape == (1, shape.prompt)
        assert laid.prompts[0][laid.prompts[0] > 0].tolist() == list(item.prompt)
        assert laid.real[0].tolist() == [True] * nodes + [False] * (shape.nodes - nodes)
        assert laid.nodes[0, :nodes].tolist() == item.trie.tokens.tolist()
        assert laid.ancestor_mask[0, :nodes, :nodes].tolist() == item.trie.ancestor_mask.tolist()
        assert (
            laid.ancestor_mask[0, nodes:].sum() == shape.nodes - nodes
        )  # itself, so that no softmax is empty
        assert not laid.edge_tokens[0, edges:].any()
        for path, laid_path in zip(item.trie.paths, paths[0], strict=True):
            assert laid_path[laid_path < shape.edges].tolist() == path.tolist()


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=20),
    st.integers(1, 4),
    st.sampled_from([0.0, 5.0, 60.0]),
)
def test_lengths_to_pad_up_to_are_those_that_cost_least(drawn, most, worth):
    lengths = np.array(drawn)
    tops = sorted({-(-length // 4) * 4 for length in drawn})

    def cost(chosen):
        return sum(min(top for top in chosen if top >= length) for length in drawn) + worth * len(chosen)

    every = [
        (*some, tops[-1])
        for number in range(min(most, len(tops)))
        for some in itertools.combinations(tops[:-1], number)
    ]
    found = buckets.choose_lengths(lengths, 4, most, worth)
    assert len(found) <= most
    assert cost(found) == min(map(cost, every))


def test_shapes_pad_little_where_much_is_scored_and_are_few_where_little_is():
    rng = np.random.default_rng(0)
    rows = [
        PromptWithChoices(
            rng.integers(3, 99, length), [rng.integers(3, 99, rng.integers(2, 12)) for _ in range(4)]
        )
        for length in rng.gamma(4, 20, 400).astype(int) + 5
    ]
    found = buckets.group_by_prompt(rows)
    among = buckets.choose_shapes(found)
    padded = [buckets.find_shape(item, among) for item in found]
    real = sum(len(item.prompt) + len(item.trie.tokens) for item in found)
    assert real / sum(shape.prompt + shape.nodes for shape in padded) > 0.85
    assert len(buckets.choose_shapes(found, compile_tokens=1e9)) == 1


def test_batches_are_as_large_as_they_may_be_or_even_where_that_saves_what_a_compilation_is_worth():
    shape = buckets.BucketShape(prompt=10, nodes=6, edges=8)

    def sizes(count, batch_tokens, **how):
        return [
            (len(part), size) for part, size in buckets.split_batches([0] * count, shape, batch_tokens, **how)
        ]

    # Eight of 16 tokens at once: nine units are five and four, in batches of six, which saves 4 x 16 tokens.
    assert sizes(16, 128) == [(8, 8), (8, 8)]
    assert sizes(9, 128) == [(6, 6), (3, 6)]
    assert sizes(9, 128, compile_tokens=64.0) == [(8, 8), (1, 8)]
    assert sizes(3, 128) == [(3, 3)]
    assert sizes(2, 1) == [(1, 1), (1, 1)]
    assert sizes(0, 128) == []


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (PromptWithChoices([5], []), "got none in row 1"),
        (PromptWithChoices([], [[5]]), "got 0 in row 1"),
        (
            PromptWithChoices([5] * 2049, [[5]]),
            "got 2049 in row 1",
        ),
        (PromptWithChoices([5], [[5], []]), "got an empty one"),
    ],
)
def test_a_row_that_cannot_be_scored_is_named_before_any_is(row, said):
    with pytest.raises(UserError, match=said):
        buckets.group_by_prompt([PromptWithChoices([5], [[5]]), row])


def test_no_rows_have_no_items_and_no_shapes():
    assert buckets.group_by_prompt([]) == []
    assert buckets.choose_shapes([]) == []
