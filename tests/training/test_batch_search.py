"""Batch search: the largest batch beside the most experts, whatever the compiler says of memory."""

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elm_jax.aot import memory
from elm_jax.errors import OutOfMemoryError
from elm_jax.models.sizes import find_config
from elm_jax.training import batch_search
from elm_jax.training.batch_search import ENOUGH_MEMORY_FILL, BatchSearch, Memory
from elm_jax.training.batches import Shape
from elm_jax.training.programs import GroupPlan, Layout, group_programs, layout_for

ROW = 16  # tokens of a row


def search(
    limit, *, base=100, expert=10, token=2.0, offered=10**9, guess=2.0, slots=4, silent=False, bend=0.0
):
    """A device on which so many bytes go to the base, each expert and each token; `compiled` has what was."""
    compiled = []

    def shape_for(layout, tokens):
        rows = max(1, min(tokens, offered) // ROW // layout.row_parts) * layout.row_parts
        return Shape(rows, ROW, 0, 1)

    def peak(layout, shape):
        compiled.append(shape)
        taken = base + expert * layout.slots + int(token * shape.tokens + bend * shape.tokens**2)
        return None if silent and taken > limit else taken

    found = BatchSearch(
        batch_search.layouts_for(Layout(slots, 1, 1)),
        shape_for,
        Memory(lambda layout: base + expert * layout.slots, peak, limit),
        guess,
    )
    return found, compiled


def test_the_largest_batch_fills_what_is_free():
    found, compiled = search(10_000)
    fit = batch_search.largest_fit(found)
    assert fit.layout.slots == 4
    assert fit.fixed_bytes == 140
    assert fit.peak_bytes == 140 + 2 * fit.shape.tokens <= 10_000
    assert fit.fill_ratio >= ENOUGH_MEMORY_FILL
    assert fit.compiled == len(compiled) <= 2


@given(
    token=st.floats(0.5, 40.0),
    guess=st.floats(0.5, 40.0),
    silent=st.booleans(),
    bend=st.sampled_from([0.0, 1e-5, 1e-4]),
    limit=st.integers(20_000, 10**7),
)
def test_a_batch_fits_and_fills_what_is_free_whatever_was_guessed(token, guess, silent, bend, limit):
    found, compiled = search(limit, token=token, guess=guess, silent=silent, bend=bend)
    fit = batch_search.largest_fit(found)
    assert fit.peak_bytes <= limit
    assert len(compiled) <= batch_search.MAX_BATCH_COMPILATIONS
    one_row = ROW * token + bend * ((fit.shape.tokens + ROW) ** 2 - fit.shape.tokens**2)
    assert fit.fill_ratio >= ENOUGH_MEMORY_FILL or one_row > (1 - ENOUGH_MEMORY_FILL) * (
        limit - fit.fixed_bytes
    )


def test_a_batch_is_no_larger_than_what_the_experts_offer():
    found, _ = search(10_000, offered=64)
    fit = batch_search.largest_fit(found)
    assert fit.shape.tokens == 64
    assert fit.compiled == 1


def test_fewer_experts_train_at_once_if_all_of_them_leave_no_room():
    found, _ = search(1000, expert=200, slots=32)
    assert batch_search.largest_fit(found).layout.slots == 4


def test_a_number_of_experts_that_is_given_is_not_changed():
    assert batch_search.layouts_for(Layout(32, 2, 2), fixed=True) == (Layout(32, 2, 2),)
    halves = batch_search.layouts_for(Layout(12, 4, 4))
    assert [layout.slots for layout in halves] == [12, 4]


def test_where_not_one_row_fits_the_error_says_what_it_takes():
    found, _ = search(10**9, base=2 * 10**9)
    with pytest.raises(OutOfMemoryError, match=r"2\.00 GB, got 1\.00 GB"):
        batch_search.largest_fit(found)


def test_with_a_real_compiler_batches_fill_what_is_free():
    config = find_config("tiny", vocab_size=64, emb_dim=32, num_heads=2, head_dim=16, mlp_dim=64)
    plan = GroupPlan()

    def programs(layout, shape):
        return group_programs(config, plan, layout, shape)

    smallest = programs(layout_for("bottleneck", 4, None), Shape(1, 32, 8, 1))
    held = batch_search.fixed_bytes(smallest)
    limit = held + 40_000_000
    found = BatchSearch(
        batch_search.layouts_for(layout_for("bottleneck", 4, None)),
        lambda layout, tokens: Shape(max(1, tokens // 40), 32, 8, 1),
        Memory(
            lambda layout: batch_search.fixed_bytes(programs(layout, Shape(1, 32, 8, 1))),
            lambda layout, shape: batch_search.peak_bytes(programs(layout, shape)),
            limit,
        ),
        batch_search.token_bytes(config, Layout(4, 1, 1)),
    )
    fit = batch_search.largest_fit(found)
    assert fit.fill_ratio >= ENOUGH_MEMORY_FILL
    accumulate = programs(fit.layout, fit.shape).accumulate
    assert (
        memory.count_program_bytes(accumulate.lower().compile()) + memory.resident_bytes(accumulate)
        <= fit.peak_bytes
        <= limit
    )
    state, base, _, accumulator = accumulate.arguments
    leaves = jax.tree.leaves((state, base, accumulator, accumulate.resident))
    assert fit.fixed_bytes == sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
