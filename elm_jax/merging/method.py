"""Method: what the table knows of a way to merge, so that a plan can be judged before any weight is read."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from elm_jax.errors import UserError
from elm_jax.merging.parts import Form, Part

Options = Mapping[str, Any]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Option:
    """A plain value that a method takes by name."""

    type: type  # float (which takes whole numbers too), int or str
    default: Any  # None where leaving it out means something of its own
    says: str  # what it does
    wants: str  # what fits, for the error
    fits: Callable[[Any], bool] = lambda value: True
    form: Form | None = None  # it concerns experts that have parts of this form alone


@dataclass(frozen=True)
class Method:
    """A way to merge.

    `combine` merges one piece. Of a method on "parameters" it is `combine(piece, **options)` and returns the
    merged leaves; of one on "changes" it is `combine(changes, piece, **options)`, takes the experts' ΔW in
    float32, each made when it is asked for, and returns the merged ΔW.
    """

    says: str  # one line for a list of methods
    on: Literal["parameters", "changes"]
    combine: Callable[..., Any]
    options: Mapping[str, Option] = field(default_factory=dict)
    symmetric: bool = True  # the order of the experts does not matter
    as_given: bool = False  # weights are factors of any sign, not shares
    needs_base: bool = False  # of parts that stand in place of the base's
    # By what a change that all experts share comes back multiplied.
    factor: Callable[[tuple[float, ...], Options], float] = lambda weights, options: 1.0
    # Why experts of these parts cannot be merged so, without the full stop; None if they can.
    refusal: Callable[[Sequence[Part], Options], str | None] = lambda parts, options: None
    # The shape of what it must know of data for a part, given the shape of its change (as [L, I, O] of LoRA),
    # None for nothing; a method that has no such function reads no statistics.
    reads: Callable[[Part, Shape], Shape | None] | None = None
    notes: Mapping[Form, str] = field(default_factory=dict)  # what the recipe says of parts of a form


def checked(name: str, option: Option, value: Any) -> Any:
    """Returns the option's value, or raises a UserError that says what was wanted and what came."""
    if option.type is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    plain = type(value) is option.type and not (isinstance(value, float) and not math.isfinite(value))
    if not plain or not option.fits(value):
        raise UserError(f"{option.wants} is wanted as option {name!r}, but {value!r} came.")
    return value
