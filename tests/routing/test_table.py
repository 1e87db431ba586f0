"""Every router answers one call, and those that read no keys choose as their name says."""

import numpy as np
import pytest

from elm_jax.errors import ContaminationError, UserError
from elm_jax.routing import table
from elm_jax.routing.inputs import KeyIndex, Queries

INDEX = KeyIndex(
    experts=("a/1", "a/2", "b/1"),
    datasets=(("a",), ("a",), ("b", "z")),
    expert_of_row=np.array([0, 1, 2]),
    vectors=np.eye(3, dtype=np.float32),
    texts=("one", "two", "three"),
    embedder="toy",
    text_format="instance",
)
QUERIES = Queries("t/1", ("r0",), ("three",), np.eye(1, 3, 2, dtype=np.float32), "toy", "instance")
LORA = {"lora_a": np.ones((3, 1, 4, 2), np.float32), "lora_b": np.ones((3, 1, 2, 5), np.float32)}
OPTIONS = {
    "expert": "b/1",
    "accuracies": {"a/1": 0.5, "a/2": 0.25, "b/1": 0.75},
    "params": {"encoder": {"layers": {"mlp": {"wo": LORA}}}},
    "activations": {"encoder/layers/mlp/wo": np.ones((3, 1, 4), np.float32)},
    "gates": {"encoder/layers/mlp/wo": np.ones((3, 1, 4), np.float32)},
    "parameter_points": np.eye(3),
    "loss": lambda weights: 10 * (sum(weights.values()) - 1.0) ** 2,  # which outweighs the penalty
}
# What genknowsub subtracts has to be named; its own tests do.
GATES = [name for name, each in table.ROUTERS.items() if each.level == "token" and not each.required_options]
SELECTIONS = [name for name, router in table.ROUTERS.items() if router.level != "token"]
ANY_SUM = 0.05  # LoraHub's weights are what a search found


def route(name, **options):
    return table.find_router(name).route(QUERIES, INDEX, **options)


@pytest.mark.parametrize("name", SELECTIONS)
def test_every_router_answers_the_same_call_with_weights_that_sum_to_one(name):
    needed = {option: OPTIONS[option] for option in table.find_router(name).reads if option in OPTIONS}
    selection = route(name, exclude=["a"], **needed)
    assert selection.weights == pytest.approx({"b/1": 1.0}, abs=ANY_SUM)
    assert (selection.task, selection.router) == ("t/1", name)


@pytest.mark.parametrize("name", GATES)
def test_a_router_of_tokens_answers_the_same_call_with_a_gate_for_the_whole_stack(name):
    needed = {option: OPTIONS[option] for option in table.find_router(name).reads}
    gate = route(name, exclude=["a"], k=2, **needed)
    assert gate.allowed.tolist() == [False, False, True]
    assert gate.prototypes["encoder/layers/mlp/wo"].shape[:3] == (3, 1, 4)
    assert (gate.task, gate.router, gate.experts, gate.k) == ("t/1", name, INDEX.experts, 2)


def test_only_what_sees_labelled_examples_is_few_shot():
    assert [name for name, router in table.ROUTERS.items() if router.few_shot] == ["lorahub"]


@pytest.mark.parametrize("name", SELECTIONS)
def test_a_router_needs_no_more_than_it_says_it_reads(name):
    reads = table.find_router(name).reads
    blind = Queries("t/1", ("r0",), text_format="instance", embedder="toy")
    given = {option: getattr(QUERIES, option) for option in reads if option in ("vectors", "texts")}
    needed = {option: OPTIONS[option] for option in reads if option in OPTIONS}
    queries = Queries(**{**vars(blind), **given})
    weights = table.find_router(name).route(queries, INDEX, **needed).weights
    assert sum(weights.values()) == pytest.approx(1.0, abs=ANY_SUM)


def test_uniform_weighs_all_experts_alike():
    assert route("uniform").weights == pytest.approx({"a/1": 1 / 3, "a/2": 1 / 3, "b/1": 1 / 3})


def test_fixed_refuses_an_expert_trained_on_an_excluded_dataset():
    with pytest.raises(ContaminationError, match=r"'b/1'.* b, z"):
        route("fixed", expert="b/1", exclude=["z"])


def test_fixed_refuses_an_unknown_expert_with_the_nearest_name():
    with pytest.raises(UserError, match=r"'b/l'.*'b/1'"):
        route("fixed", expert="b/l")


def test_the_oracle_takes_the_best_measured_and_the_first_of_equals():
    assert route("oracle", accuracies={"b/1": 0.5, "a/2": 0.75}).weights == {"a/2": 1.0}
    assert route("oracle", accuracies={"b/1": 0.5, "a/2": 0.5}).weights == {"a/2": 1.0}


def test_the_oracle_takes_no_excluded_expert_however_good():
    assert route("oracle", accuracies={"a/1": 1.0, "b/1": 0.1}, exclude=["a"]).weights == {"b/1": 1.0}


@pytest.mark.parametrize(
    ("accuracies", "said"),
    [
        ({}, "'t/1'"),
        ({"c/1": 0.5}, "'c/1'"),
        ({"a/1": float("nan")}, "'a/1', got nan"),
    ],
)
def test_the_oracle_refuses_measurements_it_cannot_use(accuracies, said):
    with pytest.raises(UserError, match=said):
        route("oracle", accuracies=accuracies)


def test_an_unknown_router_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="'centroid'"):
        table.find_router("centriod")
