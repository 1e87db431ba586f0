"""Likelihood: edges are the network's own log-probabilities, and experts are swapped without compiling."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from elm_jax.models import expert_layers as ex
from elm_jax.models.t5 import T5, init_params
from elm_jax.scoring import buckets, likelihood
from elm_jax.training.step import stack

RNG = np.random.default_rng(2)
PROMPTS = RNG.integers(3, 96, (4, 8)).astype(np.int32)
PROMPTS[2, 5:] = 0
# Choices that share a beginning, that begin one another, and one alone.
ANSWERS = [[[7, 8, 1], [7, 9, 1], [7, 8, 8, 1]], [[5], [5, 6]], [[7, 1], [9, 1]], [[60, 61, 62, 63]]]


@pytest.fixture(scope="module")
def config(config):
    """One layer a stack: what the layers do is asked in tests of the network."""
    return replace(config, vocab_size=96, num_encoder_layers=1, num_decoder_layers=1)


@pytest.fixture(scope="module")
def base(config):
    return init_params(jax.random.key(0), config)


@pytest.fixture(scope="module")
def experts(base):
    """Three experts whose adapters are large enough to change every score."""
    made = [ex.init_expert("bottleneck", jax.random.key(seed), base, {"width": 4}) for seed in (1, 2, 3)]
    return [jax.tree.map(lambda leaf, by=1.5 + seed: leaf * by, tree) for seed, tree in enumerate(made)]


@pytest.fixture(scope="module")
def laid():
    rows = [
        buckets.PromptWithChoices(prompt[prompt > 0], answers)
        for prompt, answers in zip(PROMPTS, ANSWERS, strict=True)
    ]
    found = buckets.group_by_prompt(rows)
    return buckets.pack_tries(found, buckets.BucketShape(8, 8, 8)), found


@pytest.fixture(scope="module")
def score(config, base, laid):
    batch, _ = laid[0]
    return lambda *rest: np.asarray(likelihood.compiled_scorer(config, "cpu")(base, batch, *rest).logp)


def real_edges(found, laid):
    return [found[place, : len(item.trie.edge_tokens)] for place, item in enumerate(laid[1])]


def test_an_edge_is_the_log_softmax_of_its_token_after_its_beginning(config, base, score, experts, laid):
    network = jax.jit(
        lambda prompt, answer, expert: T5(config).apply({"params": base}, prompt, answer, expert)
    )
    found = score(experts[0])
    for place, answers in enumerate(ANSWERS):
        for answer, path in zip(answers, laid[1][place].trie.paths, strict=True):
            padded = np.pad(answer, (0, 4 - len(answer)))[None, None].astype(np.int32)
            logp = jax.nn.log_softmax(network(PROMPTS[place : place + 1], padded, experts[0]))[0, 0]
            by_hand = np.asarray(logp)[np.arange(len(answer)), answer]
            np.testing.assert_allclose(found[place, path], by_hand, atol=1e-5)


def test_the_output_layer_taken_in_parts_gives_the_same(config, base, score, laid, monkeypatch):
    whole = score()
    monkeypatch.setattr(likelihood, "LOGITS_AT_ONCE", 0)  # 64 nodes at a time, of 8 rows of 32
    batch, _ = buckets.pack_tries([*laid[1], *laid[1]], buckets.BucketShape(8, 32, 8))
    parts = np.asarray(jax.jit(lambda batch: likelihood.score_edges(config, base, batch).logp)(batch))
    for first, second in ((0, 4), (4, 8)):
        for ours, theirs in zip(real_edges(parts[first:second], laid), real_edges(whole, laid), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_no_array_of_all_tokens_by_all_words_is_ever_made(config, base):
    wide = replace(config, vocab_size=40_000)
    params = jax.eval_shape(lambda: init_params(jax.random.key(0), wide))
    rows, nodes = 64, 16
    batch = buckets.ScoringBatch(
        *(np.zeros(shape, np.int32) for shape in [(rows, 8), (rows, nodes), (rows, nodes)]),
        *(np.zeros(shape, bool) for shape in [(rows, nodes, nodes), (rows, nodes)]),
        *(np.zeros((rows, 16), np.int32) for _ in range(2)),
    )
    lowered = jax.jit(lambda params, batch: likelihood.score_edges(wide, params, batch)).lower(params, batch)
    assert f"{rows * nodes}x40000" not in lowered.as_text()
    assert f"{2**23 // 40_000}x40000" in lowered.as_text()


def test_padding_of_a_batch_gives_finite_numbers(score):
    assert np.isfinite(score()).all()


def test_swapping_one_expert_for_another_compiles_nothing(config, base, score, experts, laid):
    first = score(experts[0])
    compiled = likelihood.compiled_scorer(config, "cpu")._cache_size()
    assert compiled > 0
    second = score(experts[1])
    score(ex.make_neutral_expert(experts[2], base))
    assert likelihood.compiled_scorer(config, "cpu")._cache_size() == compiled
    for ours, theirs in zip(real_edges(first, laid), real_edges(second, laid), strict=True):
        assert np.abs(ours - theirs).min() > 1e-4


def test_swapping_the_stack_or_the_expert_of_a_row_compiles_nothing(config, score, experts, laid):
    first = score(stack(experts), np.array([0, 1, 2, 0], np.int32))
    compiled = likelihood.compiled_scorer(config, "cpu")._cache_size()
    second = score(stack(experts[::-1]), np.array([2, 1, 0, 2], np.int32))
    other = score(stack(experts), np.array([1, 2, 0, 1], np.int32))
    assert likelihood.compiled_scorer(config, "cpu")._cache_size() == compiled
    for same, again, changed in zip(
        *(real_edges(each, laid) for each in (first, second, other)), strict=True
    ):
        np.testing.assert_allclose(same, again, rtol=1e-5)
        assert np.abs(same - changed).min() > 1e-4


def test_one_function_serves_every_caller_of_one_shape_of_network(config):
    assert likelihood.compiled_scorer(config, "cpu") is likelihood.compiled_scorer(
        type(config)(**vars(config)), "cpu"
    )
