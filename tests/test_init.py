"""The package's own names: there when asked for, and nothing heavy before."""

import subprocess
import sys

import pytest

import elm_jax


def test_every_public_name_is_there():
    for name in elm_jax.__all__:
        assert callable(getattr(elm_jax, name))
        assert name in dir(elm_jax)
    assert elm_jax.find_task("dream/baseline") in elm_jax.task_specs("train")


def test_any_other_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'load_template'"):
        elm_jax.load_template  # noqa: B018


def test_importing_the_package_imports_nothing_but_itself():
    code = "import sys; import elm_jax; print([name for name in sys.modules if name.startswith('elm_jax')])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "['elm_jax']"
