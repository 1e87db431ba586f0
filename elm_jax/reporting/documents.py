"""Documents: a report as one Markdown file and as CSV, with every number that the page shows or more."""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from elm_jax.reporting import tables
from elm_jax.reporting.records import Report


def render_markdown(report: Report) -> str:
    """Returns the report as one Markdown document."""
    parts = ["# Report\n"]
    note = report.environment.get("note")
    parts += [f"{_cell(note)}\n"] if isinstance(note, str) else []
    parts += map(table_to_markdown, list_tables(report).values())
    return "\n".join(parts)


def list_tables(report: Report) -> dict[str, tables.Table]:
    """Returns the tables of a report that have rows, by a name that a file can have."""
    environment = tuple((name, value) for name, value in flatten_values(report.environment) if name != "note")
    made = {
        **({"accuracy": tables.methods_table(report)} if report.means else {}),
        "prompts": tables.prompts_table(report),
        "rows": tables.rows_table(report),
        "ties": tables.ties_table(report),
        "generated": tables.generated_table(report),
        "comparisons": tables.comparisons_table(report),
        "chosen_experts": tables.selections_table(report),
        "environment": tables.Table("Environment", ("what", "value"), environment),
    }
    return {name: table for name, table in made.items() if table.rows}


def find_numeric_columns(table: tables.Table) -> set[int]:
    """Returns the columns but the first whose cells are all numbers, or nothing."""
    return {
        column
        for column in range(1, len(table.header))
        if all(not row[column] or row[column][0] in "+-–<[0123456789" for row in table.rows)
    }


def table_to_markdown(table: tables.Table) -> str:
    """Returns a table as Markdown; the bar between cells, line breaks and markup in names stay text."""
    numeric = find_numeric_columns(table)
    rule = ["---:" if column in numeric else "---" for column in range(len(table.header))]
    lines = [f"## {table.title}", ""]
    lines += ["| " + " | ".join(map(_cell, line)) + " |" for line in (table.header,)]
    lines.append("| " + " | ".join(rule) + " |")
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in table.rows]
    return "\n".join([*lines, *(["", table.caption] if table.caption else []), ""])


def render_csv(report: Report) -> str:
    """Returns one CSV line for each method, task and prompt, in full precision; fractions, not percent."""
    labels = {row.method: row.labels for row in report.methods}
    names = (
        *("method", "task", "prompt", "n", "left_out", "accuracy", "low", "high", "chance", "seen"),
        *("tied", "labels"),
    )
    rows = ({**vars(row), "seen": int(row.seen), "labels": labels[row.method]} for row in report.rows)
    return _csv(names, rows)


def render_generated_answers_csv(report: Report) -> str:
    """Returns one CSV line for each method, task and prompt answered in free text; percent."""
    names = ("method", "task", "prompt", "n", "measure", "value", "low", "high", "seen")
    return _csv(names, ({**vars(row), "seen": int(row.seen)} for row in report.generated))


def _csv(names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([row[name] for name in names] for row in rows)
    return out.getvalue()


def flatten_values(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Returns nested values as (dotted name, text), in order."""
    if isinstance(value, Mapping):
        return [
            pair
            for key, v in value.items()
            for pair in flatten_values(v, f"{name}.{key}" if name else str(key))
        ]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [(name, ", ".join(map(str, value)))]
    return [(name, f"{value:.4g}" if isinstance(value, float) else str(value))]


def _cell(text: str) -> str:
    # Brackets and "<" stay plain where they cannot open a link or a tag: intervals and p values read better.
    escaped = re.sub(r"[\\|`*]|<(?=\S)|\](?=[(\[])", lambda mark: "\\" + mark.group(), text)
    return " ".join(escaped.split())
