"""The package's own names: there when asked for, described, and nothing heavy before."""

import dataclasses
import inspect
import re
import subprocess
import sys

import pytest

import elm_jax
from elm_jax.tasks import mini

NAMES = [name for name in elm_jax.__all__ if name != "__version__"]
FUNCTIONS = [name for name in NAMES if inspect.isfunction(getattr(elm_jax, name))]
RECORDS = [name for name in NAMES if dataclasses.is_dataclass(getattr(elm_jax, name))]


def section(docstring, title):
    """Returns the names that a section of a Google style docstring describes."""
    body = re.search(rf"^{title}:\n((?:    .*\n?|\n)+)", inspect.cleandoc(docstring), re.MULTILINE)
    return re.findall(r"^    \*{0,2}(\w+)(?: \(.*?\))?:", body[1], re.MULTILINE) if body else []


def test_every_public_name_is_there():
    for name in NAMES:
        assert callable(getattr(elm_jax, name))
    assert set(elm_jax.__all__) <= set(dir(elm_jax))
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", elm_jax.__version__)


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_says_in_one_sentence_what_it_is(name):
    first, *rest = inspect.cleandoc(getattr(elm_jax, name).__doc__).split("\n")
    assert first.endswith(".")
    assert not rest or not rest[0]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_describes_its_arguments_result_and_errors(name):
    function = getattr(elm_jax, name)
    assert section(function.__doc__, "Args") == list(inspect.signature(function).parameters)
    assert "UserError" in section(function.__doc__, "Raises")
    assert "\nReturns:\n" in inspect.cleandoc(function.__doc__) or function.__doc__.startswith("Returns ")


@pytest.mark.parametrize("name", RECORDS)
def test_every_public_record_describes_its_fields(name):
    record = getattr(elm_jax, name)
    public = [field.name for field in dataclasses.fields(record) if not field.name.startswith("_")]
    assert section(record.__doc__, "Attributes") == public


def test_no_public_function_takes_more_than_ten_arguments():
    for name in FUNCTIONS:
        assert len(inspect.signature(getattr(elm_jax, name)).parameters) <= 10, name


def test_any_other_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'load_template'"):
        elm_jax.load_template  # noqa: B018


def test_importing_the_package_imports_nothing_but_itself():
    code = "import sys, elm_jax; print(sorted(name for name in sys.modules if name.startswith('elm_jax')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['elm_jax', 'elm_jax.moved']"


def test_a_task_is_found_by_its_id_and_its_group():
    assert elm_jax.find_task("dream/baseline") in elm_jax.task_specs("train")


def test_examples_of_a_task_are_those_of_its_spec_and_its_own_split():
    spec = next(spec for spec in elm_jax.task_specs("mini") if spec.dataset == "mini_size_suitcase")
    source = elm_jax.Source(limit=3)
    by_name = elm_jax.examples(spec.id, source=source)
    assert by_name.examples == elm_jax.examples(spec, spec.split, source=source).examples
    assert len(by_name.examples) == 3


def test_templates_are_read_by_dataset():
    templates = elm_jax.load_templates(mini.PROMPTS_DIR, "mini_size_suitcase")
    specs = elm_jax.task_specs("mini")
    assert {spec.prompt for spec in specs if spec.dataset == "mini_size_suitcase"} <= set(templates)


def test_what_a_user_can_mend_is_a_user_error():
    with pytest.raises(elm_jax.UserError, match="No task named"):
        elm_jax.find_task("no such task")


@pytest.mark.parametrize(
    ("old", "new"),
    [("runs.data:Source", "Source"), ("runs.train:train", "train"), ("runs.pipeline:run", "run_pipeline")],
)
def test_a_name_of_before_is_the_new_one_with_a_warning_that_tells_it(old, new):
    module, name = old.split(":")
    code = f"from elm_jax.{module} import {name} as old; import elm_jax; assert old is elm_jax.{new}"
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, check=True
    )
    assert f"elm_jax.{module}.{name} is now elm_jax.{new}" in done.stderr
