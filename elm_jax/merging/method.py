"""Merge method: what is registered about a way to merge; a merge is checked by it before it is computed."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from elm_jax.errors import UserError
from elm_jax.merging.parameter_groups import Form, ParameterGroup

Options = Mapping[str, Any]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class MergeOption:
    """An option of a merge method: a number or a text.

    Attributes:
        type: float (which takes whole numbers too), int or str.
        default: Its value if it is not given; None if leaving it out means something of its own.
        description: One line for lists of options.
        expected: The values that are valid, for the error message, as "a number from 0 to 1".
        is_valid: Says whether a value of the right type is valid.
        form: If set, the option is only for experts with parameter groups of this form.
    """

    type: type
    default: Any
    description: str = ""
    expected: str = ""
    is_valid: Callable[[Any], bool] = lambda value: True
    form: Form | None = None


def _unit_shared_factor(weights: tuple[float, ...], options: Options) -> float:
    del weights, options
    return 1.0


def _find_no_conflict(groups: Sequence[ParameterGroup], options: Options) -> str | None:
    del groups, options
    return None


@dataclass(frozen=True)
class MergeMethod:
    """A registered way to merge; `registry.register_merge` describes the fields.

    Attributes:
        combine: `combine(inputs, **options)` returns the merged leaves of a method on "parameters";
            `combine(changes, inputs, **options)` returns the merged change of one on "changes".
        works_on: What is merged.
        options: The options by name.
        symmetric: Whether the order of the experts makes no difference.
        weights_as_given: Whether weights are factors of any sign, rather than shares that sum to 1.
        needs_base: Whether the base's parameters are needed for groups of form "value".
        shared_factor: By what a change that all experts share is multiplied.
        find_conflict: Says why experts with these parameter groups cannot be merged; None if they can.
        statistics_shape: The shape of the statistics needed for a group, by the shape of its change.
        notes: What the merged expert's recipe says about groups of each form.
    """

    combine: Callable[..., Any]
    works_on: Literal["parameters", "changes"]
    options: Mapping[str, MergeOption] = field(default_factory=dict)
    symmetric: bool = True
    weights_as_given: bool = False
    needs_base: bool = False
    shared_factor: Callable[[tuple[float, ...], Options], float] = _unit_shared_factor
    find_conflict: Callable[[Sequence[ParameterGroup], Options], str | None] = _find_no_conflict
    statistics_shape: Callable[[ParameterGroup, Shape], Shape | None] | None = None
    notes: Mapping[Form, str] = field(default_factory=dict)

    @property
    def description(self) -> str:
        """One line for lists of methods: the first line of the function's docstring."""
        return (self.combine.__doc__ or "").strip().partition("\n")[0].removesuffix(".")


def require_option_value(name: str, option: MergeOption, value: Any) -> Any:
    """Returns an option's value; a whole number becomes a float if the option is one.

    Raises:
        UserError: If the value is of another type, not finite, or not valid.
    """
    if option.type is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    is_plain = type(value) is option.type and not (isinstance(value, float) and not math.isfinite(value))
    if not is_plain or not option.is_valid(value):
        expected = option.expected or f"a value of type {option.type.__name__}"
        raise UserError(f"Expected {expected} as option {name!r}, got {value!r}.")
    return value
