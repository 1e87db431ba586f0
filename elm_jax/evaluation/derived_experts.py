"""Composites: experts that an evaluation makes of others, named before they are made.

A name stands for the way, its options and the parameters of all members. So what scores depend on is known
before anything is merged, and what was made before is not made again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from elm_jax import storage
from elm_jax.data import task_selection
from elm_jax.evaluation import few_shot, few_shot_training, results_cache
from elm_jax.evaluation.few_shot import FewShotExamples
from elm_jax.evaluation.few_shot_training import FINETUNE
from elm_jax.experts.library import Library
from elm_jax.merging import merge as merging
from elm_jax.merging import table
from elm_jax.merging.plan import MergePlan
from elm_jax.records import Selection
from elm_jax.session.workspace import Run

LORAHUB = "lorahub"


@dataclass(frozen=True)
class Composite:
    """One expert to be made of several."""

    id: str
    method: str  # a merging method's name, "lorahub" or "finetune"
    options: Mapping[str, Any]
    members: tuple[str, ...]
    weights: tuple[float, ...] | None = None  # one a member; alike without them
    task: str | None = None  # whose labelled rows it is fitted to
    plan: MergePlan | None = field(default=None, repr=False)  # of a merge; only the host that merges has it


def merge_composite(
    run: Run, library: Library, method: str, options: Mapping[str, Any], weights: Mapping[str, float]
) -> Composite:
    """Returns the merge of the experts of a library that a router chose, with its weights where they differ.

    Raises a UserError if they cannot be merged so; no parameter is read.
    """
    alike = len(set(weights.values())) == 1
    members = tuple(sorted(weights) if alike and table.find_merge(method).symmetric else weights)
    given = None if alike else tuple(weights[member] for member in members)
    described = [library.describe(member) for member in members]
    plan = merging.plan_described_merge(run.workspace, described, method, options, weights=given)
    # With the defaults: a composite that a run has from before one of them changed is another expert.
    told = {"method": method, "options": dict(plan.options), "weights": given}
    name = f"merged/{method}-{_hash_inputs(library, members, told)}"
    return Composite(name, method, dict(options), members, given, plan=replace(plan, id=name))


def few_shot_composite(
    run: Run,
    library: Library,
    method: str,
    task: str,
    options: Mapping[str, Any],
    experts: Sequence[str],
    shots: FewShotExamples,
) -> Composite:
    """Returns what LoraHub or fine-tuning will make of experts for a task, by some labelled rows of it."""
    rows = [[example.row_id, example.input, example.target] for example in shots.examples]
    depends_on = {"options": dict(options), "task": task, "rows": rows, **results_cache.reading_settings(run)}
    if method == LORAHUB:
        depends_on["objective"] = "loss / shots"  # what was fitted to another objective has another name
    name = f"merged/{method}-{_hash_inputs(library, experts, depends_on)}"
    return Composite(name, method, dict(options), tuple(experts), None, task)


def build_composite(run: Run, composite: Composite, shots: FewShotExamples | None = None) -> None:
    """Puts a composite among the run's, unless it is there; some need the rows that they are fitted to."""
    library = Library.open(run.workspace.composites, create=True)
    if composite.id in library:
        return
    if composite.method == LORAHUB:
        assert shots is not None
        expert = few_shot.fit_lorahub(
            run, composite.id, str(composite.task), composite.members, shots, composite.options
        )
        library.add(expert, replace=True)
        return
    if composite.method == FINETUNE:
        assert shots is not None
        task = task_selection.resolve_task(str(composite.task), run.source)
        expert = few_shot_training.finetune(
            run, composite.id, task, composite.members[0], shots, composite.options
        )
        library.add(expert, replace=True)
        return
    if composite.plan is None:
        raise ValueError(f"{composite.id!r} has no plan: it was chosen by another host")
    merging.run_merge(run, composite.plan)


def lorahub_selection(run: Run, composite: Composite) -> Selection:
    """Returns the weights that LoraHub found for a composite that was made."""
    recipe = Library.open(run.workspace.composites).spec(composite.id).recipe
    weights = dict(zip(recipe["merged_from"], recipe["weights"], strict=True))
    return Selection(str(composite.task), LORAHUB, weights, {}, tuple(recipe["shots"]))


def training_datasets(library: Library, composite: Composite) -> set[str]:
    """Returns what the members of a composite were trained on."""
    return {dataset for member in composite.members for dataset in library.spec(member).datasets}


def _hash_inputs(library: Library, members: Sequence[str], told: Mapping[str, Any]) -> str:
    checksums = {member: library.describe(member).checksum for member in members}
    return storage.fingerprint({**told, "members": list(members), "checksums": checksums})
