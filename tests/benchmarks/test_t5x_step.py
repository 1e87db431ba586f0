"""T5X's own programs: they lower for a TPU's slice, and run on the devices that are here.

All but the first run where T5X can be imported (elm_jax/t5x/imports.py says how to get it).
"""

import importlib.util
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies

from benchmarks import t5x_step
from elm_jax.errors import UserError
from elm_jax.models.sizes import find_config

VOCABULARY = find_config("tiny").vocab_size
ROWS, PROMPT, TARGET = 3, 12, 5  # rows on each device
SHAPE = {"rows": ROWS, "prompt": PROMPT, "target": TARGET, "size": "tiny"}


def needs_t5x(test):
    marks = [
        pytest.mark.t5x,
        pytest.mark.filterwarnings("ignore"),  # T5X's own
        pytest.mark.usefixtures("promotion"),
        pytest.mark.skipif(
            importlib.util.find_spec("t5x") is None,
            reason="T5X is not installed; elm_jax/t5x/imports.py says how to get it",
        ),
    ]
    for mark in marks:
        test = mark(test)
    return test


@pytest.fixture
def promotion():
    """JAX's own rules of promotion, which T5X is written for."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def slice_of(monkeypatch):
    """Returns the devices of a TPU's slice, which are not there, as its compiler describes them."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu, which describes TPUs, is not installed")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    return lambda **options: topologies.get_topology_desc("v5e:2x2", platform="tpu", **options).devices


def test_without_t5x_one_sentence_says_how_to_get_it(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "t5x" else find(name))
    with pytest.raises(UserError, match="got no package t5x"):
        t5x_step.train_step(jax.devices(), rows=1)


@needs_t5x
@pytest.mark.parametrize(("packed", "features"), [(True, 8), (False, 4)])
def test_the_step_lowers_for_a_slice_whose_devices_have_rows_and_parts_of_kernels(slice_of, packed, features):
    devices = slice_of()
    step = t5x_step.train_step(devices, **SHAPE, packed=packed)
    assert "mhlo.num_partitions = 4" in step.lower().as_text()

    state, batch = step.arguments
    assert len(batch) == features
    for feature in batch.values():
        assert feature.sharding.device_set == set(devices)
        assert feature.sharding.shard_shape(feature.shape)[0] == ROWS
    for leaf in jax.tree.leaves(state.params):
        assert leaf.dtype == jnp.float32
        parts = math.prod(leaf.shape) // math.prod(leaf.sharding.shard_shape(leaf.shape))
        # All have an axis of the embeddings' width, which is divided, but tables of relative positions.
        assert parts == (4 if find_config("tiny").emb_dim in leaf.shape else 1), leaf


@needs_t5x
def test_devices_of_several_slices_are_refused_in_one_sentence(slice_of):
    with pytest.raises(UserError, match="2 slices"):
        t5x_step.train_step(slice_of(num_slices=2), **SHAPE)


@needs_t5x
def test_a_step_runs_here_and_trains():
    """Where the last kernel is zero every token is as likely as any, so that the loss is known."""
    step = t5x_step.train_step(jax.devices()[:2], **SHAPE)
    state, batch = step.arguments
    drawn = np.random.default_rng(0)

    def value(path, leaf):
        name = jax.tree_util.keystr(path)
        random = "target" in name and "logits_dense" not in name
        made = drawn.normal(size=leaf.shape) if random else np.zeros(leaf.shape)
        return jax.device_put(made.astype(leaf.dtype), leaf.sharding)

    state = jax.tree_util.tree_map_with_path(value, state)
    batch = {
        name: jax.device_put(np.ones(leaf.shape, np.int32), leaf.sharding) for name, leaf in batch.items()
    }
    state, first = step(state, batch)
    nats = math.log(VOCABULARY)
    tokens = 2 * ROWS * TARGET
    np.testing.assert_allclose(first["loss"].total, tokens * (nats + 1e-4 * nats**2), rtol=1e-6)
    assert int(state.step) == 1
    assert np.abs(np.asarray(state.params["decoder"]["logits_dense"]["kernel"])).max() > 0

    _, second = step(state, batch)
    assert second["loss"].total < first["loss"].total


@needs_t5x
def test_scores_are_the_likelihoods_of_targets_by_parameters_in_bfloat16():
    score = t5x_step.score_batch(jax.devices()[:2], **SHAPE)
    params, batch = jax.tree.map(
        lambda leaf: jax.device_put(jnp.zeros(leaf.shape, leaf.dtype), leaf.sharding), score.arguments
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    batch = jax.tree.map(jnp.ones_like, batch)
    np.testing.assert_allclose(score(params, batch), [-TARGET * math.log(VOCABULARY)] * 2 * ROWS, rtol=1e-6)
