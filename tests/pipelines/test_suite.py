"""The method at work: on the embedded suite retrieval beats the base, and real data goes the same way."""

import json
import os
from pathlib import Path

import gin
import jax
import pytest

from elm_jax.launch import recipes
from elm_jax.pipelines import pipeline
from elm_jax.pipelines.quickstart import quickstart
from tests.shared_data import DATA

RECIPES = Path(__file__).parents[2] / "gin" / "recipes"


@pytest.fixture
def compiled_well():
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.mark.usefixtures("compiled_well")
def test_on_the_embedded_suite_retrieval_beats_the_base_significantly(tmp_path):
    # $ELM_QUICKSTART is a run of this very code that is done, as .ci/run has one: nothing is done again.
    outcome = quickstart(out=os.environ.get("ELM_QUICKSTART") or tmp_path, seed=0)
    found = {(pair.a, pair.b): pair for pair in outcome.report.comparisons}
    assert found["roe_top1", "base"].low > 0.05
    assert found["roe_top1", "base"].p_holm < 0.01
    assert ("roe_top1", "multitask") in found


@pytest.mark.nightly
@pytest.mark.shared_data
def test_the_recipe_for_dream_and_story_cloze_runs_on_the_real_files(tmp_path):
    tiny = {
        "DATA_DIR": f"'{DATA}'",
        "TEMPLATES_DIR": f"'{DATA / 'promptsource' / 'templates'}'",
        "MODEL_DIR": f"'{tmp_path}'",
        "BASE_STEPS": "2",
        "BASE_BATCH_SIZE": "4",
        "TRAIN_STEPS": "2",
        "MAX_PROMPT": "96",
        "MAX_TRAIN_SAMPLES": "8",
        "LIMIT": "4",
        "KEYS": "3",
        "QUERIES": "2",
    }
    bindings = [f"{name} = {value}" for name, value in tiny.items()]
    try:
        outcome = recipes.bind(pipeline.run_pipeline, [str(RECIPES / "dream_to_story_cloze.gin")], bindings)()
    finally:
        gin.clear_config()
    report = json.loads(outcome.files["json"].read_text())
    assert {row["task"] for row in report["rows"]} == {"story_cloze"}
    assert len({row["prompt"] for row in report["rows"]}) == 5
    assert {row["n"] for row in report["rows"]} == {4}
    experts = {cell["expert"] for cell in report["matrix"]}
    assert len(experts) == 18
    assert {expert.split("/")[0] for expert in experts} == {"dream", "cosmos_qa"}
