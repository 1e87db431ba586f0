"""Arrow gives what `peft` makes of the same LoRA factors, token by token."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from elm_jax.models import gating
from elm_jax.routing.arrow import arrow
from elm_jax.routing.inputs import KeyIndex, Queries

torch = pytest.importorskip("torch", reason="the parity extra brings torch, and is not installed")
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

NAMES = ("task_0", "task_1", "task_2", "task_3")


def test_prototypes_gate_and_sum_are_pefts():
    layers = pytest.importorskip("peft.tuners.lora.arrow", reason="the parity extra brings peft")
    rng = np.random.default_rng(0)
    lora_a = rng.normal(size=(4, 1, 6, 2)).astype(np.float32)
    lora_b = rng.normal(size=(4, 1, 2, 5)).astype(np.float32)
    x = rng.normal(size=(2, 3, 6)).astype(np.float32)

    config = SimpleNamespace(
        top_k=2, router_temperature=0.5, rng_seed=0, task_adapter_names=list(NAMES),
        gks_adapter_names=[], use_gks=False,
    )  # fmt: skip
    theirs = layers.ArrowLoraLinearLayer(6, config)
    down, up = (
        {name: SimpleNamespace(weight=torch.tensor(leaf[number, 0].T)) for number, name in enumerate(NAMES)}
        for leaf in (lora_a, lora_b)
    )
    # Power iteration of 15 rounds would leave an error where singular values lie close.
    exact = theirs.top_right_singular_vec_from_BA
    theirs.top_right_singular_vec_from_BA = lambda a, b: exact(a, b, iters=500)
    theirs.build_prototypes(down, up)
    expected = theirs(
        torch.tensor(x), down, up, dropout=torch.nn.Identity(), scaling=dict.fromkeys(NAMES, 1.0)
    )

    index = KeyIndex(NAMES, ((),) * 4, np.arange(4), np.eye(4, dtype=np.float32), NAMES, "toy", "instance")
    stack = {"encoder": {"layers": {"mlp": {"wo": {"lora_a": lora_a, "lora_b": lora_b}}}}}
    gate = arrow(Queries("t/1", ()), index, params=stack, k=2, temperature=0.5, mixing="outputs")
    tree = gating.make_gated_tree(
        stack, gate.prototypes, k=gate.k, similarity=gate.similarity, allowed=gate.allowed
    )
    own = tree["encoder"]["layers"]["mlp"]["wo"]
    layer = gating.TokenGate(own["gate"].prototypes[0], own["gate"].allowed[0], 2, "norm")
    found = gating.gated_delta(
        jnp.asarray(x), {"gate": layer, "lora_a": own["lora_a"][0], "lora_b": own["lora_b"][0]}
    )
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-4, atol=1e-5)
