"""Every kind trains through the grouped step, alike for each platform, and the base stays where it is."""

import jax
import numpy as np
import pytest

from elm_jax.aot import program
from elm_jax.models import expert_layers as ex
from elm_jax.models import paths
from elm_jax.models.sizes import find_config
from elm_jax.models.t5 import init_params
from elm_jax.training import optimizers, step
from elm_jax.training.config import OptimizerConfig

RNG = np.random.default_rng(3)
SEGMENTS = np.repeat(np.array([[1, 1, 1, 1, 2, 2, 2, 2]], np.int32), 4, axis=0)
ROWS = step.Rows(  # of two examples, one of each expert
    RNG.integers(3, 48, (4, 8)).astype(np.int32),
    SEGMENTS,
    RNG.integers(3, 48, (4, 8)).astype(np.int32),
    SEGMENTS,
    np.array([[0, 1], [1, 0], [0, 1], [1, 0]], np.int32),
    np.full((4, 2), 1 / 16, np.float32),
    np.zeros((4, 2), np.uint32),
)
STEPS = 10


@pytest.fixture(scope="module")
def config():
    narrow = {"emb_dim": 16, "num_heads": 2, "head_dim": 8, "mlp_dim": 24}
    return find_config("tiny", vocab_size=48, num_encoder_layers=1, num_decoder_layers=1, **narrow)


@pytest.fixture(scope="module")
def base(config):
    return init_params(jax.random.key(0), config)


@pytest.mark.parametrize("kind", ["lora", "dora", "vera", "ia3", "prompt"])
def test_ten_steps_lower_the_loss_of_every_expert_and_leave_the_base(config, base, kind):
    fresh = [ex.init_expert(kind, jax.random.key(seed), base) for seed in (1, 2)]
    before = jax.tree.map(np.array, base)
    optimizer = optimizers.make_optimizer(OptimizerConfig())
    gather, advance = step.accumulate(config, kind), step.apply_update(optimizer)
    state = step.initial_state(step.stack(fresh), optimizer)
    sums, losses = step.zero_accumulator(state.params), []
    for at in range(STEPS):
        sums = gather(state.params, base, ROWS, sums)
        move = step.SlotUpdates(np.full(2, 0.03, np.float32), np.ones(2, bool), np.full(2, at, np.int32))
        state, sums, loss = advance(state, sums, move)
        losses.append(np.asarray(loss))
    assert (losses[-1] < losses[0] - 0.1).all()
    assert jax.tree.all(jax.tree.map(np.array_equal, base, before))
    for at, start in enumerate(fresh):
        moved, start = paths.flatten(step.take_slot(state.params, np.int32(at))), paths.flatten(start)
        for path, leaf in moved.items():
            frozen = path.startswith("vera/")
            assert np.array_equal(np.asarray(leaf)[0], start[path]) == frozen, path


@pytest.mark.parametrize("kind", [kind for kind in ex.KINDS if kind != "full"])  # which shares no row
def test_the_gradients_of_every_kind_are_the_same_in_the_program_for_tpus(config, base, kind, monkeypatch):
    """There they are summed in place, and packed tokens are multiplied by the kernels of all experts."""
    monkeypatch.setattr(program, "COMPILER_OPTIONS", {})  # which a CPU's compiler does not know
    fresh = step.stack([ex.init_expert(kind, jax.random.key(seed), base) for seed in (1, 2)])
    params = jax.tree.map(lambda leaf: leaf + 0.01, fresh)
    found, wanted = (
        step.accumulate.__wrapped__(config, kind, platform=platform)(
            params, base, ROWS, step.zero_accumulator(params)
        )
        for platform in ("tpu", "cpu")
    )
    for one, same in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        one, same = np.asarray(one), np.asarray(same)
        np.testing.assert_allclose(one, same, rtol=1e-4, atol=1e-5 * max(np.abs(same).max(), 1e-6))
