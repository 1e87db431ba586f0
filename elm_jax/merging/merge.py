"""`elm merge`: merges several experts of a run into one, which is added to the run's composites."""

from collections.abc import Mapping, Sequence
from typing import Any

from elm_jax import ranges, storage
from elm_jax.experts import compatibility
from elm_jax.experts.files import ExpertDescription
from elm_jax.experts.library import Library
from elm_jax.experts.lookup import library_finder, remove_leftovers
from elm_jax.merging import merger
from elm_jax.merging.plan import MergePlan, plan_merge, require_statistics
from elm_jax.records import Expert, Params
from elm_jax.session import opening, settings
from elm_jax.session.workspace import Run, Workspace
from elm_jax.statistics import expert_statistics
from elm_jax.tasks import data_source


def merge(
    run: Run | storage.PathLike,
    experts: Sequence[str],
    method: str = "average",
    *,
    options: Mapping[str, Any] | None = None,
    weights: Sequence[float] | None = None,
    statistics: Sequence[Params] | None = None,
    id: str | None = None,
    rows: int = expert_statistics.STATISTICS_ROWS,
) -> Expert:
    """Merges experts into one, adds it to the run's composites and returns it.

    Args:
        run: An open run, or its directory.
        experts: Ids of experts of the library or of composites.
        method: The name of a registered method; `elm_jax.merging.table` lists the built-in ones with their
            sources. "average" is that of Jang et al. 2023 (arXiv 2302.03202).
        options: Options of the method by name.
        weights: One per expert; alike by default.
        statistics: One tree per expert, for methods that read statistics of data; by default they are taken
            of the experts' training rows.
        id: What the merged expert is called; by default the merge names it.
        rows: How many training rows of an expert statistics are taken of.

    Returns:
        The merged expert.

    Raises:
        UserError: Before any parameter is read, for a method or an option that does not exist, and for
            experts that differ in base, kind or shape.
    """
    run = opening.ensure_open(run)
    plan = plan_run_merge(
        run.workspace, experts, method, options, weights=weights, statistics=statistics, id=id
    )
    expert_statistics.check_inputs(run, experts)
    return run_merge(run, plan, statistics=statistics, rows=rows)


def plan_run_merge(
    workspace: Workspace,
    experts: Sequence[str],
    method: str = "average",
    options: Mapping[str, Any] | None = None,
    *,
    weights: Sequence[float] | None = None,
    statistics: Sequence[Params] | None = None,
    id: str | None = None,
) -> MergePlan:
    """Checks a merge of experts of a run and returns its plan; no parameter is read. Arguments as `merge`.

    Raises:
        UserError: As `merge` does; and if statistics are needed, none are given, and the run does not know
            what the experts were trained on.
    """
    opening.load_task_files(workspace)  # they may register the method
    home_of = library_finder(workspace)
    descriptions = [home_of(expert).describe(expert) for expert in experts]
    if statistics is None:
        return plan_described_merge(workspace, descriptions, method, options, weights=weights, id=id)
    pairs = [(description.spec, description.shapes) for description in descriptions]
    plan = plan_merge(method, pairs, options, weights=weights, id=id)
    require_statistics(plan, [compatibility.shapes_by_path(tree) for tree in statistics])
    return plan


def plan_described_merge(
    workspace: Workspace,
    descriptions: Sequence[ExpertDescription],
    method: str,
    options: Mapping[str, Any] | None = None,
    *,
    weights: Sequence[float] | None = None,
    id: str | None = None,
) -> MergePlan:
    """Returns the plan of a merge of experts that are described already. Arguments and errors as `merge`."""
    pairs = [(description.spec, description.shapes) for description in descriptions]
    plan = plan_merge(method, pairs, options, weights=weights, id=id)
    if plan.method.statistics_shape is not None:
        source = data_source.Source(**settings.load_run_settings(workspace)["source"])
        expert_statistics.require_computable(method, plan.specs, source)
    return plan


def run_merge(
    run: Run,
    plan: MergePlan,
    *,
    statistics: Sequence[Params] | None = None,
    rows: int = expert_statistics.STATISTICS_ROWS,
) -> Expert:
    """Computes a planned merge, adds the merged expert to the run's composites and returns it."""
    ranges.require("rows", rows, ranges.whole(1))
    remove_leftovers(run.workspace)
    experts = [spec.id for spec in plan.specs]
    compatibility.require_vocabulary(plan.specs, run.tokenizer.fingerprint)
    if statistics is None and plan.method.statistics_shape is not None:
        shapes = plan.statistics_shapes
        statistics = expert_statistics.load_merge_statistics(
            run, experts, plan.method_name, shapes, rows=rows
        )
    home_of = library_finder(run.workspace)
    merged = merger.merge(
        plan,
        [home_of(expert).load_expert(expert, base=run.base.fingerprint) for expert in experts],
        base=run.base.params,
        statistics=statistics,
    )
    Library.open(run.workspace.composites, create=True).add(merged, replace=True)
    return merged
