"""Merger: several experts made one, by a plan.

Experts are merged tensor by tensor and layer by layer, in float32, and cast once at the end; beside the
experts themselves only one layer of one part is held in float32, and of most methods that of one expert at a
time, so that a whole library can be merged where it can be held once.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.experts import compatibility
from elm_jax.merging import changes
from elm_jax.merging.method import Method
from elm_jax.merging.parts import Form, Part, Piece
from elm_jax.merging.plan import Plan, lacking, plan
from elm_jax.models import paths
from elm_jax.records import Expert, ExpertSpec, Params

Flat = Mapping[str, Any]


def merge(
    method: str,
    experts: Sequence[Expert],
    *,
    weights: Sequence[float] | None = None,
    base: Params | None = None,
    statistics: Sequence[Params] | None = None,
    id: str | None = None,
    **options: Any,
) -> Expert:
    """Returns one expert made of several by the method of that name; `table` lists them.

    `weights` are one an expert, normalised to sum to 1 unless the method takes them as given, and alike
    without them. An expert of weight 0 plays no part. `base` is the parameters of the experts' base, for
    methods that work on what is changed in it; `statistics` are what `statistics` says, one tree an expert.
    Experts that all are one and the same come back as they are, whatever the method.

    The result has the experts' type (the widest, if they differ). Its id is `id`, or `merged/<method>-` and a
    fingerprint of what went in. It counts as trained on every dataset that any of the experts was trained on,
    and as many steps as the longest trained. Its recipe has `method`, `merged_from`, `weights`, the
    `options`, fingerprints of the `statistics`, a `note` on what was combined and, of LoRA whose ΔW was
    merged, the relative `error` (Frobenius, over all kernels) of writing that with the rank it has.

    Raises a UserError, before any arithmetic, as `plan` does, if statistics are missing, or if the base
    is missing or of another shape.
    """
    shapes = [compatibility.shapes_by_path(expert.params) for expert in experts]
    known = None if statistics is None else [paths.flatten(tree) for tree in statistics]
    made = plan(
        method,
        [(expert.spec, own) for expert, own in zip(experts, shapes, strict=True)],
        weights=weights,
        statistics=None if known is None else [compatibility.shapes_by_path(tree) for tree in known],
        id=id,
        **options,
    )
    if made.method.reads is not None and known is None:
        raise lacking(method, len(experts), "none")
    of_base = _base(made, base, shapes[0])
    playing = [number for number, weight in enumerate(made.weights) if weight]
    flats = [paths.flatten(experts[number].params) for number in playing]
    known = None if known is None else [known[number] for number in playing]
    alike = _alike(flats)
    types = {path: jnp.result_type(*(flat[path] for flat in flats)) for path in flats[0]}
    if alike:
        playing, flats = playing[:1], flats[:1]
    whole = alike and _unchanged(made, shapes[0])
    merged: dict[str, np.ndarray] = {}
    lost = size = 0.0
    for part in made.parts:
        pieces = _pieces(made, part, playing, flats, of_base, known)
        layers = []
        for piece in pieces:
            leaves, off, of = (piece.values[0], 0.0, 0.0) if whole else _merged(made, piece, alike)
            layers.append([leaf.astype(types[path]) for path, leaf in zip(part.leaves, leaves, strict=True)])
            lost, size = lost + off, size + of
        for number, leaf in enumerate(part.leaves):
            merged[leaf] = np.stack([own[number] for own in layers]) if part.stacked else layers[0][number]
    read = {} if known is None else {"statistics": [storage.array_fingerprint(tree) for tree in known]}
    error = round(math.sqrt(lost / size), 6) if size else None
    return Expert(_spec(made, read, error), paths.unflatten(merged))


def _base(made: Plan, base: Params | None, shapes: compatibility.Shapes) -> Flat:
    """Returns the base's parameters that the plan needs, by path."""
    if not made.based:
        return {}
    if base is None:
        raise UserError(
            f"Method {made.name!r} wants the base's parameters to merge {made.specs[0].kind!r} experts, but "
            "none came. Give them as 'base'."
        )
    of_base = paths.flatten(base)
    for part in made.based:
        came = tuple(of_base[part.path].shape) if part.path in of_base else "nothing"
        if came != shapes[part.path]:
            raise UserError(
                f"The base should hold {part.path} as {shapes[part.path]}, as its experts do, but it holds "
                f"{came}. Give the base that they were trained on."
            )
    return {part.path: of_base[part.path] for part in made.based}


def _alike(flats: Sequence[Flat]) -> bool:
    first, *others = flats
    return all(np.array_equal(first[path], other[path]) for other in others for path in first)


def _unchanged(made: Plan, shapes: compatibility.Shapes) -> bool:
    """Says whether experts that are alike come back as they are: neither scaled nor of another rank."""
    ranks = {shapes[part.leaves[0]][-1] for part in made.parts if part.form == "lora"}
    asked = made.options.get("rank")
    return made.method.factor(made.weights, made.options) == 1.0 and (asked is None or ranks == {asked})


def _pieces(
    made: Plan,
    part: Part,
    playing: Sequence[int],
    flats: Sequence[Flat],
    of_base: Flat,
    known: Sequence[Flat] | None,
) -> Iterator[Piece]:
    """Yields the layers of a part."""
    values = [tuple(np.asarray(flat[leaf]) for leaf in part.leaves) for flat in flats]
    base = np.asarray(of_base[part.path]) if part.path in of_base else None
    read = known if part.path in made.reads else None
    statistics = None if read is None else [np.asarray(tree[part.path]) for tree in read]
    weights = made.weights if made.method_of(part) is made.method else made.shares
    for layer in range(len(values[0][0])) if part.stacked else [None]:
        at = () if layer is None else layer
        yield Piece(
            part=part,
            layer=layer,
            owners=[made.specs[number].id for number in playing],
            weights=[weights[number] for number in playing],
            values=[tuple(leaf[at] for leaf in leaves) for leaves in values],
            base=None if base is None else base[at],
            statistics=None if statistics is None else [tree[at] for tree in statistics],
        )


def _merged(made: Plan, piece: Piece, alike: bool) -> tuple[Sequence[np.ndarray], float, float]:
    """Returns a piece's merged leaves, and for LoRA's ΔW how much is lost and of what, squared."""
    method = made.method_of(piece.part)
    if method.on == "parameters" and alike:
        return piece.values[0], 0.0, 0.0
    if method.on == "parameters":
        return method.combine(piece, **{name: made.options[name] for name in method.options}), 0.0, 0.0
    own = {name: made.options[name] for name in method.options if name not in changes.OPTIONS}
    every = changes.of(piece)
    if alike:
        change = np.float32(method.factor(made.weights, made.options)) * every[0]
    else:
        change = method.combine(every, piece, **own)
    return changes.back(piece, change, made.options["rank"])


def _spec(made: Plan, read: Mapping[str, Any], error: float | None) -> ExpertSpec:
    first = made.specs[0]
    options = {name: value for name, value in made.options.items() if value is not None}
    recipe: dict[str, Any] = {
        "method": made.name,
        "merged_from": [spec.id for spec in made.specs],
        "weights": list(made.weights),
        **({"options": options} if options else {}),
        **read,
    }
    made_id = f"merged/{made.name}-{storage.fingerprint({'base': first.base, **recipe})}"
    methods: dict[Form, Method] = {part.form: made.method_of(part) for part in made.parts}
    notes = [method.notes[form] for form, method in methods.items() if form in method.notes]
    return ExpertSpec(
        id=made.id or made_id,
        kind=first.kind,
        base=first.base,
        paths=first.paths,
        datasets=tuple(sorted({dataset for spec in made.specs for dataset in spec.datasets})),
        steps=max(spec.steps for spec in made.specs),
        recipe=recipe
        | ({"note": " ".join(notes)} if notes else {})
        | ({} if error is None else {"error": error}),
    )
