"""Merger: computes a planned merge of several experts.

Experts are merged tensor by tensor and layer by layer, in float32, and cast once at the end. Besides the
experts themselves only one layer of one parameter group is held in float32, and for most methods that of one
expert at a time, so that a whole library can be merged if it fits in memory once.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from elm_jax import storage
from elm_jax.data import identity
from elm_jax.errors import UserError
from elm_jax.experts import compatibility
from elm_jax.merging import changes
from elm_jax.merging.changes import ChangeLeaves
from elm_jax.merging.method import MergeMethod
from elm_jax.merging.parameter_groups import Form, MergeInputs, Network, ParameterGroup
from elm_jax.merging.plan import MergePlan, require_statistics
from elm_jax.models.paths import flatten, unflatten
from elm_jax.records import VOCABULARY, Expert, ExpertSpec, Params

FlatParams = Mapping[str, Any]


@dataclass(frozen=True)
class _MergeInputs:
    """What a merge reads, by path: the experts of weight above 0, their statistics, and the base."""

    numbers: Sequence[int]  # of these experts in the plan
    params: Sequence[FlatParams]
    statistics: Sequence[FlatParams] | None
    base: FlatParams


def merge(
    plan: MergePlan,
    experts: Sequence[Expert],
    *,
    base: Params | None = None,
    statistics: Sequence[Params] | None = None,
) -> Expert:
    """Merges experts into one.

    An expert of weight 0 has no influence. If all experts are the same expert, it comes back as it is,
    whatever the method.

    Args:
        plan: The merge, as `plan.plan_merge` returns it.
        experts: The planned experts, in the plan's order.
        base: The parameters of the experts' base, if the plan needs any.
        statistics: One tree per expert, as `statistics.moments` describes them, if the method reads them.

    Returns:
        The merged expert, in the experts' type (the widest, if they differ). Its id is the plan's, or
        `merged/<method>-` and a fingerprint of what went in. It counts as trained on every dataset that any
        of the experts was trained on, and as many steps as the longest trained. Its recipe has `method`,
        `merged_from`, `weights`, the `options`, fingerprints of the `statistics`, a `note` on what was
        combined and, for LoRA whose ΔW was merged, the relative `error` (Frobenius, over all kernels) of
        writing ΔW with its rank.

    Raises:
        UserError: Before any arithmetic, if statistics or the base are missing or of another shape.
    """
    ids = [expert.spec.id for expert in experts]
    if ids != [spec.id for spec in plan.specs]:
        raise ValueError(f"the plan is for {[spec.id for spec in plan.specs]}, not for {ids}")
    if statistics is not None or plan.method.statistics_shape is not None:
        require_statistics(plan, [compatibility.shapes_by_path(tree) for tree in statistics or ()])
    shapes = compatibility.shapes_by_path(experts[0].params)
    numbers = [number for number, weight in enumerate(plan.weights) if weight]
    params = [flatten(experts[number].params) for number in numbers]
    read = None if statistics is None else [flatten(statistics[number]) for number in numbers]
    types = {path: jnp.result_type(*(flat[path] for flat in params)) for path in params[0]}
    are_equal = _are_equal(params)
    if are_equal:
        numbers, params = numbers[:1], params[:1]
    sources = _MergeInputs(numbers, params, read, _require_base(plan, base, shapes))
    stays_unchanged = are_equal and _keeps_shared_change(plan, shapes)
    network = Network(lambda: _iterate_changes(plan, sources))
    merged: dict[str, np.ndarray] = {}
    squared_error = squared_norm = 0.0
    for group in plan.groups:
        layers = []
        for inputs in _iterate_layers(plan, group, sources):
            written = (
                ChangeLeaves(inputs.values[0])
                if stays_unchanged
                else _merge_layer(plan, replace(inputs, network=network), are_equal=are_equal)
            )
            layers.append(
                [leaf.astype(types[path]) for path, leaf in zip(group.leaves, written.leaves, strict=True)]
            )
            squared_error += written.squared_error
            squared_norm += written.squared_norm
        for number, leaf in enumerate(group.leaves):
            merged[leaf] = np.stack([own[number] for own in layers]) if group.stacked else layers[0][number]
    fingerprints = None if read is None else [storage.array_fingerprint(tree) for tree in read]
    error = round(math.sqrt(squared_error / squared_norm), 6) if squared_norm else None
    return Expert(_describe_merged(plan, fingerprints, error), unflatten(merged))


def _require_base(plan: MergePlan, base: Params | None, shapes: compatibility.Shapes) -> FlatParams:
    """Returns the base's parameters that the plan needs, by path."""
    if not plan.base_groups:
        return {}
    if base is None:
        raise UserError(
            f"Expected the base's parameters, by which {plan.method_name!r} merges {plan.specs[0].kind!r} "
            "experts, got none. Fix: give them as 'base'."
        )
    flat = flatten(base)
    for group in plan.base_groups:
        shape = tuple(flat[group.path].shape) if group.path in flat else "none"
        if shape != shapes[group.path]:
            raise UserError(
                f"Expected {group.path} of the base in shape {shapes[group.path]}, as the experts have it, "
                f"got {shape}. Fix: give the base that they were trained on."
            )
    return {group.path: flat[group.path] for group in plan.base_groups}


def _are_equal(params: Sequence[FlatParams]) -> bool:
    first, *others = params
    return all(np.array_equal(first[path], other[path]) for other in others for path in first)


def _keeps_shared_change(plan: MergePlan, shapes: compatibility.Shapes) -> bool:
    """Says whether a change that all experts share is neither scaled nor written with another rank."""
    ranks = {shapes[group.leaves[0]][-1] for group in plan.groups if group.form == "lora"}
    rank = plan.options.get("rank")
    return plan.method.shared_factor(plan.weights, plan.options) == 1.0 and (rank is None or ranks == {rank})


def _iterate_layers(plan: MergePlan, group: ParameterGroup, sources: _MergeInputs) -> Iterator[MergeInputs]:
    """Yields what the merge method gets for each layer of a group; once if the group is not stacked."""
    values = [tuple(np.asarray(flat[leaf]) for leaf in group.leaves) for flat in sources.params]
    base = np.asarray(sources.base[group.path]) if group.path in sources.base else None
    read = sources.statistics if group.path in plan.statistics_shapes else None
    statistics = None if read is None else [np.asarray(tree[group.path]) for tree in read]
    weights = plan.weights if plan.method_of(group) is plan.method else plan.shares
    for layer in range(len(values[0][0])) if group.stacked else [None]:
        at = () if layer is None else layer
        yield MergeInputs(
            group=group,
            layer=layer,
            expert_ids=[plan.specs[number].id for number in sources.numbers],
            weights=[weights[number] for number in sources.numbers],
            values=[tuple(leaf[at] for leaf in leaves) for leaves in values],
            base=None if base is None else base[at],
            statistics=None if statistics is None else [tree[at] for tree in statistics],
        )


def _iterate_changes(
    plan: MergePlan, sources: _MergeInputs
) -> Iterator[tuple[Sequence[np.ndarray], MergeInputs]]:
    """Yields every layer whose change goes by the plan's method, with its changes."""
    for group in plan.groups:
        if plan.method_of(group) is plan.method and plan.method.works_on == "changes":
            for inputs in _iterate_layers(plan, group, sources):
                yield changes.compute_changes(inputs), inputs


def _merge_layer(plan: MergePlan, inputs: MergeInputs, *, are_equal: bool) -> ChangeLeaves:
    """Returns the merged leaves of one layer of a group."""
    method = plan.method_of(inputs.group)
    if method.works_on == "parameters":
        if are_equal:
            return ChangeLeaves(inputs.values[0])
        options = {name: plan.options[name] for name in method.options}
        return ChangeLeaves(method.combine(inputs, **options))
    options = {name: plan.options[name] for name in method.options if name not in changes.OPTIONS}
    expert_changes = changes.compute_changes(inputs)
    if are_equal:
        factor = method.shared_factor(plan.weights, plan.options)
        change = np.float32(factor) * expert_changes[0]
    else:
        change = method.combine(expert_changes, inputs, **options)
    return changes.write_change(inputs, change, plan.options.get("rank"))


def _describe_merged(plan: MergePlan, fingerprints: Sequence[str] | None, error: float | None) -> ExpertSpec:
    """Returns the merged expert's spec."""
    first = plan.specs[0]
    options = {name: value for name, value in plan.options.items() if value is not None}
    recipe: dict[str, Any] = {
        "method": plan.method_name,
        "merged_from": [spec.id for spec in plan.specs],
        "weights": list(plan.weights),
        **({"options": options} if options else {}),
        **({} if fingerprints is None else {"statistics": fingerprints}),
    }
    default_id = f"merged/{plan.method_name}-{storage.fingerprint({'base': first.base, **recipe})}"
    vocabulary = compatibility.find_vocabulary(plan.specs)
    methods: dict[Form, MergeMethod] = {group.form: plan.method_of(group) for group in plan.groups}
    notes = [method.notes[form] for form, method in methods.items() if form in method.notes]
    return ExpertSpec(
        id=plan.id or default_id,
        kind=first.kind,
        base=first.base,
        paths=first.paths,
        datasets=tuple(sorted({dataset for spec in plan.specs for dataset in spec.datasets})),
        steps=max(spec.steps for spec in plan.specs),
        recipe=recipe
        | ({} if vocabulary is None else {VOCABULARY: vocabulary})
        | identity.merge_identities([spec.recipe for spec in plan.specs])
        | ({"note": " ".join(notes)} if notes else {})
        | ({} if error is None else {"error": error}),
    )
