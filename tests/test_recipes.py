"""Recipes: every one is complete, says what it does, and defines no macro that nothing reads."""

import re
from pathlib import Path

import gin
import pytest

from elm_jax.runs import recipes

ROOT = Path(__file__).parents[1] / "gin"
COMPLETE = sorted((ROOT / "recipes").glob("*.gin"))


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
    assert defined <= recipes.macros_read([str(recipe)])


@pytest.mark.parametrize("recipe", COMPLETE, ids=lambda path: path.stem)
def test_a_recipe_opens_with_run_takes_and_expect(recipe):
    head = re.match(r"(#.*\n)+", recipe.read_text())
    assert head
    for word in ("Run", "Takes", "Expect"):
        assert re.search(rf"^# {word} +\S", head.group(), re.MULTILINE)


def test_no_package_hides_gin():
    assert not list(ROOT.rglob("__init__.py"))


def test_a_later_file_and_a_binding_win(tmp_path):
    (tmp_path / "more.gin").write_text("BATCH_SIZE = 3\nTRAIN_STEPS = 7\n")
    files = [str(COMPLETE[0]), str(tmp_path / "more.gin")]
    recipes.load(files, ["TRAIN_STEPS = 9"])
    assert gin.query_parameter("%BATCH_SIZE") == 3
    assert gin.query_parameter("%TRAIN_STEPS") == 9


def test_what_a_recipe_binds_reaches_the_function():
    from elm_jax.runs.train import Budget

    budget = recipes.bound(Budget, [str(COMPLETE[0])], ["TRAIN_STEPS = 11"])()
    assert budget.steps == 11
    assert budget.kind == "bottleneck"
