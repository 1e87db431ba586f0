"""Places: who comes in whose place, and that a run that was killed puts everyone where they stood."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elm_jax.telemetry.events import Failure
from elm_jax.training import slots
from elm_jax.training.slots import Place

FIVE = ["a", "b", "c", "d", "e"]
FAILURE = Failure("a", 3, (4, 1))


def experts(found):
    return [place and place.expert for place in found.at]


def full():
    """Two places, taken by a and b; c, d and e wait."""
    return slots.filled(slots.opened(FIVE, 2))[0]


def test_a_run_opens_with_free_places_and_all_waiting():
    found = slots.opened(FIVE, 2)
    assert found.at == (None, None)
    assert found.waiting == tuple(FIVE)
    assert (found.round, found.steps) == (0, 0)


def test_those_who_wait_come_in_their_order_and_are_named_with_their_places():
    found, came = slots.filled(slots.opened(FIVE, 2))
    assert came == {0: "a", 1: "b"}
    assert found.at == (Place("a"), Place("b"))
    assert found.waiting == ("c", "d", "e")


def test_more_places_than_experts_stay_free():
    found, came = slots.filled(slots.opened(["a"], 3))
    assert came == {0: "a"}
    assert experts(found) == ["a", None, None]


def test_nobody_comes_where_nothing_is_free():
    found, came = slots.filled(full())
    assert came == {}
    assert found == full()


def test_whoever_is_done_makes_room_for_the_next_and_its_neighbour_stays():
    moved = slots.stepped(full(), {0: [1], 1: [0, 2]}, [])
    found, came = slots.filled(slots.finished(moved, 1))
    assert came == {1: "c"}
    assert found.at == (Place("a", 0, (1,)), Place("c"))
    assert (found.finished, found.waiting) == (("b",), ("d", "e"))


def test_whoever_fails_makes_room_too_and_is_told_of():
    found, came = slots.filled(slots.failed(full(), 0, FAILURE))
    assert came == {0: "c"}
    assert (found.failed, found.finished) == ((FAILURE,), ())


def test_a_place_that_is_free_cannot_be_done():
    with pytest.raises(ValueError, match="place 1 is free"):
        slots.finished(slots.opened(FIVE, 2), 1)


def test_examples_are_noted_until_their_step_is_whole():
    first = slots.stepped(full(), {0: [2, 0], 1: [1]}, [])
    assert first.at == (Place("a", 0, (2, 0)), Place("b", 0, (1,)))
    assert (first.round, first.steps) == (1, 0)
    second = slots.stepped(first, {0: [1], 1: [0]}, [0])
    assert second.at == (Place("a", 1, ()), Place("b", 0, (1, 0)))
    assert (second.round, second.steps) == (2, 1)


def test_a_free_place_takes_no_steps():
    alone = slots.filled(slots.opened(["a"], 2))[0]
    assert slots.stepped(alone, {0: [0]}, [0]).at == (Place("a", 1), None)


def test_a_judgement_is_of_one_place_and_is_kept_over_steps():
    found = slots.stepped(slots.judged(full(), 1, 0.5), {1: [0]}, [1])
    assert found.at == (Place("a"), Place("b", 1, best=0.5))


def test_a_step_that_is_tried_again_is_taken_back_whole_and_its_neighbour_stays():
    moved = full()
    for _ in range(3):
        moved = slots.stepped(moved, {0: [0], 1: [0]}, [0])
    found = slots.retried(moved, 0, 1, 9)
    assert found.at == (Place("a", 1, (), alone=9), Place("b", 0, (0, 0, 0)))
    assert (found.round, found.steps) == (3, 1)


def test_a_new_expert_has_no_judgement_of_the_one_before():
    found, _ = slots.filled(slots.finished(slots.judged(full(), 1, 0.5), 1))
    assert found.at[1] == Place("c")


def test_it_is_over_when_nobody_waits_and_every_place_is_free():
    assert slots.is_over(slots.opened([], 2))
    assert not slots.is_over(slots.opened(["a"], 2))
    alone = slots.filled(slots.opened(["a"], 2))[0]
    assert not slots.is_over(alone)
    assert slots.is_over(slots.finished(alone, 0))


ROUNDS = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["take", "step", "judge", "finish", "fail"])), max_size=30
)


def after(rounds):
    """Plays rounds in which one place does something; those who wait come at once."""
    found, _ = slots.filled(slots.opened(FIVE, 3))
    for at, what in rounds:
        if found.at[at] is None:
            continue
        if what in ("take", "step"):
            found = slots.stepped(found, {at: [found.round]}, [at] * (what == "step"))
        elif what == "judge":
            found = slots.judged(found, at, 0.1 * found.round)
        elif what == "finish":
            found = slots.finished(found, at)
        else:
            found = slots.failed(found, at, Failure(experts(found)[at] or "", 1, (0,)))
        found, _ = slots.filled(found)
    return found


@settings(deadline=None)
@given(ROUNDS)
def test_every_expert_is_somewhere_and_in_one_place_alone(rounds):
    found = after(rounds)
    there = [name for name in experts(found) if name]
    there += [*found.waiting, *found.finished, *(failure.expert for failure in found.failed)]
    assert sorted(there) == FIVE
    assert list(found.waiting) == FIVE[len(FIVE) - len(found.waiting) :]
    assert not found.waiting or None not in found.at


@settings(deadline=None)
@given(ROUNDS)
def test_places_written_as_json_and_read_are_the_same(rounds):
    found = after(rounds)
    assert slots.from_json(json.loads(json.dumps(slots.to_json(found)))) == found
