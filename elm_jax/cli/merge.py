"""`elm merge`: several experts made one."""

import json
from typing import Annotated, Any

import typer

from elm_jax.cli.opened import task_files
from elm_jax.cli.options import DEFAULT_OUT, AsJson, DataDir, RunDir, TaskFiles, TemplatesDir
from elm_jax.errors import UserError

NO_OPTIONS = ("base", "experts", "id", "method", "rows", "run", "statistics", "weights", "workspace")
"""Names that the functions behind this verb give a meaning of their own."""


def merge(
    experts: Annotated[list[str] | None, typer.Argument(help="Experts by id.")] = None,
    run: RunDir = DEFAULT_OUT,
    method: Annotated[str, typer.Option(help="How they are merged; --methods lists all ways.")] = "average",
    weights: Annotated[
        str | None, typer.Option(help="One an expert, with commas between; alike without.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="An option of the method, NAME=VALUE; may be repeated.")
    ] = None,
    statistics: Annotated[
        list[str] | None,
        typer.Option(
            help="What the method knows of data: a safetensors file an expert, in their order. Without them "
            "they are taken of each expert's training rows."
        ),
    ] = None,
    rows: Annotated[int, typer.Option(help="Training rows of an expert that statistics are taken of.")] = 256,
    id: Annotated[str | None, typer.Option("--id", help="What the merged expert is called.")] = None,
    methods: Annotated[bool, typer.Option("--methods", help="List the methods and their options.")] = False,
    data_dir: DataDir = None,
    templates_dir: TemplatesDir = None,
    tasks: TaskFiles = None,
    as_json: AsJson = False,
) -> None:
    """Make one expert of several; it goes to the run's composites, where no router finds it."""
    if methods:
        _list(as_json)
        return
    from elm_jax import storage
    from elm_jax.merging import merge as runs
    from elm_jax.session import opening
    from elm_jax.session.workspace import Workspace

    asked: dict[str, Any] = {
        **dict(map(_named, option or [])),
        "weights": None if weights is None else [_number(weight) for weight in weights.split(",")],
        "statistics": statistics and [storage.read_arrays(file, what="Statistics") for file in statistics],
        "id": id,
    }
    # Judged on specs alone before the base is read, which `open_run` does.
    files = task_files(tasks)
    runs.plan(Workspace.open(run), experts or [], method, **asked)
    opened = opening.open_run(run, data_dir=data_dir, templates_dir=templates_dir, task_files=files)
    spec = runs.merge(opened, experts or [], method, rows=rows, **asked).spec
    if as_json:
        told = {"id": spec.id, "kind": spec.kind, "datasets": spec.datasets, "recipe": dict(spec.recipe)}
        print(json.dumps(told, ensure_ascii=False))
        return
    print(spec.id)
    for name in ("note", "error"):
        if name in spec.recipe:
            print(f"{name}: {spec.recipe[name]}")


def _list(as_json: bool) -> None:
    from elm_jax.merging.table import METHODS

    if as_json:
        told = [
            {
                "name": name,
                "says": method.says,
                "options": {known: option.says for known, option in method.options.items()},
                "statistics": method.reads is not None,
                "symmetric": method.symmetric,
            }
            for name, method in METHODS.items()
        ]
        print(json.dumps(told, ensure_ascii=False))
        return
    for name, method in METHODS.items():
        print(f"{name:<16} {method.says}")
        for known, option in method.options.items():
            default = "" if option.default is None else f" ({option.default} without it)"
            print(f"{'':<16} {known}: {option.says}{default}")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"Weights with commas between, as 0.3,0.7, are wanted, but {text!r} came.") from None


def _named(text: str) -> tuple[str, Any]:
    """Splits NAME=VALUE; a value that is no JSON is text."""
    name, equals, value = text.partition("=")
    if not equals or name in NO_OPTIONS:
        raise UserError(
            f"An option as density=0.3 is wanted, but {text!r} came. `elm merge --methods` lists them."
        )
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
