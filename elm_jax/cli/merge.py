"""`elm merge`: several experts made one."""

import json
from typing import Annotated, Any

import typer

from elm_jax.cli.opened import task_files
from elm_jax.cli.options import DEFAULT_OUT, AsJson, DataDir, RunDir, TaskFiles, TemplatesDir
from elm_jax.errors import UserError


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
    files = task_files(tasks)
    if methods:
        _list(as_json)
        return
    from elm_jax import storage
    from elm_jax.merging import merge as runs
    from elm_jax.session import opening
    from elm_jax.session.workspace import Workspace

    options = dict(map(_named, option or []))
    known = [storage.read_arrays(file, what="Statistics") for file in statistics] if statistics else None
    # Planned by specs alone before the base is read, which `open_run` does.
    plan = runs.plan_run_merge(
        Workspace.open(run),
        experts or [],
        method,
        options,
        weights=None if weights is None else [_number(weight) for weight in weights.split(",")],
        statistics=known,
        id=id,
    )
    opened = opening.open_run(run, data_dir=data_dir, templates_dir=templates_dir, task_files=files)
    spec = runs.run_merge(opened, plan, statistics=known, rows=rows).spec
    if as_json:
        told = {"id": spec.id, "kind": spec.kind, "datasets": spec.datasets, "recipe": dict(spec.recipe)}
        print(json.dumps(told, ensure_ascii=False))
        return
    print(spec.id)
    for name in ("note", "error"):
        if name in spec.recipe:
            print(f"{name}: {spec.recipe[name]}")


def _list(as_json: bool) -> None:
    from elm_jax.merging.table import MERGES

    if as_json:
        told = [
            {
                "name": name,
                "says": method.description,
                "options": {known: option.description for known, option in method.options.items()},
                "statistics": method.statistics_shape is not None,
                "symmetric": method.symmetric,
            }
            for name, method in sorted(MERGES.items())
        ]
        print(json.dumps(told, ensure_ascii=False))
        return
    for name, method in sorted(MERGES.items()):
        print(f"{name:<16} {method.description}")
        for known, option in method.options.items():
            default = "" if option.default is None else f" (default: {option.default})"
            print(f"{'':<16} {known}: {option.description}{default}")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"Weights with commas between, as 0.3,0.7, are wanted, but {text!r} came.") from None


def _named(text: str) -> tuple[str, Any]:
    """Splits NAME=VALUE; a value that is no JSON is text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(
            f"An option as density=0.3 is wanted, but {text!r} came. `elm merge --methods` lists them."
        )
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
