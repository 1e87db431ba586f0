"""Extras: the advice names packages, so that it works from a checkout, a wheel and an index alike."""

import shlex
from importlib import metadata

import pytest

from elm_jax.extras import install_command


@pytest.mark.parametrize("extra", ["hub", "track", "generation", "plots", "lm-eval", "plan", "tpu"])
def test_the_command_names_the_packages_of_an_extra_as_pip_takes_them(extra):
    packaging = pytest.importorskip("packaging.requirements")
    wanted = {
        str(packaging.Requirement(line).name)
        for line in metadata.requires("elm_jax")
        if f'extra == "{extra}"' in line.replace("'", '"')
    }
    program, verb, *packages = shlex.split(install_command(extra))
    assert (program, verb) == ("pip", "install")
    assert {packaging.Requirement(package).name for package in packages} == wanted
    assert wanted


def test_a_checkout_that_is_not_installed_is_installed_with_its_extra(monkeypatch):
    def unknown(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", unknown)
    *command, where = shlex.split(install_command("hub"))
    assert command == ["pip", "install", "-e"]
    assert where.endswith("[hub]")


def test_so_is_one_that_was_installed_before_it_had_the_extra(monkeypatch):
    monkeypatch.setattr(metadata, "requires", lambda name: ['datasets>=4.0; extra == "hub"'])
    *command, where = shlex.split(install_command("track"))
    assert command == ["pip", "install", "-e"]
    assert where.endswith("[track]")
