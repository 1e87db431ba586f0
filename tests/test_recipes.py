"""Recipes: every one is complete, says what it does, and defines no macro that nothing reads."""

import logging
import re
from pathlib import Path

import gin
import pytest

import elm_jax
from elm_jax.data import task_selection
from elm_jax.errors import UserError
from elm_jax.evaluation import methods as ways
from elm_jax.launch import recipes
from elm_jax.pipelines.pipeline import run_pipeline
from elm_jax.tasks import data_source
from elm_jax.training.config import TrainConfig

ROOT = Path(__file__).parents[1] / "gin"
COMPLETE = sorted((ROOT / "recipes").glob("*.gin"))
# These read T5X's own files, which only T5X brings; tests/t5x/test_gin.py runs them.
UNDER_T5X = [
    ROOT / "t5x" / f"{name}.gin"
    for name in ("prompt_expert", "dataset_expert", "multitask", "score", "infer")
]
# What T5X's finetune.gin, eval.gin and infer.gin read, as far as ours set it.
MACROS_OF_T5X = {"MODEL", "MIXTURE_OR_TASK_NAME", "TASK_FEATURE_LENGTHS", "TRAIN_STEPS", "MODEL_DIR"} | {
    "INITIAL_CHECKPOINT_PATH",
    "CHECKPOINT_PATH",
    "MIXTURE_OR_TASK_MODULE",
    "USE_CACHED_TASKS",
    "RANDOM_SEED",
    "BATCH_SIZE",
}


@pytest.fixture(autouse=True)
def _no_trace_of_gin():
    yield
    gin.clear_config()


@pytest.mark.parametrize("recipe", COMPLETE, ids=lambda path: path.stem)
def test_a_recipe_is_complete_and_every_macro_is_read(recipe):
    recipes.load([str(recipe)])
    config = gin.config_str()
    assert "REQUIRED" not in config
    defined = set(re.findall(r"^([A-Z][A-Z0-9_]*) =", config, re.MULTILINE))
    assert defined
    assert defined <= recipes.macros_in([str(recipe)])


@pytest.mark.parametrize("recipe", [*COMPLETE, *UNDER_T5X], ids=lambda path: path.stem)
def test_a_recipe_opens_with_run_takes_and_expect(recipe):
    head = re.match(r"(#.*\n)+", recipe.read_text())
    assert head
    for word in ("Run", "Takes", "Expect"):
        assert re.search(rf"^# {word} +\S", head.group(), re.MULTILINE)
    reads = re.search(
        r"^(?:EVAL_TASKS|MIXTURE_OR_TASK_NAME) = \W*(train|unseen|bigbench|targets)\b",
        recipe.read_text(),
        re.M,
    )
    if reads:
        assert f"# Data    `elm tasks check {reads[1]} " in head.group()


def texts(recipe):
    """Returns what a recipe for T5X says, and the recipes of ours that it includes, comments aside."""
    text = re.sub(r"#.*", "", recipe.read_text())
    found = [text]
    for file in re.findall(r"^include '(gin/.+)'", text, re.MULTILINE):
        found += texts(ROOT.parent / file)
    return found


@pytest.mark.parametrize("recipe", UNDER_T5X, ids=lambda path: path.stem)
def test_a_recipe_for_t5x_reads_what_it_defines_and_defines_what_it_reads(recipe):
    whole = "\n".join(texts(recipe))
    defined = set(re.findall(r"^([A-Z][A-Z0-9_]*) =", whole, re.MULTILINE))
    read = set(re.findall(r"%([A-Z][A-Z0-9_]*)", whole))
    assert {"MODEL", "VOCABULARY_FILE", "DROPOUT_RATE", "OPTIMIZER"} <= defined
    assert defined <= read | MACROS_OF_T5X
    assert read <= defined | MACROS_OF_T5X


def test_no_package_hides_gin():
    assert not list(ROOT.rglob("__init__.py"))


def test_a_later_file_and_a_binding_win(tmp_path):
    (tmp_path / "more.gin").write_text("BATCH_SIZE = 3\nTRAIN_STEPS = 7\n")
    files = [str(COMPLETE[0]), str(tmp_path / "more.gin")]
    recipes.load(files, ["TRAIN_STEPS = 9"])
    assert gin.query_parameter("%BATCH_SIZE") == 3
    assert gin.query_parameter("%TRAIN_STEPS") == 9


@pytest.mark.parametrize(
    ("binding", "value"),
    [
        ("DATA_DIR = data", "data"),
        ("DATA_DIR = my data/a-b.c", "my data/a-b.c"),
        ("DATA_DIR = 'data'", "data"),
        ("DATA_DIR = ", ""),
        ("DATA_DIR = None", None),
        ("DATA_DIR = 5", 5),
        ("DATA_DIR = ('a', 'b')", ("a", "b")),
    ],
)
def test_a_word_on_the_command_line_is_a_text_and_what_is_python_stays_so(binding, value):
    recipes.load([str(COMPLETE[0])], [binding])
    assert gin.query_parameter("%DATA_DIR") == value


def test_a_macro_on_the_command_line_stays_a_macro():
    found = recipes.bind(data_source.Source, [str(COMPLETE[0])], ["DATA_DIR = %MODEL_DIR"])()
    assert found.data_dir == "elm_out"


def test_yaml_of_macros_is_a_recipe_over_the_one_that_it_includes(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "include: gin/recipes/prompt_expert.gin\nLEARNING_RATE: 1e-3\nTASK_FILES: [a.yaml]\nPLACES: 2\n"
    )
    recipes.load([str(file)], ["PLACES = 3"])
    found = {
        name: gin.query_parameter(f"%{name}") for name in ("PAPER", "LEARNING_RATE", "TASK_FILES", "PLACES")
    }
    assert found == {"PAPER": "prompt", "LEARNING_RATE": 1e-3, "TASK_FILES": ["a.yaml"], "PLACES": 3}


@pytest.mark.parametrize(
    ("text", "named"),
    [("TRIAN_STEPS: 5", "'TRAIN_STEPS'"), ("- a", "TRAIN_STEPS: 100"), ("a: [", "line"), ("5: a", "macro")],
)
def test_yaml_that_is_no_recipe_is_refused(tmp_path, text, named):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=re.escape(named)):
        recipes.load(["gin/recipes/prompt_expert.gin", str(tmp_path / "mine.yaml")])


def test_no_recipe_names_a_place_outside_its_own_directory():
    for file in ROOT.rglob("*.gin"):
        assert not re.search(r"['\"](/|\.\./|~)", re.sub(r"#.*", "", file.read_text())), file


def test_outside_a_checkout_a_shipped_recipe_is_read_without_a_word(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    recipes.load(["gin/recipes/prompt_expert.gin"])
    assert caplog.records == []
    logging.getLogger().error("Path not found: %s", "of another")  # what is hidden is hidden no longer
    assert len(caplog.records) == 1


def test_what_a_recipe_binds_reaches_the_function():
    config = recipes.bind(TrainConfig, [str(COMPLETE[0])], ["TRAIN_STEPS = 11"])()
    assert config.schedule.steps == 11
    assert config.expert.kind == "bottleneck"


@pytest.mark.parametrize(
    ("function", "recipe"),
    [
        (elm_jax.train, "dream_to_story_cloze"),
        (run_pipeline, "evaluate_unseen"),
        (elm_jax.evaluate, "multitask"),
    ],
)
def test_a_recipe_of_another_command_is_refused_with_the_commands_that_there_are(function, recipe):
    with pytest.raises(UserError, match=rf"{recipe}\.gin.*`elm run`"):
        recipes.bind(function, [f"gin/recipes/{recipe}.gin"])


def test_a_recipe_for_evaluation_renders_as_the_run_does_unless_it_says_otherwise():
    def source(*bindings):
        recipes.load([str(ROOT / "recipes" / "evaluate_unseen.gin")], bindings)
        how = gin.query_parameter("%TRUNCATE"), gin.query_parameter("%FAITHFUL")
        return data_source.override_rendering(data_source.Source(truncate=9, faithful=("homonyms",)), *how)

    assert source() == data_source.Source(truncate=9, faithful=("homonyms",))
    found = source("TRUNCATE = 0", "FAITHFUL = 'all'")
    assert found == data_source.Source(truncate=None, faithful=("all",))


def test_the_recipe_for_evaluation_names_the_papers_tasks_and_methods_that_can_be_together():
    recipes.load([str(ROOT / "recipes" / "evaluate_unseen.gin")])
    specs = task_selection.select_tasks(gin.query_parameter("%EVAL_TASKS"), evaluation=True)
    assert len({spec.id for spec in specs}) == 113 + 13
    methods = ways.parse_methods(gin.query_parameter("%METHODS"))
    assert [method.router for method in methods] == ["roe", "roe", "roe_per_instance", "bm25", "uniform"]
