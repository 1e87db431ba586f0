"""Tables: the numbers of a report as plain rows of text, for Markdown, CSV and the terminal.

Accuracies are percentages with one decimal; differences are percentage points.
"""

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from elm_jax.records import Report

HINDSIGHT = {
    "best_single": "the one expert with the best mean over these very rows",
    "oracle": "for each task the expert that is best on these very rows",
}
"""Methods picked by looking at the answers: marks to measure others by, not methods to use."""


@dataclass(frozen=True)
class Table:
    """A table of text: what a terminal, Markdown or HTML can all show."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""


def percent(share: float) -> str:
    """Returns a fraction as a percentage with one decimal.

    >>> percent(0.6125)
    '61.3'
    """
    return f"{_half_up(100 * share):.1f}"


def points(difference: float) -> str:
    """Returns a difference of fractions as signed percentage points.

    >>> points(-0.041), points(0.0)
    ('-4.1', '0.0')
    """
    rounded = _half_up(100 * difference)
    return f"{rounded:+.1f}" if rounded else "0.0"


def interval(low: float, high: float, *, show: Callable[[float], str] = percent) -> str:
    """Returns an interval in brackets, in percent or, with `show=points`, in points.

    >>> interval(0.58, 0.643)
    '[58.0, 64.3]'
    """
    return f"[{show(low)}, {show(high)}]"


def p_value(p: float) -> str:
    """Returns a p value with three decimals, or that it is smaller than they can say.

    >>> p_value(0.0423), p_value(0.0002)
    ('0.042', '< 0.001')
    """
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def task_names(report: Report) -> list[str]:
    """Returns the datasets of a report in their order."""
    return list(dict.fromkeys(row["task"] for row in report.tasks))


def by_method_and_task(report: Report) -> dict[tuple[str, str], Mapping[str, Any]]:
    """Returns the summary over prompts of each (method, dataset)."""
    return {(row["method"], row["task"]): row for row in report.tasks}


def chance_levels(report: Report) -> dict[str, float]:
    """Returns each dataset's accuracy of guessing."""
    return {row["task"]: row["chance"] for row in report.tasks}


def chance_means(report: Report) -> tuple[float, float]:
    """Returns the macro and the micro mean of guessing."""
    over_tasks = chance_levels(report).values()
    over_prompts = [row["chance"] for row in report.rows if row["method"] == report.rows[0]["method"]]
    return sum(over_tasks) / len(over_tasks), sum(over_prompts) / len(over_prompts)


def best_of(values: Mapping[str, float], report: Report) -> set[str]:
    """Returns the methods with the highest value among those that used no hindsight; ties are all best."""
    fair = {mean["method"] for mean in report.means if not mean["hindsight"]}
    rounded = {method: percent(value) for method, value in values.items() if method in fair}
    top = max((float(value) for value in rounded.values()), default=0.0)
    return {method for method, value in rounded.items() if float(value) == top}


def methods_table(report: Report) -> Table:
    """Returns methods by datasets, with both means; methods that used hindsight carry a dagger."""
    tasks = task_names(report)
    cells = by_method_and_task(report)
    rows: list[tuple[str, ...]] = [
        (
            mean["method"] + (" †" if mean["hindsight"] else ""),
            *(percent(cells[mean["method"], task]["accuracy"]) for task in tasks),
            f"{percent(mean['macro'])} {interval(mean['low'], mean['high'])}",
            percent(mean["micro"]),
        )
        for mean in report.means
    ]
    levels, means = chance_levels(report), chance_means(report)
    rows.append(("chance", *(percent(levels[task]) for task in tasks), *map(percent, means)))
    return Table(
        "Accuracy in percent",
        ("method", *tasks, "macro mean", "micro mean"),
        tuple(rows),
        "Each task is the mean over its prompts; the macro mean is over tasks, the micro mean over prompts. "
        "Brackets hold 95 % intervals." + _hindsight_note(report),
    )


def comparisons_table(report: Report) -> Table:
    """Returns the paired comparisons; the caption says how many were made."""
    rows = tuple(
        (
            f"{row['a']} − {row['b']}",
            points(row["difference"]),
            interval(row["low"], row["high"], show=points),
            p_value(row["p"]),
            p_value(row["p_holm"]),
        )
        for row in report.comparisons
    )
    made = len(rows)
    return Table(
        "Paired comparisons",
        ("methods", "points", "95 % interval", "p", "p (Holm)"),
        rows,
        f"{made} comparison{'' if made == 1 else 's'} of macro means on the same rows; rows are drawn anew "
        f"as clusters across prompts. p (Holm) is corrected for all {made}.",
    )


def selections_table(report: Report) -> Table:
    """Returns which expert each router chose for each task, with its votes."""
    rows = tuple(
        (
            row["task"],
            row["prompt"],
            row["router"],
            chosen_experts(row),
            votes_of(row),
            ", ".join(f"{name} {votes}" for name, votes in row["voters"].items() if name != row["expert"]),
        )
        for row in report.selections
    )
    return Table("Chosen experts", ("task", "prompt", "router", "expert", "votes", "other votes"), rows)


def chosen_experts(selection: Mapping[str, Any]) -> str:
    """Returns the chosen expert, or all that were merged, each with its weight in percent."""
    weights = selection["weights"]
    if len(weights) == 1:
        return selection["expert"]
    heaviest_first = sorted(weights, key=lambda name: -weights[name])
    return " + ".join(f"{name} ({100 * weights[name]:.0f} %)" for name in heaviest_first)


def votes_of(selection: Mapping[str, Any]) -> str:
    """Returns how many of the queries voted for the chosen expert; a dash for a router without votes."""
    return f"{selection['votes']} of {selection['queries']}" if selection["queries"] else "–"


def markdown(report: Report) -> str:
    """Returns the report as one Markdown document."""
    parts = ["# Report\n"]
    note = report.environment.get("note")
    parts += [f"{_cell(note)}\n"] if isinstance(note, str) else []
    tables = [methods_table(report), comparisons_table(report), selections_table(report)]
    parts += [to_markdown(table) for table in tables if table.rows]
    environment = tuple((name, value) for name, value in flat(report.environment) if name != "note")
    parts.append(to_markdown(Table("Environment", ("what", "value"), environment)))
    return "\n".join(parts)


def to_markdown(table: Table) -> str:
    """Returns a table as Markdown; the bar between cells, line breaks and markup in names stay text."""
    numeric = {
        column
        for column in range(1, len(table.header))
        if all(row[column][:1] in "+-<[0123456789" for row in table.rows)
    }
    rule = ["---:" if column in numeric else "---" for column in range(len(table.header))]
    lines = [f"## {table.title}", ""]
    lines += ["| " + " | ".join(map(_cell, line)) + " |" for line in (table.header,)]
    lines.append("| " + " | ".join(rule) + " |")
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in table.rows]
    return "\n".join([*lines, *(["", table.caption] if table.caption else []), ""])


def csv_rows(report: Report) -> str:
    """Returns one CSV line for each method, task and prompt, in full precision; fractions, not percent."""
    columns = ("method", "task", "prompt", "n", "accuracy", "low", "high", "chance")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([row[column] for column in columns] for row in report.rows)
    return out.getvalue()


def flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Returns nested values as (dotted name, text), in order."""
    if isinstance(value, Mapping):
        return [pair for key, v in value.items() for pair in flat(v, f"{name}.{key}" if name else str(key))]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [(name, ", ".join(map(str, value)))]
    return [(name, f"{value:.4g}" if isinstance(value, float) else str(value))]


def _hindsight_note(report: Report) -> str:
    used = [mean["method"] for mean in report.means if mean["hindsight"]]
    notes = [f"{method} is {HINDSIGHT[method]}" for method in used if method in HINDSIGHT]
    return f" † picked in hindsight: {'; '.join(notes)}." if notes else ""


def _half_up(value: float) -> float:
    # Formatting alone would print 61.25 as 61.2: halves go to even.
    return float(f"{value + (1e-9 if value >= 0 else -1e-9):.1f}")


def _cell(text: str) -> str:
    # Brackets and "<" stay plain where they cannot open a link or a tag: intervals and p values read better.
    escaped = re.sub(r"[\\|`*]|<(?=\S)|\](?=[(\[])", lambda mark: "\\" + mark.group(), text)
    return " ".join(escaped.split())
