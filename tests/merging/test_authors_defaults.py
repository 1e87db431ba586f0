"""A merge by its name, with its defaults, gives what its authors' code gave on the same parameters."""

import numpy as np
import pytest

from elm_jax.models import paths
from elm_jax.records import Expert, ExpertSpec
from tests.test_golden_methods import TOLERANCE, load

from .conftest import merge

MODULES = ("self_attention/query", "self_attention/key", "self_attention/value")


def kernel(number: int = 0) -> str:
    return f"decoder/layers/{MODULES[number]}/kernel"


SCALE = "decoder/layers/pre_mlp_layer_norm/scale"


MATRICES = {kernel(): "matrices", SCALE: "vectors"}


def as_layer(tensor: np.ndarray) -> np.ndarray:
    """One layer of a stack, in the package's layout: kernels are [in, out], PyTorch's weights [out, in]."""
    return np.ascontiguousarray(tensor.T, np.float32)[None]


def make_experts(kind: str, tensors: dict[str, np.ndarray]) -> list[Expert]:
    """Returns experts, given for every path the tensors of all of them."""
    count = len(next(iter(tensors.values())))
    return [
        Expert(
            ExpertSpec(f"e{number}/p", kind, "base", tuple(tensors), (f"e{number}",), 10),
            paths.unflatten({path: as_layer(each[number]) for path, each in tensors.items()}),
        )
        for number in range(count)
    ]


def merge_full(method, tensors, *, base=None, statistics=None, **options):
    """Merges full experts; the base is zeros unless given. Returns path -> merged tensor."""
    experts = make_experts("full", tensors)
    nothing = {path: np.zeros_like(leaf) for path, leaf in paths.flatten(experts[0].params).items()}
    onto = nothing if base is None else {path: as_layer(leaf) for path, leaf in base.items()}
    if statistics is not None:
        statistics = [
            {path: as_layer(each[number]) for path, each in statistics.items()}
            for number in range(len(experts))
        ]
    merged = merge(method, experts, base=paths.unflatten(onto), statistics=statistics, **options)
    return paths.flatten(merged.params)


def check(merged, wanted: dict[str, np.ndarray]) -> None:
    for path, expected in wanted.items():
        bound = TOLERANCE * np.abs(expected).max()
        np.testing.assert_allclose(merged[path], as_layer(expected), rtol=0, atol=bound, err_msg=path)


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("file", "method", "tensors", "outputs", "options"),
    [
        ("average", "average", {kernel(): "params"}, {kernel(): "merged"}, {}),
        ("wudi", "wudi", {kernel(): "task_vectors"}, {kernel(): "merged"}, {}),
        ("tsvm", "tsvm", MATRICES, {kernel(): "matrix", SCALE: "vector"}, {}),
        ("iso", "iso_c", MATRICES, {kernel(): "iso_c", SCALE: "vector"}, {}),
        ("iso", "iso_cts", MATRICES, {kernel(): "iso_cts", SCALE: "vector"}, {}),
        (
            "ties",
            "ties",
            {kernel(0): "tv_0", kernel(1): "tv_1", SCALE: "tv_2"},
            {kernel(0): "whole_0", kernel(1): "whole_1", SCALE: "whole_2"},
            {},
        ),
        # The shares of these arrays are no default of ours, and a sum is a sum at a scale of 1.
        (
            "breadcrumbs",
            "breadcrumbs",
            {kernel(): "tv_0", SCALE: "tv_1"},
            {kernel(): "sum_0", SCALE: "sum_1"},
            {"keep": 0.2, "remove": 0.1, "scale": 1.0},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_changes_merged_with_a_methods_defaults_are_its_authors(file, method, tensors, outputs, options):
    inputs, wanted = load(f"merging_{file}")
    merged = merge_full(method, {path: inputs[name] for path, name in tensors.items()}, **options)
    check(merged, {path: wanted[name] for path, name in outputs.items()})


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("file", "method", "output", "count", "options"),
    [
        ("model_stock", "model_stock", "layer_all", 4, {}),
        ("model_stock", "model_stock", "layer_two", 2, {}),
        ("sce", "sce", "fusechat_all", 4, {}),
        ("task_arithmetic", "task_arithmetic", "merged", 4, {"scale": 0.3}),
    ],
)
def test_models_merged_onto_a_base_with_a_methods_defaults_are_its_authors(
    file, method, output, count, options
):
    inputs, wanted = load(f"merging_{file}")
    tensors, base = {kernel(): inputs["experts"][:count]}, {kernel(): inputs["base"]}
    check(merge_full(method, tensors, base=base, **options), {kernel(): wanted[output]})


@pytest.mark.shared_data
def test_a_consensus_is_that_of_its_authors():
    inputs, wanted = load("merging_tall_consensus")
    merged = merge_full("consensus", {SCALE: inputs["experts"] - inputs["base"]}, scale=1.0)
    check(merged, {SCALE: wanted["merged"]})


@pytest.mark.shared_data
def test_the_middle_of_an_arc_between_two_models_is_that_of_its_authors():
    inputs, wanted = load("merging_slerp")
    merged = merge_full("slerp", {kernel(): np.stack([inputs["v0"], inputs["v1"]])})
    check(merged, {kernel(): wanted["slerp"][inputs["t"].tolist().index(0.5)]})


@pytest.mark.shared_data
def test_regmean_of_its_authors_gram_matrices_is_theirs():
    inputs, wanted = load("merging_regmean")
    merged = merge_full("regmean", {kernel(): inputs["weights"]}, statistics={kernel(): wanted["gram"]})
    check(merged, {kernel(): wanted["merged_0.1"]})


@pytest.mark.shared_data
def test_fisher_of_its_authors_information_is_theirs():
    inputs, wanted = load("merging_fisher")
    merged = merge_full(
        "fisher",
        {kernel(): inputs["params_0"], SCALE: inputs["params_1"]},
        statistics={kernel(): inputs["fisher_0"], SCALE: inputs["fisher_1"]},
        weights=inputs["coefficients"].tolist(),
    )
    check(merged, {kernel(): wanted["normalised_0"], SCALE: wanted["normalised_1"]})


@pytest.mark.shared_data
def test_knots_of_lora_is_that_of_its_authors():
    inputs, wanted = load("merging_knots_ties")
    tensors = {}
    for number in (0, 1):
        projection = kernel(number).removesuffix("/kernel")
        tensors |= {f"{projection}/lora_{side}": inputs[f"lora_{side}_{number}"] for side in ("a", "b")}
    experts = make_experts("lora", tensors)
    merged = paths.flatten(merge("knots", experts, rank=8, scale=0.6).params)
    for number in (0, 1):
        projection = kernel(number).removesuffix("/kernel")
        change = merged[f"{projection}/lora_a"] @ merged[f"{projection}/lora_b"]
        check({projection: change}, {projection: wanted[f"merged_{number}"]})
