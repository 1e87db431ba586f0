"""Slots: which expert comes next, and that a run that was killed puts every expert back where it was."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elm_jax.telemetry.events import Failure
from elm_jax.training import slots
from elm_jax.training.slots import Slot

FIVE = ["a", "b", "c", "d", "e"]
FAILURE = Failure("a", 3, (4, 1))


def experts(found):
    return [slot and slot.expert for slot in found.slots]


def full():
    """Two slots, with a and b in them; c, d and e wait."""
    return slots.fill_slots(slots.empty_table(FIVE, 2))[0]


def test_a_run_begins_with_free_slots_and_all_experts_waiting():
    found = slots.empty_table(FIVE, 2)
    assert found.slots == (None, None)
    assert found.waiting == tuple(FIVE)
    assert (found.batches, found.steps) == (0, 0)


def test_waiting_experts_come_in_their_order_and_are_named_with_their_slots():
    found, came = slots.fill_slots(slots.empty_table(FIVE, 2))
    assert came == {0: "a", 1: "b"}
    assert found.slots == (Slot("a"), Slot("b"))
    assert found.waiting == ("c", "d", "e")


def test_more_slots_than_experts_stay_free():
    found, came = slots.fill_slots(slots.empty_table(["a"], 3))
    assert came == {0: "a"}
    assert experts(found) == ["a", None, None]


def test_no_expert_comes_if_no_slot_is_free():
    found, came = slots.fill_slots(full())
    assert came == {}
    assert found == full()


def test_an_expert_that_is_done_makes_room_for_the_next_and_its_neighbour_stays():
    moved = slots.record_batch(full(), {0: [1], 1: [0, 2]}, [])
    found, came = slots.fill_slots(slots.finish_expert(moved, 1))
    assert came == {1: "c"}
    assert found.slots == (Slot("a", 0, (1,)), Slot("c"))
    assert (found.finished, found.waiting) == (("b",), ("d", "e"))


def test_an_expert_that_fails_makes_room_too_and_is_noted():
    found, came = slots.fill_slots(slots.fail_expert(full(), 0, FAILURE))
    assert came == {0: "c"}
    assert (found.failed, found.finished) == ((FAILURE,), ())


def test_a_free_slot_cannot_be_finished():
    with pytest.raises(ValueError, match="slot 1"):
        slots.finish_expert(slots.empty_table(FIVE, 2), 1)


def test_examples_are_noted_until_their_step_is_complete():
    first = slots.record_batch(full(), {0: [2, 0], 1: [1]}, [])
    assert first.slots == (Slot("a", 0, (2, 0)), Slot("b", 0, (1,)))
    assert (first.batches, first.steps) == (1, 0)
    second = slots.record_batch(first, {0: [1], 1: [0]}, [0])
    assert second.slots == (Slot("a", 1, ()), Slot("b", 0, (1, 0)))
    assert (second.batches, second.steps) == (2, 1)


def test_a_free_slot_takes_no_steps():
    alone = slots.fill_slots(slots.empty_table(["a"], 2))[0]
    assert slots.record_batch(alone, {0: [0]}, [0]).slots == (Slot("a", 1), None)


def test_a_best_score_is_of_one_slot_and_stays_over_steps():
    found = slots.record_batch(slots.set_best_score(full(), 1, 0.5), {1: [0]}, [1])
    assert found.slots == (Slot("a"), Slot("b", 1, best_score=0.5))


def test_a_step_that_is_tried_again_is_taken_back_whole_and_its_neighbour_stays():
    moved = full()
    for _ in range(3):
        moved = slots.record_batch(moved, {0: [0], 1: [0]}, [0])
    found = slots.rewind_expert(moved, 0, 1, 9)
    assert found.slots == (Slot("a", 1, (), isolated_until=9), Slot("b", 0, (0, 0, 0)))
    assert (found.batches, found.steps) == (3, 1)


def test_a_new_expert_has_no_score_of_the_one_before():
    found, _ = slots.fill_slots(slots.finish_expert(slots.set_best_score(full(), 1, 0.5), 1))
    assert found.slots[1] == Slot("c")


def test_it_is_over_when_no_expert_waits_and_every_slot_is_free():
    assert slots.is_over(slots.empty_table([], 2))
    assert not slots.is_over(slots.empty_table(["a"], 2))
    alone = slots.fill_slots(slots.empty_table(["a"], 2))[0]
    assert not slots.is_over(alone)
    assert slots.is_over(slots.finish_expert(alone, 0))


BATCHES = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["take", "step", "judge", "finish", "fail"])), max_size=30
)


def after(batches):
    """Plays batches in which one slot does something; waiting experts come at once."""
    found, _ = slots.fill_slots(slots.empty_table(FIVE, 3))
    for at, what in batches:
        if found.slots[at] is None:
            continue
        if what in ("take", "step"):
            found = slots.record_batch(found, {at: [found.batches]}, [at] * (what == "step"))
        elif what == "judge":
            found = slots.set_best_score(found, at, 0.1 * found.batches)
        elif what == "finish":
            found = slots.finish_expert(found, at)
        else:
            found = slots.fail_expert(found, at, Failure(experts(found)[at] or "", 1, (0,)))
        found, _ = slots.fill_slots(found)
    return found


@settings(deadline=None)
@given(BATCHES)
def test_every_expert_is_somewhere_and_in_one_slot_alone(batches):
    found = after(batches)
    there = [name for name in experts(found) if name]
    there += [*found.waiting, *found.finished, *(failure.expert for failure in found.failed)]
    assert sorted(there) == FIVE
    assert list(found.waiting) == FIVE[len(FIVE) - len(found.waiting) :]
    assert not found.waiting or None not in found.slots


@settings(deadline=None)
@given(BATCHES)
def test_a_table_written_as_json_and_read_is_the_same(batches):
    found = after(batches)
    assert slots.from_json(json.loads(json.dumps(slots.to_json(found)))) == found
