"""Subsets are those of the paper's code, row for row."""

import pytest

from elm_jax.tasks import subsets


def test_a_permutation_is_the_one_that_torch_draws():
    # torch.randperm(10, generator=torch.Generator().manual_seed(42)), on a CPU
    assert subsets.shuffled_rows(10, 10, seed=42) == [2, 6, 1, 8, 4, 5, 0, 9, 3, 7]


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_every_row_comes_once(count):
    assert sorted(subsets.shuffled_rows(count, count + 5, seed=3)) == list(range(count))


def test_fewer_rows_are_the_start_of_more():
    assert subsets.shuffled_rows(1000, 30, seed=1) == subsets.shuffled_rows(1000, 900, seed=1)[:30]


def test_another_seed_gives_other_rows():
    assert subsets.shuffled_rows(1000, 5, seed=1) != subsets.shuffled_rows(1000, 5, seed=2)


def test_a_few_rows_of_millions_are_drawn_at_once():
    assert len(set(subsets.shuffled_rows(3_803_957, 10_000, seed=42))) == 10_000


def test_numbers_that_are_drawn_as_they_are_asked_for_are_those_of_the_permutation():
    numbers, every = subsets.ShuffledNumbers(1000, 900, seed=1), subsets.shuffled_rows(1000, 900, seed=1)
    assert [numbers[:3], numbers[3:100], numbers[899]] == [every[:3], every[3:100], every[899]]
    assert list(numbers) == every
