"""Charts: the numbers of a report turned into positions and plain lists, ready to be drawn by the page."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, floor
from statistics import fmean
from typing import Any

from elm_jax.reporting import table_layout, tables
from elm_jax.reporting.formatting import format_percent, format_points
from elm_jax.reporting.records import DatasetResult, KeyMap, MapPoints, MethodMean, PromptResult, Report

FOREST_WIDTH = 260.0
SPREAD_WIDTH = 236.0
MAP_WIDTH, MAP_MARGIN = 320.0, 12.0
MAP_NAMES = 3
"""Experts that have a name on each map."""
NO_FAMILY = "no family"
SORT_FIELDS = ("difference", "low", "p", "p_holm", "better_a", "p_mcnemar_holm")
"""What each column of the comparisons is sorted by."""


@dataclass(frozen=True)
class ChartAxis:
    """A linear scale from values to horizontal positions, with a margin at both ends."""

    low: float
    high: float
    step: float
    width: float
    margin: float = 20.0

    @property
    def ticks(self) -> list[float]:
        """The round values to mark."""
        return [self.low + n * self.step for n in range(round((self.high - self.low) / self.step) + 1)]

    def at(self, value: float) -> float:
        """Returns the position of a value, in pixels."""
        inside = (value - self.low) / (self.high - self.low)
        return round(self.margin + inside * (self.width - 2 * self.margin), 2)


def fit_axis(values: Iterable[float], width: float) -> ChartAxis:
    """Returns an axis over all values, ending at round numbers, with three to seven ticks.

    >>> [round(tick, 2) for tick in fit_axis([-0.021, 0.173], 100.0).ticks]
    [-0.05, 0.0, 0.05, 0.1, 0.15, 0.2]
    """
    found = list(values)
    low, high = min(found), max(found)
    reach = max(high - low, 0.01)
    step = next(s for s in (0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if reach / s <= 5)
    start, end = floor(low / step + 1e-9) * step, ceil(high / step - 1e-9) * step
    return ChartAxis(start, end if end > start else start + step, step, width)


def forest_plot(report: Report) -> dict[str, Any]:
    """Returns the comparisons as intervals on one axis with zero in it; empty without comparisons."""
    if not report.comparisons:
        return {}
    ends = [getattr(row, end) for row in report.comparisons for end in ("low", "high", "difference")]
    axis = fit_axis([*ends, 0.0], FOREST_WIDTH)
    in_order = sorted(report.comparisons, key=lambda row: list(table_layout.LABEL_BLOCKS).index(row.labels))
    lines = [
        {
            "a": row.a,
            "b": row.b,
            "mark": tables.LABEL_MARKS[row.labels],
            "at": axis.at(row.difference),
            "from": axis.at(row.low),
            "to": axis.at(row.high),
            "sure": row.p_holm < 0.05,
            "cells": list(
                zip(
                    [getattr(row, name) for name in SORT_FIELDS],
                    tables.comparison_cells(row),
                    strict=True,
                )
            ),
        }
        for row in in_order
    ]
    ticks = [(axis.at(tick), format_points(tick)) for tick in axis.ticks]
    return {
        "lines": lines,
        "ticks": ticks,
        "zero": axis.at(0.0),
        "width": axis.width,
        "caption": tables.comparisons_note(report.comparisons) + tables.limit_note(report),
    }


def prompt_spread_plots(report: Report) -> list[dict[str, Any]]:
    """Returns, for each dataset, every method's prompts as points, its mean, and the chance level.

    All datasets share one axis, so that distances can be compared between them.
    """
    if not report.rows:
        return []
    shares = [share for row in report.rows for share in (row.accuracy, row.chance)]
    axis = fit_axis(shares, SPREAD_WIDTH)
    levels = tables.chance_levels(report)
    means = tables.by_method_and_task(report)
    by_cell: dict[tuple[str, str], list[PromptResult]] = {}
    for row in report.rows:
        by_cell.setdefault((row.task, row.method), []).append(row)
    return [
        {
            "task": column.name,
            "prompts": len(by_cell[column.task, report.means[0].method]),
            "chance": axis.at(levels[column.task]),
            "ticks": [(axis.at(tick), f"{100 * tick:.0f}") for tick in axis.ticks],
            "width": axis.width,
            "lines": [
                _strip(mean, axis, means[mean.method, column.task], by_cell[column.task, mean.method])
                for mean in report.means
            ],
        }
        for column in tables.report_columns(report)
    ]


def _strip(
    mean: MethodMean,
    axis: ChartAxis,
    over_prompts: DatasetResult,
    prompts: list[PromptResult],
) -> dict[str, Any]:
    lowest, highest = over_prompts.lowest, over_prompts.highest
    return {
        "method": mean.method,
        "aside": mean.labels != "none" or over_prompts.seen,
        "mark": (tables.HINDSIGHT_MARK if mean.labels == "hindsight" else "")
        + (tables.SEEN_MARK if over_prompts.seen else ""),
        "mean": axis.at(over_prompts.accuracy),
        "mean_text": format_percent(over_prompts.accuracy),
        "reach_text": f"{format_percent(lowest)} to {format_percent(highest)}, "
        f"median {format_percent(over_prompts.median)}",
        "from": axis.at(lowest),
        "to": axis.at(highest),
        "points": [
            (axis.at(row.accuracy), f"{row.prompt}: {format_percent(row.accuracy)}") for row in prompts
        ],
    }


def heat_map(report: Report) -> dict[str, Any]:
    """Returns experts (grouped by family) by prompts, as lists of numbers for the page's script; or nothing.

    Accuracies and the ends of their intervals are in thousandths, None where an expert was not scored. Chosen
    cells are (expert, column, whether it was a router's first choice, what the routers say), by number.
    """
    if not report.matrix:
        return {}
    family = {row.expert: row.family or NO_FAMILY for row in report.matrix}
    experts = sorted(family, key=lambda name: (family[name] == NO_FAMILY, family[name], name))
    prompts: dict[str, list[str]] = {}
    rows: dict[tuple[str, str], int] = {}
    for row in report.matrix:
        if (row.task, row.prompt) not in rows:
            prompts.setdefault(row.task, []).append(row.prompt)
        rows[row.task, row.prompt] = row.n
    tasks = table_layout.task_columns(prompts)
    keys = [(column.task, prompt) for column in tasks for prompt in prompts[column.task]]
    numbers = {key: number for number, key in enumerate(keys)}
    places = {expert: number for number, expert in enumerate(experts)}
    values: dict[str, list[list[int | None]]] = {
        name: [[None] * len(keys) for _ in experts] for name in ("accuracy", "low", "high")
    }
    seen = []
    for row in report.matrix:
        at = places[row.expert], numbers[row.task, row.prompt]
        for name, table in values.items():
            table[at[0]][at[1]] = round(10 * float(format_percent(getattr(row, name))))
        if row.seen:
            seen.append(at)
    notes = _router_notes(report)
    firsts = {(row.expert, row.task, row.prompt) for row in report.selections}
    return {
        "tasks": [{"name": column.name, "prompts": prompts[column.task]} for column in tasks],
        "rows": [rows[key] for key in keys],
        "experts": [(expert, family[expert]) for expert in experts],
        **values,
        "seen": seen,
        "chosen": [
            (places[expert], numbers[task, prompt], int((expert, task, prompt) in firsts), "; ".join(texts))
            for (task, prompt, expert), texts in notes.items()
            if expert in places and (task, prompt) in numbers
        ],
    }


def key_map(report: Report) -> dict[str, Any]:
    """Returns, for each dataset, its queries among the keys of all experts, in one plane; or nothing.

    Up to three experts have a number and a name: those that routers chose first for most of its prompts.
    """
    drawn = report.key_map
    if drawn is None or not (drawn.keys and drawn.queries):
        return {}
    groups = (*drawn.keys, *drawn.queries)
    across, up = ([value for group in groups for value in getattr(group, axis)] for axis in ("x", "y"))
    reach = max(max(across) - min(across), max(up) - min(up), 1e-9)
    scale = (MAP_WIDTH - 2 * MAP_MARGIN) / reach

    def place(points: MapPoints) -> list[tuple[float, float]]:
        return [
            (
                round(MAP_MARGIN + (x - min(across)) * scale, 1),
                round(MAP_MARGIN + (max(up) - y) * scale, 1),
            )
            for x, y in zip(points.x, points.y, strict=True)
        ]

    keys = {points.name: place(points) for points in drawn.keys}
    panels = []
    for points in drawn.queries:
        first = Counter(row.expert for row in report.selections if row.task == points.name)
        named = [expert for expert, _ in first.most_common() if expert in keys][:MAP_NAMES]
        listed = ", ".join(f"{number} {expert}" for number, expert in enumerate(named, start=1))
        panels.append(
            {
                "task": points.name,
                "queries": place(points),
                "experts": [(expert, keys[expert], _middle(keys[expert])) for expert in named],
                "text": f"{points.name}: {len(points.x)} queries among {sum(map(len, keys.values()))} keys"
                + (f"; routers chose first: {listed}" if named else ""),
            }
        )
    return {
        "keys": [(*at, expert) for expert, own in keys.items() for at in own],
        "panels": panels,
        "width": MAP_WIDTH,
        "height": round(2 * MAP_MARGIN + (max(up) - min(up)) * scale, 1),
        "caption": _map_caption(drawn),
    }


def _map_caption(drawn: KeyMap) -> str:
    shares = " and ".join(f"{format_percent(share)} %" for share in drawn.shares)
    keys, queries = (sum(len(points.x) for points in group) for group in (drawn.keys, drawn.queries))
    return (
        f"All tasks share one plane: the two main components of the keys drawn, which hold {shares} of their "
        "variance. Routers compare in all directions, so what is near here need not be near to them. "
        f"{keys:,} of {drawn.key_count:,} keys and {queries:,} of {drawn.query_count:,} queries are drawn, "
        f"embedded by {drawn.embedder}. Named are the experts that routers chose first for most prompts."
    )


def _middle(points: list[tuple[float, float]]) -> tuple[float, float]:
    return round(fmean(x for x, _ in points), 1), round(fmean(y for _, y in points), 1)


def _router_notes(report: Report) -> dict[tuple[str, str, str], list[str]]:
    """Returns (task, prompt, expert) -> what the routers that chose it say."""
    notes: dict[tuple[str, str, str], list[str]] = {}
    for row in report.selections:
        for name in row.weights:
            votes = row.voters.get(name, 0)
            text = f"{row.router}: {votes} of {row.queries} votes" if row.voters else row.router
            notes.setdefault((row.task, row.prompt, name), []).append(text)
    return notes
