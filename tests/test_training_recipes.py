"""The recipes for training: what each trains, by which of the paper's budgets, and what overrides it."""

from collections import Counter
from pathlib import Path

import gin
import pytest

from elm_jax.cli import main
from elm_jax.data import task_rows, task_selection
from elm_jax.errors import UserError
from elm_jax.experts.library import Library
from elm_jax.launch import recipes
from elm_jax.records import TaskSpec
from elm_jax.session import opening, settings
from elm_jax.session.workspace import Workspace
from elm_jax.tasks import budgets, data_source, specs, user_tasks
from elm_jax.telemetry import jsonl_log
from elm_jax.telemetry.progress import Stages
from elm_jax.training import estimate, expert_configs, pretraining, train
from elm_jax.training.config import TrainConfig, settings_of
from elm_jax.training.pretraining import Pretraining

ROOT = Path(__file__).parents[1] / "gin"
SHARED = "gin/runs/train.gin"
NAMES = [
    "prompt_expert",
    "all_prompt_experts",
    "dataset_expert_adapter",
    "dataset_expert",
    "multitask",
    "continual",
]
OF_T5X = {
    "MIXTURE_OR_TASK_NAME",
    "TASK_FEATURE_LENGTHS",
    "TRAIN_STEPS",
    "BATCH_SIZE",
    "MODEL_DIR",
    "INITIAL_CHECKPOINT_PATH",
    "DROPOUT_RATE",
    "RANDOM_SEED",
    "EVAL_PERIOD",
    "LABEL_SMOOTHING",
    "Z_LOSS",
}


@pytest.fixture(autouse=True)
def _no_trace_of_gin():
    yield
    gin.clear_config()


def file(name):
    return str(ROOT / "recipes" / f"{name}.gin")


def config(name, *bindings):
    """What a recipe says, by the keys that files have."""
    return settings_of(recipes.bind(TrainConfig, [file(name)], bindings)())


def tasks(name) -> list[TaskSpec]:
    recipes.load([file(name)])
    told = gin.query_parameter("%MIXTURE_OR_TASK_NAME")
    return task_selection.select_tasks([told] if isinstance(told, str) else told)


@pytest.mark.parametrize("name", NAMES)
def test_t5xs_names_of_macros_are_read(name):
    assert recipes.macros_in([file(name)]) >= OF_T5X


def test_the_shared_file_wants_to_know_what_to_train_on_and_nothing_else():
    with pytest.raises(UserError, match="MIXTURE_OR_TASK_NAME"):
        recipes.load([SHARED])
    recipes.load([SHARED], ["MIXTURE_OR_TASK_NAME = 'dream'"])


@pytest.mark.parametrize(
    ("name", "datasets", "count"),
    [
        ("prompt_expert", {"cosmos_qa"}, 1),
        ("dataset_expert_adapter", {"cosmos_qa"}, 13),
        ("dataset_expert", {"cosmos_qa"}, 13),
    ],
)
def test_a_recipe_for_one_expert_trains_on_cosmos_qa_unless_told_otherwise(name, datasets, count):
    found = tasks(name)
    assert {spec.dataset for spec in found} == datasets
    assert len(found) == count


@pytest.mark.parametrize("name", ["all_prompt_experts", "multitask"])
def test_recipes_for_all_train_on_the_papers_296_prompts_of_36_datasets(name):
    found = tasks(name)
    assert Counter(spec.group for spec in found) == {"train": 296}
    assert len({spec.dataset for spec in found}) == 36


def test_continual_learning_adds_the_ten_targets_that_have_an_expert():
    found = tasks("continual")
    assert len(found) == 10
    assert {spec.group for spec in found} == {"targets"}
    assert {budgets.get_target_expert_budget(spec).max_prompt for spec in found} == {512}


@pytest.mark.parametrize(
    ("name", "paper", "trained"),
    [
        ("prompt_expert", "prompt", "experts"),
        ("all_prompt_experts", "prompt", "experts"),
        ("dataset_expert_adapter", "dataset_adapter", "dataset"),
        ("dataset_expert", "dataset", "dataset"),
        ("continual", "target", "experts"),
    ],
)
def test_the_papers_budget_holds_where_a_recipe_sets_nothing(name, paper, trained):
    found = config(name)
    assert (found["paper"], found["train_as"]) == (paper, trained)
    assert {found[key] for key in ("steps", "epochs", "batch_size", "rate")} == {None}
    assert gin.query_parameter("%TASK_FEATURE_LENGTHS") is None
    assert gin.query_parameter("%MAX_TRAIN_SAMPLES") is None


@pytest.mark.parametrize("name", ["prompt_expert", "dataset_expert_adapter", "multitask", "continual"])
def test_an_adapter_is_trained_with_the_originals_adamw(name):
    found = config(name)
    wanted = {"kind": "bottleneck", "optimizer": "adamw", "schedule": "linear", "clip": 1.0}
    wanted |= {"dropout": 0.1, "warmup": 0, "keep": "last", "validate_every": 0}
    assert found == found | wanted


def test_all_parameters_are_trained_with_the_originals_adafactor():
    found = config("dataset_expert")
    assert found == found | {"kind": "full", "optimizer": "adafactor", "schedule": "constant", "clip": 0.5}


def test_the_multitask_baseline_has_no_budget_of_the_papers_and_says_its_own():
    found = config("multitask")
    wanted = {"paper": None, "steps": 10_000, "batch_size": 128, "rate": 1e-4}
    assert found == found | wanted | {"train_as": "multitask", "name": "baseline"}


@pytest.mark.parametrize("name", NAMES)
def test_a_macro_that_is_set_overrides_the_papers_value_and_no_other(name):
    usual, found = config(name), config(name, "TRAIN_STEPS = 7", "EXPERT_KIND = 'lora'")
    assert found == usual | {"steps": 7, "kind": "lora"}


def test_lengths_are_t5xs_inputs_and_targets_or_the_papers():
    def lengths(*bindings):
        return recipes.bind(data_source.feature_lengths, [file("prompt_expert")], bindings)()

    assert lengths() is None
    assert lengths("TASK_FEATURE_LENGTHS = {'inputs': 40, 'targets': 9}") == data_source.Lengths(40, 9)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a tiny base and two experts, of a dataset that the recipes below do not train on."""
    out = tmp_path_factory.mktemp("run")
    texts = [
        row.input
        for spec in task_selection.select_tasks(["mini"])
        for row in task_rows.load_examples(spec, data_source.Source(limit=9))
    ]
    how = Pretraining(vocabulary_kind="word", steps=2, batch_size=4)
    workspace = Workspace.open(out, create=True)
    pretraining.pretrain(workspace, texts, [], how, seed=0, stages=Stages())
    settings.save_run_settings(workspace, None, None, None)
    assert len(trained("prompt_expert", out, "MIXTURE_OR_TASK_NAME = 'mini_size_animal'")) == 2
    gin.clear_config()
    return out


def trained(name, out, *bindings, **options):
    small = [
        f"MODEL_DIR = '{out}'",
        "TRAIN_STEPS = 2",
        "BATCH_SIZE = 4",
        "LEARNING_RATE = 1e-2",
        "TASK_FEATURE_LENGTHS = {'inputs': 24, 'targets': 8}",
        "MAX_TRAIN_SAMPLES = 8",
        "EXPERT_OPTIONS = {'width': 4}",
        *bindings,
    ]
    return recipes.bind(train.train, [file(name)], small)(**options)


def files_of(library):
    return {path: path.read_bytes() for path in library.rglob("*") if path.is_file()}


def test_experts_that_join_a_library_leave_those_it_has_as_they_were(run):
    before = files_of(run / "library")
    old = set(Library.open(run / "library").ids())
    new = trained(
        "continual", run, "MIXTURE_OR_TASK_NAME = 'mini_sentiment_film'", "EXPERT_OPTIONS = {'width': 4}"
    )
    assert len(new) == 2
    assert set(Library.open(run / "library").ids()) == old | set(new)
    after = files_of(run / "library")
    assert {path: after[path] for path in before} == before


def test_a_dataset_has_one_adapter_for_all_its_prompts(run):
    named = "MIXTURE_OR_TASK_NAME = ('mini_opposite_word', 'mini_opposite_turn')"
    assert len(trained("dataset_expert_adapter", run, named)) == 2


def test_the_multitask_baseline_is_one_expert_apart_from_the_library(run):
    made = trained("multitask", run, "MIXTURE_OR_TASK_NAME = 'mini_sentiment_film'", "EXPERT_NAME = 'other'")
    assert made == ["multitask/other"]
    assert "multitask/other" in Library.open(run / "composites").ids()
    assert "multitask/other" not in Library.open(run / "library").ids()


def test_steps_are_validated_on_the_evaluation_split_as_often_as_asked_and_that_is_kept(run):
    named = (
        "MIXTURE_OR_TASK_NAME = 'mini_taxonomy_kind'",
        "EVAL_PERIOD = 1",
        "EVAL_ROWS = 6",
        "KEEP = 'best'",
    )
    made = trained("prompt_expert", run, *named)
    told = [
        (record["expert"], record["step"])
        for record in jsonl_log.read_journal(run / "logs" / "training.jsonl")
        if record["kind"] == "validation"
    ]
    assert sorted(told) == sorted((expert, step) for expert in made for step in (1, 2))
    library = Library.open(run / "library")
    assert all(library.spec(expert).recipe["keep"] == "best" for expert in made)


def test_a_run_does_not_remember_how_many_rows_it_trained_on(run, tmp_path):
    named = ["MIXTURE_OR_TASK_NAME = 'mini_opposite_word'", f"MODEL_DIR = '{tmp_path}'", "BATCH_SIZE = 4"]
    named += [f"INITIAL_CHECKPOINT_PATH = '{run / 'base'}'", "MAX_TRAIN_SAMPLES = 16", "TRAIN_STEPS = 2"]
    told = []
    recipes.bind(train.train, [SHARED], named)(on_estimate=told.append)
    assert {len(job.prompts) for job in told[0].jobs} == {16}
    assert opening.open_run(tmp_path).source.limit is None


def test_a_dry_run_says_what_would_be_trained_and_trains_nothing(run):
    before, told = files_of(run), []
    named = ["MIXTURE_OR_TASK_NAME = 'mini_opposite_word'", f"MODEL_DIR = '{run}'", "TRAIN_STEPS = 30"]
    call = recipes.bind(train.train, [SHARED], [*named, "MAX_TRAIN_SAMPLES = 16", "BATCH_SIZE = 4"])
    assert call(on_estimate=told.append, dry_run=True) == []
    assert files_of(run) == before
    (found,) = told
    assert [(len(job.prompts), job.steps, job.batch_size) for job in found.jobs] == [(16, 30, 4)] * 2
    real = sum(30 * 4 * sum(map(len, job.prompts)) / 16 for job in found.jobs)
    assert found.prompt_tokens == pytest.approx(real)
    assert 0 < found.fill_ratio <= 1
    assert found.batches == pytest.approx(
        (found.prompt_tokens + found.answer_tokens) / (found.fill_ratio * found.shape.tokens)
    )
    experts, training = estimate.tables(found)
    assert [row[0] for row in experts.rows] == [job.id for job in found.jobs]
    assert dict(training.rows)["steps"] == "60"


def test_a_dry_run_refuses_an_expert_that_is_there_with_another_recipe(run):
    named = "MIXTURE_OR_TASK_NAME = 'mini_size_animal'", "LEARNING_RATE = 5e-2"
    with pytest.raises(UserError, match=r"another rate.*'mini_size_animal/"):
        trained("prompt_expert", run, *named, dry_run=True)


def test_a_dry_run_says_how_many_are_trained_already_and_counts_the_others_alone(run):
    told = []
    named = "MIXTURE_OR_TASK_NAME = ('mini_size_animal', 'mini_size_thing/bigger or smaller')"
    trained("prompt_expert", run, named, on_estimate=told.append, dry_run=True)
    (found,) = told
    assert sorted(found.trained) == ["mini_size_animal/beside a dog", "mini_size_animal/than a dog"]
    _, training = estimate.tables(found)
    assert dict(training.rows)["experts"].endswith("; 2 trained already")
    assert dict(training.rows)["steps"] == "2"
    (left,) = [job for job in found.jobs if job.id not in found.trained]
    assert found.prompt_tokens == pytest.approx(2 * 4 * sum(map(len, left.prompts)) / 8)


def test_the_papers_table_gives_way_for_a_task_that_is_not_the_papers(tmp_path):
    rows = [{"text": "good", "label": 1}]
    prompts = {"kind": ("{{text}} ||| {{answer_choices[label]}}", "no ||| yes")}
    own = user_tasks.define_task("pets", rows=rows, prompts=prompts)
    recipe = recipes.bind(TrainConfig, [file("prompt_expert")])()
    mine, papers = expert_configs.resolve_experts([*own, specs.find_task("dream/baseline")], recipe, None)
    assert (mine.config.schedule.steps, mine.config.batch.size) == (1000, 8)  # `elm train`'s defaults
    assert papers.config.schedule.epochs is not None


def test_a_recipe_without_a_base_is_told_of_the_macro_that_names_one(tmp_path):
    with pytest.raises(UserError, match=r"a base as INITIAL_CHECKPOINT_PATH.* \(MODEL_DIR in a recipe\)"):
        trained("dataset_expert", tmp_path / "none")


def test_the_command_prints_the_estimate_and_reads_t5xs_flags_and_a_run_keeps_its_recipe(
    run, capsys, tmp_path
):
    (tmp_path / "mine.gin").write_text(
        "include 'gin/runs/train.gin'\nMIXTURE_OR_TASK_NAME = 'mini_size_thing'\n"
    )
    flags = ["--gin_file=mine.gin", f"--gin_search_paths=elsewhere,{tmp_path}", f"--gin.MODEL_DIR='{run}'"]
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "train",
                *flags,
                "--gin.TRAIN_STEPS=7",
                "--gin.PAPER=None",
                "--dry_run",
                "--tfds_data_dir=/nowhere",
            ]
        )
    assert ended.value.code == 0
    assert not (run / "logs" / "train.gin").exists()
    assert "TRAIN_STEPS = 7" in Path(recipes.write_config("train")).read_text()
    told = capsys.readouterr().out
    assert "mini_size_thing/" in told
    assert "memory of a device" in told
