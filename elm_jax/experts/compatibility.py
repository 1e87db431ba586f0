"""Compatibility: whether experts may be stacked or merged, by kind, base, paths and shapes.

It is checked before any arithmetic and, for experts in files, before any parameter is read.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence

from elm_jax.errors import UserError
from elm_jax.models import paths
from elm_jax.records import VOCABULARY, ExpertSpec, Params

Shapes = Mapping[str, tuple[int, ...]]
"""Parameter path -> shape."""


def shapes_by_path(params: Params) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter by its path.

    >>> import numpy as np
    >>> shapes_by_path({"encoder": {"encoder_norm": {"scale": np.ones(3)}}})
    {'encoder/encoder_norm/scale': (3,)}
    """
    return {path: tuple(value.shape) for path, value in paths.flatten(params).items()}


def group_by_kind_and_shapes(
    experts: Iterable[tuple[ExpertSpec, Shapes]],
) -> list[list[tuple[ExpertSpec, Shapes]]]:
    """Groups experts that may be stacked: those of one kind whose parameters have the same paths and shapes.

    Args:
        experts: The spec of every expert and the shapes of its parameters.

    Returns:
        The groups, in the order of their first members.
    """
    groups: dict[Hashable, list[tuple[ExpertSpec, Shapes]]] = {}
    for spec, shapes in experts:
        groups.setdefault((spec.kind, *sorted(shapes.items())), []).append((spec, shapes))
    return list(groups.values())


def require_compatible(experts: Sequence[tuple[ExpertSpec, Shapes]]) -> None:
    """Checks that all experts have one kind and one base, and the same paths with the same shapes.

    Args:
        experts: The spec of every expert and the shapes of its parameters.

    Raises:
        UserError: If there are none, or one differs from the first; it names the expert, the path and both
            shapes.
    """
    if not experts:
        raise UserError("Expected at least one expert, got none. Fix: name one.")
    first, expected = experts[0]
    for spec, shapes in experts:
        if set(spec.paths) != set(shapes):
            differing = sorted(set(spec.paths) ^ set(shapes))
            raise UserError(
                f"Expected the parameters of expert {spec.id!r} to be those that its spec names, got a "
                f"difference in {differing[0]!r} ({len(differing)} in all). Fix: name its paths in the spec."
            )
        for field, ours, theirs in (("kind", first.kind, spec.kind), ("base", first.base, spec.base)):
            if ours != theirs:
                raise UserError(
                    f"Expected experts of one {field}, got {ours!r} of {first.id!r} and {theirs!r} of "
                    f"{spec.id!r}. Fix: leave one of them out."
                )
        for path in sorted(set(expected) | set(shapes)):
            if shapes.get(path) != expected.get(path):
                raise UserError(
                    f"Expected {path} as {_describe_shape(path, expected)} in every expert, as in "
                    f"{first.id!r}, got {_describe_shape(path, shapes)} in {spec.id!r}. Fix: leave one of "
                    "them out, or train it again."
                )


def find_vocabulary(specs: Iterable[ExpertSpec]) -> str | None:
    """Returns the fingerprint of the vocabulary that experts were trained with; None if none of them says.

    Raises:
        UserError: If two experts name different ones.
    """
    known = [(spec, spec.recipe[VOCABULARY]) for spec in specs if VOCABULARY in spec.recipe]
    for spec, vocabulary in known:
        if vocabulary != known[0][1]:
            raise UserError(
                f"Expected experts of one vocabulary, got {known[0][1]!r} of {known[0][0].id!r} and "
                f"{vocabulary!r} of {spec.id!r}. Fix: leave one of them out."
            )
    return known[0][1] if known else None


def find_other_vocabularies(specs: Iterable[ExpertSpec], vocabulary: str) -> list[str]:
    """Returns the experts that say they were trained with another vocabulary."""
    return [spec.id for spec in specs if spec.recipe.get(VOCABULARY, vocabulary) != vocabulary]


def require_vocabulary(specs: Iterable[ExpertSpec], vocabulary: str) -> None:
    """Checks that experts were trained with a vocabulary; those of the first versions do not say.

    Raises:
        UserError: If some were trained with another one; it names them.
    """
    others = find_other_vocabularies(specs, vocabulary)
    if others:
        shown = ", ".join(map(repr, others[:5])) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        raise UserError(
            f"Expected experts that were trained with this run's vocabulary ({vocabulary}), got {shown}, "
            "trained with another. Fix: put the vocabulary back, or train them again."
        )


def _describe_shape(path: str, shapes: Shapes) -> str:
    return str(shapes[path]) if path in shapes else "absent"
