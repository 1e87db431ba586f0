"""Activations: an estimate of the bytes that stand between the layers, for rows of a length.

Packed rows of G segments have more: what their experts own, gathered for every segment.

A test holds it to within a factor of two of what XLA reports for its CPU backend, which keeps what others may
fuse. On accelerators it has not been measured.
"""

from typing import Any

import jax.numpy as jnp

from elm_jax.models import paths
from elm_jax.models.sizes import T5Config
from elm_jax.scoring.likelihood import LOGITS_AT_ONCE


def training(network: T5Config, rows: int, prompt: int, answer: int, tensor: int = 1) -> int:
    """Estimates the bytes between the layers of a training step over a frozen base.

    With w bytes of the type computed in, widths D of the model, J of all heads and F of the feed-forward, and
    H heads, a layer keeps for its gradient, of every token,

        attention      4 D + w (2 D + 4 J)            its weights are made again for the gradient
        across stacks  4 D + w (2 D + 2 J)            and w 2 J of every token of the prompt
        feed-forward   4 D + w (2 D + 3 F)            2 F where it has a single projection
        dropout        w D, w (D + F)                 what it leaves of each of them

    Beside the layers stands the largest of: what the gradient of one layer makes, 16 H K + 2 w F of a token
    that has K keys, and 16 H K more to draw dropout; logits, their softmax and its gradient, 12 V of a token
    of the answer. With `remat` every layer keeps its input alone, w D, and one of them at a time has the
    rest. `tensor` splits J, F, H and V.
    """
    emb, joined, inner, heads, vocabulary, w = _widths(network, tensor)
    dropped = network.dropout_rate > 0
    drop = w * dropped

    def attention(queries: int, projections: int) -> int:
        return queries * (4 * emb + w * (2 * emb + (projections + 1) * joined) + drop * emb)

    def feed_forward(tokens: int) -> int:
        return tokens * (4 * emb + w * 2 * emb + _inner(network, inner) + drop * (emb + inner))

    def backward(tokens: int) -> int:
        return tokens * ((16 + 16 * dropped) * heads * prompt + 2 * w * inner)

    encoder = attention(prompt, 3) + feed_forward(prompt)
    across = attention(answer, 1) + prompt * w * 2 * joined
    decoder = attention(answer, 3) + across + feed_forward(answer)
    logits = 12 * vocabulary * answer
    deep, deep_answer = network.num_encoder_layers, network.num_decoder_layers
    if network.remat:
        inputs = w * emb * (deep * prompt + deep_answer * answer) + 8 * emb * prompt
        return rows * (inputs + max(encoder + backward(prompt), decoder + backward(answer), logits))
    return rows * (deep * encoder + deep_answer * decoder + max(backward(prompt), backward(answer), logits))


def gathered(network: T5Config, expert: Any, rows: int, segments: int, prompt: int, answer: int) -> int:
    """Estimates what rows of G segments have beside `training` where each segment has its own expert.

    A row keeps, of every layer and in the type computed in, w G bytes for each value of an expert: the
    segments' own, gathered. A token keeps w G R for every kernel of rank R, which is G times as wide where a
    row's kernels meet, and w 2 O for every vector of (IA)³ of width O. With `remat` one layer at a time has
    it. `expert` has the shapes of a single one; no part of it counts as split, for all of a device's rows
    have their own.
    """
    w = jnp.dtype(network.dtype).itemsize
    depths = {"encoder": network.num_encoder_layers, "decoder": network.num_decoder_layers}
    stacks = dict.fromkeys(depths, 0)
    for path, leaf in paths.flatten(expert).items():
        stack = path.partition("/")[0]
        tokens = prompt if stack == "encoder" else answer
        by_token = 0
        if leaf.ndim == 3:
            by_token = segments * min(leaf.shape[1:]) * leaf.shape[0]
        elif "/ia3_" in path:
            by_token = 2 * leaf.size
        stacks[stack] += w * (segments * leaf.size + tokens * by_token)
    if network.remat:
        return rows * max(stacks[stack] // depths[stack] for stack in stacks)
    return rows * sum(stacks.values())


def scoring(network: T5Config, rows: int, prompt: int, answer: int, tensor: int = 1) -> int:
    """Estimates the bytes between the layers when answers are scored, with the letters of `training`.

    Only one layer's are there at a time: w (2 D + 3 J) + 4 H K of every token, or w (2 D + 3 F) where that is
    more, beside the encoder's output; and logits of a few tokens at a time.
    """
    emb, joined, inner, heads, vocabulary, w = _widths(network, tensor)

    def layer(tokens: int, keys: int) -> int:
        return tokens * (w * 2 * emb + max(w * 3 * joined + 4 * heads * keys, _inner(network, inner)))

    read = (
        w * prompt * (emb + 2 * joined)
    )  # the encoder's output, and a decoder layer's keys and values of it
    logits = 2 * 4 * min(LOGITS_AT_ONCE, rows * answer * vocabulary)
    return rows * max(layer(prompt, prompt), read + layer(answer, prompt + answer)) + logits


def _widths(network: T5Config, tensor: int) -> tuple[int, int, int, int, int, int]:
    """Returns D, J, F, H and V on a device, and the bytes of the type computed in."""
    heads, inner, vocabulary = (
        -(-whole // tensor) for whole in (network.num_heads, network.mlp_dim, network.vocab_size)
    )
    w = jnp.dtype(network.dtype).itemsize
    return network.emb_dim, heads * network.head_dim, inner, heads, vocabulary, w


def _inner(network: T5Config, inner: int) -> int:
    """Returns the bytes of a token's inner activations: each projection's, and their product."""
    return jnp.dtype(network.dtype).itemsize * (1 + len(network.mlp_activations)) * inner
