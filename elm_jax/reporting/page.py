"""The page: a report as one HTML file that opens anywhere, fetches nothing and escapes every name.

The markup, style and scripts are the files beside this one; the page forbids itself the network, and every
script but its own, with a content security policy. What the scripts draw lies in it as JSON.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib import resources
from typing import Any

import jinja2

from elm_jax.reporting import charts, documents, formatting, published, table_layout, tables
from elm_jax.reporting.records import Comparison, Report

SCRIPTS = ("page.js", "heatmap.js", "browser.js")
MAX_VOTE_PARTS = 8
"""How many parts of a bar of votes are drawn; the others are summed up."""


def render_html(report: Report) -> str:
    """Returns the whole page as text."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(_asset),
    )
    environment.filters.update(
        percent=formatting.format_percent, points=formatting.format_points, p_value=formatting.format_p_value
    )
    note = report.environment.get("note")
    script = "\n".join(_asset(name) for name in SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    generated, ties = tables.generated_table(report), tables.ties_table(report)
    used = tables.rows_table(report)
    return environment.get_template("page.html.jinja").render(
        style=_asset("page.css"),
        script=script,
        digest=digest,
        title=str(report.environment.get("title", "Report")),
        note=note if isinstance(note, str) else "",
        lead=lead_paragraph(report),
        headline=headline_table(report),
        forest=charts.forest_plot(report),
        generated=generated if generated.rows else None,
        ties=ties if ties.rows else None,
        used=used if used.rows else None,
        spreads=charts.prompt_spread_plots(report),
        heat=embed_json(charts.heat_map(report)),
        selections=selection_rows(report),
        map=charts.key_map(report),
        examples=embed_json(example_rows(report)),
        rows=report.rows,
        setting=[
            pair for pair in documents.flatten_values(report.environment) if pair[0] not in ("note", "title")
        ],
    )


def embed_json(value: Mapping[str, Any]) -> str:
    """Returns JSON that may stand inside a script element, which no text in it can end; "" for nothing."""
    if not value:
        return ""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.translate({ord(mark): f"\\u{ord(mark):04x}" for mark in "<>&\u2028\u2029"})


def lead_paragraph(report: Report) -> dict[str, Any]:
    """Returns what a reader should take away first: whether retrieval beats multitask, and the best method.

    Both go by paired tests. Nothing comes where no method is zero-shot.
    """
    best_of_all = tables.best_mean(report, "macro")
    candidates = [mean for mean in report.means if mean.method in best_of_all]
    # Of those that round alike the best is what others were tested against.
    best = max(candidates, key=lambda mean: mean.macro or 0.0, default=None)
    if best is None:
        return {}
    against = [row for row in report.comparisons if row.a == best.method]
    datasets = {row.task for row in report.tasks} - set(best.left_out)
    return {
        "best": best,
        "only": sum(mean.labels == "none" for mean in report.means) == 1,
        "datasets": len(datasets),
        "prompts": len({(row.task, row.prompt) for row in report.rows if row.task in datasets}),
        "chance": tables.macro_and_micro_chance(report)[0],
        "comparison": against[0] if against else None,
        "comparisons": len(report.comparisons),
        "limit": report.environment.get("limit"),
        "tied": report.tied_with_best,
        "against_multitask": _compare_with_multitask(report),
    }


def _compare_with_multitask(report: Report) -> Comparison | None:
    """Returns how the best retrieval method, or each task's own expert, does against multitask."""
    multitask = {row.method for row in report.methods if row.router_name == "multitask"}
    rows = [row for row in report.comparisons if row.b in multitask and row.labels in ("none", "seen")]
    return max(rows, key=lambda row: row.difference, default=None)


def headline_table(report: Report) -> dict[str, Any]:
    """Returns the cells of methods by datasets in blocks: value, interval, whether it is the best."""
    if not report.means:
        return {}
    columns = tables.report_columns(report)
    cells = tables.by_method_and_task(report)
    first = report.means[0].method
    best = {column.task: tables.best_cell(report, column.task) for column in columns}
    best_macro, best_micro = tables.best_mean(report, "macro"), tables.best_mean(report, "micro")
    levels = tables.chance_levels(report)
    notes = {row.method: row.note for row in report.methods}
    blocks: dict[str, list[dict[str, Any]]] = {}
    for mean in report.means:
        method = mean.method
        line = {
            "mean": mean,
            "what": notes.get(method, ""),
            "cells": [
                {"result": cells[method, column.task], "best": method in best[column.task]}
                for column in columns
            ],
            "best_macro": method in best_macro,
            "best_micro": method in best_micro,
        }
        blocks.setdefault(mean.labels, []).append(line)
    groups: list[list[Any]] = []
    for column in columns:
        if not groups or groups[-1][0] != column.group:
            groups.append([column.group, 0])
        groups[-1][1] += 1
    names = [column.task for column in columns]
    others = published.published_rows(names)
    return {
        "groups": groups if columns[0].group else [],
        "tasks": [
            {
                "name": column.name,
                "title": f"{column.task}: {cells[first, column.task].prompts} prompts, "
                f"{cells[first, column.task].n:,} rows",
                "starts": number == 0 or column.group != columns[number - 1].group,
            }
            for number, column in enumerate(columns)
        ],
        "blocks": [
            {"title": table_layout.LABEL_BLOCKS[labels], "labels": labels, "lines": lines}
            for labels, lines in blocks.items()
        ],
        "published": [(row.model, row.macro, [row.cells.get(task) for task in names]) for row in others],
        "describe_published_rows": published.describe_published_rows(names) if others else "",
        "chance": [levels[column.task] for column in columns],
        "macro_and_micro_chance": tables.macro_and_micro_chance(report),
        "shares": any(mean.gap_share is not None for mean in report.means),
        "hindsight": [mean.method for mean in report.means if mean.labels == "hindsight"],
        "seen": (tables.seen_note(report) + tables.limit_note(report)).strip(),
        "glossary": [(row.method, row.note) for row in report.methods if row.note],
    }


def selection_rows(report: Report) -> list[dict[str, Any]]:
    """Returns each selection with its votes as shares of a bar, the chosen experts first."""
    found = []
    for row in report.selections:
        voters = sorted(row.voters.items(), key=lambda voter: (voter[0] not in row.weights, -voter[1]))
        parts = [
            {"expert": name, "votes": votes, "chosen": name in row.weights} for name, votes in voters if votes
        ]
        rest = parts[MAX_VOTE_PARTS:]
        if len(rest) > 1:
            votes = sum(votes for _, votes in voters[MAX_VOTE_PARTS:])
            parts = [
                *parts[:MAX_VOTE_PARTS],
                {"expert": f"{len(rest)} others", "votes": votes, "chosen": False},
            ]
        found.append(
            {
                "selection": row,
                "chosen": tables.format_experts(row),
                "votes_text": tables.format_votes(row),
                "rank_text": tables.format_rank(row),
                "bar": parts,
            }
        )
    return found


def example_rows(report: Report) -> dict[str, Any]:
    """Returns the rows to look at, with the methods that answered them in the order of blocks; or nothing."""
    if not report.examples:
        return {}
    answered = {method for row in report.examples for method in row.answers}
    listed = [row.method for row in report.methods if row.method in answered]
    return {
        "methods": [*listed, *sorted(answered - set(listed))],
        "tasks": list(dict.fromkeys(row.task for row in report.examples)),
        "rows": [asdict(row) for row in report.examples],
    }


def _asset(name: str) -> str:
    return resources.files("elm_jax.reporting").joinpath(name).read_text(encoding="utf-8")
