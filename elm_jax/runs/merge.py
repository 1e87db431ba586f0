"""`elm merge`: several experts of a run made one, which goes to the run's composites."""

from collections.abc import Sequence
from typing import Any

from elm_jax.library.store import Library
from elm_jax.merging import agreement, merger
from elm_jax.merging import plan as plans
from elm_jax.merging.plan import Plan
from elm_jax.records import Expert, Params
from elm_jax.runs.scores import home
from elm_jax.runs.workspace import Run, Workspace


def plan(
    workspace: Workspace,
    experts: Sequence[str],
    method: str = "average",
    *,
    weights: Sequence[float] | None = None,
    statistics: Sequence[Params] | None = None,
    id: str | None = None,
    **options: Any,
) -> Plan:
    """Returns the plan of a merge of experts by their ids, or raises what is wrong; no weight is read."""
    described = [home(workspace, expert).describe(expert) for expert in experts]
    return plans.plan(
        method,
        [(description.spec, description.shapes) for description in described],
        weights=weights,
        statistics=statistics and [agreement.shapes_of(tree) for tree in statistics],
        id=id,
        **options,
    )


def merge(
    run: Run,
    experts: Sequence[str],
    method: str = "average",
    *,
    weights: Sequence[float] | None = None,
    statistics: Sequence[Params] | None = None,
    id: str | None = None,
    **options: Any,
) -> Expert:
    """Merges experts of the library, or composites, into the workspace's composites and returns the result.

    Everything is as `merging.merger.merge` has it; the plan is judged before the weights of any expert are
    read.
    """
    plan(run.workspace, experts, method, weights=weights, statistics=statistics, id=id, **options)
    made = merger.merge(
        method,
        [home(run.workspace, expert).expert(expert, base=run.base.fingerprint) for expert in experts],
        weights=weights,
        base=run.base.params,
        statistics=statistics,
        id=id,
        **options,
    )
    Library.open(run.workspace.composites, create=True).add(made, replace=True)
    return made
