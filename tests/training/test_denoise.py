"""Denoising: prompt and target together are the text, whatever the text and the dice."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elm_jax.training import denoise

EOS, SENTINEL = 1, 999  # text tokens are 2 to 500, so that 499 sentinels are told from them
TEXT = st.lists(st.integers(2, 500), min_size=1, max_size=60)
SEED = st.integers(0, 2**32 - 1)
SHARE = st.floats(0.0, 1.0)
LENGTH = st.floats(0.5, 12.0)


def corrupted(tokens, share, length, seed):
    return denoise.corrupt_spans(
        tokens,
        sentinel=SENTINEL,
        eos=EOS,
        share=share,
        mean_length=length,
        rng=np.random.default_rng(seed),
    )


def sentinels(tokens):
    return [token for token in tokens if token > 500]


def reassembled(prompt, target):
    """Puts the spans of the target in the places of the prompt's sentinels."""
    spans = {}
    for token in target[:-1]:
        if token > 500:
            current = spans[token] = []
        else:
            current.append(token)
    return [each for token in prompt[:-1] for each in spans.get(token, [token])]


@settings(deadline=None)
@given(TEXT, SHARE, LENGTH, SEED)
def test_the_spans_put_back_in_their_places_are_the_text(tokens, share, length, seed):
    assert reassembled(*corrupted(tokens, share, length, seed)) == tokens


@settings(deadline=None)
@given(TEXT, SHARE, LENGTH, SEED)
def test_sentinels_count_down_from_the_first_alike_on_both_sides(tokens, share, length, seed):
    prompt, target = corrupted(tokens, share, length, seed)
    assert sentinels(prompt) == list(range(SENTINEL, SENTINEL - len(sentinels(prompt)), -1))
    assert sentinels(prompt) == sentinels(target)
    assert target[0] == SENTINEL


@settings(deadline=None)
@given(TEXT, SHARE, LENGTH, SEED)
def test_end_of_sequence_comes_last_and_once_on_both_sides(tokens, share, length, seed):
    for side in corrupted(tokens, share, length, seed):
        assert side[-1] == EOS
        assert side.count(EOS) == 1


@settings(deadline=None)
@given(TEXT, SHARE, LENGTH, SEED)
def test_the_share_is_kept_to_the_token_and_at_least_one_is_masked_and_one_kept(tokens, share, length, seed):
    _, target = corrupted(tokens, share, length, seed)
    masked = len(target) - 1 - len(sentinels(target))
    wanted = max(1, round(len(tokens) * share))
    assert masked == (min(wanted, len(tokens) - 1) if len(tokens) > 1 else 1)


@settings(deadline=None)
@given(TEXT, SHARE, LENGTH, SEED)
def test_no_span_is_empty_and_no_two_touch(tokens, share, length, seed):
    for side in corrupted(tokens, share, length, seed):
        between = [a > 500 and b > 500 for a, b in pairwise(side)]
        assert not any(between)


@settings(deadline=None)
@given(TEXT, SEED)
def test_spans_are_as_many_as_their_mean_length_asks_for(tokens, seed):
    tokens = tokens * 10  # room enough
    prompt, target = corrupted(tokens, 0.3, 3.0, seed)
    masked = len(target) - 1 - len(sentinels(target))
    assert len(sentinels(prompt)) == max(1, round(masked / 3.0))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_text_of_one_token_is_masked_whole(share):
    assert corrupted([7], share, 3.0, 0) == ([SENTINEL, EOS], [SENTINEL, 7, EOS])


def test_spans_fall_everywhere_in_the_text():
    firsts = {corrupted(list(range(2, 7)), 0.2, 1.0, seed)[0].index(SENTINEL) for seed in range(60)}
    assert firsts == {0, 1, 2, 3, 4}


def test_the_same_dice_cut_the_same_spans():
    text = list(range(2, 50))
    assert corrupted(text, 0.3, 2.0, 5) == corrupted(text, 0.3, 2.0, 5)
    assert corrupted(text, 0.3, 2.0, 5) != corrupted(text, 0.3, 2.0, 6)


@settings(deadline=None)
@given(TEXT, SEED)
def test_a_prefix_and_its_rest_are_the_text_and_both_end(tokens, seed):
    prompt, target = denoise.make_prefix_lm_pair(tokens, eos=EOS, rng=np.random.default_rng(seed))
    assert prompt[:-1] + target[:-1] == tokens
    assert prompt[-1] == target[-1] == EOS
    assert len(prompt) > 1
    assert len(target) > 1 or len(tokens) == 1


def test_a_prefix_is_cut_everywhere_inside_the_text():
    cuts = {
        len(denoise.make_prefix_lm_pair([5, 6, 7, 8], eos=EOS, rng=np.random.default_rng(seed))[0]) - 1
        for seed in range(40)
    }
    assert cuts == {1, 2, 3}
