"""Registry: the routers by name, and the decorator that adds one."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from elm_jax import names
from elm_jax.errors import UserError
from elm_jax.records import Selection
from elm_jax.routing.token_gate import TokenGate

Function = TypeVar("Function", bound=Callable[..., Any])

LEVELS = ("task", "row", "token")
"""What a router chooses experts for."""
INPUTS = (
    "vectors",
    "texts",
    "expert",
    "params",
    "parameter_points",
    "activations",
    "gates",
    "accuracies",
    "loss",
)
"""What a router may read."""
ARGUMENTS = ("queries", "index", "exclude", *INPUTS[3:])
"""Arguments of routers that no user gives by name: what they are called with, and what they read."""
RESERVED = ("base", "multitask", "own", "best_single")
"""What an evaluation's methods may name in the place of a router."""


@dataclass(frozen=True)
class Router:
    """A registered router; `register_router` describes the fields."""

    route: Callable[..., Selection | TokenGate]
    level: str
    reads: tuple[str, ...] = ()
    few_shot: bool = False
    merge: str = "average"

    @property
    def description(self) -> str:
        """One line for lists of routers: the first line of the function's docstring."""
        return (self.route.__doc__ or "").strip().partition("\n")[0].removesuffix(".")

    @property
    def reads_keys(self) -> bool:
        """Whether it compares queries with the experts' keys."""
        return bool({"vectors", "texts"} & set(self.reads))

    @cached_property
    def options(self) -> Mapping[str, Any]:
        """The options that users may give, with their defaults; `inspect.Parameter.empty` for none."""
        parameters = inspect.signature(self.route).parameters
        return {name: each.default for name, each in parameters.items() if name not in ARGUMENTS}

    @property
    def required_options(self) -> list[str]:
        """The options without a default."""
        return [name for name, default in self.options.items() if default is inspect.Parameter.empty]


ROUTERS: dict[str, Router] = {}
"""Every registered router by name; only `register_router` writes to it."""


def register_router(
    name: str,
    *,
    level: str = "task",
    reads: Sequence[str] = (),
    few_shot: bool = False,
    merge: str = "average",
) -> Callable[[Function], Function]:
    """Registers a function as a router, under a name that all verbs then know.

    The function is `(queries, index, *, exclude, ...)`: the `inputs.Queries` of a task, the `inputs.KeyIndex`
    of the experts, and the datasets whose experts must not be chosen. Its further keyword arguments are its
    options; what it `reads` beyond queries and keys comes in arguments of these names. The first line of its
    docstring describes the router in lists.

        @elm_jax.register_router("first")
        def choose_first(queries, index, *, exclude=(), count: int = 1):
            '''The first experts of the library.'''
            allowed = find_allowed_experts(index, exclude)
            chosen = [expert for expert, may in zip(index.experts, allowed) if may][:count]
            weights = dict.fromkeys(chosen, 1 / len(chosen))
            return elm_jax.Selection(queries.task, "first", weights, votes={}, queries=())

    Args:
        name: How users call it.
        level: "task" if it returns a `Selection` for the whole task; "row" if the selection's `nearest` has
            an expert for every query; "token" if it returns a `TokenGate`, which the network applies.
        reads: What must be there before it is called: "vectors" or "texts" of queries and keys; "params",
            the experts' parameters stacked, leaves [E, L, …]; "parameter_points", what `mbc.embed_experts`
            makes of these; "activations", the mean inputs of their projections, path -> [E, L, I]; "gates",
            what was trained beside them, likewise; "expert", an expert's id as an option; "accuracies" and
            "loss", which come from labels of the task.
        few_shot: Whether it has seen labelled examples of the task; tables then mark its results.
        merge: What makes one of several experts where a method does not say it.

    Returns:
        The decorator, which returns the function as it is.

    Raises:
        UserError: If the name is taken or no identifier, or if the level or what it reads is not known.
    """

    def register(route: Function) -> Function:
        taken = {known: router.route for known, router in ROUTERS.items()}
        names.require_free(name, route, taken, kind="router")
        if name in RESERVED:
            raise UserError(f"Expected a router's name other than {', '.join(RESERVED)}, got {name!r}.")
        names.resolve(level, LEVELS, kind="level", where=f"the registration of router {name!r}")
        for each in reads:
            names.resolve(each, INPUTS, kind="input", where=f"what router {name!r} may read")
        ROUTERS[name] = Router(route, level, tuple(reads), few_shot, merge)
        return route

    return register
