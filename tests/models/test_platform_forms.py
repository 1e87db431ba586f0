"""The forms of networks for TPUs give what those for CPUs give: gradients, decoded tokens, embeddings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elm_jax.aot.program import jit, trace_for, traced_platform
from elm_jax.models import bert_encoder, expert_layers, stacks
from elm_jax.models.bert_encoder import BertConfig
from elm_jax.models.sizes import find_config
from elm_jax.models.t5 import T5, init_params
from elm_jax.routing import embedding

RNG = np.random.default_rng(3)
CONFIG = find_config("tiny", vocab_size=40, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=24, dropout_rate=0.1)
PROMPTS = RNG.integers(3, 40, (4, 6)).astype(np.int32)
ANSWERS = RNG.integers(3, 40, (4, 1, 5)).astype(np.int32)
SEGMENTS = np.repeat(np.array([[1, 1, 1, 2, 2, 2]], np.int32), 4, axis=0)
ANSWER_SEGMENTS = np.repeat(np.array([[[1, 1, 1, 2, 2]]], np.int32), 4, axis=0)
KINDS = ["bottleneck", "lora", "ia3", "full"]


@pytest.fixture(scope="module")
def params():
    return init_params(jax.random.key(0), CONFIG)


def stack_of(kind, params):
    made = [expert_layers.init_expert(kind, jax.random.key(seed), params) for seed in (1, 2, 3)]
    return jax.tree.map(lambda *leaves: 3 * jnp.stack(leaves), *made)


def on_both(function, *arguments):
    """Returns what a function gives when it is traced for a CPU and for a TPU; both run here."""
    results = []
    for platform in ("cpu", "tpu"):
        with trace_for(platform):
            results.append(jax.jit(lambda *given: function(*given))(*arguments))
    return results


def assert_equal(one, other, tolerance=2e-5):
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(left, right, rtol=tolerance, atol=tolerance)


def test_a_program_is_traced_for_its_platform():
    assert traced_platform() == "cpu"
    seen = []
    jit(lambda x: seen.append(traced_platform()) or x, platform="gpu").lower(1)
    assert seen == ["gpu"]
    with pytest.raises(ZeroDivisionError), trace_for("tpu"):
        raise ZeroDivisionError
    assert traced_platform() == "cpu"


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_with_dropout_and_segments_are_equal(params, kind):
    full = kind == "full"
    experts = params if full else stack_of(kind, params)
    of_segment = np.array([[0, 2], [1, 1], [2, 0], [0, 1]], np.int32)

    def loss(experts):
        network, own, index = (experts, None, None) if full else (params, experts, of_segment)
        logits = T5(CONFIG, train=True).apply(
            {"params": network}, PROMPTS, ANSWERS, own, index, SEGMENTS, ANSWER_SEGMENTS,
            np.arange(8, dtype=np.uint32).reshape(4, 2), rngs={"dropout": jax.random.key(5)},
        )  # fmt: skip
        return jax.nn.log_softmax(logits)[..., 7].sum()

    assert_equal(*on_both(jax.value_and_grad(loss), experts), tolerance=2e-4)


@pytest.mark.parametrize("gathers", [False, True])
@pytest.mark.parametrize("kind", ["bottleneck", "lora", "ia3", "dora", "vera"])
def test_decoding_token_by_token_gives_the_same_logits(params, kind, gathers):
    """Whether or not the experts of rows are gathered before; the last row has an expert that is NaN."""
    experts, rows, model = stack_of(kind, params), np.array([0, 2, 1, 3], np.int32), T5(CONFIG)
    experts = jax.tree.map(lambda leaf: jnp.concatenate([leaf, jnp.full_like(leaf[:1], np.nan)]), experts)

    def decode(experts):
        run = {"params": params}
        encoded = model.apply(run, PROMPTS, experts, rows, method=T5.encode)
        cache = model.apply(run, encoded, PROMPTS, 3, experts, rows, method=T5.start_cache)
        own = experts, rows
        if gathers:
            own = model.apply(run, *own, method=T5.gather_experts)
            assert (own[1] is None) == (traced_platform() == "tpu")
        found = []
        for tokens in np.array([[0, 0, 0, 0], [5, 6, 7, 8], [9, 9, 4, 4]], np.int32):
            logits, cache = model.apply(run, cache, tokens, *own, method=T5.decode_step)
            found.append(logits)
        return jnp.stack(found)

    one, other = on_both(decode, experts)
    assert_equal(one, other)
    assert np.isfinite(one[:, :3]).all()
    assert np.isnan(one[:, 3]).all()


@pytest.mark.parametrize("relpos_buckets", [0, 32])
def test_sentence_encoders_give_the_same_states(relpos_buckets):
    config = BertConfig(
        vocab_size=30, emb_dim=12, num_heads=3, num_layers=2, mlp_dim=20, positions=9,
        relpos_buckets=relpos_buckets, pad=1 if relpos_buckets else None,
    )  # fmt: skip
    shapes = bert_encoder.param_shapes(config)
    params = jax.tree.map(lambda leaf: RNG.normal(size=leaf.shape).astype(leaf.dtype), shapes)
    tokens, lengths = RNG.integers(2, 30, (5, 7)).astype(np.int32), np.array([7, 3, 5, 1, 6], np.int32)

    def encode(params):
        states = bert_encoder.encode(config, params, tokens, lengths)
        return jnp.where((np.arange(7)[None] < lengths[:, None])[..., None], states, 0)

    assert_equal(*on_both(encode, params))


@pytest.mark.parametrize("rows", [4, 5])
def test_a_batch_is_embedded_in_parts_on_a_tpu(monkeypatch, rows):
    monkeypatch.setattr(embedding, "TPU_TOKENS_AT_ONCE", 14)
    config = BertConfig(vocab_size=30, emb_dim=12, num_heads=3, num_layers=2, mlp_dim=20, positions=9)
    shapes = bert_encoder.param_shapes(config)
    params = jax.tree.map(lambda leaf: RNG.normal(size=leaf.shape).astype(leaf.dtype), shapes)
    tokens, lengths = RNG.integers(2, 30, (rows, 7)).astype(np.int32), np.array([7, 3, 5, 1, 6], np.int32)

    def embed(platform):
        monkeypatch.setattr(embedding, "get_platform", lambda mesh: platform)
        monkeypatch.setattr(embedding, "jit", lambda function, platform: traced(function, platform))
        program = embedding.embed_program(config, (params, []), rows, 7)
        embedding._compile_embed.cache_clear()
        return program((params, []), tokens, lengths[:rows])

    def traced(function, platform):
        def run(*arguments):
            with trace_for(platform):
                return jax.jit(lambda *given: function(*given))(*arguments)

        return run

    assert_equal(embed("cpu"), embed("tpu"))


def test_what_two_stacks_keep_for_the_gradient_differs_in_shape(params):
    """Else XLA fills what the encoder keeps with zeros first: see `DecoderLayer.read_prompt`."""
    model = T5(find_config("tiny", vocab_size=40, num_encoder_layers=6, num_decoder_layers=6))
    assert model.config.num_encoder_layers > stacks.MAX_UNROLLED
    shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), model.config))

    def loss(params):
        return model.apply({"params": params}, PROMPTS, ANSWERS).sum()

    kept = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], shapes)
    width = model.config.num_heads * model.config.head_dim
    of_prompts = [leaf.shape for leaf in jax.tree.leaves(kept) if leaf.shape[-2:] == (6, width)]
    assert (6, 4, 6, width) in of_prompts
    assert (6, 4, 1, 6, width) in of_prompts
    assert of_prompts.count((6, 4, 1, 6, width)) == 2  # keys and values
