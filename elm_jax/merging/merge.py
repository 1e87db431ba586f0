"""`elm merge`: several experts of a run made one, which goes to the run's composites."""

from collections.abc import Sequence
from typing import Any

from elm_jax import storage
from elm_jax.experts import agreement
from elm_jax.experts.library import Library
from elm_jax.experts.lookup import homes
from elm_jax.merging import merger
from elm_jax.merging import plan as plans
from elm_jax.merging.plan import Plan
from elm_jax.records import Expert, Params
from elm_jax.session import opening, settings
from elm_jax.session.workspace import Run, Workspace
from elm_jax.statistics import expert_statistics as of_data
from elm_jax.tasks import data_source


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
    """Returns the plan of a merge of experts by their ids, or raises what is wrong; no weight is read.

    Statistics that a method wants and that did not come can be computed where the run knows what the experts
    were trained on; where it does not, that is a UserError.
    """
    home_of = homes(workspace)
    described = [home_of(expert).describe(expert) for expert in experts]
    made = plans.plan(
        method,
        [(description.spec, description.shapes) for description in described],
        weights=weights,
        statistics=None if statistics is None else [agreement.shapes_of(tree) for tree in statistics],
        id=id,
        **options,
    )
    if made.method.reads is not None and statistics is None:
        source = data_source.Source(**settings.remembered(workspace)["source"])
        for spec in made.specs:
            of_data.trained_on(spec, source)
    return made


def merge(
    run: Run | storage.PathLike,
    experts: Sequence[str],
    method: str = "average",
    *,
    weights: Sequence[float] | None = None,
    statistics: Sequence[Params] | None = None,
    id: str | None = None,
    rows: int = of_data.ROWS,
    **options: Any,
) -> Expert:
    """Merges experts by their ids into one, which goes to the run's composites; returns it.

    `run` is a run that is open, or its directory. `experts` are of the library, or composites themselves.
    `method` is one of `elm_jax.merging.table`, where each names its source, and further `options` are its
    own. `weights` are one number an expert, alike without them, as in the average of Jang et al. 2023.
    `id` is what the merged expert is called. `statistics` are what some methods know of data, a tree an
    expert; if none came they are taken of `rows` of every expert's training rows.

    Raises a UserError, before any parameter is read, for a method or option that does not exist, and for
    experts that do not fit one another: of another base, kind or shape.
    """
    run = opening.opened(run)
    made = plan(run.workspace, experts, method, weights=weights, statistics=statistics, id=id, **options)
    if statistics is None and made.method.reads is not None:
        statistics = of_data.of_method(run, experts, method, made.reads, rows=rows)
    home_of = homes(run.workspace)
    merged = merger.merge(
        method,
        [home_of(expert).expert(expert, base=run.base.fingerprint) for expert in experts],
        weights=weights,
        base=run.base.params,
        statistics=statistics,
        id=id,
        **options,
    )
    Library.open(run.workspace.composites, create=True).add(merged, replace=True)
    return merged
