"""Plan: a merge judged before any weight is read: method, options, weights, and whether experts fit.

It sees specs and shapes alone, which is what a library tells of experts without opening their parameters.
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
from elm_jax.merging.method import Method, checked
from elm_jax.merging.parts import Part, parts_of
from elm_jax.records import ExpertSpec


@dataclass(frozen=True)
class Plan:
    """A merge that makes sense."""

    name: str
    method: Method
    specs: tuple[ExpertSpec, ...]
    parts: tuple[Part, ...]
    weights: tuple[float, ...]  # one an expert: shares, or as given where the method takes them so
    shares: tuple[float, ...]  # one an expert, summing to 1 wherever there can be shares
    options: Mapping[str, Any]  # every option of the method
    based: tuple[Part, ...]  # the parts for which the base's parameters are needed
    reads: Mapping[str, tuple[int, ...]]  # path of a part -> shape of the statistics that it needs
    id: str | None

    def method_of(self, part: Part) -> Method:
        """Returns how a part is merged: adapters by a method of their own where changes are merged."""
        if part.form == "adapter" and self.method.on == "changes":
            return table.find(self.options["adapters"])
        return self.method


def plan(
    method: str,
    experts: Sequence[tuple[ExpertSpec, Shapes]],
    *,
    weights: Sequence[float] | None = None,
    statistics: Sequence[Shapes] | None = None,
    id: str | None = None,
    **options: Any,
) -> Plan:
    """Returns the plan of a merge by the method of that name.

    `weights` are one an expert, alike without them; `statistics` are the shapes of what `regmean` and
    `fisher` read, one table an expert, or None where they are yet to be taken as `reads` says; `id` is what
    the merged expert is to be called.

    Raises a UserError for an unknown method or option, an option, weight or id that does not fit, experts
    that are not of one kind, base and shape, a kind that the method cannot merge, and statistics that are
    misshapen, not of every expert, or not wanted.
    """
    chosen = table.find(method)
    compatibility.require_compatible(experts)
    specs = tuple(spec for spec, _ in experts)
    parts = parts_of(specs[0].paths)
    settings = _options(method, chosen, specs[0].kind, parts, options)
    _require_sense(method, chosen, specs[0].kind, parts, settings)
    if id is not None:
        names.split_id(id)
    shapes = experts[0][1]
    reads = {}
    for part in parts if chosen.reads else ():
        change = changes.shape_of(part, [shapes[leaf] for leaf in part.leaves])
        wanted = chosen.reads(part, change) if chosen.reads and part.form != "adapter" else None
        if wanted is not None:
            reads[part.path] = wanted
    _require_statistics(method, chosen, specs, reads, statistics)
    based = tuple(part for part in parts if part.form == "value" and chosen.needs_base)
    given = _weights(chosen, specs, weights, settings)
    total = math.fsum(given)
    shares = tuple(weight / total for weight in given) if total > 0 else given
    return Plan(
        name=method,
        method=chosen,
        specs=specs,
        parts=parts,
        weights=given if chosen.as_given else shares,
        shares=shares,
        options=settings,
        based=based,
        reads=reads,
        id=id,
    )


def _options(
    name: str, method: Method, kind: str, parts: Sequence[Part], given: Mapping[str, Any]
) -> dict[str, Any]:
    settings = {known: option.default for known, option in method.options.items()}
    for known, value in given.items():
        where = f"the options of {name!r} ({', '.join(method.options) or 'it has none'})"
        option = method.options[names.resolve(known, method.options, kind="option", where=where)]
        if value is None:
            continue
        settings[known] = checked(known, option, value)
        if option.form and not any(part.form == option.form for part in parts):
            raise UserError(f"Option {known!r} makes no sense for {kind!r} experts. Leave it out.")
    return settings


def _require_sense(
    name: str, method: Method, kind: str, parts: Sequence[Part], settings: Mapping[str, Any]
) -> None:
    reason = method.refusal(parts, settings)
    adapters = [part for part in parts if part.form == "adapter"]
    if reason is None and adapters and settings.get("adapters"):
        name = settings["adapters"]
        reason = table.find(name).refusal(adapters, {})
    if reason is not None:
        able = [other for other, known in table.METHODS.items() if known.refusal(parts, {}) is None]
        raise UserError(
            f"A method that can merge {kind!r} experts is wanted, but {name!r} cannot: {reason}. "
            f"Use {' or '.join(filter(None, [', '.join(able[:-1]), able[-1]]))}."
        )


def _weights(
    method: Method,
    specs: Sequence[ExpertSpec],
    weights: Sequence[float] | None,
    settings: Mapping[str, Any],
) -> tuple[float, ...]:
    given = [1.0] * len(specs) if weights is None else [float(weight) for weight in weights]
    if len(given) != len(specs):
        raise UserError(f"One weight an expert is wanted, but {len(given)} came for {len(specs)} experts.")
    for spec, weight in zip(specs, given, strict=True):
        signed = method.as_given and settings.get("adapters") is None
        if not math.isfinite(weight) or (weight < 0.0 and not signed):
            least = "that is a finite number" if signed else "of at least 0"
            raise UserError(f"A weight {least} is wanted for {spec.id!r}, but {weight} came.")
    if not any(given):
        raise UserError("At least one weight above 0 is wanted, but all of them are 0.")
    if math.fsum(given) <= 0.0 and settings.get("scale") is None:
        raise UserError(
            f"Weights of a sum above 0 are wanted to make a mean, but their sum is {math.fsum(given)}. "
            "Give 'scale', λ."
        )
    return tuple(given)


def _require_statistics(
    name: str,
    method: Method,
    specs: Sequence[ExpertSpec],
    reads: Mapping[str, tuple[int, ...]],
    statistics: Sequence[Shapes] | None,
) -> None:
    if statistics is None:
        return
    if method.reads is None:
        raise UserError(f"Method {name!r} reads no statistics, but some came. Leave them out.")
    if len(statistics) != len(specs):
        raise lacking(name, len(specs), str(len(statistics)))
    for spec, shapes in zip(specs, statistics, strict=True):
        for path, shape in reads.items():
            if shapes.get(path) != shape:
                raise UserError(
                    f"Method {name!r} wants statistics of {spec.id!r} for {path} as {shape}, but "
                    f"{shapes.get(path, 'nothing')} came. See elm_jax.statistics.moments."
                )


def lacking(name: str, wanted: int, came: str) -> UserError:
    """Returns what says that a method lacks statistics."""
    return UserError(
        f"Method {name!r} wants statistics of the data of every one of {wanted} experts, but {came} came. "
        "elm_jax.statistics.expert_statistics takes them of a run's experts; 'average' needs none."
    )
