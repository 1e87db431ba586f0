"""`elm route`: which experts a task should use."""

import json
from dataclasses import asdict, dataclass
from typing import Annotated, ClassVar

import typer

from elm_jax.cli.flags import flattened
from elm_jax.cli.inputs import load_task_files, open_run, parse_options, task_files
from elm_jax.cli.options import DEFAULT_OUT, AsJson, Cache, Dtype, Names, RunDir, SourceFlags

OWN_FLAGS = ("experts", "queries", "router")
"""Options of routers that are flags of this command."""


@dataclass(frozen=True)
class RouterFlags:
    """Which router chooses, and how."""

    PANEL: ClassVar[str] = "Routing"
    router: Annotated[str, typer.Option(help="How experts are chosen.")] = "roe"
    experts: Annotated[int, typer.Option(help="Experts to choose, those with the most votes.")] = 1
    queries: Annotated[int, typer.Option(help="Inputs of the task that vote.")] = 32
    option: Annotated[
        list[str] | None, typer.Option(help="An option of the router, NAME=VALUE; may be repeated.")
    ] = None


@flattened
def route(
    names: Names = None,
    run: RunDir = DEFAULT_OUT,
    explain: Annotated[bool, typer.Option(help="Show the votes and the nearest keys.")] = False,
    dtype: Dtype = None,
    cache: Cache = None,
    as_json: AsJson = False,
    *,
    router: RouterFlags,
    source: SourceFlags,
) -> None:
    """Which experts a task should use, and why."""
    from elm_jax.data import task_selection
    from elm_jax.routing import route as routing

    load_task_files(task_files(source.tasks, names))
    options = parse_options(router.option, OWN_FLAGS, "k=10")
    opened = open_run(run, source, names, cache=cache, dtype=dtype)
    specs = task_selection.choose(names or [], opened.source, evaluation=True)
    made = routing.explained(
        opened, specs, router.router, router.experts, router.queries, shown=explain, **options
    )
    if as_json:
        print(json.dumps([asdict(selection) for selection, _ in made], ensure_ascii=False))
        return
    for selection, lines in made:
        print(f"{selection.task}: {', '.join(selection.weights)}")
        for line in lines:
            print(f"  {line}")
