"""Merged experts, named as methods and taken into the library: they are found, and stand in nobody's way."""

import io
import shutil
from dataclasses import replace

import pytest
from rich.console import Console

from elm_jax.data import task_rows, task_selection
from elm_jax.errors import ContaminationError, UserError
from elm_jax.evaluation import derived_experts, evaluate
from elm_jax.evaluation.config import EvaluationConfig
from elm_jax.experts import import_export
from elm_jax.experts.library import Library
from elm_jax.merging import merge as merging
from elm_jax.routing import route, run_inputs
from elm_jax.routing.index import index
from elm_jax.session.workspace import Workspace
from elm_jax.telemetry.progress import Stages
from tests.run_fixtures import TRAINED, UNSEEN

FILM = TRAINED[2:]


@pytest.fixture(scope="module")
def merged(make_run):
    """A run whose two experts on films were merged into one."""
    run = make_run()
    merging.merge(run, FILM, id="film/both")
    return run


@pytest.fixture
def copy(merged, tmp_path):
    """A run of one's own like `merged`, and what it says."""
    shutil.copytree(merged.workspace.root, tmp_path / "run")
    said = io.StringIO()
    workspace = Workspace.open(tmp_path / "run")
    return replace(merged, workspace=workspace, stages=Stages(Console(file=said, width=200))), said


def test_a_composite_is_a_fixed_expert(merged, unseen):
    (selection, *_) = route.route(merged, UNSEEN, router="fixed", options={"expert": "film/both"})
    assert selection.weights == {"film/both": 1.0}
    told = evaluate.evaluate(
        merged,
        unseen,
        EvaluationConfig(methods=["both=fixed:expert=film/both", f'two=fixed:expert="{FILM[0]}"'], queries=4),
    )
    assert {row.method for row in told.report.rows} == {"base", "both", "two"}
    with pytest.raises(ContaminationError, match=r"'film/both'.*mini_sentiment_film"):
        route.route(merged, [TRAINED[2]], router="fixed", options={"expert": "film/both"})
    with pytest.raises(UserError, match=r"'film/bothe'.*'film/both'"):
        route.route(merged, UNSEEN, router="fixed", options={"expert": "film/bothe"})


def test_a_composite_is_named_after_its_options_with_defaults(merged):
    told = [{}, {"density": 0.5}, {"density": 0.4}]
    weights = dict.fromkeys(FILM, 0.5)
    library = Library.open(merged.workspace.library)
    default, same, other = (
        derived_experts.merge_composite(
            merged, library, "dare", {"adapters": "average", **options}, weights
        ).id
        for options in told
    )
    assert default == same != other


def test_a_merged_expert_in_the_library_gets_keys_of_its_parts_tasks(copy, tmp_path):
    run, _ = copy
    import_export.import_expert(
        import_export.export_expert("film/both", tmp_path / "out", run=run.workspace.root),
        run=run.workspace.root,
    )
    assert index(run, size=4) == ["film/both"]
    films = {
        example.input
        for spec in task_selection.select_tasks(list(FILM))
        for example in task_rows.load_examples(spec, run.source)
    }
    keys = Library.open(run.workspace.library).load_keys("film/both")
    assert len(keys.texts) == 4
    assert set(keys.texts) <= films


def test_an_expert_of_unknown_tasks_is_passed_over_by_index_and_routers_and_said_once(copy):
    run, said = copy
    library = Library.open(run.workspace.library)
    own = library.load_expert(FILM[0])
    spec = replace(own.spec, id="somewhere/else", datasets=("elsewhere",))
    library.add(replace(own, spec=spec))
    told = "are not known: somewhere/else. Fix:"
    assert index(run, size=4) == []
    assert said.getvalue().count(told) == 1
    inputs = run_inputs.RoutingInputs(run, queries_per_task=4)
    for router in ("roe", "centroid", "bm25"):
        found = route.route_tasks(inputs, task_selection.select_tasks([UNSEEN], evaluation=True), router)
        assert all("somewhere/else" not in routed.selection.weights for routed in found)
    assert said.getvalue().count(told) == 2
    assert sorted(index(run, size=4, rebuild=True)) == sorted(TRAINED)
    with pytest.raises(UserError, match=r"training rows.*'somewhere/else'"):
        index(run, size=4, experts=["somewhere/else"])


def test_an_expert_that_could_have_keys_is_asked_for_them_still(copy):
    run, _ = copy
    library = Library.open(run.workspace.library)
    library.add(library.load_expert(FILM[0]), replace=True)  # without keys
    with pytest.raises(UserError, match=r"1 of 4: 'mini_sentiment_film/after the film'"):
        route.route(run, [UNSEEN])
