"""Decoding token by token gives at every step what decoding the whole answer gives there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elm_jax.models import expert_layers as ex
from elm_jax.models.sizes import find_config
from elm_jax.models.stacks import MAX_UNROLLED
from elm_jax.models.t5 import T5, init_params
from elm_jax.training.step import stack

RNG = np.random.default_rng(6)
PROMPTS = RNG.integers(3, 96, (4, 7)).astype(np.int32)
PROMPTS[1, 4:] = PROMPTS[2, :2] = 0
ANSWERS = RNG.integers(3, 96, (4, 1, 6)).astype(np.int32)
LENGTH = 8  # of the cache: longer than what is decoded
SHAPES = {
    "unrolled": {"num_encoder_layers": 1, "num_decoder_layers": 2},
    "scanned, tied, relu": {
        "num_encoder_layers": 1,
        "num_decoder_layers": MAX_UNROLLED + 1,
        "mlp_activations": ("relu",),
        "logits_via_embedding": True,
        "relpos_per_layer": True,
    },
}


WAYS = {
    "base": ("unrolled", None, {}),
    "experts": ("scanned, tied, relu", "bottleneck", {"width": 4}),
    "dora": ("unrolled", "dora", {"rank": 2}),
    "prompt": ("unrolled", "prompt", {"tokens": 3}),
}


@pytest.fixture(scope="module", params=WAYS.values(), ids=WAYS)
def decoding(request):
    """The network's three functions, and what they take besides: no expert, or one for every row."""
    shape, kind, options = request.param
    config = find_config("tiny", vocab_size=96, emb_dim=32, head_dim=6, mlp_dim=48, **SHAPES[shape])
    # Drawn on the host: compiling their first values takes longer than the test.
    shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), config))
    params = jax.tree.map(lambda leaf: RNG.normal(0, 0.5, leaf.shape).astype(np.float32), shapes)
    beside = ()
    if kind:
        trees = [ex.init_expert(kind, jax.random.key(n), params, options) for n in range(3)]
        noise = 0.0 if kind == "bottleneck" else 0.1
        far = [
            jax.tree.map(lambda leaf, by=1 + n / 4: leaf * by + RNG.normal(0, noise, leaf.shape), tree)
            for n, tree in enumerate(trees)
        ]
        beside = (
            jax.tree.map(np.float32, stack(far)),
            np.array([2, 0, 2, 1], np.int32),
        )

    def apply(method, *arguments):
        return T5(config).apply({"params": params}, *arguments, *beside, method=method)

    whole = jax.jit(lambda prompts, answers: apply("__call__", prompts, answers))

    @jax.jit
    def start(prompts):
        return apply("start_cache", apply("encode", prompts), prompts, LENGTH)

    return whole, start, jax.jit(lambda cache, tokens: apply("decode_step", cache, tokens))


def test_every_step_has_the_logits_of_the_whole_answer(decoding):
    whole, start, step = decoding
    wanted = np.asarray(whole(PROMPTS, ANSWERS))[:, 0]
    cache, tokens = start(PROMPTS), np.zeros(4, np.int32)
    for position in range(ANSWERS.shape[2]):
        found, cache = step(cache, tokens)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, wanted[:, position], atol=1e-5)
        tokens = ANSWERS[:, 0, position]
    assert int(cache.position) == ANSWERS.shape[2]
    assert step._cache_size() == 1


def test_a_cache_is_not_changed_by_a_step_from_it(decoding):
    _, start, step = decoding
    cache = start(PROMPTS)
    first, _ = step(cache, np.zeros(4, np.int32))
    step(cache, np.full(4, 7, np.int32))
    again, _ = step(cache, np.zeros(4, np.int32))
    np.testing.assert_array_equal(first, again)
