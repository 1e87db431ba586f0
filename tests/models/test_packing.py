"""Packing: several examples in a row give what each gives in a row of its own."""

import jax
import numpy as np
import pytest

from elm_jax.errors import UserError
from elm_jax.models import expert_layers as ex
from elm_jax.models.sizes import find_config
from elm_jax.models.t5 import T5, init_params
from elm_jax.training.loss import token_losses
from elm_jax.training.step import stack

CONFIG = find_config("tiny", vocab_size=96, emb_dim=32, head_dim=6, mlp_dim=48, num_encoder_layers=1)
RNG = np.random.default_rng(5)
# Lengths of prompt and answer, by packed row.
LENGTHS = [[(4, 2), (3, 3), (4, 1)], [(6, 4), (5, 2)]]


def examples():
    return [[tuple(RNG.integers(3, 96, n).astype(np.int32) for n in pair) for pair in row] for row in LENGTHS]


ROWS = examples()


def pad(rows, length):
    return np.stack([np.pad(row, (0, length - len(row))) for row in rows])


def packed():
    """Returns prompts, answers and the segments of both; a row may end in padding."""
    found = []
    for part, length in ((0, 12), (1, 8)):
        found.append(pad([np.concatenate([example[part] for example in row]) for row in ROWS], length))
        ids = [[np.full(len(example[part]), n, np.int32) for n, example in enumerate(row, 1)] for row in ROWS]
        found.append(pad([np.concatenate(row) for row in ids], length))
    prompts, prompt_segments, answers, answer_segments = found
    return prompts, answers[:, None], prompt_segments, answer_segments[:, None]


@pytest.fixture(scope="module")
def network():
    return jax.jit(
        lambda base, prompts, answers, experts=None, index=None, *segments: T5(CONFIG).apply(
            {"params": base}, prompts, answers, experts, index, *segments
        )
    )


@pytest.fixture(scope="module")
def base():
    # Drawn on the host: compiling their first values takes longer than the test.
    shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), CONFIG))
    return jax.tree.map(lambda leaf: RNG.normal(0, 0.5, leaf.shape).astype(np.float32), shapes)


BY_SEGMENT = ["bottleneck", "lora", "dora", "vera", "ia3", "prompt"]
WAYS = ["the base", "an expert for each packed row", *BY_SEGMENT]


@pytest.fixture(scope="module", params=WAYS)
def logits(request, network, base):
    """Packed and unpacked logits of all answer tokens, in one order."""
    prompts, answers, *segments = packed()
    alone = [example for row in ROWS for example in row]
    beside = (None, None), (None, None)
    if request.param != "the base":
        made = [ex.init_expert("bottleneck", jax.random.key(seed), base, {"width": 4}) for seed in (1, 2, 3)]
        # Norm scales of 1 to 1.4 set them apart and leave the logits, and so their rounding, small.
        experts = stack([jax.tree.map(lambda leaf, by=1 + n / 5: leaf * by, made[n]) for n in range(3)])
        beside = (experts, np.array([2, 0], np.int32)), (experts, np.array([2, 2, 2, 0, 0], np.int32))
    if request.param in ex.KINDS:  # an expert for each segment: rows of three and of two examples
        seeds = jax.random.split(jax.random.key(1), 3)
        options = {} if request.param == "bottleneck" else {"projections": ("key", "value", "wo", "out")}
        options = {"tokens": 3} if request.param == "prompt" else options
        made = [ex.init_expert(request.param, seed, base, options) for seed in seeds]
        noisy = [jax.tree.map(lambda leaf: leaf + RNG.normal(0, 0.1, leaf.shape), tree) for tree in made]
        experts = stack([jax.tree.map(np.float32, tree) for tree in noisy])
        of_segments = np.array([[2, 0, 2], [1, 0, 0]], np.int32)
        beside = (experts, of_segments), (experts, np.array([2, 0, 2, 1, 0], np.int32))
    together = np.asarray(network(base, prompts, answers, *beside[0], *segments))[:, 0]
    prompts, targets = pad([prompt for prompt, _ in alone], 6), pad([answer for _, answer in alone], 4)
    apart = np.asarray(network(base, prompts, targets[:, None], *beside[1]))[:, 0]
    return together[answers[:, 0] > 0], apart[targets > 0]


def test_packed_examples_have_the_logits_that_they_have_alone(logits):
    together, apart = logits
    assert len(together) == 12
    np.testing.assert_allclose(together, apart, atol=1e-5)


def test_packed_examples_have_the_loss_that_they_have_alone(logits):
    targets = np.concatenate([answer for row in ROWS for _, answer in row])[None]
    together, apart = (float(token_losses(found[None], targets).mean()) for found in logits)
    assert together == pytest.approx(apart, abs=1e-5)


def test_segments_of_prompts_alone_are_refused(base):
    prompts, answers, segments, _ = packed()
    network = T5(CONFIG)
    with pytest.raises(UserError, match="of prompts and of answers"):
        jax.eval_shape(lambda: network.apply({"params": base}, prompts, answers, prompt_segments=segments))
