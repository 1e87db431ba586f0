"""Flags in records: the command line has one flag for each field, and no command takes many arguments."""

import importlib
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import pytest
import typer
from typer.testing import CliRunner

import elm_jax.cli
from elm_jax.cli import training
from elm_jax.cli.flags import flattened
from elm_jax.cli.options import ProcessFlags, Wait
from elm_jax.cli.training import TrainRecipeFlags
from elm_jax.errors import UserError

FILES = sorted(file.stem for file in Path(elm_jax.cli.__file__).parent.glob("[!_]*.py"))


@dataclass(frozen=True)
class PaintFlags:
    PANEL: ClassVar[str] = "Paint"
    colour: Annotated[str, typer.Option(help="The colour.")] = "red"
    coats: Annotated[int | None, typer.Option("--layers", help="How often.")] = None


@pytest.fixture
def house():
    app = typer.Typer()

    @app.command()
    @flattened
    def paint(
        walls: Annotated[list[str] | None, typer.Argument(help="Which walls.")] = None,
        *,
        paint: PaintFlags,
    ) -> None:
        """Paint a house."""
        print(walls, paint)

    return app


def test_fields_become_flags_and_the_command_gets_the_record(house):
    result = CliRunner().invoke(house, ["north", "--colour", "blue", "--layers", "2"])
    assert result.output == "['north'] PaintFlags(colour='blue', coats=2)\n"
    assert CliRunner().invoke(house, []).output.endswith("PaintFlags(colour='red', coats=None)\n")


def test_help_shows_the_flags_of_a_record_in_its_panel(house):
    told = CliRunner().invoke(house, ["--help"]).output
    assert "Paint a house." in told
    assert told.index(" Paint ") < told.index("--colour") < told.index("--layers")
    assert "[default: red]" in told


@pytest.fixture
def kitchen():
    app = typer.Typer()

    @app.command()
    @flattened
    def cook(
        names: Annotated[list[str] | None, typer.Argument()] = None,
        wait: Wait = False,
        *,
        paint: PaintFlags,
        recipe: TrainRecipeFlags,
        processes: ProcessFlags,
    ) -> None:
        """Cook."""
        print(recipe.gin_file, recipe.gin_bindings, wait, processes.multiprocess)

    return app


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["--gin_file", "f", "pea"], "names of tasks"),
        (["--gin_file", "f", "--colour", "red"], "--colour"),  # its default too
        (["--gin_file", "f", "--layers", "1"], "--coats"),
        (["--gin_bindings", "X = 1"], "X = 1"),
        (["--gin_search_paths", "here,there"], "here,there"),
    ],
)
def test_what_a_recipe_or_its_absence_would_drop_is_refused(kitchen, given, named):
    result = CliRunner().invoke(kitchen, given)
    assert isinstance(result.exception, UserError)
    assert named in str(result.exception)


def test_a_recipe_may_have_bindings_processes_and_what_it_does_not_say(kitchen):
    given = ["--gin_file", "f", "--gin_bindings", "X = 1", "--wait", "--multiprocess"]
    assert CliRunner().invoke(kitchen, given).output == "['f'] ['X = 1'] True True\n"
    assert CliRunner().invoke(kitchen, ["pea", "--colour", "blue"]).output == "None None False False\n"


@pytest.mark.parametrize("name", FILES)
def test_no_function_of_the_command_line_takes_more_than_ten_arguments(name):
    module = importlib.import_module(f"elm_jax.cli.{name}")
    for function_name, function in inspect.getmembers(module, inspect.isfunction):
        if function.__module__ == module.__name__:
            parameters = inspect.signature(inspect.unwrap(function)).parameters
            assert len(parameters) <= 10, f"{name}.{function_name}"


def test_the_losses_of_t_few_are_those_of_the_flags():
    flags = training.TrainingFlags(unlikely_loss=0.5, mc_loss=2.0, length_norm=0.25)
    found = training._loss_config(flags)
    assert (found.unlikely_loss, found.mc_loss, found.length_norm) == (0.5, 2.0, 0.25)
