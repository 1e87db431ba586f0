"""Tables: the numbers of a report as plain rows of text, for Markdown and the terminal.

Accuracies are percentages with one decimal; differences are percentage points.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from elm_jax.reporting import published, table_layout
from elm_jax.reporting.formatting import (
    MISSING,
    format_interval,
    format_p_value,
    format_percent,
    format_points,
)
from elm_jax.reporting.records import ChosenExperts, Comparison, DatasetResult, GeneratedResult, Report

SEEN_MARK = " ‡"
HINDSIGHT_MARK = " †"
LABEL_MARKS = {"none": "", "seen": SEEN_MARK, "few": " (few-shot)", "hindsight": HINDSIGHT_MARK}
"""What follows the name of a method, or of two that are compared, by the labels they saw."""


@dataclass(frozen=True)
class Table:
    """A table of text: what a terminal, Markdown or HTML can all show."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""


def report_columns(report: Report) -> list[table_layout.TaskColumn]:
    """Returns the datasets of a report as columns, in the paper's order where they are the paper's."""
    return table_layout.task_columns(row.task for row in report.tasks)


def by_method_and_task(report: Report) -> dict[tuple[str, str], DatasetResult]:
    """Returns the summary over prompts of each (method, dataset)."""
    return {(row.method, row.task): row for row in report.tasks}


def chance_levels(report: Report) -> dict[str, float]:
    """Returns each dataset's accuracy of guessing."""
    return {row.task: row.chance for row in report.tasks}


def macro_and_micro_chance(report: Report) -> tuple[float, float]:
    """Returns the macro and the micro mean of guessing."""
    over_tasks = chance_levels(report).values()
    over_prompts = [row.chance for row in report.rows if row.method == report.rows[0].method]
    return sum(over_tasks) / len(over_tasks), sum(over_prompts) / len(over_prompts)


def find_best(values: Mapping[str, float | None], report: Report) -> set[str]:
    """Returns the methods with the highest value among those that saw no labels; ties are all best."""
    fair = {mean.method for mean in report.means if mean.labels == "none"}
    rounded = {m: format_percent(value) for m, value in values.items() if m in fair and value is not None}
    top = max((float(value) for value in rounded.values()), default=0.0)
    return {method for method, value in rounded.items() if float(value) == top}


def best_mean(report: Report, mean: str) -> set[str]:
    """Returns the methods that are best by a mean, of those whose mean is over the most datasets."""
    least = min((len(row.left_out) for row in report.means if row.labels == "none"), default=0)
    values = {row.method: getattr(row, mean) for row in report.means if len(row.left_out) == least}
    return find_best(values, report)


def best_cell(report: Report, task: str) -> set[str]:
    """Returns the methods that are best on a dataset, of those that never saw it."""
    cells = {row.method: row for row in report.tasks if row.task == task}
    return find_best({m: None if row.seen else row.accuracy for m, row in cells.items()}, report)


def methods_table(report: Report) -> Table:
    """Returns methods by datasets, block by block, with both means; below them what was published."""
    tasks = report_columns(report)
    cells = by_method_and_task(report)
    rows: list[tuple[str, ...]] = []
    wide = len(tasks) + 3

    def block(title: str) -> None:
        rows.append((f"{title}:", *[""] * (wide - 1)))

    labels = [mean.labels for mean in report.means]
    for mean, before in zip(report.means, ["none", *labels], strict=False):
        if mean.labels != before:
            block(table_layout.LABEL_BLOCKS[mean.labels].partition(":")[0])
        own = [cells[mean.method, column.task] for column in tasks]
        rows.append(
            (
                mean.method + (HINDSIGHT_MARK if mean.labels == "hindsight" else ""),
                *(format_percent(cell.accuracy) + (SEEN_MARK if cell.seen else "") for cell in own),
                f"{format_percent(mean.macro)} {format_interval(mean.low, mean.high)}".strip(),
                format_percent(mean.micro),
            )
        )
    levels, means = chance_levels(report), macro_and_micro_chance(report)
    rows.append(
        ("chance", *(format_percent(levels[column.task]) for column in tasks), *map(format_percent, means))
    )
    names = [column.task for column in tasks]
    others = published.published_rows(names)
    if others:
        block("published")
    for other in others:
        shares = (format_percent(other.cells.get(task)) for task in names)
        rows.append((other.model, *shares, format_percent(other.macro), MISSING))
    return Table(
        "Accuracy in percent",
        ("method", *(column.name for column in tasks), "macro mean", "micro mean"),
        tuple(rows),
        "Each task is the mean over its prompts; the macro mean is over tasks, the micro mean over prompts. "
        "Brackets hold 95 % intervals."
        + _few_shot_note(report)
        + _hindsight_note(report)
        + seen_note(report)
        + limit_note(report)
        + (f" {published.describe_published_rows(names)}" if others else ""),
    )


def rows_table(report: Report) -> Table:
    """Returns the prompts of which rows are left out or cut, and why."""
    rows = tuple(
        (
            row.task,
            row.prompt,
            f"{row.read:,}",
            f"{row.used:,}",
            ", ".join(f"{count:,} {reason}" for reason, count in row.left_out.items()) or MISSING,
            f"{row.cut:,}",
        )
        for row in report.task_rows
        if row.left_out or row.cut
    )
    return Table(
        "Rows left out or cut",
        ("task", "prompt", "read", "used", "left out", "cut"),
        rows,
        "An accuracy is of the used rows. Cut are used rows of which the template's limit of characters cut "
        "a value." + limit_note(report),
    )


def prompts_table(report: Report) -> Table:
    """Returns the mean, the median and the range over prompts, of methods on datasets of several prompts."""
    return Table(
        "Over prompts",
        ("task", "method", "prompts", "mean", "median", "lowest", "highest"),
        tuple(
            (
                column.name,
                row.method + (SEEN_MARK if row.seen else ""),
                f"{row.prompts}",
                *map(format_percent, (row.accuracy, row.median, row.lowest, row.highest)),
            )
            for column in report_columns(report)
            for row in report.tasks
            if row.task == column.task and row.prompts > 1
        ),
        "Accuracy in percent over the prompts of a task. T0 (Sanh et al. 2022) is compared by the median."
        + seen_note(report)
        + limit_note(report),
    )


def ties_table(report: Report) -> Table:
    """Returns the prompts whose rows tie: by which methods, and how many of them whatever scores them."""
    equal = {(row.task, row.prompt): row for row in report.equal_choices}
    tied: dict[tuple[str, str], dict[str, int]] = {}
    counts = {key: row.n for key, row in equal.items()}
    for row in report.rows:
        key = row.task, row.prompt
        counts.setdefault(key, row.n)
        if row.tied or key in equal:
            tied.setdefault(key, {})[row.method] = row.tied
    rows = []
    for key, methods in tied.items():
        own = equal.get(key)
        rows.append(
            (
                *key,
                f"{counts[key]:,}",
                ", ".join(f"{method} {number:,}" for method, number in methods.items()),
                f"{own.equal:,}" if own else "0",
                " and ".join(map(repr, own.example)) if own and own.example else MISSING,
                f"{own.single:,}" if own else "0",
            )
        )
    return Table(
        "Tied rows",
        ("task", "prompt", "rows", "tied by", "equal to the model", "for example", "one choice"),
        tuple(rows),
        "A row whose n best choices score the same counts 1 / n if the right one is among them. Choices that "
        "are the same tokens tie whatever scores them. Rows with one choice are left out."
        + limit_note(report),
    )


def comparisons_table(report: Report) -> Table:
    """Returns the paired comparisons; the caption says how many were made."""
    in_order = sorted(report.comparisons, key=lambda row: list(table_layout.LABEL_BLOCKS).index(row.labels))
    rows = tuple((f"{row.a} − {row.b}{LABEL_MARKS[row.labels]}", *comparison_cells(row)) for row in in_order)
    return Table(
        "Paired comparisons",
        ("methods", *COMPARISON_HEADER),
        rows,
        comparisons_note(report.comparisons) + limit_note(report),
    )


COMPARISON_HEADER = ("points", "95 % interval", "p", "p (Holm)", "rows better : worse", "p (McNemar, Holm)")


def comparison_cells(row: Comparison) -> tuple[str, ...]:
    """Returns what is said of one comparison, column by column of `COMPARED`."""
    return (
        format_points(row.difference),
        format_interval(row.low, row.high, show=format_points),
        format_p_value(row.p),
        format_p_value(row.p_holm),
        f"{row.better_a:,} : {row.better_b:,}",
        format_p_value(row.p_mcnemar_holm),
    )


def comparisons_note(
    comparisons: Sequence[Comparison], of: tuple[str, str] = ("the first method", "the second")
) -> str:
    """Returns what must be said where comparisons are shown; `of` is what differs."""
    made = len(comparisons)
    validity = (
        "for prompts like these: rows and prompts are drawn anew, but not by McNemar’s test"
        if any(row.over == "prompts" for row in comparisons)
        else "for these prompts: rows are drawn anew as clusters across prompts"
    )
    return (
        f"{made} comparison{'' if made == 1 else 's'} of macro means on the same rows, {validity}. "
        "McNemar’s exact test counts each row once: better where it is right "
        f"under more prompts with {of[0]} than with {of[1]}. Holm corrects for all {made}."
    )


def selections_table(report: Report) -> Table:
    """Returns which expert each router chose for each task, with its votes."""
    rows = tuple(
        (
            row.task,
            row.prompt,
            row.router,
            format_experts(row),
            format_votes(row),
            format_rank(row),
            ", ".join(f"{name} {votes}" for name, votes in row.voters.items() if name != row.expert),
        )
        for row in report.selections
    )
    header = ("task", "prompt", "router", "expert", "votes", "rank in hindsight", "other votes")
    return Table("Chosen experts", header, rows, limit_note(report).strip())


def generated_table(report: Report) -> Table:
    """Returns tasks in free text by methods, each value with its interval and its measure's full name."""
    methods = list(dict.fromkeys(row.method for row in report.generated))
    cells = {(row.task, row.prompt, row.measure, row.method): row for row in report.generated}
    lines = dict.fromkeys(key[:3] for key in cells)
    rows = tuple((*line, *(generated_cell(cells.get((*line, m))) for m in methods)) for line in lines)
    caption = "A measure names its tokeniser. Brackets hold 95 % intervals of a bootstrap over rows."
    if any(row.seen for row in report.generated):
        caption += f"{SEEN_MARK} not zero-shot: trained on that dataset."
    return Table(
        "Generated answers", ("task", "prompt", "measure", *methods), rows, caption + limit_note(report)
    )


def generated_cell(row: GeneratedResult | None) -> str:
    """Returns a value, which is in percent already, with its interval if it has one."""
    if row is None:
        return MISSING
    whole = format_percent(row.value / 100)
    ends = "" if row.low is None or row.high is None else f" {format_interval(row.low / 100, row.high / 100)}"
    return f"{whole}{ends}{SEEN_MARK if row.seen else ''}"


def format_experts(selection: ChosenExperts) -> str:
    """Returns the chosen expert, or all that were merged, each with its weight in percent."""
    weights = selection.weights
    if len(weights) == 1:
        return selection.expert
    heaviest_first = sorted(weights, key=lambda name: -weights[name])
    if len(weights) > 5:
        return f"{len(weights)} experts, {heaviest_first[0]} ({100 * weights[heaviest_first[0]]:.0f} %) first"
    if max(weights.values()) - min(weights.values()) < 1e-6:
        return f"{' + '.join(heaviest_first)} (each {100 * weights[heaviest_first[0]]:.0f} %)"
    return " + ".join(f"{name} ({100 * weights[name]:.0f} %)" for name in heaviest_first)


def format_votes(selection: ChosenExperts) -> str:
    """Returns how many of the queries voted for the chosen expert; a dash for a router without votes."""
    votes = selection.queries and selection.voters
    return f"{selection.votes} of {selection.queries}" if votes else MISSING


def format_rank(selection: ChosenExperts) -> str:
    """Returns which place the chosen expert has among all on these very rows; a dash if unknown."""
    return MISSING if selection.rank is None else f"{selection.rank} of {selection.ranked}"


def seen_note(report: Report) -> str:
    """Returns what must be said where a method was trained on a dataset of the table; nothing otherwise."""
    left = [f"{mean.method}: {', '.join(mean.left_out)}" for mean in report.means if mean.left_out]
    if not left:
        return ""
    return (
        " ‡ not zero-shot: trained on that dataset, which is left out of the method’s means, gap and "
        f"comparisons ({'; '.join(left)})."
    )


def limit_note(report: Report) -> str:
    """Returns what must be said of an evaluation that was limited to some rows of each task."""
    return describe_limit(report.environment.get("limit"))


def describe_limit(limit: int | None) -> str:
    """Returns what a caption says of a limit of rows, with a space before it; nothing if there is none."""
    return f" Limited to {limit} rows of each task." if limit is not None else ""


def _few_shot_note(report: Report) -> str:
    used = [row.method for row in report.methods if row.labels == "few"]
    return f" Chosen with a few labelled rows of each task: {', '.join(used)}." if used else ""


def _hindsight_note(report: Report) -> str:
    used = [row for row in report.methods if row.labels == "hindsight"]
    notes = [f"{row.method} is {row.note}" for row in used if row.note]
    return f" † picked in hindsight: {'; '.join(notes)}." if notes else ""
