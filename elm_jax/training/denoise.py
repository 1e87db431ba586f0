"""Denoising: the two ways in which a base learns from plain text, as (prompt, target) pairs of token ids.

Span corruption is T5's pretraining (Raffel et al. 2020, section 3.1.4): spans of the text give way to
sentinels, and the target spells them out. A prefix is T5's language-model adaptation (Lester et al. 2021):
the prompt is the beginning of the text, the target the rest.
"""

from collections.abc import Sequence

import numpy as np

Pair = tuple[list[int], list[int]]


def corrupt_spans(
    tokens: Sequence[int],
    *,
    sentinel: int,
    eos: int,
    share: float,
    mean_length: float,
    rng: np.random.Generator,
    max_spans: int | None = None,
) -> Pair:
    """Masks spans of a text's tokens; at least one token is masked, and one is kept if there are two.

    Args:
        tokens: of the text.
        sentinel: first sentinel; each further span has one less.
        eos: end-of-sequence token.
        share: share of the tokens to mask, about.
        mean_length: of a span, about.
        rng: what is drawn from.
        max_spans: at most. Default: as many as there are tokens.
    """
    size = len(tokens)
    masked = min(max(1, round(size * share)), max(1, size - 1))
    spans = min(max(1, round(masked / mean_length)), masked, size - masked + 1, max_spans or size)
    # Cut the masked tokens into spans, none empty, and the kept ones into the gaps around them.
    lengths = np.diff([0, *np.sort(rng.choice(np.arange(1, masked), spans - 1, replace=False)), masked])
    gaps = np.sort(rng.choice(np.arange(size - masked + 1), spans, replace=False))
    prompt: list[int] = []
    target: list[int] = []
    at = before = 0
    for span, (length, gap) in enumerate(zip(lengths, gaps, strict=True)):
        length_kept = int(gap) - before
        prompt += [*tokens[at : at + length_kept], sentinel - span]
        at, before = at + length_kept, int(gap)
        target += [sentinel - span, *tokens[at : at + int(length)]]
        at += int(length)
    return [*prompt, *tokens[at:], eos], [*target, eos]


def make_prefix_lm_pair(tokens: Sequence[int], *, eos: int, rng: np.random.Generator) -> Pair:
    """Cuts the text at a random position; both sides have at least one token if there are two."""
    cut = int(rng.integers(1, max(2, len(tokens))))
    return [*tokens[:cut], eos], [*tokens[cut:], eos]
