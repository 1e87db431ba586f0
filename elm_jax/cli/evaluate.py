"""`elm evaluate`: which methods work on which tasks, from names and flags or from a recipe."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import typer

from elm_jax.cli import flags
from elm_jax.cli.inputs import join_hosts, load_task_files, open_run, task_files
from elm_jax.cli.options import DEFAULT_OUT, DataFlags, Names, ProcessFlags, RecipeFlags, RunDir
from elm_jax.cli.output import print_outcome
from elm_jax.errors import UserError


@dataclass(frozen=True)
class MethodFlags:
    """Which methods are compared, and how."""

    PANEL: ClassVar[str] = "Methods"
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            help="ROUTER[:OPTION=VALUE,...][+MERGE[:OPTION=VALUE,...]], such as roe:experts=3+ties; may be "
            "repeated.",
        ),
    ] = None
    oracle: Annotated[
        bool, typer.Option("--oracle", help="Score every expert on every task, and the best in hindsight.")
    ] = False
    by: Annotated[
        str,
        typer.Option(
            help="How choices are scored: sum, mean, length:NUMBER, characters, bytes, calibrated, "
            "pmi:PREMISE or contextual."
        ),
    ] = "sum"
    seen: Annotated[
        bool, typer.Option("--seen", help="Allow tasks whose data experts were trained on, marked so.")
    ] = False
    merged: Annotated[
        int, typer.Option(min=1, help="Retrieved experts to merge if there is no --method.")
    ] = 3
    queries: Annotated[int, typer.Option(min=1, help="Inputs of each task that vote.")] = 32
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens that a device scores at once.")] = 8192


@flags.flattened
def evaluate(
    names: Names = None,
    run: RunDir = DEFAULT_OUT,
    groups: Annotated[
        list[str] | None, typer.Option("--groups", help="A group of tasks, such as unseen; may be repeated.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "--dry_run", help="Print how much there is to score, and how long.")
    ] = False,
    *,
    methods: MethodFlags,
    data: DataFlags,
    recipe: RecipeFlags,
    processes: ProcessFlags,
) -> None:
    """Compare methods on unseen tasks: route, merge, score, report.

    Scores are kept: an evaluation that was stopped continues if the same command is given again.
    """
    if recipe.gin_file:
        _require_recipe_alone(_flags_of_task(names, run, groups, methods, data))
    _require_positive(methods, data)
    from elm_jax.evaluation import evaluate as runs
    from elm_jax.evaluation.config import EvaluationConfig
    from elm_jax.session.workspace import Workspace

    join_hosts(processes)
    options: dict[str, Any] = {"on_estimate": print if dry_run else _print_to_stderr, "dry_run": dry_run}
    if recipe.gin_file:
        from elm_jax.launch import recipes

        outcome = recipes.bind(runs.evaluate, recipe.gin_file, recipe.gin_bindings or [])(**options)
    else:
        from elm_jax.tasks.specs import task_specs

        load_task_files(task_files(data.tasks, names))
        runs.check_methods(Workspace.at(run), methods.method)
        opened = open_run(run, data, names, cache=data.cache, limit=data.limit, dtype=data.dtype)
        for group in groups or []:
            task_specs(group)  # raises if there is no such group
        outcome = runs.evaluate(
            opened,
            [*(names or []), *(groups or [])],
            EvaluationConfig(
                methods=methods.method,
                queries=methods.queries,
                merged=methods.merged,
                batch_tokens=methods.batch_tokens,
                normalization=methods.by,
                oracle=methods.oracle,
                seen=methods.seen,
            ),
            **options,
        )
    if outcome is not None:
        print_outcome(outcome)


def _flags_of_task(
    names: list[str] | None, run: str, groups: list[str] | None, *records: Any
) -> Iterator[str]:
    """Yields the flags, given by the user, that a recipe would not read."""
    if names:
        yield "names of tasks"
    if run != DEFAULT_OUT:
        yield "--run"
    if groups:
        yield "--groups"
    for record in records:
        yield from map(flags.spelling, flags.changed(record))


def _require_recipe_alone(given: Iterator[str]) -> None:
    """Raises a UserError if a flag was given that the recipe decides."""
    for flag in given:
        raise UserError(
            f"Expected --gin_file alone, since the recipe says what is evaluated and how, got {flag} too. "
            "Fix: give it as a macro, such as --gin.METHODS=..., or leave the recipe out."
        )


def _require_positive(methods: MethodFlags, data: DataFlags) -> None:
    """Raises a UserError if a count is below 1."""
    counts = {
        "merged": methods.merged,
        "queries": methods.queries,
        "batch_tokens": methods.batch_tokens,
        "limit": data.limit,
    }
    for name, count in counts.items():
        if count is not None and count < 1:
            raise UserError(
                f"Expected at least 1 for {flags.spelling(name)}, got {count}. Fix: give a larger number."
            )


def _print_to_stderr(estimate: Any) -> None:
    typer.echo(str(estimate), err=True)
