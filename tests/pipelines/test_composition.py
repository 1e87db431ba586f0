"""Composition: two experts of one base become one, and answer an instruction that asks for what both do."""

import json
from pathlib import Path

import gin
import numpy as np
import pytest

from elm_jax.experts.library import Library
from elm_jax.launch import recipes
from elm_jax.models import paths
from elm_jax.pipelines import pipeline
from elm_jax.tasks import mini

RECIPE = Path(__file__).parents[2] / "gin" / "recipes" / "composition.gin"
OPPOSITE, LETTER = "opposites/say the opposite", "spelling/name the letter"
TASKS = """
datasets:
  opposites:
    jsonl: {train: opposites.jsonl}
    prompts: {say the opposite: {jinja: 'what is the opposite of " {{word}} " ? ||| {{opposite}}'}}
  spelling:
    jsonl: {train: spelling.jsonl}
    prompts: {name the letter: {jinja: 'what letter does " {{word}} " begin with ? ||| {{letter}}'}}
  both:
    jsonl: {train: both.jsonl}
    prompts:
      do both: {jinja: 'what letter does the opposite of " {{word}} " begin with ? ||| {{letter}}'}
"""


@pytest.fixture(autouse=True)
def _no_trace_of_gin():
    yield
    gin.clear_config()


@pytest.fixture
def tasks(tmp_path):
    """Tasks over the embedded suite's words: opposites, first letters, and first letters of opposites."""
    opposites = dict(mini.words.OPPOSITE_OF)
    rows = {
        "opposites": [{"word": word, "opposite": other} for word, other in opposites.items()],
        "spelling": [{"word": word, "letter": word[0]} for word in opposites.values()],
        "both": [{"word": word, "letter": other[0]} for word, other in opposites.items()],
    }
    for name, own in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    (tmp_path / "tasks.yaml").write_text(TASKS)
    return tmp_path / "tasks.yaml"


def test_the_recipe_trains_two_experts_merges_them_and_scores_the_composed_instruction(tasks, tmp_path):
    out = tmp_path / "out"
    small = {
        "TASK_FILES": (str(tasks),),
        "MODEL_DIR": str(out),
        "INITIAL_CHECKPOINT_PATH": None,
        "MIXTURE_OR_TASK_NAME": ("opposites", "spelling"),
        "EVAL_TASKS": ("both",),
        "METHODS": (
            "composed=uniform+average",
            f'opposite=fixed:expert="{OPPOSITE}"',
            f'letter=fixed:expert="{LETTER}"',
        ),
        "EXPERT_KIND": "bottleneck",
        "BASE_STEPS": 2,
        "TRAIN_STEPS": 2,
        "BATCH_SIZE": 4,
        "MAX_PROMPT": 24,
        "MAX_ANSWER": 8,
        "VOCABULARY_SIZE": 120,
        "LIMIT": 6,
        "KEYS": 3,
        "QUERIES": 3,
        "OPTIMIZER": "adamw",
    }
    bindings = [f"{name} = {value!r}" for name, value in small.items()]
    outcome = recipes.bind(pipeline.run_pipeline, [str(RECIPE)], bindings)()
    library, composites = Library.open(out / "library"), Library.open(out / "composites")
    assert library.ids() == (OPPOSITE, LETTER)
    made = [
        spec
        for spec in map(composites.spec, composites.ids())
        if spec.recipe.get("merged_from") == [OPPOSITE, LETTER]
    ]
    (composed,) = made
    one, other, both = (
        paths.flatten(tree)
        for tree in (
            library.load_expert(OPPOSITE).params,
            library.load_expert(LETTER).params,
            composites.load_expert(composed.id).params,
        )
    )
    for path, value in both.items():
        np.testing.assert_allclose(value, (one[path] + other[path]) / 2, rtol=1e-6, atol=1e-7)
    report = json.loads(outcome.files["json"].read_text())
    scored = {row["method"]: row for row in [*report["rows"], *report["generated"]]}
    assert set(scored) >= {"base", "composed", "opposite", "letter"}
    assert {(row["task"], row["n"], row["seen"]) for row in scored.values()} == {("both", 6, False)}
