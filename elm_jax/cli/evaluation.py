"""`elm evaluate`: which methods work on which tasks, from names and flags or from a recipe."""

import inspect
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from elm_jax.cli.opened import own_files, task_files
from elm_jax.cli.options import (
    DEFAULT_OUT,
    Cache,
    Coordinator,
    DataDir,
    Dtype,
    GinBindings,
    GinFiles,
    Limit,
    Multiprocess,
    Names,
    ProcessCount,
    ProcessIndex,
    RunDir,
    TaskFiles,
    TemplatesDir,
)
from elm_jax.cli.shown import show_outcome
from elm_jax.errors import UserError

BESIDE_RECIPE = {
    "gin_file",
    "gin_bindings",
    "dry_run",
    "multiprocess",
    "coordinator",
    "process_count",
    "process_index",
}
"""Flags that stand beside a recipe; all else the recipe says."""
Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        help="ROUTER[:OPTION=VALUE,...][+MERGE[:OPTION=VALUE,...]], as roe:experts=3+ties; may be repeated.",
    ),
]


def evaluate(
    names: Names = None,
    run: RunDir = DEFAULT_OUT,
    method: Methods = None,
    groups: Annotated[
        list[str] | None, typer.Option("--groups", help="A group of tasks, as unseen; may be repeated.")
    ] = None,
    oracle: Annotated[
        bool, typer.Option("--oracle", help="Every expert on every task, and the best in hindsight.")
    ] = False,
    by: Annotated[str, typer.Option(help="How choices are scored: sum, mean or calibrated.")] = "sum",
    seen: Annotated[
        bool, typer.Option("--seen", help="Tasks whose data experts were trained on too, marked so.")
    ] = False,
    merged: Annotated[int, typer.Option(help="Retrieved experts to merge, without --method.")] = 3,
    queries: Annotated[int, typer.Option(help="Inputs of each task that vote.")] = 32,
    batch_tokens: Annotated[int, typer.Option(help="Tokens that a device scores at once.")] = 8192,
    data_dir: DataDir = None,
    templates_dir: TemplatesDir = None,
    tasks: TaskFiles = None,
    cache: Cache = None,
    limit: Limit = None,
    dtype: Dtype = None,
    gin_file: GinFiles = None,
    gin_bindings: GinBindings = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", "--dry_run", help="Say how much is to be scored, and how long."),
    ] = False,
    multiprocess: Multiprocess = False,
    coordinator: Coordinator = None,
    process_count: ProcessCount = None,
    process_index: ProcessIndex = None,
) -> None:
    """Compare methods on unseen tasks: route, merge, score, report.

    What is scored already is kept: an evaluation that was stopped goes on where it was when the same command
    is given again.
    """
    given = dict(locals())
    if gin_file:
        _require_recipe_alone(given)
    for name in ("merged", "queries", "batch_tokens", "limit"):
        if given[name] is not None and given[name] < 1:
            raise UserError(f"A number of at least 1 is wanted for {_flag(name)}, but {given[name]} came.")
    from elm_jax.evaluation import evaluate as runs
    from elm_jax.evaluation.config import EvaluationConfig
    from elm_jax.session.workspace import Workspace

    if multiprocess:
        from elm_jax.launch import hosts

        hosts.join(hosts.HostAddress(coordinator, process_count, process_index))
    options: dict[str, Any] = {"on_estimate": _print if dry_run else _print_aside, "dry_run": dry_run}
    if gin_file:
        from elm_jax.launch import recipes

        outcome = recipes.bind(runs.evaluate, gin_file, gin_bindings or [])(**options)
    else:
        from elm_jax.session import opening
        from elm_jax.tasks.specs import task_specs

        files = task_files(own_files(names, tasks))
        runs.check_methods(Workspace.at(run), method)
        opened = opening.open_run(
            run,
            data_dir=data_dir,
            templates_dir=templates_dir,
            task_files=files,
            overrides={"prepared": cache, "limit": limit},
            dtype=dtype,
        )
        for group in groups or []:
            task_specs(group)  # a name that is no group's is refused
        outcome = runs.evaluate(
            opened,
            [*(names or []), *(groups or [])],
            EvaluationConfig(
                methods=method,
                queries=queries,
                merged=merged,
                batch_tokens=batch_tokens,
                normalization=by,
                oracle=oracle,
                seen=seen,
            ),
            **options,
        )
    if outcome is not None:
        show_outcome(outcome)


def _require_recipe_alone(given: Mapping[str, Any]) -> None:
    """Refuses flags beside a recipe that it would not hear of."""
    for name, parameter in inspect.signature(evaluate).parameters.items():
        if name not in BESIDE_RECIPE and given[name] != parameter.default:
            raise UserError(
                f"With --gin_file the recipe says what is evaluated and how, but {_flag(name)} came too. "
                "Give it as a macro, as --gin.METHODS=..., or leave the recipe out."
            )


def _flag(name: str) -> str:
    return "the names of tasks" if name == "names" else f"--{name.replace('_', '-')}"


def _print(estimate: Any) -> None:
    print(estimate)


def _print_aside(estimate: Any) -> None:
    typer.echo(str(estimate), err=True)
