"""Names of parameters survive being flattened and taken apart by layer."""

import numpy as np
import pytest

from elm_jax.errors import UserError
from elm_jax.models import paths

FLAT = {
    "encoder/layers/mlp/wo/kernel": np.arange(12.0).reshape(2, 3, 2),
    "encoder/encoder_norm/scale": np.ones(3),
}


def test_flatten_and_unflatten_are_inverse():
    nested = paths.unflatten(FLAT)
    assert nested["encoder"]["layers"]["mlp"]["wo"]["kernel"].shape == (2, 3, 2)
    assert paths.flatten(nested).keys() == FLAT.keys()


def test_layers_apart_carry_t5x_names_and_come_together_again():
    apart = paths.unstack_layers(FLAT)
    np.testing.assert_array_equal(apart["encoder/layers_1/mlp/wo/kernel"], [[6, 7], [8, 9], [10, 11]])
    together = paths.stack_layers(apart)
    assert together.keys() == FLAT.keys()
    np.testing.assert_array_equal(
        together["encoder/layers/mlp/wo/kernel"], FLAT["encoder/layers/mlp/wo/kernel"]
    )


def test_layers_come_together_in_the_order_of_their_numbers_not_of_their_names():
    apart = {f"encoder/layers_{layer}/scale": np.full(1, layer) for layer in range(11)}
    np.testing.assert_array_equal(paths.stack_layers(apart)["encoder/layers/scale"][:, 0], np.arange(11))


def test_a_missing_layer_is_named():
    with pytest.raises(UserError, match="layers 0 to 2, got none of layer 1"):
        paths.stack_layers({"decoder/layers_0/scale": np.ones(1), "decoder/layers_2/scale": np.ones(1)})
