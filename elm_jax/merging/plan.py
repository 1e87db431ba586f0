"""Merge plan: a merge that was checked before any parameter is read: method, options, weights, experts.

A plan is made once, of specs and shapes, which a library tells without opening parameters, and then handed to
`merger.merge`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from elm_jax import names
from elm_jax.errors import UserError
from elm_jax.experts import compatibility
from elm_jax.experts.compatibility import Shapes
from elm_jax.merging import changes, table
from elm_jax.merging.method import MergeMethod, Options, require_option_value
from elm_jax.merging.parameter_groups import ParameterGroup, group_parameters
from elm_jax.records import ExpertSpec


@dataclass(frozen=True)
class MergePlan:
    """A merge that can be computed.

    Attributes:
        method_name: The method's registered name.
        method: The method.
        specs: The experts' specs.
        groups: Their parameter groups.
        weights: One per expert: shares that sum to 1, or as given if the method takes them so.
        shares: One per expert; they sum to 1, unless the weights have no positive sum.
        options: All options of the method.
        base_groups: The groups for which the base's parameters are needed.
        statistics_shapes: Path of a group -> shape of the statistics that are needed for it.
        id: What the merged expert is called; if None its id is made of what went in.
    """

    method_name: str
    method: MergeMethod
    specs: tuple[ExpertSpec, ...]
    groups: tuple[ParameterGroup, ...]
    weights: tuple[float, ...]
    shares: tuple[float, ...]
    options: Options
    base_groups: tuple[ParameterGroup, ...]
    statistics_shapes: Mapping[str, tuple[int, ...]]
    id: str | None = None

    def method_of(self, group: ParameterGroup) -> MergeMethod:
        """Returns how a group is merged: adapters by a method of their own if changes are merged."""
        if group.form == "adapter" and self.method.works_on == "changes":
            return table.find_merge(self.options["adapters"])
        return self.method


def plan_merge(
    method: str,
    experts: Sequence[tuple[ExpertSpec, Shapes]],
    options: Options | None = None,
    *,
    weights: Sequence[float] | None = None,
    id: str | None = None,
) -> MergePlan:
    """Checks a merge and returns its plan.

    Args:
        method: The name of a registered method.
        experts: The spec of each expert and the shapes of its parameters by path.
        options: Options of the method by name.
        weights: One per expert; alike by default.
        id: What the merged expert is called; by default the merge names it.

    Raises:
        UserError: If the method or an option does not exist; an option, a weight or the id is not valid; the
            experts differ in kind, base or shape; or the method cannot merge their kind.
    """
    merge_method = table.find_merge(method)
    compatibility.require_compatible(experts)
    specs = tuple(spec for spec, _ in experts)
    settings = require_mergeable(method, specs[0], options)
    groups = group_parameters(specs[0].paths)
    if id is not None:
        names.split_id(id)
    shapes = experts[0][1]
    statistics_shapes = {}
    for group in groups if merge_method.statistics_shape else ():
        change = changes.change_shape(group, [shapes[leaf] for leaf in group.leaves])
        if group.form == "adapter" or merge_method.statistics_shape is None:
            continue
        shape = merge_method.statistics_shape(group, change)
        if shape is not None:
            statistics_shapes[group.path] = shape
    factors = _require_weights(merge_method, specs, weights, settings)
    total = math.fsum(factors)
    shares = tuple(weight / total for weight in factors) if total > 0 else factors
    return MergePlan(
        method_name=method,
        method=merge_method,
        specs=specs,
        groups=groups,
        weights=factors if merge_method.weights_as_given else shares,
        shares=shares,
        options=settings,
        base_groups=tuple(group for group in groups if group.form == "value" and merge_method.needs_base),
        statistics_shapes=statistics_shapes,
        id=id,
    )


def require_mergeable(method: str, spec: ExpertSpec, options: Options | None = None) -> dict[str, Any]:
    """Checks that a method with these options can merge experts like this one; returns all its options.

    Raises:
        UserError: If the method or an option does not exist, an option is not valid, or the method cannot
            merge experts of this kind.
    """
    merge_method, groups = table.find_merge(method), group_parameters(spec.paths)
    settings = _complete_options(method, merge_method, spec.kind, groups, options or {})
    conflict = merge_method.find_conflict(groups, settings)
    adapters = [group for group in groups if group.form == "adapter"]
    if conflict is None and adapters and settings.get("adapters"):
        method = settings["adapters"]
        conflict = table.find_merge(method).find_conflict(adapters, {})
    if conflict is not None:
        able = [name for name, other in table.MERGES.items() if other.find_conflict(groups, {}) is None]
        raise UserError(
            f"Expected a merging method for {spec.kind!r} experts, got {method!r}, which cannot merge them: "
            f"{conflict}. Fix: use {' or '.join(filter(None, [', '.join(able[:-1]), able[-1]]))}."
        )
    return settings


def require_statistics(plan: MergePlan, statistics: Sequence[Shapes]) -> None:
    """Checks the statistics for a merge.

    Args:
        plan: The merge.
        statistics: For each expert the shapes of its statistics by path.

    Raises:
        UserError: If the method reads none, or if those of an expert are missing or of another shape.
    """
    if plan.method.statistics_shape is None:
        raise UserError(
            f"Expected no statistics for merging method {plan.method_name!r}, which reads none, got some. "
            "Fix: leave them out."
        )
    if len(statistics) != len(plan.specs):
        raise UserError(
            f"Expected statistics for {len(plan.specs)} experts, which {plan.method_name!r} merges by them, "
            f"got {len(statistics)}. Fix: take them with elm_jax.statistics.expert_statistics, or merge by "
            "'average', which needs none."
        )
    for spec, shapes in zip(plan.specs, statistics, strict=True):
        for path, shape in plan.statistics_shapes.items():
            if shapes.get(path) != shape:
                raise UserError(
                    f"Expected statistics of {spec.id!r} for {path} of shape {shape}, got "
                    f"{shapes.get(path, 'none')}. Fix: see elm_jax.statistics.moments for what "
                    f"{plan.method_name!r} reads."
                )


def _complete_options(
    name: str, method: MergeMethod, kind: str, groups: Sequence[ParameterGroup], options: Options
) -> dict[str, Any]:
    """Returns all options of a method: those given, and the defaults of the others."""
    settings = {known: option.default for known, option in method.options.items()}
    for known, value in options.items():
        where = f"the options of {name!r} ({', '.join(method.options) or 'it has none'})"
        option = method.options[names.resolve(known, method.options, kind="option", where=where)]
        if value is None:
            continue
        settings[known] = require_option_value(known, option, value)
        if option.form and not any(group.form == option.form for group in groups):
            raise UserError(
                f"Expected no option {known!r} for {kind!r} experts, got {value!r}. Fix: leave it out."
            )
    return settings


def _require_weights(
    method: MergeMethod, specs: Sequence[ExpertSpec], weights: Sequence[float] | None, settings: Options
) -> tuple[float, ...]:
    """Returns one weight per expert, 1 each by default."""
    factors = [1.0] * len(specs) if weights is None else [float(weight) for weight in weights]
    if len(factors) != len(specs):
        raise UserError(f"Expected one weight for each of {len(specs)} experts, got {len(factors)}.")
    may_be_negative = method.weights_as_given and settings.get("adapters") is None
    for spec, weight in zip(specs, factors, strict=True):
        if not math.isfinite(weight) or (weight < 0.0 and not may_be_negative):
            expected = "a finite weight" if may_be_negative else "a finite weight of at least 0"
            raise UserError(f"Expected {expected} for {spec.id!r}, got {weight}.")
    if not any(factors):
        raise UserError("Expected at least one weight above 0, got none.")
    if math.fsum(factors) <= 0.0 and settings.get("scale") is None:
        raise UserError(
            f"Expected weights of a sum above 0, to make a mean, got a sum of {math.fsum(factors)}. Fix: "
            "give the option 'scale', λ."
        )
    return tuple(factors)
