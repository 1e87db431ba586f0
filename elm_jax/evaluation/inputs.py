"""Inputs of an evaluation: the tasks whose rows are here, the experts that score, and which scores what."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from elm_jax import names
from elm_jax.data import task_selection
from elm_jax.errors import MissingDatasetRowsError
from elm_jax.evaluation import ranking
from elm_jax.evaluation.results_cache import Cell
from elm_jax.evaluation.scorer_selection import ScorerSelection
from elm_jax.evaluation.tasks import EvaluationTask
from elm_jax.experts.lookup import BASE_SCORER, library_finder
from elm_jax.launch import hosts
from elm_jax.records import TaskSpec
from elm_jax.session.workspace import Run


def drop_missing_tasks(
    run: Run,
    tasks: task_selection.Tasks,
    specs: Sequence[TaskSpec],
    missing: Mapping[str, str],
    *,
    strict: bool,
) -> list[TaskSpec]:
    """Returns the tasks without those whose rows are missing, which it prints with how to get them.

    Raises:
        MissingDatasetRowsError: rows of a task that is named by itself are missing, those of all tasks, or
            any with `strict`.
    """
    if not missing:
        return list(specs)
    found = [spec for spec in specs if spec.id not in missing]
    remedies = group_by_dataset(missing)
    lines = [f"  {name}: {remedy}" for name, remedy in remedies.items()]
    is_named = any(
        spec.id in missing and not task_selection.is_named_only_by_group(tasks, spec) for spec in specs
    )
    if strict or is_named or not found:
        raise MissingDatasetRowsError(
            "\n".join([f"Expected rows of {', '.join(remedies)}, got none. Fix: get them.", *lines])
        )
    if hosts.is_primary():
        text = "\n".join([f"Left out, because their rows are missing: {', '.join(remedies)}.", *lines])
        run.stages.console.print(text, highlight=False, markup=False, soft_wrap=True)
    return found


def group_by_dataset(missing: Mapping[str, str]) -> dict[str, str]:
    """Returns how to get the rows of each dataset, said once for all prompts that lack the same."""
    tasks: dict[tuple[str, str], str] = {}
    for task, remedy in missing.items():
        tasks.setdefault((names.split_id(task)[0], remedy), task)
    remedies: dict[str, str] = {}
    for (dataset, remedy), task in tasks.items():
        remedies[task if dataset in remedies else dataset] = remedy
    return remedies


def list_cells(specs: Sequence[TaskSpec], selection: ScorerSelection, experts: Sequence[str]) -> list[Cell]:
    """Returns what has to be scored: all that any method chose, and the experts on every task."""
    cells: dict[Cell, None] = {}
    for spec in specs:
        cells |= dict.fromkeys(
            cell
            for scorers in selection.scorers.values()
            for cell in ranking.cells_of_scorer(spec.id, scorers[spec.id])
        )
        cells |= dict.fromkeys(Cell(spec.id, expert) for expert in experts)
    # If a scorer has all rows of a task, some rows of it are among them.
    return [cell for cell in cells if not cell.rows or Cell(cell.task, cell.scorer) not in cells]


def find_used_experts(cells: Iterable[Cell], selection: ScorerSelection) -> list[str]:
    """Returns the experts that score, alone, merged or behind a gate."""
    used: set[str] = set()
    for scorer in {cell.scorer for cell in cells} - {BASE_SCORER}:
        if scorer in selection.composites:
            used.update(selection.composites[scorer].members)
        elif scorer in selection.gates:
            used.update(selection.gates[scorer].experts)
        else:
            used.add(scorer)
    return sorted(used)


def describe_inputs(run: Run, tasks: Iterable[EvaluationTask], experts: Iterable[str]) -> dict[str, Any]:
    """Returns what an evaluation is made of, JSON-like: what rows are, and checksums of experts."""
    home_of = library_finder(run.workspace)
    return {
        "tasks": {task.id: task.identity.to_json() for task in tasks},
        "experts": {expert: home_of(expert).describe(expert).checksum for expert in experts},
    }
