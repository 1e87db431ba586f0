"""`elm report`: a run's results as tables, intervals, paired tests and a page; two runs compared."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from elm_jax.cli.options import DEFAULT_OUT, AsJson, RunDir
from elm_jax.cli.shown import show
from elm_jax.errors import UserError


def report(
    runs: Annotated[
        list[str] | None, typer.Argument(help="A run; two, to compare the second with the first.")
    ] = None,
    run: RunDir = DEFAULT_OUT,
    method: Annotated[
        list[str] | None,
        typer.Option(help="A method to compare, or ONE=OTHER for two; without it all that both runs have."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tables, intervals, paired tests and the page of a run that was evaluated; or two runs compared."""
    from elm_jax.evaluation import report as reports
    from elm_jax.reporting import documents, run_comparison, tables
    from elm_jax.session.workspace import Workspace

    named = runs or [run]
    if len(named) > 2:
        raise UserError(f"One run is wanted to report on, or two to compare, but {len(named)} came.")
    if method and len(named) == 1:
        raise UserError("--method chooses what is compared of two runs, but one run came. Name another.")
    if len(named) == 2:
        rows = reports.compare_runs(*named, methods=method or ())
        if as_json:
            told = {
                "first": named[0],
                "second": named[1],
                "comparisons": [asdict(row) for row in rows],
            }
            print(json.dumps(told, ensure_ascii=False))
        else:
            print(
                "\n".join(
                    documents.table_to_markdown(table) for table in run_comparison.comparison_tables(rows)
                )
            )
        return
    made, files = reports.rebuild_report(Workspace.open(named[0]))
    if as_json:
        print(files["json"].read_text())
        return
    if made.means:
        show(tables.methods_table(made), may_shrink=True)
    others = (tables.generated_table, tables.comparisons_table, tables.selections_table)
    for table in (of(made) for of in others):
        if table.rows:
            show(table)
    print(files["html"])
