"""Sandbox: the jinja environment that compiles and runs templates of any origin.

It is PromptSource's environment (jinja's defaults plus `zip`, `choice` and `most_frequent`) with three
changes. An unknown name is an error, not an empty text. Random filters draw from a hash, not from the
process's random numbers. And a template cannot reach Python's internals (jinja's sandbox) or run without
bound:

- a rendering may spend `limits.BUDGET` characters. An iteration of a loop or a call of a macro costs the text
  in it and `limits.TURN` more, so an endless loop fails within a second or so;
- `range` gives at most 100,000 numbers (jinja's own limit);
- operations whose results can be large (`*`, `**`, `~`, `join`, `replace`, paddings, formats) fail before
they
  are computed if the result would be too large, and no value may hold more than the budget, however nested.

This stops mistakes and simple abuse. Templates of determined attackers need a process with limits of its own.
"""

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jinja2
from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.filters import do_truncate
from jinja2.runtime import Context
from jinja2.sandbox import SandboxedEnvironment
from jinja2.visitor import NodeTransformer

from elm_jax.prompting import limits


class Rendering(Context):
    """A rendering in progress: the budget that is left, the key of its random draws, and what it wrote."""

    budget = limits.BUDGET
    draws = 0
    key: Callable[[], str]  # pyright: ignore[reportUninitializedInstanceVariable]  `write` sets it
    watch: Callable[[Any], None] | None = None  # is told of every value that is no plain text
    cut_length = 0
    cut = False  # whether a text was cut to this length

    def spend(self, amount: int) -> None:
        self.budget -= amount
        if self.budget < 0:
            raise SecurityError(f"it loops or writes without an end (more than {limits.BUDGET:,} characters)")

    def draw(self, count: int) -> int:
        """Returns the rendering's next random number, below `count`."""
        self.draws += 1
        text = f"{self.key()}\n{self.draws}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) % count


def run(source: str, variables: Mapping[str, Any], *, key: Callable[[], str]) -> str:
    """Renders a template; its random draws depend only on `key()`.

    Raises any error of jinja's or of Python's that the template raises.
    """
    return write(source, variables, key=key)[0]


def write(
    source: str,
    variables: Mapping[str, Any],
    *,
    key: Callable[[], str],
    watch: Callable[[Any], None] | None = None,
    cut_length: int = 0,
    cut_values: bool = False,
) -> tuple[str, Rendering]:
    """Renders a template, and returns its text with what was noted on the way.

    Args:
        source: The template.
        variables: What it reads.
        key: Returns what its random draws depend on.
        watch: Is told of every value that the template writes and that is no plain text, and may raise.
        cut_length: A text that is cut to so many characters is noted.
        cut_values: Whether every value that the template writes is cut to that length, whatever expression
            it comes from.
    """
    template = compile_template(source, cut_length if cut_values else 0)
    context = cast(Rendering, template.new_context(dict(variables)))
    context.key, context.watch, context.cut_length = key, watch, cut_length
    return "".join(template.root_render_func(context)), context


class NegativeIndexError(Exception):
    """A template looked up an element at a negative number."""


class Index(int):
    """A negative number that a template of one's own computed, and no literal: it counts from no end."""


def cut_text(text: str, length: int | None) -> str:
    """Returns a text cut as the filter `truncate` cuts it; None keeps all."""
    return text if length is None else do_truncate(ENVIRONMENT, text, length)


@functools.lru_cache(maxsize=8192)
def compile_template(source: str, cut_length: int = 0) -> jinja2.Template:
    """Compiles a template with its guards; with a length, every value that it writes is cut to it."""
    return ENVIRONMENT.from_string(_Guards(cut_length).visit(ENVIRONMENT.parse(source)))


@pass_context
def _choice(context: Rendering, items: Sequence[Any]) -> Any:
    if not items:
        raise ValueError("it chooses from an empty list")
    return items[context.draw(len(items))]


def _most_frequent(items: Sequence[Any]) -> list[Any] | None:
    """Returns the most frequent items, in the order of their first occurrence; None if there are none."""
    counts = Counter(items)
    highest = max(counts.values(), default=0)
    return [item for item, count in counts.items() if count == highest] or None


@pass_context
def _string(context: Rendering, value: Any) -> str:
    if context.watch is not None and type(value) is not str:
        context.watch(value)
    return value if isinstance(value, str) else str(limits.bounded(value))


@pass_context
def _truncate(context: Rendering, text: str, length: int = 255, *rest: Any, **options: Any) -> str:
    cut = do_truncate(ENVIRONMENT, text, length, *rest, **options)
    if length == context.cut_length and len(cut) != len(text):
        context.cut = True
    return cut


@pass_context
def _index(context: Rendering, value: Any) -> Any:
    return Index(value) if context.watch is not None and type(value) is int and value < 0 else value


@pass_context
def _write(context: Rendering, value: Any) -> str:
    text = _string(context, value)
    context.spend(len(text))
    return text


@pass_context
def _take_turn(context: Rendering, cost: int) -> bool:
    context.spend(cost)
    return True


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)  # keeps jinja's marks of what the filter is passed
    def guarded(*args: Any, **kwargs: Any) -> Any:
        limits.check_growth(name, [*args, *kwargs.values()])
        return limits.bounded(function(*args, **kwargs))

    return guarded


class _Environment(SandboxedEnvironment):
    context_class = Rendering
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(loader=jinja2.BaseLoader(), undefined=jinja2.StrictUndefined, finalize=_write)
        self.binop_table |= {
            "+": limits.add,
            "*": limits.multiply,
            "**": limits.power,
            "%": limits.remainder,
        }
        cast("dict[str, Any]", self.globals)["zip"] = zip
        del self.globals["lipsum"]  # random text of any length
        self.filters |= {name: _guarded(name, self.filters[name]) for name in limits.GROWING_FILTERS}
        self.filters |= {"choice": _choice, "random": _choice, "most_frequent": _most_frequent}
        # Names with a space, which no template can call.
        self.filters |= {"string": _string, "a turn": _take_turn, "a bounded value": limits.bounded}
        self.filters |= {"truncate": _truncate, "an index": _index}

    def getitem(self, obj: Any, argument: Any) -> Any:
        if type(argument) is Index and not isinstance(obj, Mapping):
            raise NegativeIndexError(f"expected an index from 0, got {argument:d}")
        return super().getitem(obj, argument)

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        name = getattr(obj, "__name__", "")
        if name not in limits.GROWING_METHODS:
            return super().call(context, obj, *args, **kwargs)
        # The sandbox wraps str.format.
        owner = getattr(getattr(obj, "__wrapped__", obj), "__self__", None)
        limits.check_growth(name, [owner, *args, *kwargs.values()])
        return limits.bounded(super().call(context, obj, *args, **kwargs))


ENVIRONMENT = _Environment()


class _Guards(NodeTransformer):
    """Adds its cost to every loop and macro, a bound to every `~`, and cuts every value that is written."""

    def __init__(self, cut_length: int) -> None:
        self.cut_length = cut_length

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        if self.cut_length:
            length = nodes.Const(self.cut_length)
            node.nodes = [
                part
                if isinstance(part, nodes.TemplateData)
                else nodes.Filter(_filter(part, "string"), "truncate", [length], [], None, None)
                for part in node.nodes
            ]
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        # An index that is written with its sign is meant to count from the end.
        if not isinstance(node.arg, nodes.Const | nodes.Neg | nodes.Slice):
            node.arg = _filter(node.arg, "an index")
        return node

    def visit_For(self, node: nodes.For | nodes.Macro) -> nodes.Node:
        self.generic_visit(node)
        cost = limits.TURN + sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        turn = _filter(nodes.Const(cost), "a turn")
        node.body.insert(0, nodes.ExprStmt(turn).set_lineno(node.lineno))
        if isinstance(node, nodes.For) and node.test is not None:  # the body may never be reached
            node.test = nodes.And(turn, node.test)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._visit_uncut(node, self.visit_For)

    def visit_AssignBlock(self, node: nodes.Node) -> nodes.Node:
        return self._visit_uncut(node, self.generic_visit)

    visit_CallBlock = visit_FilterBlock = visit_AssignBlock

    def _visit_uncut(self, node: Any, visit: Callable[[Any], nodes.Node]) -> nodes.Node:
        """Visits a node whose text is a value, which is cut where it is written."""
        length, self.cut_length = self.cut_length, 0
        node = visit(node)
        self.cut_length = length
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        parts = [_filter(part, "string") for part in node.nodes]
        return _filter(nodes.Concat(parts), "a bounded value").set_lineno(node.lineno)


def _filter(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None)


def find_index_columns(source: str) -> set[str]:
    """Returns the names by which a template picks an answer choice, as in `answer_choices[label]`."""
    found = set()
    for node in ENVIRONMENT.parse(source).find_all(nodes.Getitem):
        if isinstance(node.node, nodes.Name) and node.node.name == "answer_choices":
            every = [node.arg, *node.arg.find_all(nodes.Name)]
            found |= {name.name for name in every if isinstance(name, nodes.Name)}
    return found
