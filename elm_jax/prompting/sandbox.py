"""Sandbox: the jinja environment that compiles and runs templates of any origin.

It is PromptSource's environment (jinja's defaults plus `zip`, `choice` and `most_frequent`) with three
changes. An unknown name is an error, not an empty text. Random filters draw from a hash, not from the
process's random numbers. And a template cannot reach Python's internals (jinja's sandbox) or run without
bound:

- a rendering may spend `limits.MAX_SIZE` characters. A turn of a loop or a call of a macro costs the text in
  it and `limits.CHARACTERS_PER_LOOP_TURN` more, so an endless loop fails within a second or so;
- `range` gives at most 100,000 numbers (jinja's own limit);
- operations whose results can be large (`*`, `**`, `~`, `join`, `replace`, paddings, formats) fail before
  they are computed if the result would be too large, and no value may hold more than the budget, however
  nested.

This stops mistakes and simple abuse. Templates of strangers run in a process with limits of its own besides
(`isolation`).
"""

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jinja2
from jinja2 import pass_context
from jinja2.exceptions import SecurityError
from jinja2.filters import do_float, do_int, do_truncate
from jinja2.runtime import Context
from jinja2.sandbox import SandboxedEnvironment

from elm_jax.prompting import limits, missing, syntax


class Rendering(Context):
    """A rendering in progress: the budget that is left, the key of its random draws, and what it wrote."""

    budget = limits.MAX_SIZE
    draws = 0
    key: Callable[[], str]  # pyright: ignore[reportUninitializedInstanceVariable]  `write` sets it
    watch: Callable[[Any], None] | None = None  # is told of every value that is no plain text
    cut_length = 0
    cut = False  # whether a text was cut to this length

    def spend(self, amount: int) -> None:
        self.budget -= amount
        if self.budget < 0:
            raise SecurityError(
                f"it loops or writes without an end (more than {limits.MAX_SIZE:,} characters)"
            )

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
    own: bool = False,
) -> tuple[str, Rendering]:
    """Renders a template, and returns its text with what was noted on the way.

    Args:
        source: The template.
        variables: What it reads.
        key: Returns what its random draws depend on.
        watch: Is told of every value that the template writes and that is no plain text, and may raise.
        cut_length: A text that is cut to so many characters is noted.
        own: Whether every value that the template writes is cut to that length, whatever expression it comes
            from, and `syntax.OWN_SEPARATOR` is written for the separators in its source.
    """
    template = compile_template(source, cut_length if own else None)
    context = cast(Rendering, template.new_context(dict(variables)))
    context.key, context.watch, context.cut_length = key, watch, cut_length
    return "".join(template.root_render_func(context)), context


class BadIndexError(Exception):
    """A template looked up an element at a negative number, or at what is no number."""


class Index(int):
    """A negative number that a template of one's own computed, and no literal: it counts from no end."""


class NonIntegerResult(int):
    """What the filter `int` makes of a value that is no whole number, as 0 of a text: it is no index."""


def cut_text(text: str, length: int | None) -> str:
    """Returns a text cut as the filter `truncate` cuts it; None keeps all."""
    return text if length is None else do_truncate(ENVIRONMENT, text, length)


@functools.lru_cache(maxsize=8192)
def compile_template(source: str, cut_length: int | None = None) -> jinja2.Template:
    """Compiles a template with its guards; one of one's own if a length is given, of which 0 is none."""
    tree = ENVIRONMENT.parse(source)
    if cut_length is not None:
        tree = syntax.OwnTemplate(cut_length).visit(tree)
    return ENVIRONMENT.from_string(syntax.Guards().visit(tree))


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
    return value if isinstance(value, str) else str(limits.require_bounded(value))


@pass_context
def _truncate(context: Rendering, text: str, length: int = 255, *rest: Any, **options: Any) -> str:
    cut = do_truncate(ENVIRONMENT, text, length, *rest, **options)
    if length == context.cut_length and len(cut) != len(text):
        context.cut = True
    return cut


@pass_context
def _mark_negative_index(context: Rendering, value: Any) -> Any:
    return Index(value) if context.watch is not None and type(value) is int and value < 0 else value


@pass_context
def _int(context: Rendering, value: Any, *rest: Any, **options: Any) -> int:
    if context.watch is None or rest or options:
        return do_int(value, *rest, **options)
    missing.require_number(value)
    made: Any = cast(Any, do_int)(value, None)
    if made is None:
        return NonIntegerResult()
    return made if made == do_float(value, made) else NonIntegerResult(made)


@pass_context
def _float(context: Rendering, value: Any, *rest: Any, **options: Any) -> float:
    if context.watch is not None and not (rest or options):
        missing.require_number(value)
    return do_float(value, *rest, **options)


@pass_context
def _write(context: Rendering, value: Any) -> str:
    text = _string(context, value)
    context.spend(len(text))
    return text


@pass_context
def _charge_loop_turn(context: Rendering, cost: int) -> bool:
    context.spend(cost)
    return True


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)  # keeps jinja's marks of what the filter is passed
    def guarded(*args: Any, **kwargs: Any) -> Any:
        limits.check_result_size(name, [*args, *kwargs.values()])
        return limits.require_bounded(function(*args, **kwargs))

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
        self.filters |= {
            "string": _string,
            "a turn": _charge_loop_turn,
            "a bounded value": limits.require_bounded,
        }
        self.filters |= {
            "truncate": _truncate,
            "int": _int,
            "float": _float,
            "an index": _mark_negative_index,
        }
        for name in missing.TEXT_FILTERS:
            self.filters[name] = missing.trace(self.filters[name], joins=name == "join")
        self.binop_table |= {name: missing.trace(self.binop_table[name]) for name in ("+", "%")}

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(argument, Index | NonIntegerResult) and not isinstance(obj, Mapping):
            got = f"{argument:d}" + (" for no whole number" if isinstance(argument, NonIntegerResult) else "")
            raise BadIndexError(f"expected an index from 0, got {got}")
        return super().getitem(obj, argument)

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        # The sandbox wraps str.format.
        owner = getattr(getattr(obj, "__wrapped__", obj), "__self__", None)
        values, name = [owner, *args, *kwargs.values()], getattr(obj, "__name__", "")
        grows = name in limits.GROWING_METHODS
        if grows:
            limits.check_result_size(name, values)
        made = super().call(context, obj, *args, **kwargs)
        if isinstance(owner, str):
            made = missing.mark(made, values)
        return limits.require_bounded(made) if grows else made


ENVIRONMENT = _Environment()


def find_number_columns(source: str) -> set[str]:
    """Returns the names that a template uses as numbers; none if it does not compile."""
    try:
        return syntax.find_number_columns(ENVIRONMENT.parse(source))
    except (jinja2.TemplateSyntaxError, ValueError, RecursionError):  # raised where the template is used
        return set()
