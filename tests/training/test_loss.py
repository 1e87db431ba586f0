"""The loss, with every expected value worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elm_jax.training import loss
from elm_jax.training.config import LossConfig

token_losses = jax.jit(loss.token_losses, static_argnums=2)

# Two rows of two tokens over a vocabulary of three: Z is 8, 4, 2 and 7, and the last token is padding.
Z = np.array([[8.0, 4.0], [2.0, 7.0]])
P = np.array([[[1, 3, 4], [1, 2, 1]], [[0.5, 0.5, 1.0], [1, 1, 5]]])
LOGITS = jnp.log(jnp.array(P))
TARGETS = np.array([[2, 1], [1, 0]], np.int32)
NLL = np.log([8 / 4, 4 / 2, 2 / 0.5])  # log(Z / p) of the three real tokens: log 2, log 2, log 4


def real(found):
    """The losses of the three real tokens; that of padding is nothing."""
    assert found.shape == (2, 2)
    assert found[1, 1] == 0
    return np.asarray(found).ravel()[:3]


def test_the_loss_of_a_token_is_its_negative_log_probability():
    np.testing.assert_allclose(real(token_losses(LOGITS, TARGETS)), NLL, rtol=1e-6)


def test_z_loss_adds_its_weight_times_the_squared_log_of_the_normaliser():
    squares = np.log(Z.ravel()[:3]) ** 2
    found = token_losses(LOGITS, TARGETS, LossConfig(z_loss=0.1))
    np.testing.assert_allclose(real(found), NLL + 0.1 * squares, rtol=1e-6)


def test_label_smoothing_is_the_divergence_from_the_target_with_its_share_on_all_other_tokens():
    smoothed = np.where(np.eye(3)[TARGETS] == 1, 0.7, 0.15)
    by_token = (smoothed * (np.log(smoothed) - np.asarray(jax.nn.log_softmax(LOGITS)))).sum(axis=-1)
    found = token_losses(LOGITS, TARGETS, LossConfig(label_smoothing=0.3))
    np.testing.assert_allclose(real(found), by_token.ravel()[:3], rtol=1e-5)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_a_prediction_that_is_the_smoothed_target_has_loss_zero(share):
    logits = jnp.log(jnp.array([[[share / 2, share / 2, 1 - share]]]))
    found = token_losses(logits, np.array([[2]], np.int32), LossConfig(label_smoothing=share))
    np.testing.assert_allclose(found, 0, atol=1e-6)


def test_both_together_add_up():
    z, smooth = {"z_loss": 0.2}, {"label_smoothing": 0.1}
    both, z_alone, smooth_alone, plain = (
        real(token_losses(LOGITS, TARGETS, LossConfig(**options))) for options in (z | smooth, z, smooth, {})
    )
    np.testing.assert_allclose(both - z_alone, smooth_alone - plain, rtol=1e-4)


def test_a_token_has_the_loss_that_it_has_in_any_row():
    logits = jnp.zeros((2, 3, 4)).at[0, :, 1].set(5.0)
    found = token_losses(logits, np.array([[1, 1, 1], [1, 0, 0]], np.int32))
    nll = np.log(np.exp(5) + 3) - 5
    np.testing.assert_allclose(found, [[nll] * 3, [np.log(4), 0, 0]], rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"z_loss": 0.1}, {"label_smoothing": 0.1}])
def test_targets_of_padding_alone_give_zero_and_a_gradient_of_zero(options):
    targets = np.zeros((2, 2), np.int32)
    value, gradient = jax.value_and_grad(
        lambda logits: token_losses(logits, targets, LossConfig(**options)).sum()
    )(LOGITS)
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros((2, 2, 3)))


def test_logits_at_padding_get_no_gradient_and_the_real_ones_p_minus_target():
    gradient = jax.grad(lambda logits: token_losses(logits, TARGETS).sum())(LOGITS)
    wanted = P / Z[..., None] - np.eye(3)[TARGETS]
    wanted[1, 1] = 0
    np.testing.assert_allclose(gradient, wanted, atol=1e-6)


def test_huge_logits_give_a_finite_loss():
    logits = jnp.array([[[1e4, -1e4, 0.0]]])
    assert token_losses(logits, np.array([[1]], np.int32)).tolist() == [[2e4]]
