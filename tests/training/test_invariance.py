"""Scores of 2,000 rows: no prediction changes with batch, bucket, mix of experts or mesh, in float32."""

import jax
import numpy as np
import pytest

from elm_jax.models import expert_layers as ex
from elm_jax.models import meshes, sharding
from elm_jax.scoring import buckets, scorer
from elm_jax.scoring.buckets import PromptWithChoices
from elm_jax.training.step import stack

ROWS, EXPERTS = 2000, 4
RNG = np.random.default_rng(11)


def random_row() -> PromptWithChoices:
    """A prompt of 4 to 40 tokens with two to six choices that share a beginning, be it empty."""
    start = RNG.integers(3, 48, RNG.integers(0, 3)).tolist()
    choices = [
        [*start, *RNG.integers(3, 48, RNG.integers(1, 5)).tolist(), 1] for _ in range(RNG.integers(2, 7))
    ]
    return PromptWithChoices(RNG.integers(3, 48, RNG.integers(4, 41)), choices)


EVERY = [random_row() for _ in range(ROWS)]
MIX = np.stack([np.arange(ROWS), RNG.integers(0, EXPERTS, ROWS)], axis=1)
COARSE = [buckets.BucketShape(40, 32, 40)]
FINE = [buckets.BucketShape(16, 32, 40), buckets.BucketShape(24, 32, 40), buckets.BucketShape(40, 32, 40)]


@pytest.fixture(scope="module")
def trees(base):
    """Experts that change every score, and leave logits of the size that a real network has."""
    made = [ex.init_expert("bottleneck", jax.random.key(seed), base, {"width": 4}) for seed in range(EXPERTS)]
    return [jax.tree.map(lambda leaf, by=1.0 + seed: leaf * by, tree) for seed, tree in enumerate(made)]


@pytest.fixture(scope="module")
def wanted(config, base, trees):
    """Every row scored in the coarsest bucket, 256 at once, by its expert of the mix."""
    found = scorer.score_rows(config, base, EVERY, stack(trees), MIX, shapes=COARSE, batch_tokens=72 * 256)
    best = np.array([np.sort(own)[-2:] for own in found])
    assert (best[:, 1] - best[:, 0]).min() < 1e-2, "predictions should be close ones, too"
    return found


def assert_same(found, wanted):
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-5)
    changed = [int(ours.argmax() != theirs.argmax()) for ours, theirs in zip(found, wanted, strict=True)]
    assert sum(changed) == 0


def test_the_batch_changes_no_prediction(config, base, trees, wanted):
    how = {"shapes": COARSE, "batch_tokens": 72 * 64, "compile_tokens": 0.0}
    assert_same(scorer.score_rows(config, base, EVERY, stack(trees), MIX, **how), wanted)


def test_buckets_change_no_prediction(config, base, trees, wanted):
    assert_same(scorer.score_rows(config, base, EVERY, stack(trees), MIX, shapes=FINE), wanted)


def test_the_mix_of_experts_changes_no_prediction(config, base, trees, wanted):
    for number, tree in enumerate(trees):
        own = np.flatnonzero(MIX[:, 1] == number)
        rows = [EVERY[row] for row in own]
        alone = scorer.score_rows(config, base, rows, stack([tree]), shapes=COARSE)
        assert_same(alone, [wanted[row] for row in own])


@pytest.mark.parametrize("axes", [{"data": 8}, {"data": 2, "fsdp": 4}, {"data": 4, "tensor": 2}])
def test_the_mesh_changes_no_prediction(config, base, trees, wanted, axes):
    on = meshes.make_mesh(**axes)
    placed = jax.device_put(base, sharding.param_shardings(on, base))
    experts = stack(trees)
    experts = jax.device_put(experts, sharding.param_shardings(on, experts, experts=True))
    found = scorer.score_rows(config, placed, EVERY, experts, MIX, shapes=COARSE, batch_tokens=72 * 256)
    assert_same(found, wanted)


def test_on_a_mesh_the_rows_of_a_batch_are_split_evenly(config, base, trees, monkeypatch):
    on = meshes.make_mesh(data=8)
    placed = jax.device_put(base, sharding.param_shardings(on, base))
    seen = []
    run = scorer.likelihood.compiled_scorer(config, "cpu")

    def watched(params, batch, *others):
        seen.append([len(shard.data) for shard in batch.prompts.addressable_shards])
        return run(params, batch, *others)

    monkeypatch.setattr(scorer.likelihood, "compiled_scorer", lambda *_: watched)
    scorer.score_rows(config, placed, EVERY[:27], shapes=COARSE, batch_tokens=72 * 20)
    assert all(len(shards) == 8 and len(set(shards)) == 1 for shards in seen)
