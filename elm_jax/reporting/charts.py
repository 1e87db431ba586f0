"""Charts: the numbers of a report turned into positions and shades, ready to be drawn by the page."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil, floor
from typing import Any

from elm_jax.records import Report
from elm_jax.reporting import tables

FOREST_WIDTH = 320.0
SPREAD_WIDTH = 236.0
NO_FAMILY = "no family"


@dataclass(frozen=True)
class Axis:
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


def axis_over(values: Iterable[float], width: float) -> Axis:
    """Returns an axis over all values, ending at round numbers, with three to seven ticks.

    >>> axis_over([-0.021, 0.173], 100.0).ticks
    [-0.05, 0.0, 0.05, 0.1, 0.15000000000000002, 0.2]
    """
    found = list(values)
    low, high = min(found), max(found)
    reach = max(high - low, 0.01)
    step = next(s for s in (0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if reach / s <= 5)
    start, end = floor(low / step + 1e-9) * step, ceil(high / step - 1e-9) * step
    return Axis(start, end if end > start else start + step, step, width)


def forest(report: Report) -> dict[str, Any]:
    """Returns the comparisons as intervals on one axis with zero in it; empty without comparisons."""
    if not report.comparisons:
        return {}
    ends = [row[end] for row in report.comparisons for end in ("low", "high", "difference")]
    axis = axis_over([*ends, 0.0], FOREST_WIDTH)
    texts = tables.comparisons_table(report)
    lines = [
        {
            "a": row["a"],
            "b": row["b"],
            "at": axis.at(row["difference"]),
            "from": axis.at(row["low"]),
            "to": axis.at(row["high"]),
            "sure": row["p_holm"] < 0.05,
            "cells": [(row["difference"], text[1]), (row["low"], text[2])],
            "ps": [(row["p"], text[3]), (row["p_holm"], text[4])],
        }
        for row, text in zip(report.comparisons, texts.rows, strict=True)
    ]
    ticks = [(axis.at(tick), tables.points(tick)) for tick in axis.ticks]
    return {
        "lines": lines,
        "ticks": ticks,
        "zero": axis.at(0.0),
        "width": axis.width,
        "caption": texts.caption,
    }


def spreads(report: Report) -> list[dict[str, Any]]:
    """Returns, for each dataset, every method's prompts as points, its mean, and the chance level.

    All datasets share one axis, so that distances can be compared between them.
    """
    shares = [row[key] for row in report.rows for key in ("accuracy", "chance")]
    axis = axis_over(shares, SPREAD_WIDTH)
    levels = tables.chance_levels(report)
    means = tables.by_method_and_task(report)
    by_cell: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in report.rows:
        by_cell.setdefault((row["task"], row["method"]), []).append(row)
    return [
        {
            "task": task,
            "prompts": len(by_cell[task, report.means[0]["method"]]),
            "chance": axis.at(levels[task]),
            "ticks": [(axis.at(tick), f"{100 * tick:.0f}") for tick in axis.ticks],
            "width": axis.width,
            "lines": [
                {
                    "method": mean["method"],
                    "hindsight": mean["hindsight"],
                    "mean": axis.at(means[mean["method"], task]["accuracy"]),
                    "mean_text": tables.percent(means[mean["method"], task]["accuracy"]),
                    "from": axis.at(min(row["accuracy"] for row in by_cell[task, mean["method"]])),
                    "to": axis.at(max(row["accuracy"] for row in by_cell[task, mean["method"]])),
                    "points": [
                        (axis.at(row["accuracy"]), f"{row['prompt']}: {tables.percent(row['accuracy'])}")
                        for row in by_cell[task, mean["method"]]
                    ],
                }
                for mean in report.means
            ],
        }
        for task in tables.task_names(report)
    ]


def heat_map(report: Report) -> dict[str, Any]:
    """Returns experts (grouped by family) by tasks, each cell with its shade on two scales; or nothing.

    `shade` is relative to the whole map, `task_shade` to the experts on that one task: both from 0 (lowest)
    to 1 (highest). Cells of chosen experts say which routers chose them, and whether as their first choice.
    """
    if not report.matrix:
        return {}
    values = {(row["expert"], row["task"], row["prompt"]): row["accuracy"] for row in report.matrix}
    family = {row["expert"]: row["family"] or NO_FAMILY for row in report.matrix}
    columns: dict[str, list[str]] = {}
    for row in report.matrix:
        prompts = columns.setdefault(row["task"], [])
        if row["prompt"] not in prompts:
            prompts.append(row["prompt"])
    keys = [(task, prompt) for task, prompts in columns.items() for prompt in prompts]
    column_values = {key: [v for (_, *at), v in values.items() if tuple(at) == key] for key in keys}
    reach = {key: (min(found), max(found)) for key, found in column_values.items()}
    whole = (min(values.values()), max(values.values()))
    chosen = _choices(report)
    first = {(row["task"], row["prompt"], row["expert"]) for row in report.selections}
    families: dict[str, list[dict[str, Any]]] = {}
    for expert in sorted(family, key=lambda name: (family[name] == NO_FAMILY, family[name], name)):
        cells = [
            {
                **_shades(values.get((expert, *key)), whole, reach[key]),
                "chosen": chosen.get((*key, expert), []),
                "first": (*key, expert) in first,
            }
            for key in keys
        ]
        families.setdefault(family[expert], []).append({"expert": expert, "cells": cells})
    return {
        "columns": columns,
        "keys": keys,
        "families": families,
        "low": tables.percent(whole[0]),
        "high": tables.percent(whole[1]),
        "stops": [n / 10 for n in range(11)],
    }


def _choices(report: Report) -> dict[tuple[str, str, str], list[str]]:
    """Returns (task, prompt, expert) -> what the routers that chose it say."""
    said: dict[tuple[str, str, str], list[str]] = {}
    for row in report.selections:
        for name in row["weights"]:
            votes = row["voters"].get(name, 0)
            text = f"{row['router']}: {votes} of {row['queries']} votes"
            said.setdefault((row["task"], row["prompt"], name), []).append(text)
    return said


def _shades(value: float | None, whole: tuple[float, float], column: tuple[float, float]) -> dict[str, Any]:
    if value is None:
        return {"text": "–", "percent": "not scored", "shade": None, "task_shade": None, "best": False}
    return {
        "text": f"{100 * value:.0f}",
        "percent": f"{tables.percent(value)} %",
        "shade": _inside(value, whole),
        "task_shade": _inside(value, column),
        "best": value == column[1] and column[1] > column[0],
    }


def _inside(value: float, ends: tuple[float, float]) -> float:
    low, high = ends
    return round((value - low) / (high - low), 3) if high > low else 0.5
