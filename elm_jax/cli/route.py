"""`elm route`: which experts a task should use."""

from dataclasses import asdict, dataclass
from typing import Annotated, ClassVar

import typer

from elm_jax.cli.flags import flattened
from elm_jax.cli.inputs import load_task_files, open_run, parse_options, task_files
from elm_jax.cli.options import DEFAULT_OUT, AsJson, Cache, Dtype, Names, RunDir, SourceFlags
from elm_jax.cli.output import print_entry, print_json

OWN_FLAGS = ("experts", "queries", "router")
"""Options of routers that are flags of this command."""


@dataclass(frozen=True)
class RouterFlags:
    """Which router chooses, and how."""

    PANEL: ClassVar[str] = "Routing"
    router: Annotated[str, typer.Option(help="How experts are chosen; --routers lists all.")] = "roe"
    experts: Annotated[int, typer.Option(min=1, help="Experts to choose, those with the most votes.")] = 1
    queries: Annotated[int, typer.Option(min=1, help="Inputs of the task that vote.")] = 32
    option: Annotated[
        list[str] | None, typer.Option(help="An option of the router, NAME=VALUE; may be repeated.")
    ] = None


@flattened
def route(
    names: Names = None,
    run: RunDir = DEFAULT_OUT,
    explain: Annotated[bool, typer.Option(help="Show the votes and the nearest keys.")] = False,
    routers: Annotated[bool, typer.Option("--routers", help="List the routers and their options.")] = False,
    dtype: Dtype = None,
    cache: Cache = None,
    as_json: AsJson = False,
    *,
    router: RouterFlags,
    source: SourceFlags,
) -> None:
    """Say which experts a task should use, and why.

    Example: elm route mini_sentiment_hotel --run elm_out --explain
    """
    load_task_files(task_files(source.tasks, names))
    if routers:
        _print_routers(as_json)
        return
    from elm_jax.data import task_selection
    from elm_jax.routing import route as routing

    options = parse_options(router.option, OWN_FLAGS, "k=10")
    opened = open_run(run, source, names, cache=cache, dtype=dtype)
    specs = task_selection.select_tasks(names or [], opened.source, evaluation=True)
    inputs = routing.make_inputs(opened, router.queries)
    routed = routing.route_tasks(
        inputs, specs, router.router, options, experts=router.experts, explain=explain
    )
    routing.check_chosen(inputs, routed)
    if as_json:
        print_json([asdict(each.selection) for each in routed])
        return
    for each in routed:
        print(f"{each.selection.task}: {', '.join(each.selection.weights)}")
        for line in each.explanation:
            print(f"  {line}")


def _print_routers(as_json: bool) -> None:
    import inspect

    from elm_jax.routing.table import ROUTERS

    if as_json:
        documents = [
            {
                "name": name,
                "says": router.description,
                "options": {
                    option: None if default is inspect.Parameter.empty else default
                    for option, default in router.options.items()
                },
            }
            for name, router in ROUTERS.items()
        ]
        print_json(documents)
        return
    for name, router in ROUTERS.items():
        print_entry(name, router.description)
        for option, default in router.options.items():
            shown = "" if default is inspect.Parameter.empty else f" (default: {default})"
            print_entry("", f"{option}{shown}")
