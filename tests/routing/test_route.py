"""Routing a run's tasks: options reach the router, and what cannot choose for a task says so."""

import json

import jax
import numpy as np
import pytest

from elm_jax import cli
from elm_jax.data import task_rows, task_selection
from elm_jax.errors import UserError
from elm_jax.experts.library import Library
from elm_jax.models import expert_layers, gating, paths
from elm_jax.models.sizes import find_config
from elm_jax.models.t5 import init_params
from elm_jax.records import Expert, ExpertSpec
from elm_jax.routing import key_index, original, table
from elm_jax.routing import route as runs
from elm_jax.routing.index import index
from elm_jax.routing.inputs import Queries
from elm_jax.routing.run_inputs import RoutingInputs
from elm_jax.session import opening, settings
from elm_jax.session.workspace import Workspace
from elm_jax.tasks import data_source
from elm_jax.telemetry.progress import Stages
from elm_jax.tokenizers import sentencepiece
from elm_jax.weights import base_model, elm

TASK = "mini_size_suitcase"
EXPERTS = ["mini_sentiment_film", "mini_size_animal"]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A run with a random base, two random LoRA experts, and their keys in a format with choices."""
    workspace = Workspace.open(tmp_path_factory.mktemp("run"), create=True)
    config = find_config("tiny", vocab_size=96, emb_dim=8, head_dim=4, mlp_dim=12)
    shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), config))
    rng = np.random.default_rng(0)

    def numbers(tree):
        return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), tree)

    made = base_model.make_base(config, numbers(shapes))
    elm.save(workspace.base, made)
    source = data_source.Source(limit=20)
    chosen = [task_selection.select_tasks([name], source)[0] for name in EXPERTS]
    texts = [example.input for spec in chosen for example in task_rows.load_examples(spec, source)]
    sentencepiece.train(
        texts, workspace.base / opening.VOCABULARY_FILE, 96, kind="word", extra_ids=opening.EXTRA_IDS
    )
    settings.save_run_settings(workspace, None, source, data_source.Lengths(prompt=24, answer=8))
    library = Library.open(workspace.library, create=True)
    fresh = jax.eval_shape(
        lambda tree: expert_layers.init_expert("lora", jax.random.key(0), tree, {"rank": 2}), shapes
    )
    for spec in chosen:
        tree = numbers(fresh)
        owned = tuple(paths.flatten(tree))
        library.add(Expert(ExpertSpec(spec.id, "lora", made.fingerprint, owned, (spec.dataset,), 5), tree))
    run = opening.open_run(workspace.root, stages=Stages())
    index(run, size=6, text_format="choice_instance")
    return run


def specs(run):
    return task_selection.select_tasks([TASK], run.source, evaluation=True)[:1]


def test_options_reach_the_router_and_the_margin_is_shown(opened):
    inputs = RoutingInputs(opened, queries_per_task=4)
    (routed,) = runs.route_tasks(inputs, specs(opened), "roe", {"k": 3}, experts=2, explain=True)
    assert sum(routed.selection.votes.values()) == 12
    assert routed.selection.router == "roe_top2,k=3"
    assert runs.load_selections(opened.workspace, "roe_top2,k=3") == [routed.selection]
    assert runs.load_selections(opened.workspace, "roe_top2") == []
    assert "of 12 votes" in routed.explanation[0]
    assert "nearest is mini_" in routed.explanation[-1]
    assert ", key '" in routed.explanation[-1]


def test_the_command_takes_options_by_name(opened, capsys):
    where = str(opened.workspace.root)
    cli.app(
        ["route", TASK, "--run", where, "--queries", "4", "--option", "k=2", "--router", "bm25", "--json"],
        standalone_mode=False,
    )
    told = json.loads(capsys.readouterr().out)
    assert {selection["router"] for selection in told} == {"bm25_top1,k=2"}
    with pytest.raises(SystemExit):
        cli.main(["route", TASK, "--run", where, "--option", "k"])
    assert "got 'k'" in capsys.readouterr().err


def test_queries_are_bare_inputs_where_the_original_is_followed(opened):
    inputs, router = RoutingInputs(opened, queries_per_task=2), table.find_router("roe")
    bare = inputs.make_queries(specs(opened)[0], router, original.RAW_TEXT_FORMAT)
    formatted = inputs.make_queries(specs(opened)[0], router)
    assert all(text.endswith(end) for text, end in zip(formatted.texts, bare.texts, strict=True))
    assert formatted.texts[0].startswith("Answer Choices: ")
    (selection,) = runs.route(opened, specs(opened), options={"faithful": True}, queries=2)
    assert sum(selection.votes.values()) == 2


def test_a_router_that_compares_parameters_gets_those_of_the_library(opened):
    (selection,) = runs.route(opened, specs(opened), router="mbc", options={"groups": 1}, queries=2)
    assert sorted(selection.weights.values()) == [0.5, 0.5]


@pytest.mark.parametrize(
    ("router", "options", "said"),
    [
        ("arrow", {}, "'arrow'.*token.* roe"),
        ("fixed", {}, "'expert' for router 'fixed'"),
        ("lorahub", {}, "'loss' for router 'lorahub'"),
        (
            "roe",
            {"wieghting": "votes"},
            "'wieghting'.*'roe'.*'weighting'",
        ),
        ("uniform", {"k": 2}, "'k'.*'uniform'"),
    ],
)
def test_what_cannot_be_asked_is_refused(opened, router, options, said):
    with pytest.raises(UserError, match=said):
        runs.route(opened, specs(opened), router=router, options=options)


def test_a_gate_made_of_the_library_fits_its_stack(opened):
    library = Library.open(opened.workspace.library)
    found = key_index.build_key_index(library)
    stacked = library.load_stack(found.experts)
    queries = Queries(specs(opened)[0].id, ())
    gate = table.find_router("arrow").route(queries, found, params=stacked, k=1, exclude=found.datasets[0])
    tree = gating.make_gated_tree(
        stacked, gate.prototypes, k=gate.k, similarity=gate.similarity, allowed=gate.allowed
    )
    own = jax.tree.map(lambda leaf: leaf[0], tree["encoder"]["layers"]["attention"]["query"])
    alone = stacked["encoder"]["layers"]["attention"]["query"]
    x = np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)
    expected = x @ alone["lora_a"][1, 0] @ alone["lora_b"][1, 0]
    np.testing.assert_allclose(gating.gated_delta(x, own), expected, rtol=1e-4, atol=1e-5)
