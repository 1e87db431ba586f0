"""The network held against PyTorch's T5 of `transformers`: the same logits, loss and gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elm_jax.models import paths
from elm_jax.models.sizes import T5Config, find_config
from elm_jax.models.t5 import T5, init_params
from elm_jax.training.loss import answer_loss
from elm_jax.weights import hf_names

torch = pytest.importorskip("torch", reason="the parity extra brings torch, and is not installed")
transformers = pytest.importorskip("transformers", reason="the parity extra brings it, and is not installed")
pytestmark = pytest.mark.parity

RNG = np.random.default_rng(8)
PROMPTS = RNG.integers(3, 96, (4, 24)).astype(np.int32)
# Padded right, left, and on both sides.
PROMPTS[1, 17:] = PROMPTS[2, :5] = PROMPTS[3, :3] = PROMPTS[3, 20:] = 0
TARGETS = RNG.integers(3, 96, (4, 7)).astype(np.int32)
TARGETS[1, 4:] = TARGETS[3, 1:] = 0

RELU = {"mlp_activations": ("relu",)}
TIED = {"logits_via_embedding": True}
UNSCALED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
# By name: layers of either stack, our other fields, whose network it is, and what its configuration is told.
CASES: dict[str, tuple[tuple[int, int], dict[str, Any], str, dict[str, Any]]] = {
    "T5 1.0": ((2, 2), {**RELU, **TIED, "head_dim": 6}, "T5", {"feed_forward_proj": "relu"}),
    "T5 1.1, deeper in its encoder": ((6, 1), {"head_dim": 8, "relpos_buckets": 16}, "T5", UNSCALED),
    # What transformers 5 makes of a 1.1 configuration alone.
    "T5 1.1, tied and not scaled": ((1, 2), {**TIED, "scale_decoder_outputs": False}, "T5", UNSCALED),
    "mT5": ((1, 5), {"head_dim": 12, "relpos_max_distance": 20}, "MT5", UNSCALED),
}


def network_of(config: T5Config, family: str, told: dict[str, Any]):
    """Returns PyTorch's network with random weights of its own, all of them away from their first values."""
    torch.manual_seed(9)
    network = getattr(transformers, f"{family}ForConditionalGeneration")(
        getattr(transformers, f"{family}Config")(
            vocab_size=config.vocab_size,
            d_model=config.emb_dim,
            d_kv=config.head_dim,
            d_ff=config.mlp_dim,
            num_layers=config.num_encoder_layers,
            num_decoder_layers=config.num_decoder_layers,
            num_heads=config.num_heads,
            relative_attention_num_buckets=config.relpos_buckets,
            relative_attention_max_distance=config.relpos_max_distance,
            decoder_start_token_id=0,
            **told,
        )
    )
    if not config.logits_via_embedding:
        # Version 5 ties every head that it makes.
        network.lm_head.weight = torch.nn.Parameter(torch.randn_like(network.lm_head.weight))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return network.eval()


def params_of(named: dict[str, Any], config: T5Config) -> dict[str, Any]:
    """Returns tensors by PyTorch's names as a tree of parameters; none may be left over."""
    wanted = jax.eval_shape(
        lambda: paths.unstack_layers(paths.flatten(init_params(jax.random.key(0), config)))
    )
    assert {hf_names.torch_name(path) for path in wanted} == set(named)
    flat = {}
    for path, leaf in wanted.items():
        value = named[hf_names.torch_name(path)].detach().numpy()
        flat[path] = value.T if hf_names.is_transposed(path) else value
        assert flat[path].shape == leaf.shape, path
    return paths.unflatten(paths.stack_layers(flat))


@pytest.fixture(scope="module", params=list(CASES))
def both(request):
    """Returns logits, loss and gradients, PyTorch's and ours."""
    (encoder, decoder), ours, family, told = CASES[request.param]
    layers = {"num_encoder_layers": encoder, "num_decoder_layers": decoder}
    config = find_config("tiny", vocab_size=96, emb_dim=32, mlp_dim=48, **layers, **ours)
    network = network_of(config, family, told)
    labels = torch.tensor(np.where(TARGETS > 0, TARGETS, -100), dtype=torch.long)
    out = network(input_ids=torch.tensor(PROMPTS), attention_mask=torch.tensor(PROMPTS > 0), labels=labels)
    out.loss.backward()
    named = dict(network.named_parameters())
    gradients = params_of({name: parameter.grad for name, parameter in named.items()}, config)

    def loss(params):
        logits = T5(config).apply({"params": params}, PROMPTS, TARGETS[:, None])[:, 0]
        return answer_loss(logits, TARGETS), logits

    (found, logits), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        jax.tree.map(jnp.asarray, params_of(named, config))
    )
    return (out.logits.detach().numpy(), out.loss.item(), gradients), (logits, float(found), gradient)


def test_logits_are_those_of_pytorch_within_a_ten_thousandth(both):
    (wanted, *_), (found, *_) = both
    real = TARGETS > 0
    assert np.abs(wanted[real]).max() > 1
    np.testing.assert_allclose(np.asarray(found)[real], wanted[real], atol=1e-4)


def test_the_loss_is_that_of_pytorch(both):
    (_, wanted, _), (_, found, _) = both
    assert found == pytest.approx(wanted, rel=1e-4)


def test_the_gradient_of_every_parameter_is_that_of_pytorch(both):
    (*_, wanted), (*_, found) = both
    wanted, found = paths.flatten(wanted), paths.flatten(found)
    assert wanted.keys() == found.keys()
    for path, leaf in wanted.items():
        largest = np.abs(leaf).max()
        assert largest > 0, path
        np.testing.assert_allclose(found[path], leaf, rtol=0, atol=1e-4 * largest, err_msg=path)
