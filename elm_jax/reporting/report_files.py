"""The folder of a report: its pages, tables and JSON, and which rows every method got right.

`report.json` is the record field by field, and the pages are made of it alone. `rows.jsonl` holds what paired
tests want, so that two runs can be compared from their folders, and what the rows of every task were. Both
have a checksum; those of the first versions have none.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from etils import epath

from elm_jax import schema, storage
from elm_jax.errors import UserError
from elm_jax.records import TaskScores
from elm_jax.reporting import documents, metrics, page
from elm_jax.reporting.records import Report

OPTIONAL_REPORT_FIELDS = ("equal_choices", "task_rows", "tied_with_best", "key_map")
"""What reports of the first versions lack."""
FIX = "Fix: run `elm evaluate` again; scores on disk are read and not computed again."


def is_report(directory: epath.Path) -> bool:
    """Says whether a report lies in a directory."""
    return (directory / "report.json").exists()


def written_at(directory: epath.Path) -> float:
    """Returns when a report was written, in seconds since 1970."""
    return float((directory / "report.json").stat().mtime)


def write_report(
    report: Report,
    directory: storage.PathLike,
    scores: Sequence[TaskScores] = (),
    made_of: Mapping[str, Any] | None = None,
) -> dict[str, epath.Path]:
    """Writes report.html, .md, .csv and .json, each whole or not at all; returns the paths by ending.

    With `scores` also `rows.jsonl`, which says row by row what was right, and `generated.csv` where answers
    were generated. The JSON comes last: where it stands, the pages beside it show the same report.

    Args:
        report: every number.
        directory: is made if it is not there.
        scores: of ranked tasks.
        made_of: what rows and experts were, JSON-like.
    """
    folder = storage.writable_directory(directory)
    paths = report_paths(folder)
    storage.write_bytes(paths["html"], page.render_html(report).encode())
    storage.write_bytes(paths["md"], documents.render_markdown(report).encode())
    storage.write_bytes(paths["csv"], documents.render_csv(report).encode())
    if report.generated:
        storage.write_bytes(folder / "generated.csv", documents.render_generated_answers_csv(report).encode())
    if scores or made_of:
        header = {"format": storage.FORMAT, "report": _fingerprint(report), "made_of": dict(made_of or {})}
        storage.write_sealed_lines(folder / "rows.jsonl", header, _lines(scores))
    value = asdict(report)
    storage.write_json(paths["json"], {**value, "checksum": storage.fingerprint(value)})
    return paths


def report_paths(directory: storage.PathLike) -> dict[str, epath.Path]:
    """Returns the paths of a report's files by ending; they need not exist."""
    return {ending: storage.path(directory) / f"report.{ending}" for ending in ("html", "md", "csv", "json")}


def read_report(directory: storage.PathLike) -> Report:
    """Reads the report that `write_report` wrote.

    Raises:
      UserError: no such directory or file, no JSON, another format, JSON that is no report, or a report that
        was changed after it was written.
    """
    folder = storage.existing_directory(directory, what="A report", remedy="Evaluate into it first.")
    where = folder / "report.json"
    try:
        value = storage.read_json(where, what="A report")
    except UserError as error:
        raise UserError(f"{error} {FIX}") from None
    del value["format"]
    checksum = value.pop("checksum", None)
    needed = [part.name for part in fields(Report) if part.name not in OPTIONAL_REPORT_FIELDS]
    if missing := [part for part in needed if part not in value]:
        raise UserError(f"Expected a report at {str(where)!r}, got one without {', '.join(missing)}. {FIX}")
    what, fix = f"a report at {str(where)!r}", FIX.removeprefix("Fix: ").removesuffix(".")
    report: Report = schema.parse(json.dumps(value).encode(), Report, what=what, fix=fix)
    if checksum is not None and checksum != storage.fingerprint(value):
        raise UserError(
            f"Expected the report as it was written at {str(where)!r}, got one that was changed. {FIX}"
        )
    return report


@dataclass(frozen=True)
class _RowsForm(schema.Form):
    task: schema.Text
    rows: list[str]
    labels: list[int]
    right: Mapping[schema.Text, str | list[int]]
    seen: list[str]


def read_rows(directory: storage.PathLike, report: Report) -> dict[str, list[TaskScores]]:
    """Returns method -> its tasks with what was right row by row, as kept beside a report.

    Scores of choices are not kept, and a wrong prediction is -1.

    Raises:
      UserError: no rows there, rows of another report than the one beside them, or rows that were changed.
    """
    where = storage.path(directory) / "rows.jsonl"
    try:
        lines: list[Any] = storage.read_jsonl(where, what="The rows of a report")
        head, *lines = lines
        _require_whole(where)
        if (
            not isinstance(head, dict)
            or head.get("format") != storage.FORMAT
            or head.get("report") != _fingerprint(report)
        ):
            raise UserError(f"Expected the rows of this report at {str(where)!r}, got those of another one.")
    except UserError as error:
        raise UserError(f"{error} {FIX}") from None
    found: dict[str, list[TaskScores]] = {}
    for line in lines:
        what = f"the rows of a report at {str(where)!r}"
        schema.parse(json.dumps(line).encode(), _RowsForm, what=what, fix=FIX[5:-1])
        for method, right in line["right"].items():
            tied = tuple(int(mark) for mark in right if str(mark).isdecimal())
            if not len(tied) == len(right) == len(line["labels"]) == len(line["rows"]):
                raise UserError(f"Expected a mark for every row at {str(where)!r}, got others. {FIX}")
            marks = zip(line["labels"], tied, strict=True)
            predictions = tuple(label if mark else -1 for label, mark in marks)
            found.setdefault(method, []).append(
                TaskScores(
                    task=line["task"],
                    method=method,
                    row_ids=tuple(line["rows"]),
                    scores=(),
                    predictions=predictions,
                    labels=tuple(line["labels"]),
                    seen=method in line["seen"],
                    tied=tuple(max(1, mark) for mark in tied),
                )
            )
    return found


def read_made_of(directory: storage.PathLike) -> Mapping[str, Any]:
    """Returns what rows and experts were, as kept beside a report; nothing if it is not known.

    Raises:
      UserError: it was changed after it was written.
    """
    where = storage.path(directory) / "rows.jsonl"
    if not where.exists():
        return {}
    made_of = (_require_whole(where) or {}).get("made_of")
    return made_of if isinstance(made_of, dict) else {}


def _require_whole(where: epath.Path) -> dict[str, Any] | None:
    """Returns the header of a report's rows; raises a UserError if they are not as they were written."""
    header, _, is_whole = storage.read_sealed_lines(where)
    if is_whole is False:
        raise UserError(f"Expected rows as they were written at {str(where)!r}, got a file that was changed.")
    return header


def _lines(scores: Sequence[TaskScores]) -> list[dict[str, Any]]:
    """Returns one line a task, with its rows as marks; two where methods saw its rows in another order."""
    by_rows: dict[tuple[Any, ...], list[TaskScores]] = {}
    for task in scores:
        by_rows.setdefault((task.task, task.row_ids, task.labels), []).append(task)
    return [
        {
            "task": task,
            "rows": rows,
            "labels": labels,
            "right": {of.method: _encode_credits(of) for of in alike},
            "seen": [of.method for of in alike if of.seen],
        }
        for (task, rows, labels), alike in by_rows.items()
    ]


def _encode_credits(scores: TaskScores) -> str | list[int]:
    """Returns 0 for a wrong row, and n for one that counts 1 / n; as one text if each is a digit."""
    is_right, tied = metrics.row_credits(scores) > 0, metrics.count_tied_choices(scores)
    marks = (is_right * tied).tolist()
    return "".join(map(str, marks)) if max(marks) < 10 else marks


def _fingerprint(report: Report) -> str:
    rows = [asdict(row) for row in report.rows]
    # A report without ties or rows left out has the fingerprint that it had before they were counted.
    later = ("tied", "left_out")
    return storage.fingerprint(
        [{name: value for name, value in row.items() if name not in later or value} for row in rows]
    )
