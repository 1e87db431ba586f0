"""Scores of answer choices that come as padded arrays: their sums, their experts, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elm_jax
from elm_jax.errors import UserError
from elm_jax.models.t5 import T5
from elm_jax.records import Expert, ExpertSpec
from elm_jax.weights import base_model

RNG = np.random.default_rng(0)
PROMPTS = RNG.integers(3, 48, (3, 6))
PROMPTS[1, 4:] = 0
ANSWERS = RNG.integers(3, 48, (3, 2, 4))
ANSWERS[0, 1, 2:] = 0
ANSWERS[2, 0, 1:] = 0


@pytest.fixture(scope="module")
def model(config, base):
    return base_model.make_base(config, base)


@pytest.fixture(scope="module")
def plain(config):
    """The scores by the definition: log-softmax at every real token, summed."""
    run = jax.jit(lambda params, *rest: T5(config).apply({"params": params}, *rest))

    def scores(params, expert=None):
        logits = run(params, PROMPTS.astype(np.int32), ANSWERS.astype(np.int32), expert)
        logp = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), ANSWERS[..., None], axis=-1)[..., 0]
        return np.where(ANSWERS > 0, logp, 0).sum(axis=-1)

    return scores


def test_scores_are_sums_over_the_real_tokens(model, plain):
    found = elm_jax.score_choices(model, PROMPTS, ANSWERS)
    assert (found.shape, found.dtype) == ((3, 2), np.float32)
    np.testing.assert_allclose(found, plain(model.params), rtol=1e-5)


def test_padding_and_the_kind_of_array_change_no_score(model):
    prompts = jnp.asarray(np.pad(PROMPTS, ((0, 0), (0, 3))), jnp.int32)
    answers = jnp.asarray(np.pad(ANSWERS, ((0, 0), (0, 0), (0, 2))), jnp.int32)
    found = elm_jax.score_choices(model, prompts, answers)
    np.testing.assert_allclose(found, elm_jax.score_choices(model, PROMPTS, ANSWERS), rtol=1e-5)


def test_an_answer_of_padding_alone_is_never_the_best(model):
    answers = np.concatenate([ANSWERS, np.zeros_like(ANSWERS[:, :1])], axis=1)
    answers[1] = 0
    found = elm_jax.score_choices(model, PROMPTS, answers)
    np.testing.assert_array_equal(found[:, 2], -np.inf)
    np.testing.assert_array_equal(found[1], -np.inf)
    np.testing.assert_allclose(
        found[[0, 2], :2], elm_jax.score_choices(model, PROMPTS, ANSWERS)[[0, 2]], rtol=1e-5
    )


def test_no_rows_give_no_scores(model):
    assert elm_jax.score_choices(model, PROMPTS[:0], ANSWERS[:0]).shape == (0, 2)


def test_an_expert_scores_as_a_tree_and_as_a_record(model, experts, plain):
    wanted = plain(model.params, experts[0])
    assert np.abs(wanted - plain(model.params)).max() > 1e-2
    np.testing.assert_allclose(elm_jax.score_choices(model, PROMPTS, ANSWERS, experts[0]), wanted, rtol=1e-4)
    record = Expert(spec("bottleneck", model.fingerprint), experts[0])
    np.testing.assert_allclose(elm_jax.score_choices(model, PROMPTS, ANSWERS, record), wanted, rtol=1e-4)


def test_a_full_expert_takes_the_place_of_the_base(model, plain):
    other: dict = jax.tree.map(lambda leaf: leaf * 1.1, dict(model.params))
    record = Expert(spec("full", model.fingerprint), other)
    np.testing.assert_allclose(elm_jax.score_choices(model, PROMPTS, ANSWERS, other), plain(other), rtol=1e-4)
    np.testing.assert_allclose(
        elm_jax.score_choices(model, PROMPTS, ANSWERS, record), plain(other), rtol=1e-4
    )


def spec(kind, base):
    return ExpertSpec("dream/baseline", kind, base, (), ("dream",), 0)


@pytest.mark.parametrize(
    ("prompts", "answers", "told"),
    [
        (PROMPTS[0], ANSWERS, r"prompts .*got int64 of shape \(6,\)"),
        (PROMPTS, ANSWERS[:, 0], r"answers .*got int64 of shape \(3, 4\)"),
        (PROMPTS.astype(np.float32), ANSWERS, r"prompts .*got float32"),
        (PROMPTS, ANSWERS > 0, r"answers .*got bool"),
        (PROMPTS[:2], ANSWERS, "2 prompts, got 3"),
        (PROMPTS + 45, ANSWERS, r"from 0 to 47 in prompts, got \d+"),
        (PROMPTS, ANSWERS - 45, r"from 0 to 47 in answers, got -\d+"),
        (PROMPTS[:, ::-1], ANSWERS, "row of prompts"),
        (PROMPTS, ANSWERS[..., ::-1], "row of answers"),
        (PROMPTS * np.array([[1], [0], [1]]), ANSWERS, "padding alone in row 1"),
        ([[1, 2], [3]], ANSWERS, "rows of different lengths"),
        ("text", ANSWERS, r"prompts as integers \[B, S\]"),
    ],
)
def test_arrays_that_are_no_prompts_or_answers_are_one_sentence(model, prompts, answers, told):
    with pytest.raises(UserError, match=told):
        elm_jax.score_choices(model, prompts, answers)


def test_an_expert_of_another_base_or_shape_is_refused(model, experts):
    with pytest.raises(UserError, match="'dream/baseline' of base"):
        elm_jax.score_choices(model, PROMPTS, ANSWERS, Expert(spec("bottleneck", "other"), experts[0]))
    stacked = jax.tree.map(lambda leaf: leaf[None], experts[0])
    with pytest.raises(UserError, match=r"decoder_norm/scale' as \(16,\) for the base, got \(1, 16\)"):
        elm_jax.score_choices(model, PROMPTS, ANSWERS, stacked)
