"""Batches: every example once, nothing beyond its room, and little padding."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elm_jax.training import batches, step
from elm_jax.training.batches import Offer, Shape
from elm_jax.training.jobs import Held, Job, rows_of_step

SHAPE = Shape(rows=4, prompt=16, target=8, segments=3)
EXAMPLE = st.tuples(st.integers(1, 16), st.integers(1, 8))  # tokens of prompt and of target: any fits a row
OFFERED = st.lists(st.lists(EXAMPLE, max_size=7), min_size=4, max_size=4)  # of experts at four places
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
        [Offer(place, at, at, s, t, 1.0, 0) for at, (s, t) in enumerate(own)]
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
    return Job(
        fields.pop("name", "a"),
        [np.arange(length) + 100 * at + 1 for at, length in enumerate(prompts)],
        [np.arange(length) + 100 * at + 51 for at, length in enumerate(targets)],
        **{"steps": 50, "rate": 1e-3, **fields},
    )


@settings(deadline=None)
@given(OFFERED, ORDER, SHAPES)
def test_nothing_in_a_batch_came_twice_or_was_not_offered(lengths, order, shape):
    offered = offers(lengths, order)
    taken = Counter(batches.pack(offered, shape, places=4).taken)
    assert set(taken.values()) <= {1}
    assert set(taken) <= {offer for own in offered for offer in own}


@settings(deadline=None)
@given(OFFERED, ORDER, SHAPES, st.sampled_from([1, 2]))
def test_no_row_has_more_tokens_or_segments_than_it_has_room_for(lengths, order, shape, parts):
    batch = batches.pack(offers(lengths, order), shape, places=4, parts=parts)
    assert len(batch.rows) == shape.rows
    for row in batch.rows:
        assert sum(offer.prompt for offer in row) <= shape.prompt
        assert len(row) <= shape.segments
    for row in beside(batch):
        assert sum(offer.target for offer in row) <= shape.target


@settings(deadline=None)
@given(OFFERED, ORDER, SHAPES)
def test_the_most_urgent_expert_is_always_served_whoever_has_longer_examples(lengths, order, shape):
    offered = offers(lengths, order)
    batch = batches.pack(offered, shape, places=4)
    first = next((own for own in offered if own), [])
    served = [offer for offer in batch.taken if first and offer.place == first[0].place]
    assert len(served) >= min(len(first), shape.rows // shape.folded)


@settings(deadline=None)
@given(OFFERED, ORDER, SHAPES, st.sampled_from([1, 2]))
def test_what_batches_take_one_after_another_is_all_that_was_offered(lengths, order, shape, parts):
    waiting = offers(lengths, order)
    every = Counter(offer for own in waiting for offer in own)
    found = Counter()
    while any(waiting):
        taken = batches.pack(waiting, shape, places=4, parts=parts).taken
        assert taken  # or it would never end
        found.update(taken)
        waiting = [[offer for offer in own if offer not in taken] for own in waiting]
    assert found == every


@settings(deadline=None)
@given(OFFERED, ORDER)
def test_each_part_of_a_mesh_has_its_own_experts_in_its_own_rows(lengths, order):
    batch = batches.pack(offers(lengths, order), SHAPE, places=4, parts=2)
    for at, row in enumerate(batch.rows):
        assert {offer.place // 2 for offer in row} <= {at // 2}


@settings(deadline=None)
@given(OFFERED, ORDER, SHAPES, st.frozensets(st.integers(0, 3)))
def test_whoever_is_alone_shares_no_row(lengths, order, shape, alone):
    batch = batches.pack(offers(lengths, order), shape, places=4, alone=alone)
    for row in beside(batch):
        there = {offer.place for offer in row}
        assert len(there) <= 1 or not there & alone


def test_one_part_of_a_mesh_does_not_depend_on_what_the_other_offers():
    lengths = [[(5, 2), (9, 3)], [(7, 1)], [(16, 8)] * 7, [(3, 1)] * 7]
    both = batches.pack(offers(lengths), SHAPE, places=4, parts=2)
    alone = batches.pack(offers([*lengths[:2], [], []]), SHAPE, places=4, parts=2)
    assert both.rows[:2] == alone.rows[:2]
    assert alone.rows[2:] == ((), ())


def test_the_same_offers_are_packed_alike():
    offered = offers([[(5, 2), (9, 3)], [(7, 1)] * 3, [(16, 8)] * 2, [(3, 1)] * 7])
    assert batches.pack(offered, SHAPE, places=4) == batches.pack(offered, SHAPE, places=4)


def test_a_step_offers_the_rows_of_its_number_with_their_share_and_seeds():
    found = batches.known(job([5, 9, 7, 4], [2, 3, 1, 4], batch_size=3, seed=8))
    offered = batches.of_step(found, 2, 5)
    rows = rows_of_step(found.job, 5)
    lengths = [(5, 2), (9, 3), (7, 1), (4, 4)]
    assert [(offer.place, offer.at) for offer in offered] == [(2, 0), (2, 1), (2, 2)]
    assert [offer.row for offer in offered] == rows.tolist()
    assert [(offer.prompt, offer.target) for offer in offered] == [lengths[row] for row in rows]
    tokens = sum(offer.target for offer in offered)
    assert [offer.share for offer in offered] == [1 / tokens] * 3
    assert [offer.seed for offer in offered] == step.seeds(8, 5, 3).tolist()


def test_all_rows_are_offered_in_their_own_order_to_be_judged():
    told = job([5, 9], [2, 3], held=Held([[7, 7, 7], [8]], [[9], [9, 9, 9]]))
    found = batches.held(told)
    assert found is not None
    assert [(offer.row, offer.prompt, offer.target, offer.share) for offer in batches.of_all(found, 1)] == [
        (0, 3, 1, 1 / 4),
        (1, 1, 3, 1 / 4),
    ]
    assert batches.held(job([5], [2])) is None


def test_an_examples_tokens_stand_together_with_its_place_share_and_seed():
    of = {2: job([3, 2], [2, 1]), 3: job([4], [1])}
    shape = Shape(rows=2, prompt=8, target=4, segments=2)
    row = (Offer(2, 0, 1, 2, 1, 0.5, 11), Offer(3, 0, 0, 4, 1, 0.25, 12))
    batch = batches.Batch(shape, (row, (Offer(3, 1, 0, 4, 1, 0.5, 13),)))
    found = batches.assemble(batch, of, own=2)
    assert found.prompts.tolist() == [[101, 102, 1, 2, 3, 4, 0, 0], [1, 2, 3, 4, 0, 0, 0, 0]]
    assert found.prompt_segments.tolist() == [[1, 1, 2, 2, 2, 2, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0]]
    assert found.targets.tolist() == [[151, 51, 0, 0], [51, 0, 0, 0]]
    assert found.target_segments.tolist() == [[1, 2, 0, 0], [1, 0, 0, 0]]
    # Numbered within the part of the mesh; a segment that is not there meets no other expert.
    assert found.place.tolist() == [[0, 1], [1, 1]]
    assert found.share.tolist() == [[0.5, 0.25], [0.5, 0]]
    assert found.seeds.tolist() == [[11, 12], [13, 0]]


def test_targets_of_folded_rows_stand_one_after_another_and_count_on():
    of = {0: job([3, 2], [2, 1])}
    shape = Shape(rows=2, prompt=4, target=4, segments=2, folded=2)
    batch = batches.Batch(shape, ((Offer(0, 0, 0, 3, 2, 0.5, 11),), (Offer(0, 1, 1, 2, 1, 0.5, 12),)))
    found = batches.assemble(batch, of, own=1)
    assert found.prompts.tolist() == [[1, 2, 3, 0], [101, 102, 0, 0]]
    assert found.prompt_segments.tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]
    assert found.targets.tolist() == [[51, 52, 151, 0]]
    assert found.target_segments.tolist() == [[1, 1, 3, 0]]
    assert found.seeds.tolist() == [[11, 0], [12, 0]]


def test_one_long_answer_does_not_make_every_row_wide():
    short, long = realistic(5), job([200] * 200, [3] * 199 + [100], name="long", batch_size=8)
    shape = batches.shape_for([*short, batches.known(long)], 8192, places=9)
    assert shape.target >= 100
    assert shape.folded > 1
    assert shape.rows % shape.folded == 0


def test_a_slice_of_a_batch_is_those_rows_of_it_and_reads_no_others():
    of = {0: job([3], [2]), 1: job([4], [1])}
    shape = Shape(rows=2, prompt=8, target=4, segments=2)
    batch = batches.Batch(shape, ((Offer(0, 0, 0, 3, 2, 1.0, 1),), (Offer(1, 0, 0, 4, 1, 1.0, 2),)))
    whole = batches.assemble(batch, of, own=2)
    part = batches.assemble(batch, {1: of[1]}, slice(1, 2), own=2)
    for field, of_part in zip(whole, part, strict=True):
        np.testing.assert_array_equal(of_part, field[1:2])


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
    return [batches.known(each) for each in made]


def filled(given, shape, rounds):
    """Plays rounds as a run does; returns the share of real tokens."""
    done, real = [0] * len(given), 0
    waiting = [batches.of_step(each, place, 0) for place, each in enumerate(given)]
    for _ in range(rounds):
        order = sorted(range(len(given)), key=lambda at: done[at] * 8 - len(waiting[at]))
        taken = batches.pack([waiting[at] for at in order], shape, places=len(given)).taken
        real += sum(offer.prompt + offer.target for offer in taken)
        for place, each in enumerate(given):
            waiting[place] = [offer for offer in waiting[place] if offer not in taken]
            if not waiting[place]:
                done[place] += 1
                waiting[place] = batches.of_step(each, place, done[place])
    return real / (rounds * shape.tokens)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("batch_tokens", [2048, 8192])
def test_at_least_nine_tenths_of_eight_experts_batches_are_real(seed, batch_tokens):
    given = realistic(seed)
    shape = batches.shape_for(given, batch_tokens, places=8)
    assert filled(given, shape, 40) >= 0.9


@pytest.mark.parametrize(("parts", "multiple"), [(1, 1), (1, 4), (2, 8)])
def test_a_shape_has_room_for_the_longest_rows_and_a_multiple_of_rows_and_no_more_tokens_than_asked_for(
    parts, multiple
):
    given = realistic(5)
    longest, widest = (
        max(int(own.max()) for own in (getattr(each, name) for each in given))
        for name in ("prompt", "target")
    )
    shape = batches.shape_for(given, 8192, places=8, parts=parts, multiple=multiple)
    assert shape.prompt >= longest
    assert shape.target >= widest
    assert shape.rows % multiple == 0
    assert shape.tokens <= 8192
    assert 1 <= shape.segments <= batches.MOST_SEGMENTS


def test_held_out_rows_that_are_longer_than_all_others_fit_a_row():
    given = realistic(5, experts=2)
    long = replace(given[0].job, held=Held([[3] * 300], [[4] * 40]))
    shape = batches.shape_for([batches.known(long), given[1]], 4096, places=2)
    assert shape.prompt >= 300
    assert shape.target >= 40


def test_one_row_stands_where_not_a_single_one_has_so_few_tokens():
    shape = batches.shape_for(realistic(5, experts=2), 64, places=2)
    assert shape.rows == 1
    assert shape.prompt >= 256
