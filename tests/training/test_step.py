"""The grouped step: an expert moves as its own rows, rate and end say, and nothing else moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elm_jax.models import experts as ex
from elm_jax.models.sizes import size
from elm_jax.models.t5 import T5, init_params
from elm_jax.training import optimizers, step
from elm_jax.training.loss import answer_loss

RNG = np.random.default_rng(3)
PROMPTS = RNG.integers(3, 48, (3, 4, 8)).astype(np.int32)
TARGETS = RNG.integers(3, 48, (3, 4, 4)).astype(np.int32)
PROMPTS[1, :, 6:] = TARGETS[0, 2:, 3] = TARGETS[2, 1] = 0
LOSS = {"z_loss": 0.01, "label_smoothing": 0.1}


@pytest.fixture(scope="module")
def config():
    return size(
        "tiny",
        vocab_size=48,
        emb_dim=16,
        num_heads=2,
        head_dim=8,
        mlp_dim=24,
        num_encoder_layers=1,
        num_decoder_layers=1,
    )


@pytest.fixture(scope="module")
def base(config):
    return init_params(jax.random.key(0), config)


@pytest.fixture(scope="module")
def owned(base):
    return [ex.init("bottleneck", jax.random.key(seed), base, width=4) for seed in (1, 2, 3)]


@pytest.fixture(scope="module")
def run(config, base):
    """Steps a group from its state, which the compiled step may take for itself, and the rows given."""
    optimizer = optimizers.optimizer("adamw")
    compiled = step.compiled(config, "bottleneck", optimizer, **LOSS)

    def run(experts, *batches, state=None):
        state = state or step.start(step.stack(experts), optimizer)
        for batch in batches:
            state, loss = compiled(state, base, batch)
        return jax.tree.map(np.asarray, state), np.asarray(loss)

    return run


def batch(*, prompts=PROMPTS, targets=TARGETS, rate=(1e-3, 1e-3, 1e-3), keys=(0, 1, 2), active=(1, 1, 1)):
    return step.GroupBatch(
        prompts=prompts,
        targets=targets,
        rate=np.array(rate, np.float32),
        dropout=step.dropout_keys(np.array(keys, np.int32), np.zeros(3, np.int32)),
        active=np.array(active, bool),
    )


def of(tree, index):
    return [leaf[index] for leaf in jax.tree.leaves(tree)]


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_loss_of_every_expert_is_its_own_on_its_own_rows(config, base, owned, run):
    network = jax.jit(
        lambda expert, prompts, targets: T5(config).apply(
            {"params": base}, prompts, targets[:, None], expert
        )[:, 0]
    )
    wanted = [
        answer_loss(network(tree, PROMPTS[at], TARGETS[at]), TARGETS[at], **LOSS)
        for at, tree in enumerate(owned)
    ]
    np.testing.assert_allclose(run(owned, batch())[1], wanted, rtol=1e-5)


def test_an_expert_that_has_ended_keeps_parameters_and_moments_bit_for_bit(owned, run):
    before, _ = run(owned, batch())
    held, _ = run(owned, batch(), batch(active=(1, 0, 1), rate=(1e-3, np.nan, 1e-3)))
    assert equal(of(held, 1), of(before, 1))
    assert not equal(of(held.params, 0), of(before.params, 0))
    assert not equal(of(held.params, 2), of(before.params, 2))


def test_rows_rate_and_dropout_of_one_expert_do_not_reach_its_neighbours(owned, run):
    prompts, targets = PROMPTS.copy(), TARGETS.copy()
    prompts[1], targets[1] = 40, 41
    plain, plain_loss = run(owned, batch(), batch())
    other = batch(prompts=prompts, targets=targets, rate=(1e-3, 0.5, 1e-3), keys=(0, 9, 2))
    found, loss = run([owned[0], owned[0], owned[2]], other, other)
    for at in (0, 2):
        np.testing.assert_allclose(loss[at], plain_loss[at], atol=1e-6)
        for one, same in zip(of(found.params, at), of(plain.params, at), strict=True):
            np.testing.assert_allclose(one, same, atol=1e-6)
    assert not equal(of(found.params, 1), of(plain.params, 1))


def test_a_move_is_the_direction_times_the_experts_own_rate(owned, run):
    same = [owned[0]] * 3
    rows = {"prompts": PROMPTS[[0, 0, 0]], "targets": TARGETS[[0, 0, 0]]}
    after, _ = run(same, batch(rate=(1e-3, 4e-3, 0.0), **rows))
    for start, slow, fast, still in zip(
        jax.tree.leaves(owned[0]), *(of(after.params, at) for at in range(3)), strict=True
    ):
        np.testing.assert_allclose(fast - start, 4 * (slow - start), rtol=1e-3, atol=1e-6)
        np.testing.assert_array_equal(still, start)


def test_targets_of_padding_alone_move_nothing(owned, run):
    targets = TARGETS.copy()
    targets[1] = 0
    after, loss = run(owned, batch(targets=targets))
    assert loss[1] == 0
    assert equal(of(after.params, 1), jax.tree.leaves(owned[1]))


def test_the_base_stays_bit_for_bit(base, owned, run):
    before = jax.tree.map(np.array, base)
    run(owned, *[batch(rate=(0.1, 0.1, 0.1))] * 3)
    assert jax.tree.all(jax.tree.map(np.array_equal, base, before))


def test_the_loss_falls_on_rows_seen_again(owned, run):
    first = run(owned, batch())[1]
    last = run(owned, *[batch(rate=(0.01, 0.01, 0.01))] * 20)[1]
    assert (last < first - 0.3).all()


def test_every_batch_of_a_shape_runs_the_program_of_the_first(config, owned, run):
    run(owned, batch())
    compiled = step.compiled(config, "bottleneck", optimizers.optimizer("adamw"), **LOSS)
    programs = compiled._cache_size()
    assert programs > 0
    run(owned[::-1], batch(rate=(0.0, 1.0, 2.0)), batch(active=(0, 1, 0), keys=(7, 8, 9)))
    assert compiled._cache_size() == programs


def test_a_dropout_key_depends_on_the_experts_seed_and_step_alone():
    def bits(seeds, steps):
        keys = step.dropout_keys(np.array(seeds, np.int32), np.array(steps, np.int32))
        return [tuple(row) for row in np.asarray(jax.random.key_data(keys)).tolist()]

    assert bits([5, 6, 7], [3, 3, 4])[1] == bits([6], [3])[0]
    assert len(set(bits([1, 1, 2, 2], [1, 2, 1, 2]))) == 4


def test_stack_and_unstack_are_inverse():
    trees = [{"a": {"b": jnp.arange(3.0) + at}, "c": jnp.full((2, 2), at)} for at in range(3)]
    stacked = step.stack(trees)
    assert stacked["a"]["b"].shape == (3, 3)
    for at, tree in enumerate(trees):
        assert jax.tree.all(jax.tree.map(np.array_equal, step.unstack(stacked, at), tree))
