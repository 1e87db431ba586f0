"""The network: what it may depend on, what it may not, and that it is T5."""

from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest

from elm_jax.models import paths
from elm_jax.models.layers import Dropout, relative_bucket
from elm_jax.models.sizes import size
from elm_jax.models.t5 import T5, init_params

RNG = np.random.default_rng(0)
PROMPTS = RNG.integers(3, 96, (4, 10)).astype(np.int32)
ANSWERS = RNG.integers(3, 96, (4, 3, 5)).astype(np.int32)


@cache
def compiled(config):
    return jax.jit(lambda params, prompts, answers: T5(config).apply({"params": params}, prompts, answers))


def logits(config, params, prompts, answers):
    return np.asarray(compiled(config)(params, np.ascontiguousarray(prompts), np.ascontiguousarray(answers)))


@pytest.mark.parametrize("wider", [1, 7])
def test_padding_the_prompt_changes_no_logit(config, base, wider):
    wide = np.pad(PROMPTS, ((0, 0), (0, wider)))
    np.testing.assert_allclose(
        logits(config, base, wide, ANSWERS), logits(config, base, PROMPTS, ANSWERS), atol=1e-5
    )


def test_padding_the_answers_and_adding_choices_changes_no_logit_before_it(config, base):
    wide = np.pad(ANSWERS, ((0, 0), (0, 2), (0, 4)))
    found = logits(config, base, PROMPTS, wide)[:, :3, :5]
    np.testing.assert_allclose(found, logits(config, base, PROMPTS, ANSWERS), atol=1e-5)


def test_a_row_does_not_depend_on_its_batch(config, base):
    whole = logits(config, base, PROMPTS, ANSWERS)
    np.testing.assert_allclose(logits(config, base, PROMPTS[::-1], ANSWERS[::-1])[::-1], whole, atol=1e-5)
    np.testing.assert_allclose(logits(config, base, PROMPTS[2:3], ANSWERS[2:3])[0], whole[2], atol=1e-5)


def test_a_prompt_encoded_once_serves_all_choices_as_if_repeated_for_each(config, base):
    together = logits(config, base, PROMPTS, ANSWERS)
    for choice in range(3):
        alone = logits(config, base, PROMPTS, ANSWERS[:, choice : choice + 1])
        np.testing.assert_allclose(together[:, choice], alone[:, 0], atol=1e-5)


def test_no_answer_token_sees_itself_or_the_future(config, base):
    changed = ANSWERS.copy()
    changed[:, 1, 2] += 1
    before, after = (logits(config, base, PROMPTS, answers) for answers in (ANSWERS, changed))
    np.testing.assert_array_equal(before[:, 1, :3], after[:, 1, :3])
    np.testing.assert_array_equal(before[:, [0, 2]], after[:, [0, 2]])
    assert np.abs(before[:, 1, 3:] - after[:, 1, 3:]).max(axis=-1).min() > 1e-4


def test_the_encoder_sees_both_directions(config, base):
    changed = PROMPTS.copy()
    changed[:, 5] += 1
    encode = jax.jit(lambda tokens: T5(config).apply({"params": base}, tokens, method="encode"))
    moved = np.abs(np.asarray(encode(PROMPTS) - encode(changed))).max(axis=-1)
    assert moved[:, [0, 4, 5, 6, 9]].min() > 1e-5


def test_dropout_at_a_place_does_not_depend_on_the_padding_after_it(config, base):
    # One layer a stack has every dropout there is, and compiles in a third of the time.
    config = replace(config, num_encoder_layers=1, num_decoder_layers=1)
    first = {path: leaf[:1] if "/layers/" in path else leaf for path, leaf in paths.flatten(base).items()}
    base, noisy = paths.unflatten(first), replace(config, dropout_rate=0.3)
    network = jax.jit(
        lambda prompts, answers, seed: T5(noisy, train=True).apply(
            {"params": base}, prompts, answers, rngs={"dropout": jax.random.key(seed)}
        )
    )
    answers = ANSWERS[:, :1]
    found = np.asarray(network(PROMPTS, answers, 1))
    wide = network(np.pad(PROMPTS, ((0, 0), (0, 6))), np.pad(answers, ((0, 0), (0, 0), (0, 3))), 1)
    np.testing.assert_allclose(np.asarray(wide)[:, :, :5], found, atol=1e-5)
    assert np.abs(found - np.asarray(network(PROMPTS, answers, 2))).min(axis=-1).max() > 1e-3
    assert np.abs(found - logits(config, base, PROMPTS, answers)).max() > 0.1


def test_dropout_drops_its_share_and_keeps_the_mean():
    x = np.ones((64, 32, 48), np.float32)
    found = Dropout(0.25, True).apply({}, x, rngs={"dropout": jax.random.key(3)})
    assert set(np.unique(found)) == {np.float32(0), np.float32(1 / 0.75)}
    # 98,304 draws: the share's standard deviation is 0.0014.
    assert abs(float((np.asarray(found) == 0).mean()) - 0.25) < 0.007


def test_bfloat16_gives_float32_logits_near_the_float32_ones(config, base):
    half = replace(config, dtype="bfloat16")
    found = logits(half, base, PROMPTS, ANSWERS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, logits(config, base, PROMPTS, ANSWERS), atol=0.15)


def test_buckets_of_relative_positions_are_exact_when_near_and_logarithmic_when_far():
    # 32 buckets both ways are 16 a side, 8 of them exact; the last starts at distance 128 * (8/128)^(1/8).
    relative = np.array([[0, -1, -7, -8, -90, -91, -500, 1, 7, 8, 500]])
    found = relative_bucket(relative, bidirectional=True, buckets=32, max_distance=128)
    assert found.tolist() == [[0, 1, 7, 8, 14, 15, 15, 17, 23, 24, 31]]


def test_the_decoder_puts_every_future_position_in_bucket_zero():
    found = relative_bucket(
        np.array([[5, 1, 0, -1, -15, -16]]), bidirectional=False, buckets=32, max_distance=128
    )
    assert found.tolist() == [[0, 0, 0, 1, 15, 16]]


def test_xl_has_the_published_number_of_parameters():
    # 2 x 32128 x 2048 embeddings and head, two relative tables of 32 heads x 32 buckets, 24 layers a
    # side of four (eight in the decoder) 2048 x 2048 projections and three 2048 x 5120, and 122 norms.
    shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), size("xl")))
    layers = 24 * (12 * 2048**2 + 2 * 3 * 2048 * 5120)
    wanted = 2 * 32128 * 2048 + 2 * 32 * 32 + layers + 122 * 2048
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == wanted == 2_849_757_184


def test_tables_of_positions_of_every_layer_act_as_the_shared_one_where_they_are_alike(config, base):
    apart = replace(config, relpos_per_layer=True)
    flat = paths.flatten(base)
    for stack, layers in (("encoder", 2), ("decoder", 3)):
        table = flat.pop(f"{stack}/relpos_bias/rel_embedding")
        flat[f"{stack}/layers/relpos_bias/rel_embedding"] = np.stack([np.asarray(table)] * layers)
    found = logits(apart, paths.unflatten(flat), PROMPTS, ANSWERS)
    np.testing.assert_allclose(found, logits(config, base, PROMPTS, ANSWERS), atol=1e-5)
    flat["decoder/layers/relpos_bias/rel_embedding"][1, :, 1] += 1
    assert np.abs(logits(apart, paths.unflatten(flat), PROMPTS, ANSWERS) - found).max() > 1e-3
