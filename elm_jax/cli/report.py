"""`elm report`: a run's results as tables, intervals, paired tests and a page; two runs compared."""

import json
from dataclasses import asdict
from typing import Annotated, Literal

import typer

from elm_jax.cli.options import DEFAULT_OUT, AsJson, RunDir
from elm_jax.cli.output import print_table
from elm_jax.errors import UserError


def report(
    runs: Annotated[
        list[str] | None, typer.Argument(help="A run, or two to compare the second with the first.")
    ] = None,
    run: RunDir = DEFAULT_OUT,
    method: Annotated[
        list[str] | None,
        typer.Option(help="A method to compare, or ONE=OTHER for two; default: all that both runs have."),
    ] = None,
    over: Annotated[
        Literal["rows", "prompts"],
        typer.Option(
            help="What comparisons hold over: rows, for these prompts; prompts, for prompts like these."
        ),
    ] = "rows",
    as_json: AsJson = False,
) -> None:
    """Tables, intervals, paired tests and the page of an evaluated run, or of two runs compared."""
    from elm_jax.evaluation import report as reports
    from elm_jax.reporting import documents, run_comparison, tables
    from elm_jax.session.workspace import Workspace

    named = runs or [run]
    if len(named) > 2:
        raise UserError(f"Expected one run, or two to compare, got {len(named)}. Fix: name at most two.")
    if method and len(named) == 1:
        raise UserError("Expected two runs beside --method, got one. Fix: name the run to compare with.")
    if len(named) == 2:
        rows = reports.compare_runs(*named, methods=method or (), over=over)
        if as_json:
            document = {"first": named[0], "second": named[1], "comparisons": list(map(asdict, rows))}
            print(json.dumps(document, ensure_ascii=False))
        else:
            compared = run_comparison.comparison_tables(rows)
            print("\n".join(map(documents.table_to_markdown, compared)))
        return
    workspace = Workspace.open(named[0])
    if over == "prompts":
        compared = reports.compare_over_prompts(workspace)
        if as_json:
            print(json.dumps({"comparisons": list(map(asdict, compared.comparisons))}, ensure_ascii=False))
        else:
            print_table(tables.comparisons_table(compared))
        return
    report_of_run, files = reports.rebuild_report(workspace)
    for change in reports.describe_changes(workspace):
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
    print(files["html"])
