"""The grouped step: an expert moves as its own rows, rate and end say, and nothing else moves."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elm_jax.aot import program
from elm_jax.models import expert_layers as ex
from elm_jax.models import meshes, sharding
from elm_jax.models.t5 import T5, init_params
from elm_jax.records import Params
from elm_jax.training import optimizers, step
from elm_jax.training.config import LossConfig, OptimizerConfig
from elm_jax.training.loss import token_losses
from elm_jax.training.step import ALL_FINITE, Rows, SlotUpdates

RNG = np.random.default_rng(3)
# Rows of two examples each, of three experts: the segments' experts are SLOT.
PROMPTS = RNG.integers(3, 48, (4, 8)).astype(np.int32)
TARGETS = RNG.integers(3, 48, (4, 6)).astype(np.int32)
PROMPT_SEGMENTS = np.repeat(np.array([[1, 1, 1, 2, 2, 2, 2, 2]], np.int32), 4, axis=0)
TARGET_SEGMENTS = np.repeat(np.array([[1, 1, 1, 2, 2, 2]], np.int32), 4, axis=0)
SLOT = np.array([[0, 1], [2, 0], [1, 1], [0, 2]], np.int32)
TARGETS[0, 5] = TARGET_SEGMENTS[0, 5] = 0  # padding: the first example of expert 1 has two target tokens
PROMPTS[2, 6:] = PROMPT_SEGMENTS[2, 6:] = 0
TOKENS = np.array([9, 8, 6])  # real target tokens of each expert
LOSS = LossConfig(z_loss=0.01, label_smoothing=0.1)
PARTS = (slice(0, 2), slice(2, 4))


@pytest.fixture(scope="module")
def config(one_layer):
    return one_layer


@pytest.fixture(scope="module")
def base(config):
    return init_params(jax.random.key(0), config)


@pytest.fixture(scope="module")
def owned(base):
    """Three experts that do something, as a stack."""
    made = [ex.init_expert("bottleneck", jax.random.key(seed), base, {"width": 4}) for seed in (1, 2, 3)]
    return jax.tree.map(np.asarray, step.stack([jax.tree.map(lambda leaf: leaf * 3, tree) for tree in made]))


def rows(*, prompts=PROMPTS, targets=TARGETS, share=1 / TOKENS, seeds=0):
    return Rows(
        prompts,
        np.where(prompts > 0, PROMPT_SEGMENTS, 0),
        targets,
        TARGET_SEGMENTS.copy(),
        SLOT,
        share[SLOT].astype(np.float32),
        np.full(SLOT.shape, seeds, np.uint32) + np.arange(8, dtype=np.uint32).reshape(4, 2),
    )


def select_rows(part):
    """Some of the rows; a field that this loss does without stays away."""
    return Rows(*(None if field is None else field[part] for field in rows()))


def update(rate=(1e-3, 1e-3, 1e-3), active=(1, 1, 1), at=0):
    return SlotUpdates(np.array(rate, np.float32), np.array(active, bool), np.array([5, 6, 7], np.int32) + at)


@pytest.fixture(scope="module")
def accumulate(config, base):
    """Adds batches to accumulator, new ones where none are given; the accumulator are on the host."""

    def accumulate(params, *batches, accumulator=None, **other):
        run = step.accumulate(replace(config, **other), "bottleneck", LOSS)
        accumulator = step.zero_accumulator(params) if accumulator is None else accumulator
        for batch in batches:
            accumulator = run(params, base, batch, jax.tree.map(jnp.array, accumulator))
        return host(accumulator)

    return accumulate


OPTIMIZER = optimizers.make_optimizer(OptimizerConfig())


def apply_update(state, accumulator, moving):
    """Moves copies of what is given, which the program takes for itself."""
    state, accumulator = jax.tree.map(jnp.array, (state, accumulator))
    return host(step.apply_update(OPTIMIZER)(state, accumulator, moving))


def host(tree):
    return jax.tree.map(np.asarray, tree)


@pytest.fixture(scope="module")
def start(owned):
    return host(step.initial_state(owned, OPTIMIZER))


@pytest.fixture(scope="module")
def accumulator(owned, accumulate):
    return accumulate(owned, rows())


def of(tree, index):
    return [leaf[index] for leaf in jax.tree.leaves(tree)]


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def assert_close(found, wanted, rtol=1e-5):
    for one, same in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, same, rtol=rtol, atol=rtol * np.abs(same).max())


def test_losses_and_gradients_of_every_expert_are_its_own_on_its_own_examples_each_in_a_row(
    config, base, owned, accumulator
):
    """The mean over all real target tokens of an expert's examples, none of them packed."""

    @jax.jit
    def own(expert, prompts, targets):
        def loss(expert):
            logits = T5(config).apply({"params": base}, prompts, targets[:, None], expert)
            losses = token_losses(jnp.asarray(logits)[:, 0], targets, LOSS)
            return losses.sum() / (targets > 0).sum()

        return jax.value_and_grad(loss)(expert)

    for number in range(3):
        chosen = [(row, segment) for row, segment in np.ndindex(4, 2) if SLOT[row, segment] == number]
        prompts, targets = np.zeros((len(chosen), 8), np.int32), np.zeros((len(chosen), 6), np.int32)
        for at, (row, segment) in enumerate(chosen):
            for into, tokens, ids in (
                (prompts, PROMPTS, PROMPT_SEGMENTS),
                (targets, TARGETS, TARGET_SEGMENTS),
            ):
                found = tokens[row][ids[row] == segment + 1]
                into[at, : len(found)] = found
        assert (targets > 0).sum() == TOKENS[number]
        loss, gradient = own(jax.tree.map(lambda leaf, at=number: leaf[at], owned), prompts, targets)
        np.testing.assert_allclose(accumulator.loss[number], loss, rtol=1e-5)
        assert_close(of(accumulator.gradient, number), jax.tree.leaves(gradient))


def test_sums_gathered_over_several_batches_equal_those_of_one(owned, accumulate, accumulator):
    parts = [select_rows(part) for part in PARTS]
    for order in (parts, parts[::-1]):
        assert_close(accumulate(owned, *order), accumulator)
    assert np.abs(accumulate(owned, parts[0]).loss - accumulator.loss).min() > 0.1


def test_rows_folded_for_their_targets_give_the_losses_and_gradients_of_rows_apart(owned, accumulate):
    apart = rows(seeds=7)
    on = np.where(apart.target_segments > 0, apart.target_segments + np.array([[0], [2], [0], [2]]), 0)
    folded = apart._replace(
        targets=apart.targets.reshape(2, 12), target_segments=on.reshape(2, 12).astype(np.int32)
    )
    found, wanted = (accumulate(owned, each, dropout_rate=0.2) for each in (folded, apart))
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), found, wanted)


def test_a_slot_without_rows_in_a_batch_gets_nothing(owned, accumulate):
    found = accumulate(owned, select_rows(slice(1)))  # of experts 0 and 1
    assert found.loss[2] == 0 != found.loss[0]
    assert not any(leaf.any() for leaf in of(found.gradient, 2))


def test_an_expert_that_is_not_active_keeps_sums_parameters_and_moments_bit_for_bit(
    owned, start, accumulate, accumulator
):
    before, _, _ = apply_update(start, accumulator, update())
    again = accumulate(owned, rows())
    after, rest, loss = apply_update(before, again, update(active=(1, 0, 1), rate=(1e-3, np.nan, 1e-3)))
    assert equal(of(after, 1), of(before, 1))
    assert equal(of(rest, 1), of(again, 1))
    np.testing.assert_array_equal(loss, again.loss)
    for number in (0, 2):
        assert not equal(of(after.params, number), of(before.params, number))
        assert not any(leaf.any() for leaf in of(rest, number))


@pytest.mark.parametrize("sizes", [{}, {"expert": 3}], ids=["one device", "mesh"])
@pytest.mark.parametrize("active", [(1, 0, 1, 0, 0, 1), (0, 0, 0, 0, 0, 0), (1, 1, 1, 1, 1, 1)])
def test_the_update_for_tpus_moves_the_same_experts_in_the_same_way(
    start, accumulator, sizes, active, monkeypatch
):
    """It takes those that are active one after the other, on each part of a mesh its own."""
    state, sums = jax.tree.map(lambda leaf: np.concatenate([leaf, 2 * leaf]), (start, accumulator))
    state = state._replace(stopped=np.array([ALL_FINITE, ALL_FINITE, 3, ALL_FINITE, 4, ALL_FINITE], np.int32))
    moving = SlotUpdates(
        np.linspace(1e-3, 6e-3, 6).astype(np.float32), np.array(active, bool), np.arange(6, dtype=np.int32)
    )
    wanted = apply_update(state, sums, moving)
    monkeypatch.setattr(program, "COMPILER_OPTIONS", {})  # which a CPU's compiler does not know
    run = step.apply_update.__wrapped__(OPTIMIZER, platform="tpu")
    state, sums = jax.tree.map(jnp.array, (state, sums))
    if sizes:
        mesh = meshes.make_mesh(jax.devices()[:3], **sizes)
        state, sums = jax.device_put(
            (state, sums), sharding.param_shardings(mesh, (state, sums), experts=True)
        )
    assert_close(host(run(state, sums, moving)), wanted)


def test_rows_rate_and_parameters_of_one_expert_do_not_reach_its_neighbours(owned, start, accumulate):
    segments = SLOT == 1
    of_one = np.take_along_axis(segments, np.maximum(PROMPT_SEGMENTS - 1, 0), axis=1)
    prompts = np.where(of_one & (PROMPTS > 0), 40, PROMPTS).astype(np.int32)
    own = np.take_along_axis(segments, np.maximum(TARGET_SEGMENTS - 1, 0), axis=1)
    targets = np.where(own & (TARGETS > 0), 41, TARGETS).astype(np.int32)
    swapped = jax.tree.map(lambda leaf: leaf[[0, 0, 2]], owned)
    plain, _, plain_loss = apply_update(start, accumulate(owned, rows()), update())
    found, _, loss = apply_update(
        host(step.initial_state(swapped, OPTIMIZER)),
        accumulate(swapped, rows(prompts=prompts, targets=targets, share=np.array([1 / 9, 3.0, 1 / 6]))),
        update(rate=(1e-3, 0.5, 1e-3)),
    )
    for number in (0, 2):
        np.testing.assert_allclose(loss[number], plain_loss[number], rtol=1e-6)
        assert_close(of(found.params, number), of(plain.params, number), rtol=1e-6)
    assert abs(loss[1] - plain_loss[1]) > 1
    assert not equal(of(found.params, 1), of(plain.params, 1))


def test_an_update_is_the_direction_times_the_experts_own_learning_rate(owned, accumulator):
    same, alike = (jax.tree.map(lambda leaf: leaf[[0, 0, 0]], tree) for tree in (owned, accumulator))
    after, _, _ = apply_update(
        host(step.initial_state(same, OPTIMIZER)), alike, update(rate=(1e-3, 4e-3, 0.0))
    )
    for begun, slow, fast, still in zip(
        of(owned, 0), *(of(after.params, number) for number in range(3)), strict=True
    ):
        np.testing.assert_allclose(fast - begun, 4 * (slow - begun), rtol=1e-3, atol=1e-6)
        np.testing.assert_array_equal(still, begun)


def test_the_first_move_of_adam_is_its_rate_against_the_sign_of_the_gradient(start, accumulator):
    after, _, _ = apply_update(start, accumulator, update(rate=(1e-3, 2e-3, 4e-3)))
    norms = [
        np.sqrt(sum((leaf**2).sum() for leaf in of(accumulator.gradient, number))) for number in range(3)
    ]
    for number, rate in enumerate((1e-3, 2e-3, 4e-3)):
        clip = min(1, 1 / norms[number])
        for found, begun, gradient in zip(
            of(after.params, number), of(start.params, number), of(accumulator.gradient, number), strict=True
        ):
            wanted = begun - rate * clip * gradient / (clip * np.abs(gradient) + 1e-8)
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_targets_of_padding_alone_move_nothing(owned, start, accumulate):
    own = np.take_along_axis(SLOT == 1, np.maximum(TARGET_SEGMENTS - 1, 0), axis=1)
    found = accumulate(owned, rows(targets=np.where(own, 0, TARGETS).astype(np.int32)))
    after, _, loss = apply_update(start, found, update())
    assert loss[1] == 0
    assert equal(of(after.params, 1), of(owned, 1))


def broken(accumulator, number, *, loss=np.nan, gradient=0.0):
    """Returns accumulator whose loss or gradient of one expert is not finite."""
    gradients = jax.tree.map(np.copy, accumulator.gradient)
    jax.tree.leaves(gradients)[0][number] += gradient
    losses = accumulator.loss.copy()
    losses[number] += loss
    return step.GradAccumulator(gradients, losses)


@pytest.mark.parametrize("how", [{"loss": np.nan}, {"loss": 0.0, "gradient": np.inf}])
def test_an_expert_whose_loss_or_gradient_is_not_finite_stops_at_its_step_and_its_neighbours_go_on(
    start, accumulator, how
):
    wanted, _, _ = apply_update(start, accumulator, update())
    found, rest, loss = apply_update(start, broken(accumulator, 1, **how), update())
    assert found.stopped.tolist() == [ALL_FINITE, 6, ALL_FINITE]
    assert equal(of(found._replace(stopped=start.stopped), 1), of(start, 1))
    assert np.isfinite(loss[1]) == ("gradient" in how)
    assert not any(leaf.any() for leaf in jax.tree.leaves(rest))
    for number in (0, 2):
        assert equal(of(found, number), of(wanted, number))


def test_an_expert_that_stopped_stays_where_it_is_whatever_comes_after(start, accumulator):
    stopped, _, _ = apply_update(start, broken(accumulator, 1), update())
    for next_one in (accumulator, broken(accumulator, 1)):
        again, rest, _ = apply_update(stopped, next_one, update(at=10))
        assert equal(of(again, 1), of(stopped, 1))
        assert not any(leaf.any() for leaf in of(rest, 1))
        assert not equal(of(again.params, 0), of(stopped.params, 0))


def test_an_expert_that_waits_for_the_rest_of_its_step_is_not_stopped_by_sums_that_are_not_finite(
    start, accumulator
):
    held, _, _ = apply_update(start, broken(accumulator, 1), update(active=(1, 0, 1)))
    assert held.stopped.tolist() == [ALL_FINITE] * 3


@pytest.fixture(params=["cpu", "tpu"])
def accumulate_for(request, config, base, monkeypatch):
    """Adds a batch to zeros by the program for a platform."""
    monkeypatch.setattr(program, "COMPILER_OPTIONS", {})  # which a CPU's compiler does not know
    run = step.accumulate.__wrapped__(config, "bottleneck", LOSS, platform=request.param)
    return lambda params, batch: host(run(params, base, batch, step.zero_accumulator(params)))


def test_what_is_not_finite_in_a_row_stops_its_expert_and_none_that_shares_no_row_with_it(
    owned, accumulate_for
):
    far = jax.tree.map(np.copy, owned)
    far["decoder"]["decoder_norm"]["scale"][1] = np.inf
    batch = rows()._replace(slot=np.array([[0, 0], [2, 0], [1, 1], [0, 2]], np.int32))
    # The row has one example and room for two: what is left is its own expert's too.
    for segments in (batch.prompt_segments, batch.target_segments):
        segments[2] = np.minimum(segments[2], 1)
    found, wanted = accumulate_for(far, batch), accumulate_for(owned, batch)
    assert np.isfinite(found.loss).tolist() == [True, False, True]
    after, _, _ = apply_update(host(step.initial_state(far, OPTIMIZER)), found, update())
    assert after.stopped.tolist() == [ALL_FINITE, 6, ALL_FINITE]
    for number in (0, 2):
        assert_close(of(found, number), of(wanted, number))


def test_the_base_stays_bit_for_bit(base, owned, start, accumulate):
    before = host(base)
    state = start
    for _ in range(3):
        state, _, _ = apply_update(state, accumulate(state.params, rows()), update(rate=(0.1, 0.1, 0.1)))
    assert jax.tree.all(jax.tree.map(np.array_equal, base, before))


def test_the_loss_falls_on_rows_seen_again(start, accumulate):
    state, losses = start, []
    for _ in range(20):
        state, _, loss = apply_update(
            state, accumulate(state.params, rows()), update(rate=(0.01, 0.01, 0.01))
        )
        losses.append(loss)
    assert (losses[-1] < losses[0] - 0.3).all()


def test_every_batch_of_a_shape_runs_the_programs_of_the_first(config, owned, start, accumulate, accumulator):
    apply_update(start, accumulator, update())
    compiled = step.accumulate(config, "bottleneck", LOSS), step.apply_update(OPTIMIZER)
    programs = [each._cache_size() for each in compiled]  # pyright: ignore[reportFunctionMemberAccess]
    assert min(programs) > 0
    turned = rows()._replace(slot=SLOT[::-1].copy())
    found = accumulate(jax.tree.map(lambda leaf: leaf[::-1].copy(), owned), turned, rows(seeds=9))
    apply_update(start, found, update(rate=(0.0, 1.0, 2.0), active=(0, 1, 0), at=3))
    assert [each._cache_size() for each in compiled] == programs  # pyright: ignore[reportFunctionMemberAccess]


def test_dropout_is_a_function_of_the_seeds(owned, accumulate, accumulator):
    one, same, other = (accumulate(owned, rows(seeds=seed), dropout_rate=0.3) for seed in (1, 1, 20))
    assert equal(jax.tree.leaves(one), jax.tree.leaves(same))
    assert np.abs(one.loss - other.loss).min() > 1e-3
    assert np.abs(one.loss - accumulator.loss).min() > 1e-3


def test_seeds_of_one_example_reach_its_own_expert_alone(owned, accumulate):
    plain, changed = rows(), rows()
    changed.seeds[0, 1] += 100  # of expert 1
    before, after = (accumulate(owned, batch, dropout_rate=0.3) for batch in (plain, changed))
    assert abs(before.loss[1] - after.loss[1]) > 1e-4
    for number in (0, 2):
        np.testing.assert_allclose(after.loss[number], before.loss[number], rtol=1e-6)
        assert_close(of(after.gradient, number), of(before.gradient, number))


def test_evaluation_has_no_dropout_no_z_loss_and_no_label_smoothing(config, base, owned):
    wanted = step.accumulate(config, "bottleneck")(owned, base, rows(), step.zero_accumulator(owned)).loss
    run = step.evaluate(replace(config, dropout_rate=0.5), "bottleneck")
    found = run(owned, base, rows(), np.zeros(3, np.float32))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    np.testing.assert_allclose(run(owned, base, rows(seeds=9), found), 2 * np.asarray(wanted), rtol=1e-6)


def test_seeds_depend_on_the_experts_seed_and_step_alone():
    assert step.dropout_seeds(6, 3, 4).tolist() == step.dropout_seeds(6, 3, 4).tolist()
    assert step.dropout_seeds(6, 3, 2).tolist() == step.dropout_seeds(6, 3, 4)[:2].tolist()
    drawn = [step.dropout_seeds(seed, at, 4) for seed in (1, 2) for at in (1, 2)]
    assert all(each.dtype == np.uint32 for each in drawn)
    assert len(set(np.concatenate(drawn).tolist())) == 16


def test_fresh_experts_depend_on_their_own_seed_alone_and_are_those_of_the_kind(base):
    begin = step.init("bottleneck", (("width", 4),), OPTIMIZER)
    three, one = begin(np.array([7, 8, 9], np.uint32), base), begin(np.array([8], np.uint32), base)
    assert_close(of(three, 1), of(one, 0), rtol=1e-6)
    wanted = ex.init_expert("bottleneck", jax.random.key(8), base, {"width": 4})
    assert_close(of(one.params, 0), jax.tree.leaves(wanted), rtol=1e-6)
    assert three.stopped.tolist() == [ALL_FINITE] * 3


def test_an_expert_put_into_a_slot_is_taken_out_of_it_and_its_neighbours_stay():
    tree = {"a": {"b": np.arange(12.0).reshape(3, 4)}, "c": np.array([1, 2, 3])}
    one = {"a": {"b": np.full((1, 4), -1.0)}, "c": np.array([9])}
    found = step.put_slot(jax.tree.map(jnp.asarray, tree), np.int32(1), one)
    assert found["c"].tolist() == [1, 9, 3]
    assert found["a"]["b"][:, 0].tolist() == [0, -1, 8]
    taken = step.take_slot(found, np.int32(1))
    assert jax.tree.all(jax.tree.map(np.array_equal, taken, one))


def test_a_stack_has_every_tree_in_its_order():
    trees: list[Params] = [{"a": {"b": jnp.arange(3.0) + at}, "c": jnp.full((2, 2), at)} for at in range(3)]
    stacked = step.stack(trees)
    assert stacked["a"]["b"].shape == (3, 3)
    for at, tree in enumerate(trees):
        assert jax.tree.all(
            jax.tree.map(lambda leaf, one, at=at: np.array_equal(leaf[at], one), stacked, tree)
        )


@pytest.mark.parametrize("moving", [update(), update(active=(1, 0, 1))], ids=["all", "not all"])
def test_a_step_of_one_batch_is_its_gradient_and_the_update_in_one(config, base, start, moving):
    network, batch = replace(config, dropout_rate=0.2), rows(seeds=7)
    state, zero = jax.tree.map(jnp.array, (start, step.zero_accumulator(start.params)))
    sums = step.accumulate(network, "bottleneck", LOSS)(state.params, base, batch, zero)
    wanted, _, loss = apply_update(start, host(sums), moving)
    found, own = step.train_step(network, "bottleneck", OPTIMIZER, LOSS)(state, base, batch, moving)
    assert_close((found, own), (wanted, loss))
    assert equal(of(found.params, 1), of(start.params, 1)) == (not moving.active[1])


def test_a_step_of_one_batch_whose_loss_is_not_finite_moves_nothing_of_that_expert(config, base, start):
    share = 1 / TOKENS * np.array([1, np.inf, 1])
    state = jax.tree.map(jnp.array, start)
    run = step.train_step(config, "bottleneck", OPTIMIZER, LOSS)
    found, _ = run(state, base, rows(share=share), update())
    assert np.asarray(found.stopped)[1] == update().step[1]
    assert equal(of(found.params, 1), of(start.params, 1))
