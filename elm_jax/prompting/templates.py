"""Templates: PromptSource's templates, read from its YAML files and rendered as PromptSource renders them.

A template is jinja source. Rendered with a row of a dataset it gives parts separated by `|||`: two are an
input and a target; one means that the template does not apply to the row. The format is that of Bach et al.
(2022), arXiv 2202.01279; tests compare the rendering with the original's output.
"""

import copy
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jinja2 import meta

from elm_jax import storage
from elm_jax.errors import RowError, UserError
from elm_jax.prompting import isolation, limits, missing, sandbox, values
from elm_jax.prompting.syntax import OWN_SEPARATOR, SEPARATOR

MAX_VALUE_CHARACTERS = 2048
"""Characters that PromptSource keeps of every value that a template writes."""


@dataclass(frozen=True)
class Rendered:
    """A row rendered by a template.

    Attributes:
        input: The input.
        target: The target.
        choices: The answer choices; None if the template has none.
        accepted: All accepted answers, the target first, if a strict template writes a list of them.
        cut: Whether the limit of characters cut a value.
    """

    input: str
    target: str
    choices: tuple[str, ...] | None = None
    accepted: tuple[str, ...] = ()
    cut: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class Template:
    """One way to turn a dataset's rows into prompts, as PromptSource's YAML defines it.

    Attributes:
        name: Name of the template, not stripped.
        id: Id of the template, which random filters depend on.
        jinja: Jinja source of the input and the target, separated by `|||`.
        answer_choices: Jinja source of the answer choices, separated by `|||`; None if there are none.
        metadata: PromptSource's metadata.
        dataset: The dataset, for error messages.
        strict: Whether a row is refused if the template writes a missing value of it or an index into a list
            counts from the end; the original does neither.
        own: Whether a limit of characters works on the values that the template writes, and its separators
            are those in its source; the original changes the source, and protects separators in rows.
        foreign: Whether it is a stranger's, and runs in a process of its own.
    """

    name: str
    id: str
    jinja: str
    answer_choices: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)
    dataset: str = ""
    strict: bool = False
    own: bool = False
    foreign: bool = False

    @isolation.isolate_foreign_templates(0)
    def render(
        self,
        row: Mapping[str, Any],
        truncate: int | None = MAX_VALUE_CHARACTERS,
        *,
        row_id: str | None = None,
    ) -> Rendered | None:
        """Returns the rendered row; None if the template does not apply to it.

        Args:
            row: The row's columns, as plain Python values.
            truncate: Characters that are kept of every value that the template writes, targets too, up to the
                end of a word if possible; None keeps all.
            row_id: Id of the row, by which random filters draw; default: the row's content.

        Raises:
            RowError: If the row cannot be used: it lacks a column, or the jinja fails on it.
            UserError: If the jinja does not compile, or if it writes without an end.
        """
        choices = self.choices(row, row_id=row_id)
        parts, answers, cut = _parts(self, row, choices, truncate, row_id)
        if len(parts) == 1:
            return None
        if len(parts) != 2:
            raise RowError(
                f"{_describe(self, row_id)}: expected an input and a target, got {len(parts)} parts. Fix: "
                f"write {SEPARATOR!r} once in the template.",
                "rendering fails",
            )
        text, target = parts
        if answers is not None:
            target = answers[0] if answers else ""
        return Rendered(text, target, choices, answers if answers and len(answers) > 1 else (), cut)

    @isolation.isolate_foreign_templates(0)
    def parts(
        self,
        row: Mapping[str, Any],
        truncate: int | None = MAX_VALUE_CHARACTERS,
        *,
        row_id: str | None = None,
    ) -> tuple[str, ...]:
        """Returns all parts of a rendered row, of which `render` requires one or two."""
        return _parts(self, row, self.choices(row, row_id=row_id), truncate, row_id)[0]

    @isolation.isolate_foreign_templates(0)
    def choices(self, row: Mapping[str, Any], *, row_id: str | None = None) -> tuple[str, ...] | None:
        """Returns the row's answer choices, never truncated; None if the template has none."""
        if self.answer_choices is None:
            return None
        if self._constant_choices is not None:
            return self._constant_choices
        return _choices(self, self.answer_choices, row, row_id)

    @functools.cached_property
    @isolation.isolate_foreign_templates(0)
    def fixed_choices(self) -> tuple[str, ...] | None:
        """The answer choices if they are the same for every row, else None."""
        if self.answer_choices is None or _find_names(self, self.answer_choices):
            return None
        return _choices(self, self.answer_choices, {}, None)

    @functools.cached_property
    @isolation.isolate_foreign_templates(0)
    def columns(self) -> frozenset[str]:
        """The columns that the template may read."""
        read = _find_names(self, self.jinja) | _find_names(self, self.answer_choices or "")
        return frozenset(read - {"answer_choices"} - sandbox.ENVIRONMENT.globals.keys())

    @functools.cached_property
    def _constant_choices(self) -> tuple[str, ...] | None:
        # Choices that read no column may still be drawn at random for each row.
        random = re.search(r"\|\s*(choice|random)\b", self.answer_choices or "")
        return None if random else self.fixed_choices


def _choices(template: Template, source: str, row: Mapping[str, Any], row_id: str | None) -> tuple[str, ...]:
    return _run(template, source, _protect(template, row, row_id), row, row_id)[0]


def _parts(
    template: Template,
    row: Mapping[str, Any],
    choices: tuple[str, ...] | None,
    truncate: int | None,
    row_id: str | None,
) -> tuple[tuple[str, ...], tuple[str, ...] | None, bool]:
    """Returns the parts of a rendered row, the answers if the last is a list, and whether a value was cut."""
    variables = _protect(template, row, row_id)
    if "answer_choices" in variables:
        raise UserError(
            f"{_describe(template, row_id)}: expected no column named answer_choices, which are the "
            "template's choices, got one. Fix: rename the column."
        )
    variables["answer_choices"] = None if choices is None else list(choices)
    if choices and template.strict and not template.own:  # the original protects no separators in choices
        variables["answer_choices"] = [
            choice.replace(SEPARATOR, values.SEPARATOR_PLACEHOLDER) for choice in choices
        ]
    if truncate is not None and truncate < 3:
        raise UserError(f"Expected truncate to be 3 or more characters, got {truncate}. Fix: raise it.")
    parts, written, cut = _run(template, template.jinja, variables, row, row_id, truncate)
    return parts, values.find_answers(written, parts[-1], truncate), cut


def _protect(template: Template, row: Mapping[str, Any], row_id: str | None) -> dict[str, Any]:
    """Returns the row as it is rendered: its texts marked if the template is strict, else protected."""
    protected: dict[str, Any] = {}
    for column, value in row.items():
        if isinstance(value, str):
            if len(value) > limits.MAX_SIZE and column in template.columns:
                raise RowError(
                    f"{_describe(template, row_id)}: expected texts of at most {limits.MAX_SIZE:,} "
                    "characters, "
                    f"got {len(value):,} in column {column!r}. Fix: cut the text or drop the row.",
                    "too long",
                )
            if not template.own:
                value = value.replace(SEPARATOR, values.SEPARATOR_PLACEHOLDER)
        if (template.strict or isinstance(value, values.NO_PLAIN_VALUES)) and column in template.columns:
            try:
                value = values.mark_texts(value, protect=not template.own)
            except missing.BadValueError as error:
                raise RowError(
                    f"{_describe(template, row_id)}, column {column!r}: expected {error}.", error.reason
                ) from error
        protected[column] = value
    return protected


def _run(
    template: Template,
    source: str,
    variables: dict[str, Any],
    row: Mapping[str, Any],
    row_id: str | None,
    truncate: int | None = None,
) -> tuple[tuple[str, ...], list[Any], bool]:
    """Returns the parts of a source, what it wrote that is no plain text, and whether a value was cut."""

    def key() -> str:
        return f"{template.id}\n{storage.fingerprint(row) if row_id is None else row_id}"

    written: list[Any] = []  # values that are no plain text
    try:
        if truncate is not None and not template.own:
            source = values.add_truncation(source, truncate)
        # A template may change lists in the row, but only for this rendering.
        if values.changes_row(source):
            variables = copy.deepcopy(variables)
        text, rendering = sandbox.write(
            source,
            variables,
            key=key,
            watch=written.append if template.strict else None,
            cut_length=truncate or 0,
            own=template.own,
        )
        values.require_stable(text, row)
        parts = values.split_parts(text, OWN_SEPARATOR if template.own else SEPARATOR)
        # That an input or a target is empty says more than that a value is missing.
        if written and (source is template.answer_choices or all(parts)):
            missing.require_values(written)
    except Exception as error:  # a template can raise whatever Python can
        raise _explain(template, error, row, row_id) from error
    return parts, written, rendering.cut


def _explain(template: Template, error: Exception, row: Mapping[str, Any], row_id: str | None) -> UserError:
    strict_columns = template.columns if template.strict and row else ()
    return values.explain_failure(_describe(template, row_id), error, row, strict_columns)


def _describe(template: Template, row_id: str | None) -> str:
    of = f" of {template.dataset!r}" if template.dataset else ""
    return f"Template {template.name!r}{of}" + ("" if row_id is None else f", row {row_id!r}")


def _find_names(template: Template, source: str) -> set[str]:
    try:
        return meta.find_undeclared_variables(sandbox.ENVIRONMENT.parse(source))
    except Exception as error:
        raise _explain(template, error, {}, None) from error
