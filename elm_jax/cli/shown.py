"""What a verb shows: tables that fit the terminal, and where the time went."""

import sys
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from elm_jax.evaluation.evaluate import EvaluationResult
    from elm_jax.reporting.tables import Table


def show_outcome(outcome: "EvaluationResult") -> None:
    """Prints the methods' tables, where the time went, and the path of the report."""
    from elm_jax.reporting import tables

    if outcome.report.means:
        show(tables.methods_table(outcome.report), may_shrink=True)
    if outcome.report.generated:
        show(tables.generated_table(outcome.report))
    spent = ", ".join(
        f"{title} {seconds:.1f}" for title, seconds in outcome.seconds.items() if seconds >= 0.05
    )
    print(f"Seconds: {spent}; in all {sum(outcome.seconds.values()):.1f}.")
    print(f"Report: {outcome.files['html']}")


def show(table: "Table", *, may_shrink: bool = False) -> None:
    """Prints a table: drawn on a terminal, wide enough for every cell elsewhere.

    With `may_shrink` a terminal too narrow for all columns shows the first and the last two.
    """
    from dataclasses import replace

    from rich.table import Table as Drawn

    width = Console().width if sys.stdout.isatty() else 200
    cells = zip(table.header, *table.rows, strict=True)
    if may_shrink and sum(max(map(len, column)) + 3 for column in cells) >= width:
        kept = [0, len(table.header) - 2, len(table.header) - 1]
        table = replace(
            table,
            header=tuple(table.header[column] for column in kept),
            rows=tuple(tuple(row[column] for column in kept) for row in table.rows),
            caption=f"{table.caption} The report shows the columns that do not fit here.",
        )
    drawn = Drawn(title=table.title, caption=table.caption or None)
    for number, name in enumerate(table.header):
        drawn.add_column(name, justify="left" if number == 0 else "right")
    for row in table.rows:
        drawn.add_row(*row)
    Console(width=width, highlight=False).print(drawn, markup=False)
