"""Batches: every example once, nothing beyond its room, and little padding."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elm_jax.training import batches, step
from elm_jax.training.batches import PendingExample, Shape
from elm_jax.training.jobs import ValidationRows, rows_of_step
from tests.training_configs import make_job

SHAPE = Shape(rows=4, prompt=16, target=8, segments=3)
EXAMPLE = st.tuples(st.integers(1, 16), st.integers(1, 8))  # tokens of prompt and of target: any fits a row
PENDING = st.lists(st.lists(EXAMPLE, max_size=7), min_size=4, max_size=4)  # of experts in four slots
ORDER = st.permutations(range(4))
SHAPES = st.builds(
    Shape,
    st.sampled_from([4, 8]),
    st.integers(16, 40),
    st.integers(8, 20),
    st.integers(1, 4),
    st.sampled_from([1, 2]),
)


def offers(lengths, order=range(4)):
    every = [
        [PendingExample(place, at, at, s, t, 1.0, 0) for at, (s, t) in enumerate(own)]
        for place, own in enumerate(lengths)
    ]
    return [every[place] for place in order]


def beside(batch):
    """The examples of every row of targets."""
    by = batch.shape.folded
    return [
        [each for row in batch.rows[at : at + by] for each in row] for at in range(0, len(batch.rows), by)
    ]


def job(prompts, targets, **fields):
    """A job with rows of these lengths, whose tokens tell the row."""
    return make_job(
        fields.pop("name", "a"),
        [np.arange(length) + 100 * at + 1 for at, length in enumerate(prompts)],
        [np.arange(length) + 100 * at + 51 for at, length in enumerate(targets)],
        **{"steps": 50, **fields},
    )


@settings(deadline=None)
@given(PENDING, ORDER, SHAPES)
def test_nothing_in_a_batch_comes_twice_or_was_not_pending(lengths, order, shape):
    offered = offers(lengths, order)
    taken = Counter(batches.pack(offered, shape, slots=4).examples)
    assert set(taken.values()) <= {1}
    assert set(taken) <= {example for own in offered for example in own}


@settings(deadline=None)
@given(PENDING, ORDER, SHAPES, st.sampled_from([1, 2]))
def test_no_row_has_more_tokens_or_segments_than_it_has_room_for(lengths, order, shape, parts):
    batch = batches.pack(offers(lengths, order), shape, slots=4, parts=parts)
    assert len(batch.rows) == shape.rows
    for row in batch.rows:
        assert sum(example.prompt for example in row) <= shape.prompt
        assert len(row) <= shape.segments
    for row in beside(batch):
        assert sum(example.target for example in row) <= shape.target


@settings(deadline=None)
@given(PENDING, ORDER, SHAPES)
def test_the_most_urgent_expert_is_always_served_whoever_has_longer_examples(lengths, order, shape):
    offered = offers(lengths, order)
    batch = batches.pack(offered, shape, slots=4)
    first = next((own for own in offered if own), [])
    served = [example for example in batch.examples if first and example.slot == first[0].slot]
    assert len(served) >= min(len(first), shape.rows // shape.folded)


@settings(deadline=None)
@given(PENDING, ORDER, SHAPES, st.sampled_from([1, 2]))
def test_batches_one_after_another_take_all_that_was_pending(lengths, order, shape, parts):
    waiting = offers(lengths, order)
    every = Counter(example for own in waiting for example in own)
    found = Counter()
    while any(waiting):
        taken = batches.pack(waiting, shape, slots=4, parts=parts).examples
        assert taken  # or it would never end
        found.update(taken)
        waiting = [[example for example in own if example not in taken] for own in waiting]
    assert found == every


@settings(deadline=None)
@given(PENDING, ORDER)
def test_each_part_of_a_mesh_has_its_own_experts_in_its_own_rows(lengths, order):
    batch = batches.pack(offers(lengths, order), SHAPE, slots=4, parts=2)
    for at, row in enumerate(batch.rows):
        assert {example.slot // 2 for example in row} <= {at // 2}


@settings(deadline=None)
@given(PENDING, ORDER, SHAPES, st.frozensets(st.integers(0, 3)))
def test_an_isolated_expert_shares_no_row(lengths, order, shape, isolated):
    batch = batches.pack(offers(lengths, order), shape, slots=4, isolated=isolated)
    for row in beside(batch):
        there = {example.slot for example in row}
        assert len(there) <= 1 or not there & isolated


def test_one_part_of_a_mesh_does_not_depend_on_the_examples_of_the_other():
    lengths = [[(5, 2), (9, 3)], [(7, 1)], [(16, 8)] * 7, [(3, 1)] * 7]
    both = batches.pack(offers(lengths), SHAPE, slots=4, parts=2)
    alone = batches.pack(offers([*lengths[:2], [], []]), SHAPE, slots=4, parts=2)
    assert both.rows[:2] == alone.rows[:2]
    assert alone.rows[2:] == ((), ())


def test_the_same_examples_are_packed_alike():
    offered = offers([[(5, 2), (9, 3)], [(7, 1)] * 3, [(16, 8)] * 2, [(3, 1)] * 7])
    assert batches.pack(offered, SHAPE, slots=4) == batches.pack(offered, SHAPE, slots=4)


def test_the_examples_of_a_step_are_the_rows_of_its_number_with_their_share_and_seeds():
    found = batches.measure(job([5, 9, 7, 4], [2, 3, 1, 4], batch_size=3, seed=8))
    offered = batches.step_examples(found, 2, 5)
    rows = rows_of_step(found.job, 5)
    lengths = [(5, 2), (9, 3), (7, 1), (4, 4)]
    assert [(example.slot, example.number) for example in offered] == [(2, 0), (2, 1), (2, 2)]
    assert [example.row for example in offered] == rows.tolist()
    assert [(example.prompt, example.target) for example in offered] == [lengths[row] for row in rows]
    tokens = sum(example.target for example in offered)
    assert [example.share for example in offered] == [1 / tokens] * 3
    assert [example.seed for example in offered] == step.dropout_seeds(8, 5, 3).tolist()


def test_validation_takes_all_rows_in_their_own_order():
    told = job([5, 9], [2, 3], validation=ValidationRows([[7, 7, 7], [8]], [[9], [9, 9, 9]]))
    found = batches.measure_validation(told)
    assert found is not None
    assert [
        (example.row, example.prompt, example.target, example.share)
        for example in batches.all_examples(found, 1)
    ] == [
        (0, 3, 1, 1 / 4),
        (1, 1, 3, 1 / 4),
    ]
    assert batches.measure_validation(job([5], [2])) is None


def test_an_examples_tokens_are_together_with_its_slot_share_and_seed():
    of = {2: job([3, 2], [2, 1]), 3: job([4], [1])}
    shape = Shape(rows=2, prompt=8, target=4, segments=2)
    row = (PendingExample(2, 0, 1, 2, 1, 0.5, 11), PendingExample(3, 0, 0, 4, 1, 0.25, 12))
    batch = batches.Batch(shape, (row, (PendingExample(3, 1, 0, 4, 1, 0.5, 13),)))
    found = batches.assemble(batch, of, slots_of_part=2)
    assert found.prompts.tolist() == [[101, 102, 1, 2, 3, 4, 0, 0], [1, 2, 3, 4, 0, 0, 0, 0]]
    assert found.prompt_segments.tolist() == [[1, 1, 2, 2, 2, 2, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0]]
    assert found.targets.tolist() == [[151, 51, 0, 0], [51, 0, 0, 0]]
    assert found.target_segments.tolist() == [[1, 2, 0, 0], [1, 0, 0, 0]]
    # Numbered within the part of the mesh; a segment that is not there meets no other expert.
    assert found.slot.tolist() == [[0, 1], [1, 1]]
    assert found.share.tolist() == [[0.5, 0.25], [0.5, 0]]
    assert found.seeds.tolist() == [[11, 12], [13, 0]]


def test_targets_of_folded_rows_stand_one_after_another_and_count_on():
    of = {0: job([3, 2], [2, 1])}
    shape = Shape(rows=2, prompt=4, target=4, segments=2, folded=2)
    batch = batches.Batch(
        shape, ((PendingExample(0, 0, 0, 3, 2, 0.5, 11),), (PendingExample(0, 1, 1, 2, 1, 0.5, 12),))
    )
    found = batches.assemble(batch, of, slots_of_part=1)
    assert found.prompts.tolist() == [[1, 2, 3, 0], [101, 102, 0, 0]]
    assert found.prompt_segments.tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]
    assert found.targets.tolist() == [[51, 52, 151, 0]]
    assert found.target_segments.tolist() == [[1, 1, 3, 0]]
    assert found.seeds.tolist() == [[11, 0], [12, 0]]


def test_one_long_answer_does_not_make_every_row_wide():
    short, long = realistic(5), job([200] * 200, [3] * 199 + [100], name="long", batch_size=8)
    shape = batches.choose_shape([*short, batches.measure(long)], 8192, slots=9)
    assert shape.target >= 100
    assert shape.folded > 1
    assert shape.rows % shape.folded == 0


def test_a_slice_of_a_batch_is_those_rows_of_it_and_reads_no_others():
    of = {0: job([3], [2]), 1: job([4], [1])}
    shape = Shape(rows=2, prompt=8, target=4, segments=2)
    batch = batches.Batch(
        shape, ((PendingExample(0, 0, 0, 3, 2, 1.0, 1),), (PendingExample(1, 0, 0, 4, 1, 1.0, 2),))
    )
    whole = batches.assemble(batch, of, slots_of_part=2)
    part = batches.assemble(batch, {1: of[1]}, slice(1, 2), slots_of_part=2)
    assert whole.choices is part.choices is None
    for name in step.ALWAYS_PRESENT_FIELDS:
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[1:2])


def realistic(seed, experts=8, **fields):
    """Jobs whose prompts are of lengths as those of prompted datasets, and whose answers are short."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(experts):
        prompts = np.minimum(rng.lognormal(4.9, 0.35, 200).astype(int) + 1, 256)
        made.append(
            job(
                prompts,
                rng.integers(2, 11, 200),
                name=str(number),
                **{"seed": number, "batch_size": 8, **fields},
            )
        )
    return [batches.measure(each) for each in made]


def fill_ratio(given, shape, rounds):
    """Plays rounds as a run does; returns the share of real tokens."""
    done, real = [0] * len(given), 0
    waiting = [batches.step_examples(each, slot, 0) for slot, each in enumerate(given)]
    for _ in range(rounds):
        order = sorted(range(len(given)), key=lambda at: done[at] * 8 - len(waiting[at]))
        taken = batches.pack([waiting[at] for at in order], shape, slots=len(given)).examples
        real += sum(example.prompt + example.target for example in taken)
        for slot, each in enumerate(given):
            waiting[slot] = [example for example in waiting[slot] if example not in taken]
            if not waiting[slot]:
                done[slot] += 1
                waiting[slot] = batches.step_examples(each, slot, done[slot])
    return real / (rounds * shape.tokens)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("batch_tokens", [2048, 8192])
def test_at_least_nine_tenths_of_eight_experts_batches_are_real(seed, batch_tokens):
    given = realistic(seed)
    shape = batches.choose_shape(given, batch_tokens, slots=8)
    assert fill_ratio(given, shape, 40) >= 0.9


@pytest.mark.parametrize(("parts", "multiple"), [(1, 1), (1, 4), (2, 8)])
def test_a_shape_has_room_for_the_longest_rows_and_a_multiple_of_rows_and_no_more_tokens_than_asked_for(
    parts, multiple
):
    given = realistic(5)
    longest, widest = (
        max(int(own.max()) for own in (getattr(each, name) for each in given))
        for name in ("prompt", "target")
    )
    shape = batches.choose_shape(given, 8192, slots=8, parts=parts, multiple=multiple)
    assert shape.prompt >= longest
    assert shape.target >= widest
    assert shape.rows % multiple == 0
    assert shape.tokens <= 8192
    assert 1 <= shape.segments <= batches.MOST_SEGMENTS


def test_held_out_rows_that_are_longer_than_all_others_fit_a_row():
    given = realistic(5, experts=2)
    long = replace(given[0].job, validation=ValidationRows([[3] * 300], [[4] * 40]))
    shape = batches.choose_shape([batches.measure(long), given[1]], 4096, slots=2)
    assert shape.prompt >= 300
    assert shape.target >= 40


def test_one_row_stands_where_not_a_single_one_has_so_few_tokens():
    shape = batches.choose_shape(realistic(5, experts=2), 64, slots=2)
    assert shape.rows == 1
    assert shape.prompt >= 256
