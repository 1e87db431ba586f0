"""What commands print: tables that fit the terminal, and where the time went."""

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from elm_jax.controls import escape_controls

if TYPE_CHECKING:
    from elm_jax.evaluation.evaluate import EvaluationResult
    from elm_jax.reporting.tables import Table


def print_outcome(outcome: "EvaluationResult") -> None:
    """Prints the methods' tables, where the time went, and the path of the report."""
    from elm_jax.reporting import tables

    if outcome.report.means:
        print_table(tables.methods_table(outcome.report), may_shrink=True)
    others = (tables.rows_table, tables.ties_table, tables.generated_table)
    for table in (make_table(outcome.report) for make_table in others):
        if table.rows:
            print_table(table)
    times = ", ".join(
        f"{title} {seconds:.1f}" for title, seconds in outcome.seconds.items() if seconds >= 0.05
    )
    print(f"Seconds: {times}; in all {sum(outcome.seconds.values()):.1f}.")
    print(f"Report: {outcome.files['html']}")


def print_table(table: "Table", *, may_shrink: bool = False) -> None:
    """Prints a table as wide as the terminal, or wide enough for every cell if the output is no terminal.

    Args:
        table: The table.
        may_shrink: If the terminal is too narrow for all columns, print only the first and the last two.
    """
    from rich.table import Table as Drawing

    from elm_jax.telemetry.progress import SafeConsole

    width = SafeConsole().width if sys.stdout.isatty() else 200
    cells = zip(table.header, *table.rows, strict=True)
    if may_shrink and sum(max(map(len, column)) + 3 for column in cells) >= width:
        ends = [0, len(table.header) - 2, len(table.header) - 1]
        table = replace(
            table,
            header=tuple(table.header[column] for column in ends),
            rows=tuple(tuple(row[column] for column in ends) for row in table.rows),
            caption=f"{table.caption} The report shows the columns that do not fit here.",
        )
    drawing = Drawing(title=table.title, caption=table.caption or None)
    for number, name in enumerate(table.header):
        drawing.add_column(name, justify="left" if number == 0 else "right")
    for row in table.rows:
        drawing.add_row(*map(escape_controls, row))
    SafeConsole(width=width, highlight=False).print(drawing, markup=False)
