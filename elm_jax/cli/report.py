"""`elm report`: an evaluation as tables and a page; several compared; a leaderboard."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from elm_jax.cli.options import DEFAULT_OUT, AsJson, RunDir
from elm_jax.cli.output import print_json, print_table
from elm_jax.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from etils import epath

    from elm_jax.reporting.tables import Table


def report(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN|EVALUATION",
            help="A run, or an evaluation of --run by its name; of several the first is compared with each.",
        ),
    ] = None,
    run: RunDir = DEFAULT_OUT,
    method: Annotated[
        list[str] | None,
        typer.Option(help="A method to compare, or ONE=OTHER for two; default: all that both have."),
    ] = None,
    over: Annotated[
        Literal["rows", "prompts"],
        typer.Option(help="What comparisons hold over: rows under these prompts, or rows and prompts."),
    ] = "rows",
    leaderboard: Annotated[
        bool, typer.Option("--leaderboard", help="Rank all methods of the evaluations of one run or several.")
    ] = False,
    export: Annotated[
        str | None,
        typer.Option(
            "--export", metavar="DIR", help="Write the tables as CSV, LaTeX and Markdown, the figures as SVG."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print an evaluation's tables and tests, or compare several.

    Example: elm report --run elm_out

    Example: elm report first_run second_run --method roe

    Example: elm report --leaderboard

    Example: elm report --export paper/tables
    """
    named = names or [run]
    if method and (len(named) == 1 or leaderboard):
        raise UserError(
            "Expected two runs or evaluations beside --method, got one. Fix: name what to compare with."
        )
    if leaderboard:
        _print_leaderboard(named, run, export, as_json=as_json)
    elif len(named) > 1:
        _print_comparisons(named, run, method or (), over, export, as_json=as_json)
    else:
        _print_report(named[0], run, over, export, as_json=as_json)


def _export(directory: str | None, tables: "Mapping[str, Table]") -> None:
    """Writes tables to a directory, if one was named, and says so."""
    from elm_jax import storage
    from elm_jax.reporting import export

    if directory is not None:
        _print_exported(export.export_tables(tables, storage.path(directory)), directory)


def _print_exported(written: "Sequence[epath.Path]", directory: str) -> None:
    typer.echo(f"{len(written)} files are in {directory}.", err=True)


def _print_report(
    name: str, run: str, over: Literal["rows", "prompts"], directory: str | None, *, as_json: bool
) -> None:
    from elm_jax import storage
    from elm_jax.evaluation import report as reports
    from elm_jax.evaluation import report_directories
    from elm_jax.reporting import documents, export, tables

    workspace, evaluation = report_directories.find_evaluation(name, run)
    if over == "prompts":
        compared = reports.compare_over_prompts(workspace, evaluation)
        _export(directory, {"comparisons_over_prompts": tables.comparisons_table(compared)})
        if as_json:
            print_json({"comparisons": list(map(asdict, compared.comparisons))})
        else:
            print_table(tables.comparisons_table(compared))
        return
    report_of_run, files = reports.rebuild_report(workspace, evaluation)
    for change in reports.describe_changes(workspace, evaluation):
        typer.echo(change, err=True)
    if directory is not None:
        _print_exported(export.export_report(report_of_run, storage.path(directory)), directory)
    if as_json:
        print(files["json"].read_text())
        return
    for kind, table in documents.list_tables(report_of_run).items():
        if kind != "environment":
            print_table(table, may_shrink=kind == "accuracy")
    stored = report_directories.list_reports(workspace)
    if len(stored) > 1:
        print_table(report_directories.reports_table(stored))
    print(files["html"])


def _print_comparisons(
    named: list[str],
    run: str,
    methods: Any,
    over: Literal["rows", "prompts"],
    directory: str | None,
    *,
    as_json: bool,
) -> None:
    from elm_jax.evaluation import report as reports
    from elm_jax.evaluation import report_directories
    from elm_jax.reporting import documents, run_comparison

    places = [
        report_directories.require_report(*report_directories.find_evaluation(name, run)) for name in named
    ]
    documents_of = []
    for number, (name, place) in enumerate(zip(named[1:], places[1:], strict=True), start=1):
        rows = reports.compare_runs(places[0], place, methods=methods, over=over)
        means, by_task = run_comparison.comparison_tables(rows)
        ending = f"_{number}" if len(named) > 2 else ""
        _export(directory, {f"comparison{ending}": means, f"comparison_by_task{ending}": by_task})
        if as_json:
            documents_of.append({"first": named[0], "second": name, "comparisons": list(map(asdict, rows))})
            continue
        if len(named) > 2:
            print(f"# {name} beside {named[0]}\n")
        print("\n".join(map(documents.table_to_markdown, (means, by_task))))
    if as_json:
        print_json(documents_of[0] if len(documents_of) == 1 else documents_of)


def _print_leaderboard(named: list[str], run: str, directory: str | None, *, as_json: bool) -> None:
    from elm_jax.evaluation import report_directories
    from elm_jax.reporting import leaderboard

    stored = []
    for name in named:
        workspace, evaluation = report_directories.find_evaluation(name, run)
        found = report_directories.list_reports(workspace)
        chosen = [each for each in found if evaluation in (None, each.name)]
        prefix = f"{name}: " if len(named) > 1 else ""
        for each in chosen:
            if each.report is None:
                typer.echo(f"{each.directory}: its report is damaged, and left out.", err=True)
            else:
                stored.append((prefix + each.name if evaluation is None else name, each.report))
    entries = leaderboard.rank_methods(stored)
    ranked = leaderboard.leaderboard_tables(entries)
    _export(directory, {f"leaderboard_{number}": table for number, table in enumerate(ranked, start=1)})
    if as_json:
        print_json(list(map(asdict, entries)))
        return
    for table in ranked:
        print_table(table)
