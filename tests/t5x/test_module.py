"""The module for T5X: T5X's names and axes outside, our network inside, its logits, cache and gradients.

Nothing here needs T5X; test_gin.py has T5X train it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elm_jax.models import expert_layers as ex
from elm_jax.models import paths
from elm_jax.models.sizes import find_config
from elm_jax.models.t5 import T5
from elm_jax.t5x.module import Transformer, split_params
from elm_jax.weights import base_model, t5x_experts

KINDS = {
    "bottleneck": {"width": 3},
    "lora": {"rank": 3},
    "dora": {"rank": 3},
    "vera": {"rank": 3},
    "prompt": {"tokens": 3},
    "ia3": {},
    "full": {},
}
CONFIG = find_config("tiny", vocab_size=40, emb_dim=8, num_heads=2, head_dim=4, mlp_dim=12, dropout_rate=0.1)
PROMPTS = np.array([[5, 6, 7, 1, 0], [8, 9, 1, 0, 0]], np.int32)
ANSWERS = np.array([[4, 3, 1, 0], [2, 1, 0, 0]], np.int32)


def init_variables(module):
    """What T5X gets of a module. Its parameters are drawn here, far from where experts start."""
    made = jax.eval_shape(
        lambda key: module.init(key, PROMPTS, ANSWERS, ANSWERS, decode=False, enable_dropout=False),
        jax.random.key(0),
    )
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(lambda leaf: jnp.float32(rng.normal(0.2, 0.3, leaf.shape)), made["params"])
    return {**made, "params": drawn}


@pytest.fixture(scope="module", params=KINDS)
def module(request):
    return Transformer(CONFIG, request.param, KINDS[request.param])


@pytest.fixture(scope="module")
def variables(module):
    return init_variables(module)


@pytest.fixture(scope="module")
def bottleneck():
    """A module with a bottleneck, what T5X gets of it, and its logits of the answers, not in training."""
    module = Transformer(CONFIG, "bottleneck", KINDS["bottleneck"])
    variables = init_variables(module)
    return module, variables, call_module(module, variables, PROMPTS, ANSWERS, ANSWERS, enable_dropout=False)


def call_module(module, variables, *inputs, rngs=None, method=None, mutable=False, arrays=None, **options):
    """Calls a module as T5X does, within a program; `arrays` are options too, but no constants."""

    def call(variables, inputs, rngs, arrays):
        return module.apply(
            variables, *inputs, rngs=rngs, method=method, mutable=mutable, **arrays, **options
        )

    return jax.jit(call)(variables, inputs, rngs, arrays or {})


def trees(module, variables):
    """Returns the base and the expert of T5X's parameters, put together by hand as our files have them."""
    flat = paths.stack_layers(paths.flatten(variables["params"]))
    base = paths.unflatten({path: flat[path] for path in base_model.param_shapes(CONFIG)})
    owned = {path: flat[path] for path in flat if t5x_experts.OWNED_PARAMS[module.kind].fullmatch(path)}
    return ex.split_base_and_expert(module.kind, base, paths.unflatten(owned))


def test_parameters_have_t5x_names_for_each_layer_and_axes(module, variables):
    params, axes = paths.flatten(variables["params"]), paths.flatten(variables["params_axes"])
    assert set(axes) == {f"{path}_axes" for path in params}
    for path, value in params.items():
        assert len(axes[f"{path}_axes"].names) == value.ndim, path
    assert axes["encoder/layers_1/mlp/wo/kernel_axes"].names == ("mlp", "embed")
    assert axes["decoder/relpos_bias/rel_embedding_axes"].names == ("heads", "relpos_buckets")
    of_base = {path for path in params if not t5x_experts.EXPERT_ONLY.fullmatch(path)}
    assert of_base == set(
        paths.unstack_layers({p: np.ones(s) for p, s in base_model.param_shapes(CONFIG).items()})
    )
    fresh = paths.unflatten({path: np.ones(shape) for path, shape in base_model.param_shapes(CONFIG).items()})
    tree = ex.init_expert(module.kind, jax.random.key(0), fresh, KINDS[module.kind])
    assert set(params) == of_base | set(paths.unstack_layers(paths.flatten(tree)))


def test_logits_are_those_of_our_network_with_the_expert(module, variables):
    params, expert = trees(module, variables)
    wanted = jax.jit(T5(CONFIG).apply)({"params": params}, PROMPTS, ANSWERS[:, None], expert)[:, 0]
    # T5X starts a module with floats for tokens.
    given = PROMPTS.astype(np.float32), np.zeros_like(ANSWERS), ANSWERS
    np.testing.assert_array_equal(call_module(module, variables, *given, enable_dropout=False), wanted)


def test_packed_rows_do_not_see_one_another(bottleneck):
    module, variables, alone = bottleneck
    answers = np.array([[4, 3, 1, 2, 1]], np.int32)
    segments = {
        "encoder_segment_ids": np.array([[1, 1, 1, 1, 2, 2, 2]]),
        "decoder_segment_ids": np.array([[1, 1, 1, 2, 2]]),
    }
    given = np.array([[5, 6, 7, 1, 8, 9, 1]], np.int32), np.zeros_like(answers), answers
    packed = call_module(module, variables, *given, arrays=segments, enable_dropout=False)
    np.testing.assert_allclose(packed[0, :3], alone[0, :3], atol=1e-5)
    np.testing.assert_allclose(packed[0, 3:], alone[1, :2], atol=1e-5)


def empty_cache(module, variables):
    ones = np.ones_like(ANSWERS)
    given = {"encoder_input_tokens": np.ones_like(PROMPTS), "decoder_input_tokens": ones}
    given["decoder_target_tokens"] = ones
    options = {"mutable": ["cache"], "decode": True, "enable_dropout": False}
    return call_module(module, variables, arrays=given, **options)[1]["cache"]


def test_decoding_token_by_token_gives_the_logits_of_the_whole(bottleneck):
    module, variables, whole = bottleneck
    params = {"params": variables["params"]}
    encoded = call_module(module, params, PROMPTS, enable_dropout=False, method=module.encode)
    cache = empty_cache(module, params)
    shifted = np.pad(ANSWERS[:, :-1], ((0, 0), (1, 0)))
    options = {"enable_dropout": False, "decode": True, "max_decode_length": ANSWERS.shape[1]}
    for position in range(ANSWERS.shape[1]):
        token = shifted[:, position : position + 1]
        given = {**params, "cache": cache}, encoded, PROMPTS, token, token
        logits, found = call_module(module, *given, mutable=["cache"], method=module.decode, **options)
        cache = found["cache"]
        np.testing.assert_allclose(logits[:, 0], whole[:, position], atol=1e-5)


def test_a_caches_rows_are_on_its_second_axis(bottleneck):
    module, variables, _ = bottleneck
    cache = empty_cache(module, variables)
    assert module.scan_layers
    for name in ("cached_key", "cached_value"):
        assert cache[name].shape == (2, 2, 4, 2 * 4)  # layers, rows, tokens, heads and their width
    assert cache["cache_index"].shape == ()


def test_only_the_experts_parameters_get_a_gradient(module, variables):
    def loss(params):
        logits = module.apply({"params": params}, PROMPTS, ANSWERS, ANSWERS, enable_dropout=False)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), ANSWERS[..., None], axis=-1).sum()

    for path, gradient in paths.flatten(jax.jit(jax.grad(loss))(variables["params"])).items():
        owned = t5x_experts.OWNED_PARAMS[module.kind].fullmatch(path) is not None
        trained = owned and not path.startswith("vera/")  # whose matrices stay as they were drawn
        assert bool(jnp.any(gradient != 0)) == trained, path


def test_dropout_is_drawn_from_the_key_and_only_in_training(bottleneck):
    module, variables, without = bottleneck

    def logits(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return call_module(module, variables, PROMPTS, ANSWERS, ANSWERS, enable_dropout=True, rngs=rngs)

    first = logits(1)
    np.testing.assert_array_equal(first, logits(1))
    assert np.abs(first - logits(2)).max() > 1e-3
    assert np.abs(first - without).max() > 1e-3


def test_kernels_of_layers_are_stacked_in_the_compute_type(variables, module):
    half = find_config(
        "tiny", vocab_size=40, emb_dim=8, num_heads=2, head_dim=4, mlp_dim=12, dtype="bfloat16"
    )
    base, _ = split_params(variables["params"], half, module.kind)
    flat = paths.flatten(base)
    assert flat["encoder/layers/mlp/wo/kernel"].dtype == jnp.bfloat16
    for path in ("token_embedder/embedding", "encoder/layers/pre_mlp_layer_norm/scale"):
        assert flat[path].dtype == jnp.float32
    assert flat["decoder/logits_dense/kernel"].dtype == jnp.float32
