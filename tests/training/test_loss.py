"""The loss, with every expected value worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elm_jax.training import loss

answer_loss = jax.jit(loss.answer_loss, static_argnames=("z_loss", "label_smoothing"))

# Two rows of two tokens over a vocabulary of three: Z is 8, 4, 2 and 7, and the last token is padding.
Z = np.array([[8.0, 4.0], [2.0, 7.0]])
P = np.array([[[1, 3, 4], [1, 2, 1]], [[0.5, 0.5, 1.0], [1, 1, 5]]])
LOGITS = jnp.log(jnp.array(P))
TARGETS = np.array([[2, 1], [1, 0]], np.int32)
NLL = np.log([8 / 4, 4 / 2, 2 / 0.5])  # log(Z / p) of the three real tokens: log 2, log 2, log 4


def test_the_loss_is_the_mean_negative_log_probability_of_the_real_tokens():
    np.testing.assert_allclose(answer_loss(LOGITS, TARGETS), np.log(16) / 3, rtol=1e-6)


def test_z_loss_adds_its_weight_times_the_squared_log_of_the_normaliser():
    squares = np.log(Z.ravel()[:3]) ** 2
    found = answer_loss(LOGITS, TARGETS, z_loss=0.1)
    np.testing.assert_allclose(found, (NLL + 0.1 * squares).mean(), rtol=1e-6)


def test_label_smoothing_moves_its_share_of_the_mass_evenly_onto_all_tokens():
    even = np.log(Z.ravel()[:3]) - np.log(P.reshape(4, 3)[:3]).mean(axis=1)
    found = answer_loss(LOGITS, TARGETS, label_smoothing=0.25)
    np.testing.assert_allclose(found, (0.75 * NLL + 0.25 * even).mean(), rtol=1e-6)


def test_label_smoothing_is_cross_entropy_with_the_smoothed_distribution():
    smoothed = 0.7 * np.eye(3)[TARGETS] + 0.3 / 3
    by_token = -(smoothed * np.asarray(jax.nn.log_softmax(LOGITS))).sum(axis=-1)
    found = answer_loss(LOGITS, TARGETS, label_smoothing=0.3)
    np.testing.assert_allclose(found, by_token.ravel()[:3].mean(), rtol=1e-6)


def test_both_together_add_up():
    z, smooth = {"z_loss": 0.2}, {"label_smoothing": 0.1}
    parts = [float(answer_loss(LOGITS, TARGETS, **options)) for options in (z | smooth, z, smooth, {})]
    assert parts[0] - parts[1] == pytest.approx(parts[2] - parts[3], rel=1e-5)


def test_the_mean_is_over_tokens_not_over_rows():
    long = answer_loss(jnp.zeros((2, 3, 4)).at[0, :, 1].set(5.0), np.array([[1, 1, 1], [1, 0, 0]], np.int32))
    nll = np.log(np.exp(5) + 3) - 5
    np.testing.assert_allclose(long, (3 * nll + np.log(4)) / 4, rtol=1e-6)


@pytest.mark.parametrize("options", [{}, {"z_loss": 0.1}, {"label_smoothing": 0.1}])
def test_targets_of_padding_alone_give_zero_and_a_gradient_of_zero(options):
    targets = np.zeros((2, 2), np.int32)
    value, gradient = jax.value_and_grad(answer_loss)(LOGITS, targets, **options)
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros((2, 2, 3)))


def test_logits_at_padding_get_no_gradient_and_the_real_ones_p_minus_target():
    gradient = jax.grad(answer_loss)(LOGITS, TARGETS)
    p = P / Z[..., None]
    wanted = (p - np.eye(3)[TARGETS]) / 3
    wanted[1, 1] = 0
    np.testing.assert_allclose(gradient, wanted, atol=1e-6)


def test_huge_logits_give_a_finite_loss():
    logits = jnp.array([[[1e4, -1e4, 0.0]]])
    assert answer_loss(logits, np.array([[1]], np.int32)) == 2e4
