"""Experts out of T5X's checkpoints: those leaves alone, beside the very base; and trees that do not fit."""

import jax
import numpy as np
import pytest

from elm_jax.errors import UserError
from elm_jax.models import expert_layers as ex
from elm_jax.models import paths
from elm_jax.weights import t5x_experts

RNG = np.random.default_rng(0)
DOWN = "encoder/layers_1/attention_adapter/down/kernel"
OPTIONS = {
    "bottleneck": {"width": 3},
    "lora": {"rank": 3},
    "dora": {"rank": 3},
    "vera": {"rank": 3},
    "prompt": {"tokens": 3},
    "ia3": {},
    "full": {},
}


def drawn(kind, base):
    tree = ex.init_expert(kind, jax.random.key(0), base, OPTIONS[kind])
    return jax.tree.map(lambda leaf: np.asarray(leaf + RNG.normal(size=leaf.shape), np.float32), dict(tree))


def beside(base, tree):
    """Returns the parameters of a model that T5X trained: the base's, with the expert's among them."""
    return paths.unflatten({**paths.flatten(base.params), **paths.flatten(tree)})


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize(("kept", "scanned"), [("orbax", False), ("legacy", True)])
def test_an_expert_comes_out_of_a_checkpoint_as_it_was_trained(
    t5_1_1, writers, same, tmp_path, kind, kept, scanned
):
    tree = drawn(kind, t5_1_1.params)
    place = writers[kept](tmp_path, writers["tree"](beside(t5_1_1, tree), scanned=scanned))
    assert same(t5x_experts.load_t5x_expert(place, t5_1_1, kind), tree)


def test_a_stack_kept_as_ours_is_read_too(t5_1_1, writers, same, tmp_path):
    tree = drawn("bottleneck", t5_1_1.params)
    place = writers["orbax"](tmp_path, beside(t5_1_1, tree))
    assert same(t5x_experts.load_t5x_expert(place, t5_1_1, "bottleneck"), tree)


def test_an_expert_may_own_what_its_paths_name(t5_1_1, writers, same, tmp_path):
    norms = {
        path: value + 1
        for path, value in paths.flatten(t5_1_1.params).items()
        if path.endswith("norm/scale") and path.startswith("encoder")
    }
    place = writers["orbax"](tmp_path, writers["tree"](beside(t5_1_1, paths.unflatten(norms))))
    found = t5x_experts.load_t5x_expert(place, t5_1_1, "bottleneck", list(norms))
    assert same(found, paths.unflatten(norms))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda flat: flat.update({"decoder/layers_0/mlp/wo/kernel": np.zeros((14, 8), np.float32)}),
            "'decoder/layers/mlp/wo/kernel' .*got other values",
        ),
        (lambda flat: flat.pop("token_embedder/embedding"), "without 'token_embedder/embedding'"),
        (lambda flat: flat.update({"vision/kernel": np.ones(2, np.float32)}), "with 'vision/kernel'"),
        (
            lambda flat: flat.pop(DOWN),
            r"of one shape for all layers|as \(\(?2, 8, 3\)?\) .* got \(1, 8, 3\)",
        ),
        (
            lambda flat: flat.pop(DOWN.replace("_1", "_0")),
            r"for all layers .* got layers 1 \(8, 3\)",
        ),
        (
            lambda flat: flat.update({DOWN: np.ones((8, 4), np.float32)}),
            r"layers 0 \(8, 3\), 1 \(8, 4\)",
        ),
    ],
)
def test_a_checkpoint_that_is_not_the_base_and_an_expert_names_the_parameter(
    t5_1_1, writers, tmp_path, change, told
):
    flat = paths.flatten(writers["tree"](beside(t5_1_1, drawn("bottleneck", t5_1_1.params))))
    change(flat)
    place = writers["orbax"](tmp_path, paths.unflatten(flat))
    with pytest.raises(UserError, match=told):
        t5x_experts.load_t5x_expert(place, t5_1_1, "bottleneck")


def test_an_expert_of_another_kind_is_not_found(t5_1_1, writers, tmp_path):
    place = writers["orbax"](tmp_path, writers["tree"](t5_1_1.params))
    with pytest.raises(UserError, match="Expected \"an expert's parameters\" of an expert of kind 'lora'"):
        t5x_experts.load_t5x_expert(place, t5_1_1, "lora")
    with pytest.raises(UserError, match="Did you mean 'bottleneck'"):
        t5x_experts.load_t5x_expert(place, t5_1_1, "botleneck")


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_fresh_expert_fits_its_base(model, kind):
    t5x_experts.require_matching_shapes(drawn(kind, model.params), model.config, what="It")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda flat: flat.update({"encoder/layers/mlp/lora_a": np.ones((2, 8, 3))}),
            "act on the base, got",
        ),
        (
            lambda flat: flat.update({"encoder/layers/mlp/wo/what": np.ones(2)}),
            "got 'encoder/layers/mlp/wo/what'",
        ),
        (
            lambda flat: flat.update({"decoder/layers/mlp/wo/lora_a": np.ones((2, 14, 3))}),
            r"'decoder/layers/mlp/wo/lora_a' as \(3, 14, 3\) .* got \(2, 14, 3\)",
        ),
        (
            lambda flat: flat.update({"encoder/layers/attention/query/lora_b": np.ones((2, 4, 10))}),
            r"lora_b' as \(2, 3, 10\) .* got \(2, 4, 10\)",
        ),
        (
            lambda flat: flat.update({"encoder/layers/attention/query/lora_a": np.ones((5, 2, 8, 3))}),
            r"lora_a' as \(2, 8, R\) .* got \(5, 2, 8, 3\)",
        ),
    ],
)
def test_a_tree_that_does_not_fit_names_the_parameter(t5_1_1, change, told):
    flat = paths.flatten(drawn("lora", t5_1_1.params))
    change(flat)
    with pytest.raises(UserError, match=told):
        t5x_experts.require_matching_shapes(paths.unflatten(flat), t5_1_1.config, what="The expert")
