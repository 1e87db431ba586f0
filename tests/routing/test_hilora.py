"""HiLoRA: Gaussians of keys choose experts, and tokens choose rank-one components of these."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from elm_jax.errors import UserError
from elm_jax.models.components import ComponentGate, component_delta
from elm_jax.routing.components import allocate_components, make_component_tree
from elm_jax.routing.hilora import SHRINKAGE, hilora
from elm_jax.routing.inputs import KeyIndex, Queries

RNG = np.random.default_rng(0)
KEYS = np.concatenate([RNG.normal(at, 1 + at, (30, 4)) for at in range(4)]).astype(np.float32)
INDEX = KeyIndex(
    ("a/1", "b/1", "c/1", "d/1"), (("a",), ("b",), ("c",), ("d",)), np.repeat(np.arange(4), 30), KEYS,
    ("",) * 120, "toy", "instance",
)  # fmt: skip
ASKED = RNG.normal(1.5, 1, (6, 4)).astype(np.float32)
QUERIES = Queries(
    "t/1", tuple("012345"), vectors=ASKED, embedder="toy", text_format="instance"
)  # fmt: skip


def log_densities():
    """Of every query under every expert, by SciPy: [Q, E]."""
    own = [KEYS[INDEX.expert_of_row == expert].astype(np.float64) for expert in range(4)]
    pooled = np.mean([keys.var(axis=0) for keys in own], axis=0)
    return np.stack(
        [
            multivariate_normal(
                keys.mean(axis=0), np.diag((1 - SHRINKAGE) * keys.var(axis=0) + SHRINKAGE * pooled)
            ).logpdf(ASKED)
            for keys in own
        ],
        axis=1,
    )


def test_weights_are_the_softmax_of_log_densities_over_the_likeliest_experts():
    found = hilora(QUERIES, INDEX, k=3, temperature=0.5)
    means = log_densities().mean(axis=0) / 4
    best = np.argsort(-means)[:3]
    assert list(found.weights) == [INDEX.experts[place] for place in best]
    shares = np.exp(means[best] / 0.5)
    np.testing.assert_allclose(list(found.weights.values()), shares / shares.sum(), rtol=1e-5)
    nearest = [INDEX.experts[place] for place in log_densities().argmax(axis=1)]
    assert [expert for expert, _ in found.nearest] == nearest
    np.testing.assert_allclose(
        [density for _, density in found.nearest], log_densities().max(axis=1) / 4, rtol=1e-5
    )


def test_experts_of_excluded_datasets_and_without_keys_are_not_chosen():
    keyless = KeyIndex(
        (*INDEX.experts, "e/1"), (*INDEX.datasets, ("e",)), INDEX.expert_of_row, KEYS, ("",) * 120, "toy",
        "instance",
    )  # fmt: skip
    assert set(hilora(QUERIES, keyless, k=5, exclude=["b"]).weights) == {"a/1", "c/1", "d/1"}


@pytest.mark.parametrize("options", [{"k": 0}, {"temperature": 0.0}])
def test_options_without_a_meaning_are_refused(options):
    with pytest.raises(UserError, match="above 0"):
        hilora(QUERIES, INDEX, **options)


@pytest.mark.parametrize(
    ("weights", "rank", "share", "counts"),
    [
        ([0.5, 0.5], 4, 0.5, [2, 2]),
        ([0.9, 0.1], 4, 0.5, [4, 0]),
        ([0.75, 0.25], 4, 0.5, [3, 1]),
        ([1.0], 8, 0.4, [3]),
        ([0.6, 0.4], 2, 0.1, [1, 0]),
        ([0.2, 0.8], 3, 1.0, [3, 3]),
    ],
)
def test_components_are_shared_by_weight_and_no_expert_gives_more_than_it_has(weights, rank, share, counts):
    assert allocate_components(weights, rank, share) == counts


def stack_loras(experts, rank):
    """LoRA experts of one projection of two layers."""
    rng = np.random.default_rng(1)
    return {"wo": {
        "lora_a": rng.normal(size=(experts, 2, 6, rank)).astype(np.float32),
        "lora_b": rng.normal(size=(experts, 2, rank, 5)).astype(np.float32),
    }}  # fmt: skip


def layer_of(tree, layer):
    own = tree["wo"]
    return {
        "lora_a": own["lora_a"][layer],
        "lora_b": own["lora_b"][layer],
        "gate": ComponentGate(own["gate"].counts[layer]),
    }


def test_every_token_uses_the_components_that_it_excites_most():
    stack = stack_loras(3, 4)
    tree = make_component_tree(stack, [0.6, 0.3, 0.1], 0.5)
    counts = allocate_components([0.6, 0.3, 0.1], 4, 0.5)
    assert sorted(counts, reverse=True) == counts
    assert counts[-1] == 0
    x = np.random.default_rng(2).normal(size=(2, 3, 6)).astype(np.float32)
    for layer in range(2):
        expected = np.zeros((2, 3, 5))
        for at in np.ndindex(2, 3):
            for expert, count in enumerate(counts):
                a, b = stack["wo"]["lora_a"][expert, layer], stack["wo"]["lora_b"][expert, layer]
                excited = x[at] @ a
                for component in np.argsort(-np.abs(excited))[:count]:
                    expected[at] += excited[component] * b[component]
        found = component_delta(jnp.asarray(x), layer_of(tree, layer))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_all_components_of_one_expert_are_the_expert():
    stack = stack_loras(1, 4)
    x = np.random.default_rng(3).normal(size=(5, 6)).astype(np.float32)
    found = component_delta(jnp.asarray(x), layer_of(make_component_tree(stack, [1.0], 1.0), 0))
    np.testing.assert_allclose(
        found, x @ stack["wo"]["lora_a"][0, 0] @ stack["wo"]["lora_b"][0, 0], rtol=1e-4, atol=1e-5
    )
