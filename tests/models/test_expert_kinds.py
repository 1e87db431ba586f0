"""Kinds: what a fresh expert owns, how it is drawn, which options it has, and the axes of its leaves."""

import jax
import numpy as np
import pytest

from elm_jax.errors import UserError
from elm_jax.models import expert_kinds, paths
from elm_jax.models import expert_layers as ex
from elm_jax.models.sizes import find_config
from elm_jax.models.t5 import init_params

KEY = jax.random.key(0)
ATTENTIONS = [
    "decoder/layers/encoder_decoder_attention",
    "decoder/layers/self_attention",
    "encoder/layers/attention",
]
FEED_FORWARDS = ["decoder/layers/mlp", "encoder/layers/mlp"]


def owners(expert):
    return sorted({path.rpartition("/")[0] for path in paths.flatten(expert)})


def shapes(kind, config, **options):
    """The shape of every leaf of a fresh expert, or of the base itself, without drawing either."""

    def make():
        base = init_params(KEY, config)
        return base if kind == "base" else ex.init_expert(kind, KEY, base, options)

    return {path: leaf.shape for path, leaf in paths.flatten(jax.eval_shape(make)).items()}


def test_an_unknown_kind_is_refused(base):
    with pytest.raises(UserError, match=r"'lora2'.* bottleneck, lora, dora, vera, ia3, prompt, full"):
        ex.init_expert("lora2", KEY, base)


@pytest.mark.parametrize(
    ("kind", "options", "told"),
    [
        ("lora", {"width": 4}, "'lora' experts, got 'width'.*rank or projections or alpha or rslora"),
        ("lora", {"alpha": 0}, "alpha above 0, got 0"),
        ("dora", {"alpha": float("inf")}, "alpha above 0, got inf"),
        ("full", {"rank": 4}, "'full' experts, got 'rank'"),
        ("lora", {"rank": 0}, "rank of at least 1, got 0"),
        ("bottleneck", {"width": 0}, "width of at least 1, got 0"),
        ("vera", {"rank": 0}, "rank of at least 1, got 0"),
        ("prompt", {"tokens": 0}, "number of tokens of at least 1, got 0"),
        ("prompt", {"start": "text"}, "'vocabulary' or 'uniform' as start, got 'text'"),
        ("lora", {"projections": ["q"]}, "'q'.* key, out, query, value, wi_0, wi_1, wo"),
        ("lora", {"projections": ["ttention/query"]}, "'ttention/query'"),
        ("ia3", {"projections": ["wi"]}, "'wi'"),
        ("ia3", {"projections": []}, "at least one projection"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(base, kind, options, told):
    with pytest.raises(UserError, match=told):
        ex.init_expert(kind, KEY, base, options)


def test_an_option_of_none_is_the_default(base):
    assert jax.tree.all(
        jax.tree.map(
            np.array_equal,
            ex.init_expert("lora", KEY, base, {"rank": None, "width": None}),
            ex.init_expert("lora", KEY, base),
        )
    )


def test_the_original_expert_of_xl_has_25618432_parameters():
    # 96 adapters of 2 x 2048 x 64 weights and 64 + 2048 biases, and 122 norm scales of 2048.
    sizes = {path: np.prod(shape) for path, shape in shapes("bottleneck", find_config("xl")).items()}
    adapters = sum(count for path, count in sizes.items() if "_adapter/" in path)
    scales = sum(count for path, count in sizes.items() if path.endswith("norm/scale"))
    assert (adapters, scales) == (25_368_576, 249_856)
    assert adapters + scales == sum(sizes.values())


def test_a_bottleneck_follows_no_cross_attention(base):
    blocks = {
        path.split("/")[2] for path in owners(ex.init_expert("bottleneck", KEY, base)) if "_adapter" in path
    }
    assert blocks == {"attention_adapter", "self_attention_adapter", "mlp_adapter"}


def test_a_fresh_bottleneck_is_small_and_its_biases_zero(base):
    flat = paths.flatten(ex.init_expert("bottleneck", KEY, base, {"width": 16}))
    drawn = np.concatenate([np.ravel(leaf) for path, leaf in flat.items() if path.endswith("kernel")])
    assert 0.0095 < drawn.std() < 0.0105
    assert not any(np.any(leaf) for path, leaf in flat.items() if path.endswith("bias"))


def test_lora_stands_at_queries_and_values_of_every_attention(base):
    wanted = [f"{attention}/{name}" for attention in ATTENTIONS for name in ("query", "value")]
    assert owners(ex.init_expert("lora", KEY, base)) == wanted


@pytest.mark.parametrize(
    ("chosen", "wanted"),
    [
        (["wo"], [f"{block}/wo" for block in FEED_FORWARDS]),
        (["self_attention/out", "wi_0"], sorted(
            ["decoder/layers/self_attention/out", *(f"{block}/wi_0" for block in FEED_FORWARDS)]
        )),
        # The end of a path is one of whole names: this is the encoder's alone.
        (["attention/key"], ["encoder/layers/attention/key"]),
        ("value", [f"{block}/value" for block in ATTENTIONS]),
    ],
)  # fmt: skip
def test_projections_are_chosen_by_the_end_of_their_path(base, chosen, wanted):
    assert owners(ex.init_expert("lora", KEY, base, {"projections": chosen})) == wanted


def test_lora_a_is_uniform_within_one_over_the_root_of_its_inputs_and_lora_b_zero(base):
    flat = paths.flatten(ex.init_expert("lora", KEY, base, {"rank": 32, "projections": ["query", "wo"]}))
    for path, leaf in flat.items():
        if path.endswith("lora_b"):
            assert not np.any(leaf)
            continue
        bound = leaf.shape[1] ** -0.5
        assert 0.99 * bound < np.abs(leaf).max() <= bound
        # The standard deviation of a uniform draw within ±b is b / √3.
        assert np.std(leaf) == pytest.approx(bound / np.sqrt(3), rel=0.05)
    assert len({np.asarray(leaf).tobytes() for path, leaf in flat.items() if path.endswith("lora_a")}) == 5


@pytest.mark.parametrize(
    ("options", "factor"),
    [
        ({}, 1),
        ({"rank": 4, "alpha": 6}, 6 / 4),
        ({"rank": 4, "alpha": 6, "rslora": True}, 6 / 2),
        ({"rank": 16, "rslora": True}, 8 / 4),  # PEFT's alpha, which is 8
        ({"rank": 16, "alpha": None}, 1),
    ],
)
def test_a_loras_factor_is_alpha_over_its_rank_or_the_root_of_it(options, factor):
    for kind in ("lora", "dora"):
        assert expert_kinds.param_factors(kind, options).get("lora_b", 1) == factor
    assert expert_kinds.param_factors("ia3", {}) == {}


def test_dora_begins_with_the_norms_of_the_columns_of_the_base(base):
    flat = paths.flatten(ex.init_expert("dora", KEY, base, {"projections": ["wo"]}))
    for block in FEED_FORWARDS:
        kernel = np.asarray(paths.flatten(base)[f"{block}/wo/kernel"], np.float64)
        np.testing.assert_allclose(
            flat[f"{block}/wo/dora_magnitude"], np.sqrt((kernel**2).sum(axis=1)), rtol=1e-5
        )


def test_vera_shares_two_random_matrices_that_depend_on_their_own_seed_alone(base):
    options = {"rank": 32, "projections": ["query", "wo"]}
    first, second = (ex.init_expert("vera", jax.random.key(seed), base, options) for seed in (1, 2))
    other = ex.init_expert("vera", KEY, base, {**options, "seed": 1})
    assert jax.tree.all(jax.tree.map(np.array_equal, first, second))
    flat, differing = paths.flatten(first), paths.flatten(other)
    # As many inputs as wo has, and as many outputs as both have.
    assert {path: flat[path].shape for path in ("vera/vera_a", "vera/vera_b")} == {
        "vera/vera_a": (48, 32),
        "vera/vera_b": (32, 32),
    }
    for path, fan_in in (("vera/vera_a", 48), ("vera/vera_b", 32)):
        bound = (6 / fan_in) ** 0.5  # Kaiming-uniform, with the gain √2
        assert 0.98 * bound < np.abs(flat[path]).max() <= bound
        assert not np.array_equal(flat[path], differing[path])
    query = "encoder/layers/attention/query"
    assert np.all(np.asarray(flat[f"{query}/lambda_d"]) == np.float32(0.1))
    assert not np.any(flat[f"{query}/lambda_b"])


def test_a_soft_prompt_begins_as_tokens_of_the_vocabulary_or_uniform(base):
    table = np.asarray(base["token_embedder"]["embedding"])
    (found,) = jax.tree.leaves(ex.init_expert("prompt", KEY, base, {"tokens": 9}))
    rows = [int(np.flatnonzero((table == vector).all(axis=1))[0]) for vector in np.asarray(found)]
    assert len(set(rows)) == 9
    assert min(rows) >= 3
    (uniform,) = jax.tree.leaves(ex.init_expert("prompt", KEY, base, {"tokens": 99, "start": "uniform"}))
    assert 0.49 < np.abs(uniform).max() <= 0.5


def test_ia3_scales_keys_values_and_what_wo_takes(base):
    flat = paths.flatten(ex.init_expert("ia3", KEY, base))
    wanted = {f"{block}/{name}/ia3_out": (32,) for block in ATTENTIONS for name in ("key", "value")}
    wanted |= {f"{block}/wo/ia3_in": (48,) for block in FEED_FORWARDS}
    assert {path: leaf.shape[1:] for path, leaf in flat.items()} == wanted
    assert all(np.all(leaf == 1) for leaf in flat.values())


def test_t5_1_0_has_its_single_projection_adapted_by_its_name():
    config = find_config("tiny", mlp_activations=("relu",))
    assert shapes("lora", config, projections=["wi"], rank=2) == {
        f"{block}/wi/lora_{part}": shape
        for block in FEED_FORWARDS
        for part, shape in (("a", (2, 64, 2)), ("b", (2, 2, 128)))
    }


EVERY = ["query", "key", "value", "out", "wi_0", "wi_1", "wo"]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("base", {}),
        ("bottleneck", {"width": 3}),
        ("lora", {"rank": 3, "projections": EVERY}),
        ("dora", {"rank": 3, "projections": EVERY}),
        ("vera", {"rank": 3, "projections": ["wo"]}),
        ("prompt", {"tokens": 7}),
        ("ia3", {"projections": EVERY}),
    ],
)
def test_every_axis_has_a_name_and_every_name_one_length(kind, options):
    lengths = {
        "embed": 16,
        "joined_kv": 20,
        "mlp": 24,
        "vocab": 40,
        "heads": 2,
        "relpos_buckets": 32,
        "rank": 3,
        "prompt": 7,
    }
    config = find_config(
        "tiny", vocab_size=40, emb_dim=16, num_heads=2, head_dim=10, mlp_dim=24, num_decoder_layers=3
    )
    for path, shape in shapes(kind, config, **options).items():
        layers = {"layers": 3 if path.startswith("decoder") else 2}
        layers |= {"projection": {"vera/vera_a": 24, "vera/vera_b": 16}.get(path)}  # of wo
        assert tuple((lengths | layers)[name] for name in expert_kinds.logical_axes(path)) == shape, path


@pytest.mark.parametrize("path", ["encoder/layers/attention/query/lora_c", "kernel", "vision/kernel"])
def test_a_parameter_without_axes_is_refused(path):
    with pytest.raises(UserError, match=f"got {path!r}"):
        expert_kinds.logical_axes(path)
