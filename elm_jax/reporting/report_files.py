"""The folder of a report: its pages, tables and JSON, and which rows every method got right.

`report.json` is the record field by field, and the pages are made of it alone. `rows.jsonl` holds what paired
tests want, so that two runs can be compared from their folders.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from etils import epath

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.records import Report, TaskScores
from elm_jax.reporting import documents, metrics, page

AGAIN = "Evaluate once more with `elm evaluate`; what was scored is kept and not scored again."
PARTS: Mapping[str, set[str]] = {  # what one row of each part holds at least
    "rows": {"method", "task", "prompt", "n", "accuracy", "low", "high", "chance", "seen"},
    "means": {"method", "labels", "macro", "micro", "low", "high", "n", "gap_share", "left_out"},
    "comparisons": {"a", "b", "difference", "low", "high", "p", "p_holm", "p_mcnemar", "comparisons"},
    "selections": {"task", "prompt", "router", "expert", "votes", "queries", "weights", "voters", "rank"},
    "tasks": {"method", "task", "prompts", "n", "accuracy", "low", "high", "chance", "lowest", "highest"},
    "matrix": {"expert", "family", "task", "prompt", "n", "accuracy", "low", "high", "seen"},
    "methods": {"method", "router", "merge", "labels", "note"},
    "generated": {"method", "task", "prompt", "n", "measure", "value", "low", "high", "seen"},
    "examples": {"task", "prompt", "row", "input", "choices", "target", "answers"},
}


def write_report(
    report: Report, directory: storage.PathLike, scores: Sequence[TaskScores] = ()
) -> dict[str, epath.Path]:
    """Writes report.html, .md, .csv and .json, each whole or not at all; returns the paths by ending.

    With `scores` also `rows.jsonl`, which says row by row what was right, and `generated.csv` where answers
    were generated. The JSON comes last: where it stands, the pages beside it show the same report.
    """
    folder = storage.writable_directory(directory)
    paths = {ending: folder / f"report.{ending}" for ending in ("html", "md", "csv", "json")}
    storage.write_bytes(paths["html"], page.render_html(report).encode())
    storage.write_bytes(paths["md"], documents.render_markdown(report).encode())
    storage.write_bytes(paths["csv"], documents.render_csv(report).encode())
    if report.generated:
        storage.write_bytes(folder / "generated.csv", documents.render_generated_csv(report).encode())
    if scores:
        storage.write_jsonl(folder / "rows.jsonl", _lines(report, scores))
    storage.write_json(paths["json"], asdict(report))
    return paths


def read_report(directory: storage.PathLike) -> Report:
    """Reads the report that `write_report` wrote.

    Raises:
      UserError: no such directory or file, no JSON, another format, or JSON that is no report.
    """
    folder = storage.existing_directory(directory, what="A report", remedy="Evaluate into it first.")
    where = folder / "report.json"
    try:
        value = storage.read_json(where, what="A report")
    except UserError as error:
        raise UserError(f"{error} {AGAIN}") from None
    missing = [part.name for part in fields(Report) if part.name not in value]
    if missing:
        raise UserError(
            f"{str(where)!r} is no report of this version: it lacks {', '.join(missing)}. {AGAIN}"
        )
    for part, wanted in PARTS.items():
        rows = value[part]
        whole = isinstance(rows, list) and all(isinstance(row, dict) and wanted <= row.keys() for row in rows)
        if not whole:
            raise UserError(
                f"{str(where)!r} is no report of this version: its {part} should be a list of objects with "
                f"{', '.join(sorted(wanted))}. {AGAIN}"
            )
    if not isinstance(value["environment"], dict):
        raise UserError(f"{str(where)!r} is no report: its environment should be an object. {AGAIN}")
    return Report(environment=value["environment"], **{part: tuple(value[part]) for part in PARTS})


def read_rows(directory: storage.PathLike, report: Report) -> dict[str, list[TaskScores]]:
    """Returns method -> its tasks with what was right row by row, as kept beside a report.

    Scores of choices are not kept, and a wrong prediction is -1.

    Raises:
      UserError: no rows there, or rows of another report than the one beside them.
    """
    where = storage.path(directory) / "rows.jsonl"
    try:
        head, *lines = storage.read_jsonl(where, what="What was right row by row")
        if head.get("format") != storage.FORMAT or head.get("report") != _stamp(report):
            raise UserError(f"What is right row by row at {str(where)!r} is of another report.")
    except UserError as error:
        raise UserError(f"{error} {AGAIN}") from None
    found: dict[str, list[TaskScores]] = {}
    for line in lines:
        for method, right in line["right"].items():
            marks = zip(line["labels"], right, strict=True)
            predictions = tuple(label if mark == "1" else -1 for label, mark in marks)
            found.setdefault(method, []).append(
                TaskScores(
                    task=line["task"],
                    method=method,
                    row_ids=tuple(line["rows"]),
                    scores=(),
                    predictions=predictions,
                    labels=tuple(line["labels"]),
                    seen=method in line["seen"],
                )
            )
    return found


def _lines(report: Report, scores: Sequence[TaskScores]) -> list[dict[str, Any]]:
    """Returns one line a task (two where methods saw its rows in another order), each row a 0 or a 1."""
    by_rows: dict[tuple[Any, ...], list[TaskScores]] = {}
    for task in scores:
        by_rows.setdefault((task.task, task.row_ids, task.labels), []).append(task)
    lines = [
        {
            "task": task,
            "rows": rows,
            "labels": labels,
            "right": {
                of.method: "".join("01"[hit] for hit in metrics.correct_rows(of).tolist()) for of in alike
            },
            "seen": [of.method for of in alike if of.seen],
        }
        for (task, rows, labels), alike in by_rows.items()
    ]
    return [{"format": storage.FORMAT, "report": _stamp(report)}, *lines]


def _stamp(report: Report) -> str:
    return storage.fingerprint([dict(row) for row in report.rows])
