"""The package's own names: there when asked for, described, and nothing heavy before."""

import inspect
import subprocess
import sys

import pytest

import elm_jax
from elm_jax.tasks import mini


def described(function, name):
    """Says whether a docstring names an argument; further options go by the word alone."""
    return f"`{name}`" in (function.__doc__ or "") or f"{name}=" in (function.__doc__ or "")


def functions_of(name):
    """A public name, or for a class what opens it; the arguments of an exception are nobody's business."""
    found = getattr(elm_jax, name)
    if not inspect.isclass(found):
        return [found]
    return [found] if not issubclass(found, Exception) else []


def test_every_public_name_is_there():
    for name in elm_jax.__all__:
        assert callable(getattr(elm_jax, name))
        assert name in dir(elm_jax)
    assert sorted(elm_jax.__all__) == elm_jax.__all__


@pytest.mark.parametrize("name", elm_jax.__all__)
def test_every_public_name_says_what_it_is_and_what_each_argument_means(name):
    said = (getattr(elm_jax, name).__doc__ or "").splitlines()
    assert said
    assert said[0].endswith((".", ":", "`"))
    for function in functions_of(name):
        for argument in inspect.signature(function).parameters:
            assert described(function, argument), f"{name} does not say what {argument} is"


@pytest.mark.parametrize("name", elm_jax.__all__)
def test_every_public_function_says_what_it_raises(name):
    found = getattr(elm_jax, name)
    if inspect.isfunction(found):
        assert "UserError" in found.__doc__


def test_any_other_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'load_template'"):
        elm_jax.load_template  # noqa: B018


def test_importing_the_package_imports_nothing_but_itself():
    code = "import sys; import elm_jax; print([name for name in sys.modules if name.startswith('elm_jax')])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "['elm_jax', 'elm_jax.moved']"


def test_a_task_is_found_by_its_id_and_its_group():
    assert elm_jax.find_task("dream/baseline") in elm_jax.task_specs("train")


def test_examples_of_a_task_are_those_of_its_spec_and_its_own_split():
    spec = next(spec for spec in elm_jax.task_specs("mini") if spec.dataset == "mini_size_suitcase")
    source = elm_jax.Source(limit=3)
    by_name = elm_jax.examples(spec.id, source=source)
    assert by_name.examples == elm_jax.examples(spec, spec.split, source=source).examples
    assert len(by_name.examples) == 3


def test_templates_are_read_by_dataset():
    found = elm_jax.load_templates(mini.PROMPTS_DIR, "mini_size_suitcase")
    assert {
        spec.prompt for spec in elm_jax.task_specs("mini") if spec.dataset == "mini_size_suitcase"
    } <= set(found)


def test_what_a_user_can_mend_is_a_user_error():
    with pytest.raises(elm_jax.UserError, match="No task named"):
        elm_jax.find_task("dream/basline")
