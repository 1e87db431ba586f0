"""Likelihood: scores are the network's own log-probabilities, and experts are swapped without compiling."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from elm_jax.models import experts as ex
from elm_jax.models.t5 import T5, init_params
from elm_jax.scoring import likelihood
from elm_jax.training.step import stack

RNG = np.random.default_rng(2)
PROMPTS = RNG.integers(3, 96, (4, 8)).astype(np.int32)
ANSWERS = RNG.integers(3, 96, (4, 3, 3)).astype(np.int32)
ANSWERS[1, :, 2] = ANSWERS[2, 0, 1:] = 0
REAL = np.array([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 0, 0]], bool)


@pytest.fixture(scope="module")
def config(config):
    """One layer a stack: what the layers do is asked in tests of the network."""
    return replace(config, num_encoder_layers=1, num_decoder_layers=1)


@pytest.fixture(scope="module")
def base(config):
    return init_params(jax.random.key(0), config)


@pytest.fixture(scope="module")
def experts(base):
    """Three experts whose adapters are large enough to change every score."""
    made = [ex.init_bottleneck(jax.random.key(seed), base, width=4) for seed in (1, 2, 3)]
    return [jax.tree.map(lambda leaf, by=1.5 + seed: leaf * by, tree) for seed, tree in enumerate(made)]


@pytest.fixture(scope="module")
def score(config, base):
    return lambda *rest: np.asarray(likelihood.compiled(config)(base, PROMPTS, ANSWERS, REAL, *rest))


def test_a_score_is_the_summed_log_softmax_of_the_choices_tokens(config, base, score, experts):
    logits = jax.jit(lambda expert: T5(config).apply({"params": base}, PROMPTS, ANSWERS, expert))(experts[0])
    logp = np.asarray(jax.nn.log_softmax(logits))
    found = score(experts[0])
    for row, choice in zip(*np.nonzero(REAL), strict=True):
        real = [token for token in ANSWERS[row, choice] if token]
        by_hand = sum(logp[row, choice, place, token] for place, token in enumerate(real))
        np.testing.assert_allclose(found[row, choice], by_hand, rtol=1e-5)


def test_choices_that_only_fill_get_minus_infinity_and_all_others_are_finite(score, experts):
    found = score(experts[1])
    assert np.isneginf(found[~REAL]).all()
    assert np.isfinite(found[REAL]).all()


def test_a_row_of_padding_alone_gives_finite_numbers(config, base):
    empty = np.zeros_like(PROMPTS), np.zeros_like(ANSWERS), REAL
    assert np.isfinite(np.asarray(likelihood.compiled(config)(base, *empty))[REAL]).all()


def test_swapping_one_expert_for_another_compiles_nothing(config, base, score, experts):
    first = score(experts[0])
    compiled = likelihood.compiled(config)._cache_size()
    assert compiled > 0
    second = score(experts[1])
    score(ex.neutral(experts[2], base))
    assert likelihood.compiled(config)._cache_size() == compiled
    assert np.abs(first[REAL] - second[REAL]).min() > 1e-3


def test_swapping_the_stack_or_the_expert_of_a_row_compiles_nothing(config, base, score, experts):
    first = score(stack(experts), np.array([0, 1, 2, 0], np.int32))
    compiled = likelihood.compiled(config)._cache_size()
    second = score(stack(experts[::-1]), np.array([2, 1, 0, 2], np.int32))
    other = score(stack(experts), np.array([1, 2, 0, 1], np.int32))
    assert likelihood.compiled(config)._cache_size() == compiled
    np.testing.assert_allclose(first, second, rtol=1e-5)
    assert np.abs(first[REAL] - other[REAL]).min() > 1e-3


def test_one_function_serves_every_caller_of_one_shape_of_network(config):
    assert likelihood.compiled(config) is likelihood.compiled(type(config)(**vars(config)))
