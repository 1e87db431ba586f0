"""Shapes of the family: they have the published numbers of parameters, and nothing else is taken for one."""

import jax
import pytest

from elm_jax.errors import UserError
from elm_jax.models.sizes import SIZES, T5Config, find_config
from elm_jax.models.t5 import init_params


def parameters(config: T5Config) -> int:
    shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), config))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("t5-small", 60_506_624),
        ("t5-base", 222_903_552),
        ("t5-large", 737_668_096),
        ("t5-3b", 2_851_598_336),
        ("t5-11b", 11_307_321_344),
        ("base", 247_577_856),
        ("xl", 2_849_757_184),
        ("mt5-small", 300_176_768),
        ("byt5-small", 299_637_760),
    ],
)
def test_a_model_has_the_published_number_of_parameters(name, published):
    assert parameters(find_config(name)) == published


@pytest.mark.parametrize("family", ["mt5", "byt5"])
def test_mt5_and_byt5_have_the_rounded_sizes_of_their_papers(family):
    billions = {
        name: parameters(find_config(f"{family}-{name}")) / 1e9 for name in ("base", "large", "xl", "xxl")
    }
    assert {name: float(f"{found:.2g}") for name, found in billions.items()} == {
        "base": 0.58,
        "large": 1.2,
        "xl": 3.7,
        "xxl": 13.0,
    }


def test_a_name_without_a_family_is_t5_1_1():
    assert (find_config("xl").mlp_activations, find_config("xl").logits_via_embedding) == (
        ("gelu", "linear"),
        False,
    )
    assert (find_config("t5-3b").mlp_activations, find_config("t5-3b").logits_via_embedding) == (
        ("relu",),
        True,
    )


def test_byt5_has_three_layers_of_encoder_to_one_of_decoder():
    shapes = [shape for name, shape in SIZES.items() if name.startswith("byt5-")]
    assert len(shapes) == 5
    assert all(shape.num_encoder_layers == 3 * shape.num_decoder_layers for shape in shapes)


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"No model size named 'mt5-xxxl'.*Did you mean 'mt5-xxl'"):
        find_config("mt5-xxxl")


@pytest.mark.parametrize("activations", [("swish",), (), ("gelu", "tanh")])
def test_an_activation_that_does_not_exist_is_refused(activations):
    with pytest.raises(ValueError, match="gelu, linear, relu"):
        T5Config(mlp_activations=activations)


def test_float16_is_refused():
    with pytest.raises(ValueError, match="got 'float16'"):
        T5Config(dtype="float16")


@pytest.mark.parametrize("activations", [(), ("gelu", "linear", "relu"), ("swish?",)])
def test_a_feed_forward_has_one_or_two_activations_that_are_known(activations):
    with pytest.raises(ValueError, match="mlp_activations"):
        find_config("tiny", mlp_activations=activations)
