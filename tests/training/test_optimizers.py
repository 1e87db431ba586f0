"""Optimisers and schedules: their first steps by hand, and where they end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elm_jax.errors import UserError
from elm_jax.training import optimizers
from elm_jax.training.config import OptimizerConfig, ScheduleConfig


def directions(optimizer, *gradients, params=None):
    params = params or gradients[0]
    update = jax.jit(optimizer.update)
    state, found = optimizer.init(params), []
    for gradient in gradients:
        direction, state = update(gradient, state, params)
        found.append(direction)
    return found


def scalar(value):
    return {"w": jnp.array([value])}


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_the_first_direction_is_the_sign_of_the_gradient(name):
    gradient = {"a": jnp.array([0.03, -0.02]), "b": jnp.array([[-0.04]])}
    (found,) = directions(optimizers.make_optimizer(OptimizerConfig(name)), gradient)
    np.testing.assert_allclose(found["a"], [1, -1], atol=1e-5)
    np.testing.assert_allclose(found["b"], [[-1]], atol=1e-5)


def test_adamw_steps_as_adam_does():
    # m = 0.1 g1, then 0.9 m + 0.1 g2; v alike with 0.999; both divided by 1 - b^t.
    second = directions(optimizers.adamw(OptimizerConfig()), scalar(0.2), scalar(0.4))[1]
    m = (0.9 * 0.1 * 0.2 + 0.1 * 0.4) / (1 - 0.9**2)
    v = (0.999 * 0.001 * 0.2**2 + 0.001 * 0.4**2) / (1 - 0.999**2)
    np.testing.assert_allclose(second["w"], m / np.sqrt(v), rtol=1e-4)


@pytest.mark.parametrize(("name", "norm"), [("adamw", 1.0), ("adafactor", 0.5)])
def test_a_gradient_longer_than_the_clip_counts_as_one_of_that_norm(name, norm):
    # Their directions do not depend on a gradient's length, but on its length next to the one before.
    optimizer = optimizers.make_optimizer(OptimizerConfig(name))
    clipped = directions(optimizer, scalar(100.0), scalar(norm / 2))[1]
    by_hand = directions(optimizer, scalar(norm), scalar(norm / 2))[1]
    unclipped = directions(optimizer, scalar(norm / 2), scalar(norm / 2))[1]
    np.testing.assert_allclose(clipped["w"], by_hand["w"], rtol=1e-5)
    assert abs(float(unclipped["w"][0] - clipped["w"][0])) > 0.05


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_a_factor_in_a_parameter_trains_as_the_factor_in_the_network(name):
    """The same LoRA three steps on, with alpha / r where the paper has it and where we do."""
    rng, factor = np.random.default_rng(0), 2.5
    a, x, y = (jnp.asarray(rng.normal(size=shape)) for shape in ((4, 2), (6, 4), (6, 3)))
    optimizer = optimizers.make_optimizer(OptimizerConfig(name))
    ours = optimizers.optimize_scaled_params(optimizer, (("lora_b", factor),))

    def train(optimizer, scale, b):
        params = {"p": {"lora_a": a, "lora_b": b}}
        loss = lambda own: (((x @ own["p"]["lora_a"]) @ own["p"]["lora_b"] * scale - y) ** 2).sum()  # noqa: E731
        state = optimizer.init(params)
        for _ in range(3):
            direction, state = optimizer.update(jax.grad(loss)(params), state, params)
            params = jax.tree.map(lambda leaf, d: leaf - 0.1 * d, params, direction)
        return params["p"]

    start = jnp.asarray(rng.normal(size=(2, 3)))
    theirs, found = train(optimizer, factor, start), train(ours, 1.0, factor * start)
    np.testing.assert_allclose(found["lora_a"], theirs["lora_a"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["lora_b"], factor * theirs["lora_b"], rtol=1e-4, atol=1e-5)
    assert optimizers.optimize_scaled_params(optimizer, ()) is optimizer


def test_the_clip_is_of_the_norm_over_all_leaves_together():
    # (30, 40) has norm 50: it counts as (0.6, 0.8), so a second (0.6, 0.8) leaves Adam's direction at 1.
    big, small = ({"a": jnp.array([3.0 * s]), "b": jnp.array([4.0 * s])} for s in (10.0, 0.2))
    second = directions(optimizers.adamw(OptimizerConfig()), big, small)[1]
    np.testing.assert_allclose([second["a"][0], second["b"][0]], 1, atol=1e-5)


def test_a_gradient_of_zero_gives_a_finite_direction():
    for name in optimizers.OPTIMIZERS:
        (found,) = directions(optimizers.make_optimizer(OptimizerConfig(name)), scalar(0.0))
        assert np.isfinite(found["w"]).all(), name


def test_linear_rises_over_the_warmup_and_falls_to_zero_at_the_end():
    rates = [
        optimizers.linear(step, ScheduleConfig(steps=8, learning_rate=1.0, warmup=4)) for step in range(10)
    ]
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]


def test_constant_rises_over_the_warmup_stays_and_ends():
    rates = [
        optimizers.constant(step, ScheduleConfig(steps=5, learning_rate=0.5, warmup=2)) for step in range(7)
    ]
    assert rates == [0.25, 0.5, 0.5, 0.5, 0.5, 0.0, 0.0]
    assert [optimizers.constant(step, ScheduleConfig(steps=2, learning_rate=0.5)) for step in range(3)] == [
        0.5,
        0.5,
        0.0,
    ]


@settings(deadline=None)
@given(
    name=st.sampled_from(sorted(optimizers.SCHEDULES)),
    steps=st.integers(1, 50),
    warmup=st.integers(0, 60),
    step=st.integers(0, 120),
)
def test_a_rate_is_between_zero_and_the_highest_and_zero_only_after_the_end(name, steps, warmup, step):
    rate = optimizers.learning_rate_at(ScheduleConfig(steps, None, 0.5, warmup, name), step)
    assert 0 <= rate <= 0.5
    assert (rate == 0) == (step >= steps)


def test_the_same_configuration_gives_the_same_object():
    make, one = optimizers.make_optimizer, OptimizerConfig(clip=0.8)
    assert make(one) is make(OptimizerConfig(clip=0.8))
    assert make(one) is not make(OptimizerConfig())


def test_an_unknown_name_is_refused_with_the_nearest_one():
    with pytest.raises(UserError, match=r"'adam'.*'adamw'"):
        optimizers.make_optimizer(OptimizerConfig("adam"))
    with pytest.raises(UserError, match=r"'lineer'.*'linear'"):
        optimizers.require_schedule(ScheduleConfig(name="lineer"))
