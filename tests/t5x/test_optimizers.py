"""Optimizers for T5X: whose a parameter is, and the schedule. test_gin.py has the base unchanged."""

import numpy as np
import pytest

from elm_jax.errors import UserError
from elm_jax.models import paths
from elm_jax.t5x import optimizers

NAMES = {
    "token_embedder/embedding": (),
    "encoder/relpos_bias/rel_embedding": (),
    "encoder/layers_0/attention/query/kernel": (),
    "encoder/layers_0/attention/query/lora_a": ("lora",),
    "encoder/layers_0/attention/key/ia3_out": ("ia3",),
    "encoder/layers_0/mlp/wo/ia3_in": ("ia3",),
    "encoder/layers_1/mlp_adapter/up/bias": ("bottleneck",),
    "decoder/layers_1/pre_cross_attention_layer_norm/scale": ("bottleneck",),
    "decoder/decoder_norm/scale": ("bottleneck",),
}


@pytest.mark.parametrize("kind", ["bottleneck", "lora", "ia3", "full"])
def test_parameters_are_labelled_as_the_experts_or_the_bases(kind):
    labels = paths.flatten(optimizers.param_labels(paths.unflatten(dict.fromkeys(NAMES, 0)), kind))
    assert labels == {
        path: "expert" if kind == "full" or kind in kinds else "base" for path, kinds in NAMES.items()
    }


def test_the_learning_rate_rises_over_the_warmup_and_falls_to_zero_at_the_last_step():
    rate = optimizers.linear(0.4, 10, warmup=2)
    np.testing.assert_allclose([rate(s) for s in (0, 1, 2, 6, 10, 11)], [0, 0.2, 0.4, 0.2, 0, 0], atol=1e-7)
    plain = optimizers.linear(0.4, 10)
    np.testing.assert_allclose([plain(step) for step in (0, 5, 10)], [0.4, 0.2, 0], atol=1e-7)


def test_an_unknown_kind_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="'bottleneck'"):
        optimizers.adamw(1e-3, "botleneck")
