"""Original: each defect of the released retrieval is off by default, and is there when switched on."""

from dataclasses import replace

import numpy as np
import pytest

from elm_jax.errors import UserError
from elm_jax.routing import original
from elm_jax.routing.inputs import KeyIndex, Queries
from elm_jax.routing.roe import find_neighbours, roe

EAST, NORTH = [1.0, 0.0], [0.0, 1.0]
INDEX = KeyIndex(
    experts=("ag_news/which_section", "ag_news/which_section_choices", "b/1"),
    datasets=(("ag_news",), ("ag_news",), ("b",)),
    expert_of_row=np.array([0, 0, 1, 2, 2]),
    vectors=np.array([EAST, NORTH, [0.5, 0.0], EAST, [0.0, 0.25]], np.float32),
    texts=("s0", "s1", "c0", "b0", "b1"),
    embedder="toy",
    text_format="choice_instance",
)


def ask(*vectors, **changes):
    rows = tuple(f"r{row}" for row in range(len(vectors)))
    asked = Queries(
        "t/1", rows, vectors=np.array(vectors, np.float32), embedder="toy", text_format="choice_instance"
    )
    return replace(asked, **changes)


def test_of_equally_near_keys_the_last_one_votes():
    assert roe(ask(EAST), INDEX).votes == {"ag_news/which_section": 1}
    assert roe(ask(EAST), INDEX, faithful="ties").votes == {"b/1": 1}
    assert roe(ask(EAST), INDEX, faithful="ties", exclude=["b"]).votes == {"ag_news/which_section": 1}


def test_of_equally_near_keys_one_alone_is_among_the_k_nearest():
    # Similarities to s0, s1, c0, b0, b1 are 1, 0, 0.5, 1, 0: a dictionary keeps b0, c0, b1.
    similarities, rows = find_neighbours(ask(EAST), INDEX, 4, switches=original.resolve_switches("ties"))
    assert similarities.tolist() == [[1.0, 0.5, 0.0, -np.inf]]
    assert rows.tolist() == [[3, 2, 4, -1]]


def test_the_nearest_key_overwrites_the_vote_of_k():
    # The two nearest of the query are s0 with b0 just behind, and all four of both experts that follow.
    asked = ask([0.8, 0.1])
    assert roe(asked, INDEX, k=5).votes == {
        "ag_news/which_section": 2,
        "b/1": 2,
        "ag_news/which_section_choices": 1,
    }
    assert roe(asked, INDEX, k=5, faithful="nearest_only").votes == {"ag_news/which_section": 1}


def test_of_equal_votes_the_first_one_elects_whatever_the_similarities():
    # -(1, 1) is nearest to b1, at -0.25, and north to s1, at 1.
    asked = ask([-1.0, -1.0], NORTH)
    assert roe(asked, INDEX).weights == {"ag_news/which_section": 1.0}
    assert roe(asked, INDEX, faithful="first_vote").weights == {"b/1": 1.0}


def test_bare_inputs_may_ask_for_formatted_keys():
    bare = ask(NORTH, text_format=original.RAW_TEXT_FORMAT)
    with pytest.raises(UserError, match=f"'choice_instance', got '{original.RAW_TEXT_FORMAT}'"):
        roe(bare, INDEX)
    assert roe(bare, INDEX, faithful="raw_queries").votes == {"ag_news/which_section": 1}


def test_votes_for_one_expert_go_to_another():
    found = roe(ask(NORTH, NORTH, [1.0, -1.0]), INDEX, faithful="renamed")
    assert found.weights == {"ag_news/which_section_choices": 1.0}
    assert found.votes == {"ag_news/which_section_choices": 3}


def test_an_expert_keeps_its_votes_where_the_other_one_is_absent():
    alone = replace(INDEX, experts=("ag_news/which_section", "x/1", "b/1"))
    assert original.redirect_votes(alone).tolist() == [0, 1, 2]


def test_keys_are_averaged_over_padding():
    hidden = np.zeros((1, 256, 2), np.float32)
    hidden[0, :64] = [4.0, 8.0]
    assert original.average_over_padding(hidden).tolist() == [[1.0, 2.0]]
    with pytest.raises(UserError, match="256 tokens, got 64"):
        original.average_over_padding(hidden[:, :64])


def test_true_switches_everything_on_and_an_unknown_switch_is_refused():
    assert original.resolve_switches(True) == set(original.SWITCHES)
    assert original.resolve_switches(False) == original.resolve_switches(()) == frozenset()
    with pytest.raises(UserError, match="'ties'"):
        original.resolve_switches(["tie"])
