"""Experts held against PyTorch: a bottleneck against its formulas, LoRA and (IA)³ against `peft`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elm_jax.models import expert_layers as ex
from elm_jax.models import paths
from elm_jax.models.sizes import find_config
from elm_jax.models.t5 import T5, init_params
from elm_jax.weights import hf_names

torch = pytest.importorskip("torch", reason="the parity extra brings torch, and is not installed")
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

RNG = np.random.default_rng(4)
PROMPTS = RNG.integers(3, 96, (4, 9)).astype(np.int32)
ANSWERS = RNG.integers(3, 96, (4, 1, 5)).astype(np.int32)
PROMPTS[1, 6:] = PROMPTS[3, 2:] = 0
CONFIG = find_config("tiny", vocab_size=96, emb_dim=32, head_dim=6, mlp_dim=48, num_decoder_layers=3)
ALPHA, RANK = 6, 4
LETTERS = ["q", "k", "v", "o", "wi_0", "wi_1", "wo"]


def test_a_bottleneck_is_the_originals_two_linear_layers_with_gelu_new_between_and_the_input_added():
    from transformers.activations import ACT2FN

    torch.manual_seed(0)
    down, up = torch.nn.Linear(32, 4), torch.nn.Linear(4, 32)
    x = torch.randn(2, 7, 32) * 3
    wanted = up(ACT2FN["gelu_new"](down(x))) + x

    def ours(layer):
        return {"kernel": jnp.asarray(layer.weight.detach().T), "bias": jnp.asarray(layer.bias.detach())}

    adapter = {"down": ours(down), "up": ours(up)}
    found = ex.apply_bottleneck(jnp.asarray(x.numpy()), adapter)
    np.testing.assert_allclose(found, wanted.detach(), atol=1e-5)


@pytest.fixture(scope="module")
def theirs():
    """Makes the same random network of T5 1.1's shape at every call."""
    transformers = pytest.importorskip("transformers", reason="the parity extra brings it")

    def make():
        torch.manual_seed(5)
        network = transformers.T5ForConditionalGeneration(
            transformers.T5Config(
                vocab_size=96,
                d_model=32,
                d_kv=6,
                d_ff=48,
                num_layers=2,
                num_decoder_layers=3,
                num_heads=4,
                feed_forward_proj="gated-gelu",
                tie_word_embeddings=False,
            )
        )
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.03 * torch.randn_like(parameter)
        return network.eval()

    return make


@pytest.fixture(scope="module")
def base(theirs):
    state = theirs().state_dict()
    shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), CONFIG))

    def leaf(path):
        value = state[hf_names.torch_name(path)].numpy()
        return value.T if hf_names.is_transposed(path) else value

    def apart(path, shape):
        before, stack, after = path.partition("/layers/")
        return (
            [leaf(f"{before}/layers_{at}/{after}") for at in range(shape.shape[0])] if stack else leaf(path)
        )

    return paths.unflatten(
        {path: np.array(apart(path, shape)) for path, shape in paths.flatten(shapes).items()}
    )


@pytest.fixture(scope="module")
def ours(base):
    return jax.jit(lambda *expert: T5(CONFIG).apply({"params": base}, PROMPTS, ANSWERS, *expert))


def logits(network):
    """Logits of PyTorch's network for the rows above, given our way of shifting and padding."""
    answers = np.pad(ANSWERS[:, 0, :-1], ((0, 0), (1, 0)))
    with torch.no_grad():
        found = network(
            input_ids=torch.tensor(PROMPTS, dtype=torch.long),
            attention_mask=torch.tensor(PROMPTS > 0),
            decoder_input_ids=torch.tensor(answers, dtype=torch.long),
        )
    return found.logits.numpy()[:, None]


def tree_of(network, base, leaves):
    """The expert that `peft` put into a network: `leaves(module)` names what one of its projections has."""
    modules = dict(network.named_modules())
    flat = {}
    for path, kernel in paths.flatten(base).items():
        before, stack, after = path.removesuffix("/kernel").partition("/layers/")
        if not stack or not path.endswith("/kernel"):
            continue
        names = [hf_names.module_name(before, at, *after.split("/")) for at in range(kernel.shape[0])]
        each = [leaves(modules[f"base_model.model.{name}"]) for name in names]
        for leaf in each[0]:
            flat[f"{before}/layers/{after}/{leaf}"] = np.stack([one[leaf].detach().numpy() for one in each])
    return paths.unflatten(flat)


def test_the_networks_agree_before_any_expert(theirs, ours):
    np.testing.assert_allclose(ours(), logits(theirs()), atol=1e-4)


@pytest.mark.parametrize("chosen", [["q", "v"], LETTERS])
def test_lora_gives_the_logits_of_peft(theirs, base, ours, chosen):
    peft = pytest.importorskip("peft", reason="the parity extra brings it")
    told = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=chosen, init_lora_weights=False)
    network = peft.get_peft_model(theirs(), told).eval()

    def leaves(module):
        if not hasattr(module, "lora_A"):
            return {}
        scaling = module.scaling["default"]
        assert scaling == ALPHA / RANK
        return {
            "lora_a": module.lora_A["default"].weight.T,
            "lora_b": module.lora_B["default"].weight.T * scaling,
        }

    expert = tree_of(network, base, leaves)
    assert len(jax.tree.leaves(expert)) == {2: 12, 7: 36}[len(chosen)]
    found = np.asarray(ours(expert))
    np.testing.assert_allclose(found, logits(network), atol=1e-4)
    assert np.abs(found - ours()).max() > 0.1


def test_ia3_gives_the_logits_of_peft(theirs, base, ours):
    peft = pytest.importorskip("peft", reason="the parity extra brings it")
    told = peft.IA3Config(task_type="SEQ_2_SEQ_LM")
    network = peft.get_peft_model(theirs(), told).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "ia3_l" in name:
                parameter += 0.5 * torch.randn_like(parameter)

    def leaves(module):
        if not hasattr(module, "ia3_l"):
            return {}
        return {"ia3_in" if module.is_feedforward else "ia3_out": module.ia3_l["default"].flatten()}

    expert = tree_of(network, base, leaves)
    fresh = ex.init_expert("ia3", jax.random.key(0), base)
    assert jax.tree.map(np.shape, expert) == jax.tree.map(np.shape, fresh)
    found = np.asarray(ours(expert))
    np.testing.assert_allclose(found, logits(network), atol=1e-4)
    assert np.abs(found - ours()).max() > 0.1


def test_fresh_lora_is_drawn_as_peft_draws_it(theirs, base):
    peft = pytest.importorskip("peft", reason="the parity extra brings it")
    network = peft.get_peft_model(theirs(), peft.LoraConfig(r=64, target_modules=["wo"]))
    theirs_a = torch.cat([p.flatten() for n, p in network.named_parameters() if "wo.lora_A" in n]).detach()
    fresh = paths.flatten(
        ex.init_expert("lora", jax.random.key(0), base, {"rank": 64, "projections": ["wo"]})
    )
    ours_a = np.concatenate([np.ravel(leaf) for path, leaf in fresh.items() if path.endswith("lora_a")])
    assert np.abs(ours_a).max() == pytest.approx(theirs_a.abs().max().item(), rel=0.01)
    assert ours_a.std() == pytest.approx(theirs_a.std().item(), rel=0.02)
