"""The network: what it may depend on, what it may not, and that it is T5."""

from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import numpy as np
import pytest

from elm_jax.models import paths
from elm_jax.models.dropout import Dropout, make_token_seeds
from elm_jax.models.layers import relative_bucket
from elm_jax.models.sizes import find_config
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


@pytest.fixture(scope="module")
def noisy(config, base):
    """Logits with dropout, of a network of one layer a stack: it has every dropout there is."""
    config = replace(config, num_encoder_layers=1, num_decoder_layers=1, dropout_rate=0.3)
    first = {path: leaf[:1] if "/layers/" in path else leaf for path, leaf in paths.flatten(base).items()}
    params = paths.unflatten(first)

    @partial(jax.jit, static_argnames="train")
    def network(prompts, answers, seeds, *segments, train=True):
        rngs = {"dropout": jax.random.key(0)} if train else {}
        given = (prompts, answers, None, None, *(segments or (None, None)), seeds)
        return T5(config, train=train).apply({"params": params}, *given, rngs=rngs)

    return lambda *given, **how: np.asarray(network(*given, **how))


SEEDS = np.array([7, 8, 9, 10], np.uint32)


def test_dropout_at_a_place_does_not_depend_on_the_padding_after_it(noisy):
    answers = ANSWERS[:, :1]
    found = noisy(PROMPTS, answers, SEEDS)
    wide = noisy(np.pad(PROMPTS, ((0, 0), (0, 6))), np.pad(answers, ((0, 0), (0, 0), (0, 3))), SEEDS)
    np.testing.assert_allclose(wide[:, :, :5], found, atol=1e-5)
    other = noisy(PROMPTS, answers, SEEDS + np.uint32(4))
    assert np.abs(found - other).min(axis=-1).max() > 1e-3
    assert np.abs(found - noisy(PROMPTS, answers, SEEDS, train=False)).max() > 0.1


def test_dropout_of_a_row_depends_on_its_own_seed_and_not_on_where_it_stands(noisy):
    answers = ANSWERS[:, :1]
    found = noisy(PROMPTS, answers, SEEDS)
    np.testing.assert_allclose(noisy(PROMPTS[::-1], answers[::-1], SEEDS[::-1])[::-1], found, atol=1e-5)
    changed = noisy(PROMPTS, answers, np.array([7, 8, 99, 10], np.uint32))
    np.testing.assert_array_equal(changed[[0, 1, 3]], found[[0, 1, 3]])
    assert np.abs(changed[2] - found[2]).max() > 1e-2
    alike = noisy(PROMPTS[[0, 0]], answers[[0, 0]], SEEDS[[0, 0]])
    np.testing.assert_allclose(alike[0], alike[1], atol=1e-5)


# Examples of a prompt and an answer, by the lengths of both, and where each stands when they are packed.
LENGTHS = [(4, 2), (3, 5), (9, 3), (1, 1), (10, 4)]
ROWS = [[2, 3], [1, 0], [4]]


def alone():
    """Returns the examples each in a row of its own, padded."""
    prompts, answers = np.zeros((5, 10), np.int32), np.zeros((5, 1, 5), np.int32)
    for at, (prompt, answer) in enumerate(LENGTHS):
        prompts[at, :prompt] = PROMPTS[at % 4, :prompt]
        answers[at, 0, :answer] = ANSWERS[at % 4, 0, :answer]
    return prompts, answers


def packed(width=13, answer_width=8):
    """Returns packed prompts, answers, seeds and segments, and where each example's answer is."""
    prompts, answers = alone()
    segments, seeds = np.zeros((3, width), np.int32), np.zeros((3, 2), np.uint32)
    laid, into = np.zeros((3, width), np.int32), np.zeros((3, 1, answer_width), np.int32)
    of_answers, places = np.zeros((3, 1, answer_width), np.int32), {}
    for row, examples in enumerate(ROWS):
        prompt = answer = 0
        for segment, at in enumerate(examples):
            here, there = slice(prompt, prompt + LENGTHS[at][0]), slice(answer, answer + LENGTHS[at][1])
            laid[row, here], segments[row, here] = prompts[at, : LENGTHS[at][0]], segment + 1
            into[row, 0, there], of_answers[row, 0, there] = answers[at, 0, : LENGTHS[at][1]], segment + 1
            seeds[row, segment], places[at] = 20 + at, (row, there)
            prompt, answer = here.stop, there.stop
    return laid, into, seeds, segments, of_answers, places


@pytest.mark.parametrize("widths", [(13, 8), (16, 11)])
def test_dropout_of_an_example_is_the_same_in_a_packed_row_and_in_its_own(noisy, widths):
    prompts, answers, seeds, *segments, places = packed(*widths)
    together = noisy(prompts, answers, seeds, *segments)
    found = noisy(*alone(), np.arange(20, 25, dtype=np.uint32))
    still = noisy(*alone(), np.arange(20, 25, dtype=np.uint32), train=False)
    for at, (row, there) in places.items():
        own = found[at, 0, : LENGTHS[at][1]]
        np.testing.assert_allclose(together[row, 0, there], own, atol=1e-5)
        assert np.abs(own - still[at, 0, : LENGTHS[at][1]]).max() > 0.1


def test_the_seed_of_a_segment_does_not_reach_its_neighbours(noisy):
    prompts, answers, seeds, *segments, places = packed()
    before = noisy(prompts, answers, seeds, *segments)
    seeds[0, 1] += 1  # of the example 3
    after = noisy(prompts, answers, seeds, *segments)
    for at, (row, there) in places.items():
        if at == 3:
            assert np.abs(before[row, 0, there] - after[row, 0, there]).max() > 1e-3
        else:
            np.testing.assert_allclose(before[row, 0, there], after[row, 0, there], atol=1e-5)


def test_dropout_drops_its_share_and_keeps_the_mean():
    x = np.ones((64, 32, 48), np.float32)
    found: Any = Dropout(0.25, True).apply({}, x, rngs={"dropout": jax.random.key(3)})
    assert set(np.unique(found)) == {np.float32(0), np.float32(1 / 0.75)}
    # 98,304 draws: the share's standard deviation is 0.0014.
    assert abs(float((np.asarray(found) == 0).mean()) - 0.25) < 0.007


def test_dropout_has_no_pattern_along_rows_positions_or_width():
    """Neighbours along each axis are dropped together as often as chance has it: 0.25² of the pairs."""
    x = np.ones((64, 32, 48), np.float32)
    seeds = np.arange(64, dtype=np.uint32)
    out = Dropout(0.25, True).apply(
        {}, x, make_token_seeds(seeds, None, 32), rngs={"dropout": jax.random.key(3)}
    )
    dropped = np.asarray(out) == 0
    for axis in range(3):
        pairs = dropped & np.roll(dropped, 1, axis)
        # Of some 98,000 pairs the share's standard deviation is below 0.001.
        assert abs(float(pairs.mean()) - 0.0625) < 0.005


def test_positions_are_counted_from_the_beginning_of_a_segment_and_words_are_of_seed_and_position():
    segments = np.array([[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 2, 2]], np.int32)
    seeds = np.array([[5, 6], [6, 5]], np.uint32)
    found = make_token_seeds(seeds, segments, 6)
    assert found is not None
    assert np.asarray(found.position)[:, :5].tolist() == [[0, 1, 0, 1, 2], [0, 1, 2, 3, 0]]
    word = np.asarray(found.word)
    assert word[0, :2].tolist() == word[1, 4:].tolist()  # of seed 5
    assert word[0, 2:5].tolist() == word[1, :3].tolist()  # of seed 6
    assert len({*word[0, :5].tolist(), word[1, 3]}) == 6
    whole = make_token_seeds(np.array([6], np.uint32), None, 4)
    assert whole is not None
    assert np.asarray(whole.word)[0].tolist() == word[1, :4].tolist()


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
    shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), find_config("xl")))
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
