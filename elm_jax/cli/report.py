"""`elm report`: an evaluation as tables and a page; several compared; a leaderboard."""

import json
from dataclasses import asdict
from typing import Annotated, Any, Literal

import typer

from elm_jax.cli.options import DEFAULT_OUT, AsJson, RunDir
from elm_jax.cli.output import print_table
from elm_jax.errors import UserError


def report(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN|EVALUATION]...",
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
    as_json: AsJson = False,
) -> None:
    """Tables, intervals, paired tests and the page of an evaluation; several compared; a leaderboard."""
    named = names or [run]
    if method and (len(named) == 1 or leaderboard):
        raise UserError(
            "Expected two runs or evaluations beside --method, got one. Fix: name what to compare with."
        )
    if leaderboard:
        _print_leaderboard(named, run, as_json=as_json)
    elif len(named) > 1:
        _print_comparisons(named, run, method or (), over, as_json=as_json)
    else:
        _print_report(named[0], run, over, as_json=as_json)


def _print_report(name: str, run: str, over: Literal["rows", "prompts"], *, as_json: bool) -> None:
    from elm_jax.evaluation import report as reports
    from elm_jax.evaluation import report_directories
    from elm_jax.reporting import tables

    workspace, evaluation = report_directories.find_evaluation(name, run)
    if over == "prompts":
        compared = reports.compare_over_prompts(workspace, evaluation)
        if as_json:
            _print_json({"comparisons": list(map(asdict, compared.comparisons))})
        else:
            print_table(tables.comparisons_table(compared))
        return
    report_of_run, files = reports.rebuild_report(workspace, evaluation)
    for change in reports.describe_changes(workspace, evaluation):
        typer.echo(change, err=True)
    if as_json:
        print(files["json"].read_text())
        return
    if report_of_run.means:
        print_table(tables.methods_table(report_of_run), may_shrink=True)
    others = (
        tables.rows_table,
        tables.ties_table,
        tables.generated_table,
        tables.comparisons_table,
        tables.selections_table,
    )
    for table in (make_table(report_of_run) for make_table in others):
        if table.rows:
            print_table(table)
    stored = report_directories.list_reports(workspace)
    if len(stored) > 1:
        print_table(report_directories.reports_table(stored))
    print(files["html"])


def _print_comparisons(
    named: list[str], run: str, methods: Any, over: Literal["rows", "prompts"], *, as_json: bool
) -> None:
    from elm_jax.evaluation import report as reports
    from elm_jax.evaluation import report_directories
    from elm_jax.reporting import documents, run_comparison

    places = [
        report_directories.require_report(*report_directories.find_evaluation(name, run)) for name in named
    ]
    documents_of = []
    for name, place in zip(named[1:], places[1:], strict=True):
        rows = reports.compare_runs(places[0], place, methods=methods, over=over)
        if as_json:
            documents_of.append({"first": named[0], "second": name, "comparisons": list(map(asdict, rows))})
            continue
        if len(named) > 2:
            print(f"# {name} beside {named[0]}\n")
        compared = run_comparison.comparison_tables(rows)
        print("\n".join(map(documents.table_to_markdown, compared)))
    if as_json:
        _print_json(documents_of[0] if len(documents_of) == 1 else documents_of)


def _print_leaderboard(named: list[str], run: str, *, as_json: bool) -> None:
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
    if as_json:
        _print_json(list(map(asdict, entries)))
        return
    for table in leaderboard.leaderboard_tables(entries):
        print_table(table)


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False))
