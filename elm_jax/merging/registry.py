"""Registry: the merge methods by name, and the decorator that adds one."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from elm_jax import names
from elm_jax.errors import UserError
from elm_jax.merging import changes
from elm_jax.merging.method import MergeMethod, MergeOption, Options, Shape
from elm_jax.merging.parameter_groups import Form, ParameterGroup

Function = TypeVar("Function", bound=Callable[..., Any])

MERGES: dict[str, MergeMethod] = {}
"""Every registered merge method by name; only `register_merge` writes to it."""


def register_merge(
    name: str,
    *,
    works_on: Literal["parameters", "changes"] = "changes",
    options: Mapping[str, MergeOption] | None = None,
    symmetric: bool = True,
    weights_as_given: bool = False,
    needs_base: bool | None = None,
    shared_factor: Callable[[tuple[float, ...], Options], float] | None = None,
    find_conflict: Callable[[Sequence[ParameterGroup], Options], str | None] | None = None,
    statistics_shape: Callable[[ParameterGroup, Shape], Shape | None] | None = None,
    notes: Mapping[Form, str] | None = None,
) -> Callable[[Function], Function]:
    """Registers a function as a way to merge experts, under a name that all verbs then know.

    The function merges one layer of one parameter group and is called for each of them. The first line of
    its docstring describes the method in lists.

        @elm_jax.register_merge("largest")
        def merge_largest(changes, inputs, *, scale: float = 1.0):
            '''The change that is largest, value by value.'''
            stacked = np.stack(list(changes))
            winner = np.abs(stacked).argmax(axis=0)[None]
            return scale * np.take_along_axis(stacked, winner, axis=0)[0]

    Args:
        name: How users call it.
        works_on: With "changes" the function is `(changes, inputs, *, ...) -> merged change`, where
            `changes` are the experts' ΔW in float32; adapters are merged as the option `adapters` says, and
            LoRA gets the `rank` of that option. With "parameters" it is
            `(inputs, *, ...) -> merged leaves`. `inputs` is a `parameter_groups.MergeInputs`.
        options: The options by name. By default they are the function's keyword arguments with defaults, and
            on changes also `rank` and `adapters`.
        symmetric: Whether the order of the experts makes no difference.
        weights_as_given: Whether weights may be of any sign and are not divided by their sum.
        needs_base: Whether the base's parameters are needed; by default for methods on changes. Without
            them the change of a full expert's parameter is the parameter itself.
        shared_factor: `(weights, options) -> factor` by which a change that all experts share is multiplied;
            default 1.
        find_conflict: `(groups, options) -> reason` why experts with these parameter groups cannot be
            merged, or None if they can; by default methods on changes refuse adapters without `adapters`.
        statistics_shape: `(group, shape of its change) -> shape` of the statistics that are needed for a
            group, or None if none are.
        notes: Form of a group -> what the merged expert's recipe says about it.

    Returns:
        The decorator, which returns the function as it is.

    Raises:
        UserError: If the name is taken or no identifier, or an option has no plain default.
    """
    on_changes = works_on == "changes"

    def register(combine: Function) -> Function:
        taken = {known: method.combine for known, method in MERGES.items()}
        names.require_free(name, combine, taken, kind="merging method")
        traits: dict[str, Any] = {
            "shared_factor": shared_factor,
            "find_conflict": changes.require_change(find_conflict or changes.find_adapter_conflict)
            if on_changes
            else find_conflict,
        }
        MERGES[name] = MergeMethod(
            combine,
            works_on,
            options=_read_options(name, combine, on_changes=on_changes) if options is None else options,
            symmetric=symmetric,
            weights_as_given=weights_as_given,
            needs_base=on_changes if needs_base is None else needs_base,
            statistics_shape=statistics_shape,
            notes=(changes.NOTES if on_changes else {}) if notes is None else notes,
            **{trait: value for trait, value in traits.items() if value is not None},
        )
        return combine

    return register


def _read_options(name: str, combine: Callable[..., Any], *, on_changes: bool) -> dict[str, MergeOption]:
    """Returns the options that a function's keyword arguments stand for."""
    options = dict(changes.OPTIONS) if on_changes else {}
    for option, parameter in inspect.signature(combine).parameters.items():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        if type(parameter.default) not in (float, int, str):
            raise UserError(
                f"Expected a number or a text as default of option {option!r} of merging method {name!r}, "
                f"got {parameter.default!r}. Fix: give it one, or describe all options with `options`."
            )
        options[option] = MergeOption(type(parameter.default), parameter.default)
    return options
