"""A summary: the scores of a run turned into one report, and that report written and read.

Everything on the pages is in the report, so `read_report` and `write_report` make the same pages again.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from etils import epath

from elm_jax import names, storage
from elm_jax.errors import UserError
from elm_jax.records import Report, Selection, TaskScores
from elm_jax.reporting import metrics, page, significance, tables

PARTS = {  # what one row of each part holds at least
    "rows": {"method", "task", "prompt", "n", "accuracy", "low", "high", "chance"},
    "means": {"method", "macro", "micro", "low", "high", "n", "hindsight", "gap_share"},
    "comparisons": {"a", "b", "difference", "low", "high", "p", "p_holm", "comparisons"},
    "selections": {"task", "prompt", "router", "expert", "votes", "queries", "weights", "voters"},
    "tasks": {"method", "task", "prompts", "n", "accuracy", "low", "high", "chance", "lowest", "highest"},
    "matrix": {"expert", "family", "task", "prompt", "n", "accuracy"},
}


def summarise(
    scores: Sequence[TaskScores],
    selections: Sequence[Selection],
    environment: Mapping[str, Any],
    *,
    pairs: Sequence[tuple[str, str]] | None = None,
    baseline: str | None = "base",
    experts_matrix: Sequence[TaskScores] = (),
    families: Mapping[str, str] | None = None,
    samples: int = 2000,
    seed: int = 0,
) -> Report:
    """Returns the report of some methods on the same tasks.

    Args:
      scores: every method on every task; `TaskScores.method` names the method.
      selections: what the routers chose.
      environment: versions, devices, seeds and times, JSON-like; a `note` in it opens the page.
      pairs: the pairs of methods to compare. By default every method with the baseline, except those of
        `tables.HINDSIGHT`: they were picked on these very rows, so no p value holds for them.
      baseline: the method that others are compared with, and from which the oracle's gap is counted.
      experts_matrix: every expert on every task, for the heat map; `TaskScores.method` is the expert's id.
      families: family of an expert's id or of its dataset, to group the heat map by.
      samples: bootstrap samples of each comparison.
      seed: the seed of the bootstrap.

    Raises:
      UserError: no scores, methods scored on different tasks, an unknown method in `pairs` or `baseline`.
    """
    methods = _by_method(scores)
    if baseline is not None:
        baseline = names.resolve(baseline, methods, kind="method", where="the scores to report")
    if pairs is None:
        pairs = [(m, baseline) for m in methods if baseline and m != baseline and m not in tables.HINDSIGHT]
    families = families or {}
    return Report(
        rows=tuple(_row(task) for of_method in methods.values() for task in of_method),
        means=_means(methods, baseline),
        comparisons=_comparisons(methods, pairs, samples=samples, seed=seed),
        selections=tuple(_selection(selection) for selection in selections),
        environment=json.loads(json.dumps(environment, default=str)),
        tasks=tuple(
            _task(method, dataset, prompts)
            for method, of_method in methods.items()
            for dataset, prompts in metrics.by_dataset(of_method).items()
        ),
        matrix=tuple(_matrix_row(task, families) for task in experts_matrix),
    )


def write_report(report: Report, directory: storage.PathLike) -> dict[str, epath.Path]:
    """Writes report.html, .md, .csv and .json, each whole or not at all; returns the paths by ending.

    The JSON comes last: where it stands, the pages beside it show the same report.
    """
    folder = storage.writable_directory(directory)
    paths = {ending: folder / f"report.{ending}" for ending in ("html", "md", "csv", "json")}
    storage.write_bytes(paths["html"], page.html(report).encode())
    storage.write_bytes(paths["md"], tables.markdown(report).encode())
    storage.write_bytes(paths["csv"], tables.csv_rows(report).encode())
    storage.write_json(paths["json"], asdict(report))
    return paths


def read_report(directory: storage.PathLike) -> Report:
    """Reads the report that `write_report` wrote.

    Raises:
      UserError: no such directory or file, no JSON, another format, or JSON that is no report.
    """
    folder = storage.existing_directory(directory, what="A report", remedy="Evaluate into it first.")
    where = folder / "report.json"
    value = storage.read_json(where, what="A report")
    missing = [part.name for part in fields(Report) if part.name not in value]
    if missing:
        raise UserError(f"{str(where)!r} is no report: it lacks {', '.join(missing)}. Evaluate once more.")
    for part, wanted in PARTS.items():
        rows = value[part]
        whole = isinstance(rows, list) and all(isinstance(row, dict) and wanted <= row.keys() for row in rows)
        if not whole:
            raise UserError(
                f"{str(where)!r} is no report: its {part} should be a list of objects with "
                f"{', '.join(sorted(wanted))}. Evaluate once more."
            )
    if not isinstance(value["environment"], dict):
        raise UserError(f"{str(where)!r} is no report: its environment should be an object.")
    return Report(environment=value["environment"], **{part: tuple(value[part]) for part in PARTS})


def _by_method(scores: Sequence[TaskScores]) -> dict[str, list[TaskScores]]:
    """Groups scores by method and refuses methods that were not scored on the same tasks, each once."""
    methods: dict[str, list[TaskScores]] = {}
    for task in scores:
        methods.setdefault(task.method, []).append(task)
    if not methods:
        raise UserError("A report wants the scores of one method at least, but none came.")
    first = next(iter(methods))
    wanted = {task.task for task in methods[first]}
    for method, of_method in methods.items():
        found = [task.task for task in of_method]
        if len(set(found)) != len(found):
            twice = next(task for task in found if found.count(task) > 1)
            raise UserError(f"Task {twice!r} has two scores by {method!r}; a report wants one.")
        if wanted ^ set(found):
            task = min(wanted ^ set(found))
            lacking, having = (method, first) if task in wanted else (first, method)
            raise UserError(
                f"Methods of one report are scored on the same tasks, but {lacking!r} lacks {task!r}, which "
                f"{having!r} has. Score it, or leave it out."
            )
    return methods


def _row(task: TaskScores) -> dict[str, Any]:
    dataset, prompt = names.split_id(task.task)
    return {
        "method": task.method,
        "task": dataset,
        "prompt": prompt,
        **asdict(metrics.accuracy(task)),
        "chance": metrics.chance(task),
    }


def _task(method: str, dataset: str, prompts: Sequence[TaskScores]) -> dict[str, Any]:
    guess = sum(metrics.chance(prompt) for prompt in prompts) / len(prompts)
    over_prompts = {"method": method, "task": dataset, **asdict(metrics.macro_mean(prompts)), "chance": guess}
    return {**over_prompts, **asdict(metrics.spread(prompts))}


def _means(methods: Mapping[str, Sequence[TaskScores]], baseline: str | None) -> tuple[dict[str, Any], ...]:
    macro = {method: metrics.macro_mean(of_method) for method, of_method in methods.items()}
    gap = macro["oracle"].accuracy - macro[baseline].accuracy if baseline and "oracle" in macro else 0.0
    return tuple(
        {
            "method": method,
            "macro": mean.accuracy,
            "low": mean.low,
            "high": mean.high,
            "n": mean.n,
            "micro": metrics.micro_mean(methods[method]),
            "hindsight": method in tables.HINDSIGHT,
            "gap_share": (mean.accuracy - macro[baseline].accuracy) / gap if baseline and gap > 0 else None,
        }
        for method, mean in macro.items()
    )


def _comparisons(
    methods: Mapping[str, Sequence[TaskScores]], pairs: Sequence[tuple[str, str]], *, samples: int, seed: int
) -> tuple[dict[str, Any], ...]:
    found = []
    for a, b in pairs:
        for method in (a, b):
            names.resolve(method, methods, kind="method", where="the scores to report")
        found.append(significance.paired_difference(methods[a], methods[b], samples=samples, seed=seed))
    corrected = significance.holm(difference.p for difference in found)
    return tuple(
        {**asdict(difference), "p_holm": p_holm, "comparisons": len(found)}
        for difference, p_holm in zip(found, corrected, strict=True)
    )


def _selection(selection: Selection) -> dict[str, Any]:
    if not selection.weights:
        raise UserError(f"The selection for task {selection.task!r} by {selection.router!r} has no expert.")
    dataset, prompt = names.split_id(selection.task)
    expert = max(selection.weights, key=lambda name: (selection.weights[name], selection.votes.get(name, 0)))
    return {
        "task": dataset,
        "prompt": prompt,
        "router": selection.router,
        "expert": expert,
        "votes": selection.votes.get(expert, 0),
        "queries": len(selection.queries),
        "weights": {name: float(weight) for name, weight in selection.weights.items()},
        "voters": {name: int(votes) for name, votes in selection.votes.items()},
    }


def _matrix_row(task: TaskScores, families: Mapping[str, str]) -> dict[str, Any]:
    dataset, prompt = names.split_id(task.task)
    family = families.get(task.method) or families.get(task.method.partition("/")[0])
    right = metrics.hits(task)
    return {
        "expert": task.method,
        "family": family,
        "task": dataset,
        "prompt": prompt,
        "n": len(right),
        "accuracy": float(right.mean()),
    }
