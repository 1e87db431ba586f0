"""DoRA: its norms are those of the whole kernel, which is never made for a row."""

import jax
import numpy as np

from elm_jax.models import magnitudes, paths
from elm_jax.models.t5 import T5

RNG = np.random.default_rng(2)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


KERNEL, A, B = normal(2, 7, 5), normal(3, 2, 7, 4), normal(3, 2, 4, 5)


def test_the_norms_are_those_of_the_kernel_with_the_lora_added():
    wanted = np.sqrt(((np.float64(KERNEL) + np.float64(A) @ np.float64(B)) ** 2).sum(axis=2))
    np.testing.assert_allclose(magnitudes.adapted_norms(KERNEL, A, B), wanted, rtol=1e-5)


def test_a_stack_is_resolved_as_each_of_its_experts_and_a_second_time_nothing_happens():
    base = {"query": {"kernel": KERNEL}, "key": {"kernel": KERNEL}}
    stack = {
        "query": {"lora_a": A, "lora_b": B, "dora_magnitude": normal(3, 2, 5)},
        "key": {"ia3_out": normal(3, 2, 5)},
    }
    found = magnitudes.resolve_magnitudes(stack, base)
    assert sorted(paths.flatten(found)) == ["key/ia3_out", "query/ia3_out", "query/lora_a", "query/lora_b"]
    assert magnitudes.resolve_magnitudes(found, base) is found
    for expert in range(3):
        alone = magnitudes.resolve_magnitudes(jax.tree.map(lambda leaf: leaf[expert], stack), base)  # noqa: B023
        np.testing.assert_allclose(alone["query"]["ia3_out"], found["query"]["ia3_out"][expert], rtol=1e-5)


def test_a_network_takes_experts_whose_norms_are_computed_before(base, config, experts):
    del experts
    flat = {f"encoder/layers/attention/query/{leaf}": value for leaf, value in own(config).items()}
    expert, prompts = paths.unflatten(flat), RNG.integers(3, 90, (2, 5)).astype(np.int32)

    def encode(expert):
        return T5(config).apply({"params": base}, prompts, expert, method="encode")

    prepared = T5(config).apply({"params": base}, expert, method="prepare_experts")
    assert "encoder/layers/attention/query/dora_magnitude" not in paths.flatten(prepared)
    np.testing.assert_allclose(encode(prepared), encode(expert), atol=1e-5)


def own(config):
    width = config.num_heads * config.head_dim
    return {
        "lora_a": normal(2, config.emb_dim, 3),
        "lora_b": normal(2, 3, width),
        "dora_magnitude": normal(2, width),
    }
