"""SLERP goes along the arc between two changes."""

import math

import numpy as np
import pytest

from elm_jax.errors import UserError
from elm_jax.merging.slerp import slerp, slerp_all
from elm_jax.models import paths

from .conftest import QUERY, WO, change, merge, values


def array(*numbers):
    return np.array(numbers, np.float32)


@pytest.mark.parametrize(
    ("t", "wanted"),
    [
        (0.0, (1.0, 0.0)),
        (1 / 3, (math.cos(math.pi / 6), math.sin(math.pi / 6))),
        (0.5, (math.sqrt(0.5), math.sqrt(0.5))),
        (1.0, (0.0, 1.0)),
    ],
)
def test_a_quarter_of_a_circle_is_gone_along_evenly(t, wanted):
    np.testing.assert_allclose(slerp(array(1, 0), array(0, 1), t), wanted, atol=1e-6)


def test_half_way_between_changes_of_two_lengths():
    # Sixty degrees apart: both coefficients are sin 30° / sin 60° = 1 / √3.
    first, second = array(2, 0), array(2, 2 * math.sqrt(3))
    np.testing.assert_allclose(slerp(first, second, 0.5), (first + second) / math.sqrt(3), atol=1e-6)


@pytest.mark.parametrize(
    ("first", "second", "wanted"),
    [((2, 2), (4, 4), (3, 3)), ((2, 0), (-2, 0), (0, 0)), ((0, 0), (2, 4), (1, 2)), ((0, 0), (0, 0), (0, 0))],
)
def test_there_is_no_arc_between_parallel_opposed_or_absent_changes(first, second, wanted):
    np.testing.assert_allclose(slerp(array(*first), array(*second), 0.5), wanted)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.8])
def test_random_matrices_of_one_length_turn_in_their_plane_by_that_share_of_their_angle(t):
    rng = np.random.default_rng(0)
    first, other = rng.normal(size=(2, 8, 5))
    first, other = 3 * first / np.linalg.norm(first), 3 * other / np.linalg.norm(other)
    # An orthogonal pair that spans their plane, both of that length (Gram and Schmidt).
    aside = other - (np.vdot(first, other) / 9) * first
    aside *= 3 / np.linalg.norm(aside)
    angle = math.atan2(np.vdot(other, aside), np.vdot(other, first))
    turned = math.cos(t * angle) * first + math.sin(t * angle) * aside
    got = slerp(first.astype(np.float32), other.astype(np.float32), t)
    np.testing.assert_allclose(got, turned, rtol=1e-5, atol=1e-5)


def test_equal_lengths_keep_their_length():
    rng = np.random.default_rng(0)
    first, second = (row / np.linalg.norm(row) for row in rng.normal(size=(2, 50)).astype(np.float32))
    for t in (0.1, 0.4, 0.9):
        assert np.linalg.norm(slerp(first, second, t)) == pytest.approx(1.0, abs=1e-5)
    assert np.linalg.norm((first + second) / 2) < 0.8


def test_more_than_two_are_folded_in_at_their_share_of_those_so_far():
    first, second, third = np.eye(3, dtype=np.float32)
    wanted = slerp(slerp(first, second, 0.75), third, 0.5)
    np.testing.assert_allclose(slerp_all([first, second, third], [0.125, 0.375, 0.5]), wanted, atol=1e-6)


def by_the_formula(first, second, t):
    """Shoemake's formula on flattened tensors, in double precision: what `mergekit` computes."""
    v, w = np.asarray(first, np.float64).ravel(), np.asarray(second, np.float64).ravel()
    angle = math.acos(v @ w / np.linalg.norm(v) / np.linalg.norm(w))
    mixed = (math.sin((1 - t) * angle) * v + math.sin(t * angle) * w) / math.sin(angle)
    return mixed.reshape(np.shape(first))


@pytest.mark.parametrize("of", [None, "models", "changes"])
def test_every_layer_of_full_experts_turns_by_its_own_angle(expert, toy_base, of):
    path, base = f"{QUERY}/kernel", paths.flatten(toy_base)
    one, two = expert("full", "a"), expert("full", "b")
    got = values(merge("slerp", [one, two], weights=[0.7, 0.3], base=toy_base, of=of))[path]
    for layer in range(2):
        start = base[path][layer] if of == "changes" else np.zeros((6, 6))
        ours, theirs = (values(each)[path][layer] - start for each in (one, two))
        wanted = start + by_the_formula(ours, theirs, 0.3)
        np.testing.assert_allclose(got[layer], wanted, rtol=1e-4, atol=1e-5)


def test_an_arc_between_whole_models_of_lora_is_refused(expert):
    with pytest.raises(UserError, match="of=changes"):
        merge("slerp", [expert("lora", name) for name in "ab"], of="models")


def test_lora_turns_as_products(expert):
    one, two = expert("lora", "a"), expert("lora", "b")
    got = merge("slerp", [one, two])
    for layer in range(2):
        wanted = by_the_formula(change(one, WO)[layer], change(two, WO)[layer], 0.5)
        np.testing.assert_allclose(change(got, WO)[layer], wanted, rtol=1e-4, atol=1e-4)
