"""Recipes that end in a table, from the recipe to the report, on a run of random experts."""

from dataclasses import replace

import gin
import pytest

from elm_jax.evaluation import scorer_selection
from elm_jax.evaluation.evaluate import evaluate
from elm_jax.evaluation.methods import parse_method
from elm_jax.experts.library import Library
from elm_jax.launch import recipes
from tests.run_fixtures import BOTTLENECK, ROWS, TRAINED, UNSEEN, add_expert

FILM = TRAINED[2].partition("/")[0]


@pytest.fixture(autouse=True)
def _no_trace_of_gin():
    yield
    gin.clear_config()


@pytest.fixture(scope="module")
def run(make_run):
    return make_run()


def methods_of(recipe):
    recipes.load([f"gin/recipes/{recipe}.gin"])
    return gin.query_parameter("%METHODS")


def report_of(run, recipe, **macros):
    """What a recipe gives on the run's tasks, with other values of macros."""
    told = {"MODEL_DIR": str(run.workspace.root), "EVAL_TASKS": (UNSEEN,), "QUERIES": 6, **macros}
    bindings = [f"{name} = {value!r}" for name, value in told.items()]
    return recipes.bind(evaluate, [f"gin/recipes/{recipe}.gin"], bindings)().report


@pytest.mark.parametrize("recipe", ["evaluate_unseen", "bigbench"])
def test_a_recipe_of_unseen_tasks_has_every_method_on_them(run, recipe):
    made = report_of(run, recipe)
    assert {row.method for row in made.rows} == {"base", *methods_of(recipe)}
    assert {(row.task, row.n, row.seen) for row in made.rows} == {(UNSEEN, ROWS, False)}


def test_the_ablation_crosses_formats_embedders_and_numbers_of_keys(run, write_encoder, tmp_path):
    methods = methods_of("retrieval_ablation")
    options = [parse_method(text).options for text in methods]
    crossed = {(each["text_format"], each["embedder"], each["keys"]) for each in options}
    by_place = [set(values) for values in zip(*crossed, strict=True)]
    assert len(crossed) == len(methods) == len(by_place[0]) * len(by_place[1]) * len(by_place[2])
    write_encoder(tmp_path)  # a small one in the place of the paper's
    small = (text.replace("all-MiniLM-L6-v2", f'"{tmp_path}"') for text in methods)
    own = tuple(text for text in small if text.endswith("keys=10"))
    made = report_of(run, "retrieval_ablation", METHODS=own)
    assert {row.method for row in made.means} == {"base", *own}
    assert len({each.router for each in made.selections}) == len(own)


def test_the_curve_has_a_point_for_every_size_and_number(run):
    options = [parse_method(text).options for text in methods_of("library_curve")]
    assert sorted(each["library_size"] for each in options if "library_size" in each) == [
        8, 16, 32, 64, 128, 256,
    ]  # fmt: skip
    points = (
        "roe:library_size=1",
        "roe:library_size=2",
        "roe:library_size=3",
        "roe",
        "roe:experts=2+average",
    )
    made = report_of(run, "library_curve", METHODS=points)
    assert [row.method for row in made.means if row.method != "base"] == list(points)
    alone = {row.expert for row in made.selections if row.router == "roe_top1,library_size=1"}
    assert len(alone) == 1


def test_dataset_experts_stand_beside_prompt_experts_with_the_test_of_one_against_the_other(make_run):
    run = make_run()
    for seed, dataset in enumerate(dict.fromkeys(name.partition("/")[0] for name in TRAINED)):
        add_expert(run, f"{dataset}/whole", *BOTTLENECK, seed=50 + seed)
    library = Library.open(run.workspace.library)
    for name in library.ids():
        if name.endswith("/whole"):
            expert = library.load_expert(name)
            tasks = [each for each in TRAINED if each.startswith(name.partition("/")[0])]
            recipe = {**expert.spec.recipe, "tasks": tasks}
            library.add(replace(expert, spec=replace(expert.spec, recipe=recipe)), replace=True)
    made = report_of(run, "dataset_against_prompt", EVAL_TASKS=TRAINED)
    assert {row.method: row.labels for row in made.means} == {
        "base": "none",
        "prompt": "seen",
        "dataset": "seen",
    }
    (compared,) = [row for row in made.comparisons if {row.a, row.b} == {"prompt", "dataset"}]
    assert compared.tasks == 2


def test_before_and_after_new_experts_stand_side_by_side(run):
    assert parse_method(methods_of("continual_evaluation")[0]).options["without"].count(",") == 7
    methods = (f'before=roe:without="{FILM}"', "after=roe:seen=true")
    made = report_of(run, "continual_evaluation", METHODS=methods, EVAL_TASKS=(UNSEEN, FILM))
    rows = {(row.method, row.task, row.prompt): row for row in made.rows}
    chosen = scorer_selection.load_selection(run.workspace).scorers
    for (method, task, prompt), row in rows.items():
        if method != "base":
            expert = chosen[method][f"{task}/{prompt}"]
            assert not (method == "before" and expert.startswith(FILM))
            assert row.seen == expert.startswith(task)
    assert {task for _, task, _ in rows} == {UNSEEN, FILM}
