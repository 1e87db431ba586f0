"""Work that processes share: each item belongs to exactly one, and none has much more than another."""

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elm_jax.launch import hosts


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 5))
def test_every_item_is_in_one_part_and_order_is_kept(costs, count):
    items = list(range(len(costs)))
    parts = [hosts.shard(items, costs, count, index) for index in range(count)]
    assert [item for part in parts for item in part] == items


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 5))
def test_parts_cost_the_same_up_to_one_item(costs, count):
    items = list(range(len(costs)))
    for index in range(count):
        own = sum(costs[item] for item in hosts.shard(items, costs, count, index))
        assert abs(own - sum(costs) / count) <= max(costs)


def test_one_process_has_everything():
    assert hosts.shard_by_cost("abc", lambda item: 1) == ["a", "b", "c"]


@pytest.mark.parametrize("lost", [jax.errors.JaxRuntimeError("Gather failed"), ValueError("[gloo] reset")])
def test_a_communication_error_is_found_among_the_causes_of_another(lost):
    error = KeyError("what came of it")
    error.__cause__ = lost
    assert hosts._communication_error(error) == str(lost)
    assert hosts._communication_error(KeyError("ours")) is None
