"""Agreement: whether experts fit together, so that they may be stacked or merged.

It is looked into before any arithmetic and, where they lie in files, before any parameter is read.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from elm_jax.errors import UserError
from elm_jax.records import ExpertSpec, Params

Shapes = Mapping[str, tuple[int, ...]]
"""Parameter path -> shape."""


def arrays_by_path(params: Params) -> dict[str, Any]:
    """Returns every parameter by its path, in the order of `jax.tree`.

    >>> leaves_of({"encoder": {"encoder_norm": {"scale": 1.0}}})
    {'encoder/encoder_norm/scale': 1.0}
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): value for path, value in leaves}


def shapes_by_path(params: Params) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter by its path.

    >>> shapes_of({"encoder": {"encoder_norm": {"scale": jax.numpy.ones(3)}}})
    {'encoder/encoder_norm/scale': (3,)}
    """
    return {path: tuple(value.shape) for path, value in arrays_by_path(params).items()}


def require_compatible(experts: Sequence[tuple[ExpertSpec, Shapes]]) -> None:
    """Passes if all experts are of one kind and one base, and own the same paths in the same shapes.

    Otherwise raises a UserError that names the first expert that differs from the first one, and in what:
    the path, the shape that was wanted and the shape that came.
    """
    if not experts:
        raise UserError("At least one expert is wanted, but none came.")
    first, wanted = experts[0]
    for spec, shapes in experts:
        if set(spec.paths) != set(shapes):
            differing = sorted(set(spec.paths) ^ set(shapes))
            raise UserError(
                f"Expert {spec.id!r} should hold exactly the parameters its spec names, but spec and "
                f"parameters differ in {differing[0]!r} ({len(differing)} in all). Let the spec name them."
            )
        for what, ours, theirs in (("kind", first.kind, spec.kind), ("base", first.base, spec.base)):
            if ours != theirs:
                raise UserError(
                    f"Experts of one {what} are wanted, but {first.id!r} has {what} {ours!r} and {spec.id!r} "
                    f"has {theirs!r}. Leave one of them out."
                )
        for path in sorted(set(wanted) | set(shapes)):
            if shapes.get(path) != wanted.get(path):
                raise UserError(
                    f"Experts of one shape are wanted, but {spec.id!r} {_holds(path, shapes)} where "
                    f"{first.id!r} {_holds(path, wanted)}. Leave one of them out, or train it anew."
                )


def _holds(path: str, shapes: Shapes) -> str:
    return f"holds {path} as {shapes[path]}" if path in shapes else f"holds no {path}"
