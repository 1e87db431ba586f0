"""FLOPs: what a step and a forward pass cost, by hand and by XLA's own count."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from elm_jax.models import expert_layers as ex
from elm_jax.models import flops
from elm_jax.models.shapes import base_shapes, expert_shapes
from elm_jax.models.sizes import T5Config, find_config
from elm_jax.models.t5 import T5
from elm_jax.training.loss import token_losses

# Projections of 4 x 2 and a feed-forward of 4 x 3 twice and 3 x 4: a prompt's token meets 4 * 8 + 36 of the
# encoder and 2 * 8 of cross-attention, an answer's 4 * 8 + 2 * 8 + 36 of the decoder and 4 * 8 of the output.
SMALL = T5Config(
    vocab_size=8, emb_dim=4, num_heads=1, head_dim=2, mlp_dim=3, num_encoder_layers=1, num_decoder_layers=1
)
PROMPT, ANSWER = 84, 116


def cost(network, kind, options=None, seen=None):
    return flops.training_flops(
        network, kind, base_shapes(network), expert_shapes(network, kind, options), seen
    )


def both(cost):
    return cost.prompt, cost.answer


def test_full_training_costs_six_for_every_parameter_that_a_token_meets():
    assert both(cost(SMALL, "full")) == (6 * PROMPT, 6 * ANSWER)


def test_a_tied_output_layer_costs_what_one_of_its_own_does():
    tied = replace(SMALL, logits_via_embedding=True)
    assert both(cost(tied, "full")) == (6 * PROMPT, 6 * ANSWER)


@pytest.mark.parametrize(
    ("kind", "options", "prompt", "answer"),
    [
        ("ia3", {}, 0, 0),  # products of elements
        ("bottleneck", {"width": 1}, 2 * 8, 2 * 8),  # 4 x 1 and 1 x 4 after two blocks
        ("lora", {"rank": 1, "projections": ("query", "value")}, 3 * 6, 3 * 6),  # 4 x 1 and 1 x 2 at three
    ],
)
def test_a_frozen_base_costs_four_and_the_experts_own_kernels_six(kind, options, prompt, answer):
    expected = (4 * PROMPT + 6 * prompt, 4 * ANSWER + 6 * answer)
    assert both(cost(SMALL, kind, options)) == expected


def test_attention_costs_twelve_for_each_of_its_values_and_tokens_attended_to():
    made = cost(SMALL, "ia3", {}, flops.AttentionSpans(prompt=5.0, answer=3.0, cross=5.0))
    assert both(made) == (4 * PROMPT + 12 * 2 * 5, 4 * ANSWER + 12 * 2 * (3 + 5))
    assert made.total(10, 2) == 10 * made.prompt + 2 * made.answer


def test_tokens_attend_to_their_own_rows_so_long_rows_count_more():
    # Three tokens see three and one sees one; the answers' two tokens see three and one.
    assert flops.attention_spans([3, 1], [1, 1]) == flops.AttentionSpans(prompt=2.5, answer=1.0, cross=2.0)


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("full", {}, 0.03),
        ("bottleneck", {"width": 16}, 0.03),
        ("lora", {"rank": 16}, 0.06),  # XLA leaves out the gradient of what enters the first layer
    ],
)
def test_what_is_counted_is_what_xla_counts(kind, options, tolerance):
    network = find_config(
        "tiny", emb_dim=128, num_heads=4, head_dim=32, mlp_dim=256, vocab_size=512
    )  # unrolled
    base, expert = base_shapes(network), expert_shapes(network, kind, options)

    def loss(owned, base, prompts, targets):
        params, beside = ex.split_base_and_expert(kind, base, owned)
        logits = T5(network).apply({"params": params}, prompts, targets[:, None], beside)
        return token_losses(jnp.asarray(logits)[:, 0], targets).sum() / (targets > 0).sum()

    rows, prompt, answer = 4, 48, 16
    tokens = [jax.ShapeDtypeStruct((rows, length), jnp.int32) for length in (prompt, answer)]
    compiled = jax.jit(jax.value_and_grad(loss)).lower(expert, base, *tokens).compile()
    seen = flops.AttentionSpans(float(prompt), float(answer), float(prompt))
    made = flops.training_flops(network, kind, base, expert, seen)
    counted = compiled.cost_analysis()["flops"]
    assert made.total(rows * prompt, rows * answer) == pytest.approx(counted, rel=tolerance)


@pytest.mark.parametrize(("kind", "options"), [("bottleneck", {"width": 16}), ("lora", {"rank": 16})])
def test_a_forward_pass_costs_what_xla_counts(kind, options):
    network = find_config("tiny", emb_dim=128, num_heads=4, head_dim=32, mlp_dim=256, vocab_size=512)
    base, expert = base_shapes(network), expert_shapes(network, kind, options)
    rows, prompt, answer = 4, 48, 16
    tokens = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((rows, prompt), (rows, 1, answer))]
    forward = jax.jit(lambda base, expert, *tokens: T5(network).apply({"params": base}, *tokens, expert))
    counted = forward.lower(base, expert, *tokens).compile().cost_analysis()["flops"]
    made = flops.forward_flops(network, base, expert, flops.AttentionSpans(48.0, 16.0, 48.0))
    assert made.total(rows * prompt, rows * answer) == pytest.approx(counted, rel=0.06)
