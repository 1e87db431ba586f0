"""GenKnowSub: what is left of experts after the general ones, as PEFT computes it and worked out by hand."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elm_jax.errors import UserError
from elm_jax.models import gating
from elm_jax.routing.arrow import arrow
from elm_jax.routing.genknowsub import genknowsub
from elm_jax.routing.inputs import KeyIndex, Queries

NAMES = ("a/1", "b/1", "text/en", "text/fr")
INDEX = KeyIndex(
    NAMES,
    (("a",), ("b",), ("text",), ("text",)),
    np.arange(4),
    np.eye(4, dtype=np.float32),
    NAMES,
    "toy",
    "instance",
)
GENERAL = "text/en,text/fr"
QUERIES = Queries("t/1", ())
RNG = np.random.default_rng(0)
LORA_A = RNG.normal(size=(4, 1, 6, 2)).astype(np.float32)
LORA_B = RNG.normal(size=(4, 1, 2, 5)).astype(np.float32)
STACK = {"mlp": {"wo": {"lora_a": LORA_A, "lora_b": LORA_B}}}
X = RNG.normal(size=(2, 3, 6)).astype(np.float32)


def add(gate):
    """What the gated experts add at the one projection."""
    own = jax.tree.map(lambda leaf: leaf[0], gate.make_tree(STACK)["mlp"]["wo"])
    return gating.gated_delta(jnp.asarray(X), own)


def test_factors_less_the_mean_of_the_general_ones_are_those_of_pefts_authors():
    torch = pytest.importorskip("torch", reason="the parity extra brings torch")
    layers = pytest.importorskip("peft.tuners.lora.arrow", reason="the parity extra brings peft")
    tasks, general = ["task_0", "task_1"], ["gks_0", "gks_1"]
    config = SimpleNamespace(
        top_k=1, router_temperature=0.5, rng_seed=0, task_adapter_names=tasks, gks_adapter_names=general,
        use_gks=True,
    )  # fmt: skip
    theirs = layers.ArrowLoraLinearLayer(6, config)
    exact = theirs.top_right_singular_vec_from_BA
    theirs.top_right_singular_vec_from_BA = lambda a, b: exact(a, b, iters=500)
    down, up = (
        {
            name: SimpleNamespace(weight=torch.tensor(leaf[number, 0].T.copy()))
            for number, name in enumerate([*tasks, *general])
        }
        for leaf in (LORA_A, LORA_B)
    )
    theirs.gen_know_sub(down, up)
    theirs.build_prototypes(down, up)
    expected = theirs(
        torch.tensor(X), down, up, dropout=torch.nn.Identity(), scaling=dict.fromkeys(tasks, 1.0)
    )
    gate = genknowsub(QUERIES, INDEX, params=STACK, general=GENERAL, k=1, temperature=0.5)
    np.testing.assert_allclose(add(gate), expected.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_changes_less_the_mean_of_the_general_ones_are_differences_of_products():
    gate = genknowsub(QUERIES, INDEX, params=STACK, general=GENERAL, subtract="changes", k=2)
    before, after = gate.factors["mlp/wo"]
    changes = LORA_A @ LORA_B
    np.testing.assert_allclose(before @ after, changes - changes[2:].mean(axis=0), atol=1e-5)
    expected = np.linalg.svd((changes - changes[2:].mean(axis=0))[:2, 0])[0][:, :, 0]
    found = gate.prototypes["mlp/wo"][:2, 0, :, 0]
    np.testing.assert_allclose(np.abs((found * expected).sum(axis=-1)), [1.0, 1.0], rtol=1e-4)


def test_general_experts_serve_no_token_and_without_knowledge_it_is_arrow():
    gate = genknowsub(QUERIES, INDEX, params=STACK, general=GENERAL, exclude=["a"])
    assert gate.allowed.tolist() == [False, True, False, False]
    nothing = {"mlp": {"wo": {name: leaf.copy() for name, leaf in STACK["mlp"]["wo"].items()}}}
    for leaf in nothing["mlp"]["wo"].values():
        leaf[2:] = 0
    for subtract in ("factors", "changes"):
        found = genknowsub(QUERIES, INDEX, params=nothing, general=GENERAL, subtract=subtract, k=1)
        wanted = arrow(QUERIES, INDEX, params=nothing, k=1, mixing="outputs", exclude=["text"])
        np.testing.assert_allclose(add(found), add(wanted), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"general": "text/de"}, "'text/de'"),
        ({"general": "text/en", "subtract": "outputs"}, "'outputs'"),
        ({"general": "text/en", "mixing": "sums"}, "'sums'"),
        ({"general": "text/en", "exclude": ["text"]}, "seen=true"),
        ({"general": GENERAL, "exclude": ["a", "b"]}, "beside the general ones"),
    ],
)
def test_what_cannot_be_subtracted_is_refused(options, said):
    with pytest.raises(UserError, match=said):
        genknowsub(QUERIES, INDEX, params=STACK, **options)
