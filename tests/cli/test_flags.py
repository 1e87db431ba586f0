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
from elm_jax.cli import flags
from elm_jax.cli.flags import flattened

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


def test_changed_fields_are_those_without_their_defaults():
    assert list(flags.changed(PaintFlags())) == []
    assert list(flags.changed(PaintFlags(coats=3))) == ["coats"]


@pytest.mark.parametrize("name", FILES)
def test_no_function_of_the_command_line_takes_more_than_ten_arguments(name):
    module = importlib.import_module(f"elm_jax.cli.{name}")
    for function_name, function in inspect.getmembers(module, inspect.isfunction):
        if function.__module__ == module.__name__:
            parameters = inspect.signature(inspect.unwrap(function)).parameters
            assert len(parameters) <= 10, f"{name}.{function_name}"
