"""Export: every table of a report as CSV, LaTeX and Markdown, and every figure as SVG, each in a file."""

import csv
import io
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

import jinja2
from etils import epath

from elm_jax import storage
from elm_jax.reporting import charts, documents
from elm_jax.reporting.records import Report
from elm_jax.reporting.tables import Table

LATEX = {
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    "−": "$-$",
    "×": r"$\times$",
    "→": r"$\rightarrow$",
    "†": r"$\dagger$",
    "‡": r"$\ddagger$",
    "–": "--",
    "’": "'",
    "\N{NO-BREAK SPACE}": "~",
    "³": "$^3$",
}
"""What stands in LaTeX for a character that it reads as a command, or that its fonts lack."""
GAP_PIXELS = 8
LETTER_PIXELS = 7.4
"""Pixels: between two parts of a figure; of a letter of 12 pixels."""


def export_report(report: Report, directory: epath.Path) -> list[epath.Path]:
    """Writes every table and figure of a report, such as `accuracy.tex` and `comparisons.svg`.

    Args:
        report: The report.
        directory: Where they go; files of these names are replaced.

    Returns:
        The files.
    """
    written = export_tables(documents.list_tables(report), directory)
    for name, figure in render_figures(report).items():
        written.append(directory / f"{name}.svg")
        storage.write_bytes(written[-1], figure.encode())
    return written


def export_tables(tables: Mapping[str, Table], directory: epath.Path) -> list[epath.Path]:
    """Writes tables as `NAME.csv`, `NAME.md` and `NAME.tex`, and returns the files.

    Args:
        tables: By the names of their files.
        directory: Where they go.
    """
    storage.writable_directory(directory)
    written = []
    for name, table in tables.items():
        forms = {
            "csv": render_csv(table),
            "md": documents.table_to_markdown(table),
            "tex": render_latex(table, name),
        }
        for ending, text in forms.items():
            written.append(directory / f"{name}.{ending}")
            storage.write_bytes(written[-1], text.encode())
    return written


def render_csv(table: Table) -> str:
    """Returns a table as CSV, its cells as they are shown."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table.header)
    writer.writerows(table.rows)
    return out.getvalue()


def render_latex(table: Table, label: str) -> str:
    r"""Returns a table as LaTeX for the package booktabs, with its caption and `\label{tab:LABEL}`.

    Columns in which all cells are numbers are set to the right. A row with a first cell alone is a heading
    over all columns.
    """
    numeric = documents.find_numeric_columns(table)
    columns = "".join("r" if column in numeric else "l" for column in range(len(table.header)))
    lines = [_latex_row(table.header), r"\midrule"]
    for number, row in enumerate(table.rows):
        if len(row) > 1 and not any(row[1:]):
            heading = rf"\multicolumn{{{len(row)}}}{{l}}{{\emph{{{escape_latex(row[0])}}}}} \\"
            lines += [r"\addlinespace", heading] if number else [heading]
        else:
            lines.append(_latex_row(row))
    caption = f"{table.title}. {table.caption}" if table.caption else f"{table.title}."
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape_latex(caption)}}}",
            rf"\label{{tab:{label}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def escape_latex(text: str) -> str:
    """Returns text that LaTeX sets as it is.

    >>> escape_latex("50 % of a_b")
    '50 \\\\% of a\\\\_b'
    """
    return "".join(LATEX.get(letter, letter) for letter in re.sub(r"\s*[\r\n]+\s*", " ", text))


def _latex_row(cells: tuple[str, ...]) -> str:
    return " & ".join(map(escape_latex, cells)) + r" \\"


def render_figures(report: Report) -> dict[str, str]:
    """Returns the figures that a report has numbers for, by name, each a whole SVG document.

    They are `comparisons` (differences with their intervals), `prompts` (each method's accuracy on every
    prompt, with the mean), `experts` (every expert on every prompt) and `key_map` (keys and queries).
    """
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(
            lambda name: resources.files("elm_jax.reporting").joinpath(name).read_text(encoding="utf-8")
        ),
    )
    template = environment.get_template("figures.svg.jinja")
    figures = {
        "comparisons": _lay_out_comparisons(charts.forest_plot(report)),
        "prompts": _lay_out_prompts(charts.prompt_spread_plots(report)),
        "experts": _lay_out_experts(charts.heat_map(report)),
        "key_map": _lay_out_map(charts.key_map(report)),
    }
    return {name: template.render(name=name, **drawn) for name, drawn in figures.items() if drawn}


def _text_width(texts: list[str]) -> float:
    """Returns the pixels that the longest text takes."""
    return round(max(map(len, texts), default=0) * LETTER_PIXELS, 1)


def _lay_out_comparisons(plot: Mapping[str, Any]) -> dict[str, Any]:
    if not plot:
        return {}
    names = [f"{line['a']} − {line['b']}{line['mark']}" for line in plot["lines"]]
    values = [f"{line['cells'][0][1]}, p {line['cells'][3][1]}" for line in plot["lines"]]
    left = _text_width(names) + GAP_PIXELS
    width = left + plot["width"] + GAP_PIXELS + _text_width(values)
    lines = list(zip(names, values, plot["lines"], strict=True))
    return {"plot": plot, "lines": lines, "left": left, "width": width, "height": 24 * len(lines) + 24}


def _lay_out_prompts(plots: list[dict[str, Any]]) -> dict[str, Any]:
    if not plots:
        return {}
    left = _text_width([line["method"] + line["mark"] for line in plots[0]["lines"]]) + GAP_PIXELS
    tall = 20 * len(plots[0]["lines"]) + 48
    return {
        "plots": plots,
        "left": left,
        "tall": tall,
        "width": left + plots[0]["width"],
        "height": tall * len(plots),
    }


def _lay_out_map(drawn: Mapping[str, Any]) -> dict[str, Any]:
    if not drawn:
        return {}
    names = [expert for panel in drawn["panels"] for expert, _, _ in panel["experts"]]
    tall = drawn["height"] + 24 + 18 * charts.MAP_NAMES + GAP_PIXELS
    width = max(drawn["width"], _text_width(names) + 3 * GAP_PIXELS)
    return {"map": drawn, "tall": tall, "width": width, "height": tall * len(drawn["panels"])}


def _lay_out_experts(heat: Mapping[str, Any]) -> dict[str, Any]:
    if not heat:
        return {}
    columns = [f"{task['name']}: {prompt}" for task in heat["tasks"] for prompt in task["prompts"]]
    experts = [expert for expert, _ in heat["experts"]]
    slanted = _text_width(columns)  # by 60 degrees
    left, top = _text_width(experts) + GAP_PIXELS, round(0.87 * slanted + 2 * GAP_PIXELS, 1)
    cells = [
        (column, row, value / 1000)
        for row, values in enumerate(heat["accuracy"])
        for column, value in enumerate(values)
        if value is not None
    ]
    return {
        "columns": columns,
        "experts": experts,
        "cells": cells,
        "chosen": [(column, row) for row, column, first, _ in heat["chosen"] if first],
        "left": left,
        "top": top,
        "width": left + 14 * len(columns) + 0.5 * slanted + GAP_PIXELS,
        "height": top + 14 * len(experts) + GAP_PIXELS,
    }
