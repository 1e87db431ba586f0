"""`elm evaluate`: which methods work on which tasks, from names and flags or from a recipe."""

import functools
from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar

import typer

from elm_jax.cli.flags import flattened
from elm_jax.cli.inputs import join_hosts, load_task_files, open_run, task_files
from elm_jax.cli.options import DEFAULT_OUT, AsJson, DataFlags, Names, ProcessFlags, RecipeFlags, RunDir, Wait
from elm_jax.cli.output import print_json, print_outcome


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
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse a group if rows of one of its datasets are missing.")
    ] = False
    merged: Annotated[int, typer.Option(help="Retrieved experts to merge if there is no --method.")] = 3
    name: Annotated[
        str | None, typer.Option("--name", help="Keep the report in reports/NAME of the run.")
    ] = None
    track: Annotated[
        list[str] | None,
        typer.Option("--track", help="Send accuracies to tensorboard or wandb too; may be repeated."),
    ] = None
    queries: Annotated[int, typer.Option(help="Inputs of each task that vote.")] = 32
    batch_tokens: Annotated[int, typer.Option(help="Tokens that a device scores at once.")] = 8192


@flattened
def evaluate(
    names: Names = None,
    run: RunDir = DEFAULT_OUT,
    groups: Annotated[
        list[str] | None, typer.Option("--groups", help="A group of tasks, such as unseen; may be repeated.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", "--dry_run", help="Print how much there is to score, and how long; write nothing."
        ),
    ] = False,
    wait: Wait = False,
    as_json: AsJson = False,
    *,
    methods: MethodFlags,
    data: DataFlags,
    recipe: RecipeFlags,
    processes: ProcessFlags,
) -> None:
    """Compare methods on unseen tasks: route, merge, score, report.

    Scores are kept: an evaluation that was stopped continues if the same command is given again.

    Example: elm evaluate mini_sentiment_hotel --method roe --method roe:experts=3+ties
    """
    from elm_jax.evaluation import evaluate as runs
    from elm_jax.evaluation.config import EvaluationConfig
    from elm_jax.session.run_directory import Workspace

    join_hosts(processes)
    show = functools.partial(_print_result, as_json=as_json) if dry_run else _print_progress
    options: dict[str, Any] = {"on_estimate": show, "dry_run": dry_run}
    if files := recipe.files("gin/runs/evaluate.gin"):
        from elm_jax.launch import recipes

        tracked = [f"TRACKERS = {tuple(methods.track)}"] if methods.track else []
        bindings = [*(recipe.gin_bindings or []), *(["WAIT = True"] if wait else []), *tracked]
        outcome = recipes.bind(runs.evaluate, files, bindings)(**options)
        if not dry_run:
            recipes.write_config("evaluate")
    else:
        from elm_jax.tasks.specs import task_specs

        config = EvaluationConfig(
            methods=methods.method,
            queries=methods.queries,
            merged=methods.merged,
            batch_tokens=methods.batch_tokens,
            normalization=methods.by,
            oracle=methods.oracle,
            seen=methods.seen,
            strict=methods.strict,
            name=methods.name,
            trackers=methods.track or (),
            wait=wait,
        )
        load_task_files(task_files(data.tasks, names))
        runs.check_methods(Workspace.at(run), methods.method)
        opened = open_run(
            run, data, names, cache=data.cache, limit=data.limit, dtype=data.dtype, dry_run=dry_run
        )
        for group in groups or []:
            task_specs(group)  # raises if there is no such group
        outcome = runs.evaluate(opened, [*(names or []), *(groups or [])], config, **options)
    if outcome is not None:
        print_outcome(outcome, as_json)


def _print_result(estimate: Any, *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(estimate))
    else:
        print(estimate)


def _print_progress(estimate: Any) -> None:
    from elm_jax.telemetry.progress import Stages

    Stages().console.print(str(estimate), highlight=False, markup=False, soft_wrap=True)
