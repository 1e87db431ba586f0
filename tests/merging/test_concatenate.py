"""Experts side by side give the exact average of what each of them gives, block by block."""

import numpy as np
import pytest

from elm_jax.models import expert_layers as applied

from .conftest import ADAPTER, LAST, QUERY, RANK, D, merge, values

WEIGHTS = [3.0, 1.0, 1.0]
SHARES = [0.6, 0.2, 0.2]


def inputs():
    return np.random.default_rng(0).normal(size=(4, 5, D)).astype(np.float32)


def mean(outputs):
    return sum(share * output for share, output in zip(SHARES, outputs, strict=True))


@pytest.fixture
def three(expert):
    return lambda kind: [expert(kind, name) for name in "abc"]


def layer_of(of, path, layer):
    """The adapter or projection at a path, of one layer."""
    flat = values(of)
    tree: dict = {}
    for name, value in flat.items():
        if name.startswith(f"{path}/"):
            owner, _, leaf = name.removeprefix(f"{path}/").rpartition("/")
            (tree.setdefault(owner, {}) if owner else tree)[leaf] = value[layer]
    return tree


@pytest.mark.parametrize("layer", [0, 1])
def test_a_block_of_concatenated_bottlenecks_gives_the_mean_of_the_blocks(three, layer):
    experts, x = three("bottleneck"), inputs()
    merged = merge("concatenate", experts, weights=WEIGHTS)
    blocks = [applied.apply_bottleneck(x, layer_of(one, ADAPTER, layer)) for one in experts]
    got = applied.apply_bottleneck(x, layer_of(merged, ADAPTER, layer))
    np.testing.assert_allclose(got, mean(blocks), rtol=1e-4, atol=1e-5)
    averaged = applied.apply_bottleneck(
        x, layer_of(merge("average", experts, weights=WEIGHTS), ADAPTER, layer)
    )
    assert np.abs(averaged - mean(blocks)).max() > 0.1  # what the average of factors is not


def test_widths_are_summed_and_norm_scales_averaged(three):
    experts = three("bottleneck")
    flat = values(merge("concatenate", experts, weights=WEIGHTS))
    assert flat[f"{ADAPTER}/down/kernel"].shape == (2, D, 3 * RANK)
    assert flat[f"{ADAPTER}/down/bias"].shape == (2, 3 * RANK)
    assert flat[f"{ADAPTER}/up/kernel"].shape == (2, 3 * RANK, D)
    assert flat[f"{ADAPTER}/up/bias"].shape == (2, D)
    np.testing.assert_allclose(flat[LAST], mean([values(one)[LAST] for one in experts]), rtol=1e-6)


def test_what_is_concatenated_by_hand():
    from elm_jax.merging.concatenate import concatenate
    from elm_jax.merging.parameter_groups import MergeInputs, ParameterGroup

    group = ParameterGroup("lora", "q/kernel", ("q/lora_a", "q/lora_b"), False)
    one = (np.array([[1.0], [2.0]]), np.array([[4.0, 0.0]]))
    two = (np.array([[0.0], [1.0]]), np.array([[0.0, 8.0]]))
    first, second = concatenate(MergeInputs(group, None, ["a", "b"], [0.75, 0.25], [one, two]))
    np.testing.assert_array_equal(first, [[1, 0], [2, 1]])
    np.testing.assert_array_equal(second, [[3, 0], [0, 2]])


@pytest.mark.parametrize("layer", [0, 1])
def test_concatenated_lora_changes_a_projection_by_the_mean_of_the_changes(three, layer):
    experts, x = three("lora"), inputs()
    y = x @ np.eye(D, dtype=np.float32)

    def given(of):
        return applied.apply_delta(x, y, layer_of(of, QUERY, layer))

    merged = merge("concatenate", experts, weights=WEIGHTS)
    np.testing.assert_allclose(given(merged), mean(map(given, experts)), rtol=1e-4, atol=1e-5)
    assert np.abs(given(merge("average", experts, weights=WEIGHTS)) - mean(map(given, experts))).max() > 0.1


def test_an_expert_of_weight_zero_takes_no_room(three):
    merged = merge("concatenate", three("lora"), weights=[1.0, 0.0, 1.0])
    assert values(merged)[f"{QUERY}/lora_a"].shape == (2, D, 2 * RANK)
