"""The page: a report as one HTML file that opens anywhere, fetches nothing and escapes every name.

The markup, style and script are the files `page.html.jinja`, `page.css` and `page.js` beside this one; the
page forbids itself the network with a content security policy.
"""

from collections.abc import Mapping
from importlib import resources
from typing import Any

import jinja2

from elm_jax.records import Report
from elm_jax.reporting import charts, tables

METHODS = {
    "base": "the base model without any expert",
    "multitask": "one expert trained on all training tasks together, on the same budget",
    "uniform_merge": "all experts averaged into one, each with the same weight",
    "roe_top1": "retrieval of experts: the expert with the most votes",
    "roe_top3_merge": "retrieval of experts: the three experts with the most votes, merged",
    **tables.HINDSIGHT,
}
"""What the methods of our runs are; others are shown by name alone."""


def html(report: Report) -> str:
    """Returns the whole page as text."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(percent=tables.percent, points=tables.points, p_value=tables.p_value)
    note = report.environment.get("note")
    return environment.from_string(_asset("page.html.jinja")).render(
        style=_asset("page.css"),
        script=_asset("page.js"),
        title=str(report.environment.get("title", "Report")),
        note=note if isinstance(note, str) else "",
        lead=lead(report),
        headline=headline(report),
        forest=charts.forest(report),
        spreads=charts.spreads(report),
        heat=charts.heat_map(report),
        selections=selections(report),
        rows=report.rows,
        setting=[pair for pair in tables.flat(report.environment) if pair[0] not in ("note", "title")],
    )


def lead(report: Report) -> dict[str, Any]:
    """Returns what a reader should take away first: the best method without hindsight, and its lead."""
    fair = [mean for mean in report.means if not mean["hindsight"]] or list(report.means)
    best = max(fair, key=lambda mean: mean["macro"])
    against = [row for row in report.comparisons if row["a"] == best["method"]]
    return {
        "best": best,
        "only": len(fair) == 1,
        "datasets": len(tables.task_names(report)),
        "prompts": len({(row["task"], row["prompt"]) for row in report.rows}),
        "chance": tables.chance_means(report)[0],
        "comparison": against[0] if against else None,
        "comparisons": len(report.comparisons),
    }


def headline(report: Report) -> dict[str, Any]:
    """Returns the cells of methods by datasets: text, interval, whether the method is the best there."""
    tasks = tables.task_names(report)
    cells = tables.by_method_and_task(report)
    methods = [mean["method"] for mean in report.means]
    best = {
        task: tables.best_of({method: cells[method, task]["accuracy"] for method in methods}, report)
        for task in tasks
    }
    best_macro = tables.best_of({mean["method"]: mean["macro"] for mean in report.means}, report)
    best_micro = tables.best_of({mean["method"]: mean["micro"] for mean in report.means}, report)
    levels = tables.chance_levels(report)
    return {
        "tasks": [
            {"name": task, "prompts": cells[methods[0], task]["prompts"], "n": cells[methods[0], task]["n"]}
            for task in tasks
        ],
        "lines": [
            {
                "mean": mean,
                "what": METHODS.get(mean["method"], ""),
                "cells": [
                    {**cells[mean["method"], task], "best": mean["method"] in best[task]} for task in tasks
                ],
                "best_macro": mean["method"] in best_macro,
                "best_micro": mean["method"] in best_micro,
            }
            for mean in report.means
        ],
        "chance": [levels[task] for task in tasks],
        "chance_means": tables.chance_means(report),
        "shares": any(mean["gap_share"] is not None for mean in report.means),
        "hindsight": [mean["method"] for mean in report.means if mean["hindsight"]],
        "glossary": [(method, METHODS[method]) for method in methods if method in METHODS],
    }


def selections(report: Report) -> list[dict[str, Any]]:
    """Returns each selection with its votes as shares of a bar, the chosen experts first."""
    return [
        {
            **row,
            "chosen": tables.chosen_experts(row),
            "votes_text": tables.votes_of(row),
            "bar": [
                {"expert": name, "votes": votes, "chosen": name in row["weights"]}
                for name, votes in _chosen_first(row)
                if votes
            ],
        }
        for row in report.selections
    ]


def _chosen_first(row: Mapping[str, Any]) -> list[tuple[str, int]]:
    return sorted(row["voters"].items(), key=lambda voter: (voter[0] not in row["weights"], -voter[1]))


def _asset(name: str) -> str:
    return resources.files("elm_jax.reporting").joinpath(name).read_text(encoding="utf-8")
