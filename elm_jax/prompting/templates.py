"""Templates: PromptSource's templates, read from its YAML files and rendered as PromptSource renders them.

A template is jinja source. Rendered with a row of a dataset it gives parts separated by `|||`: two are an
input and a target; one means that the template does not apply to the row. The format is that of Bach et al.
(2022), arXiv 2202.01279; tests compare the rendering with the original's output.
"""

import copy
import functools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jinja2
import numpy as np
from jinja2 import meta
from jinja2.exceptions import SecurityError

from elm_jax import names, storage
from elm_jax.errors import RowError, RowReason, UserError
from elm_jax.prompting import limits, reader, sandbox

SEPARATOR = "|||"
PROTECTOR = "3ed2dface8203c4c9dfb1a5dc58e41e0"
"""Replaces separators in a row while it is rendered; PromptSource's own, on which some templates split."""
TRUNCATE = 2048
"""Characters that PromptSource keeps of every value that a template writes."""


@dataclass(frozen=True)
class Rendered:
    """A row rendered by a template.

    Attributes:
        input: The input.
        target: The target.
        choices: The answer choices; None if the template has none.
        cut: Whether the limit of characters cut a value.
    """

    input: str
    target: str
    choices: tuple[str, ...] | None = None
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
        cuts_values: Whether a limit of characters works on the values that the template writes, and not on
            its source, as the original's does.
    """

    name: str
    id: str
    jinja: str
    answer_choices: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)
    dataset: str = ""
    strict: bool = False
    cuts_values: bool = False

    def render(
        self, row: Mapping[str, Any], truncate: int | None = TRUNCATE, *, row_id: str | None = None
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
        parts, cut = _parts(self, row, choices, truncate, row_id)
        if len(parts) > 2:
            raise RowError(
                f"{_describe(self, row_id)}: expected an input and a target, got {len(parts)} parts. Fix: "
                f"write {SEPARATOR!r} once in the template.",
                "rendering fails",
            )
        return Rendered(*parts, choices, cut) if len(parts) == 2 else None

    def parts(
        self, row: Mapping[str, Any], truncate: int | None = TRUNCATE, *, row_id: str | None = None
    ) -> tuple[str, ...]:
        """Returns all parts of a rendered row, of which `render` requires one or two."""
        return _parts(self, row, self.choices(row, row_id=row_id), truncate, row_id)[0]

    def choices(self, row: Mapping[str, Any], *, row_id: str | None = None) -> tuple[str, ...] | None:
        """Returns the row's answer choices, never truncated; None if the template has none."""
        if self.answer_choices is None:
            return None
        if self._constant_choices is not None:
            return self._constant_choices
        return _split(_run(self, self.answer_choices, _protect(self, row, row_id), row, row_id)[0])

    @functools.cached_property
    def fixed_choices(self) -> tuple[str, ...] | None:
        """The answer choices if they are the same for every row, else None."""
        if self.answer_choices is None or _find_names(self, self.answer_choices):
            return None
        return _split(_run(self, self.answer_choices, {}, {}, None)[0])

    @functools.cached_property
    def columns(self) -> frozenset[str]:
        """The columns that the template may read."""
        read = _find_names(self, self.jinja) | _find_names(self, self.answer_choices or "")
        return frozenset(read - {"answer_choices"} - sandbox.ENVIRONMENT.globals.keys())

    @functools.cached_property
    def _constant_choices(self) -> tuple[str, ...] | None:
        # Choices that read no column may still be drawn at random for each row.
        random = re.search(r"\|\s*(choice|random)\b", self.answer_choices or "")
        return None if random else self.fixed_choices


def load_templates(directory: storage.PathLike, dataset: str) -> dict[str, Template]:
    """Reads the templates of a dataset from a directory laid out as PromptSource's.

    Args:
        directory: A directory with a folder for every dataset.
        dataset: "dataset" or "dataset/config".

    Returns:
        The templates by name, in the file's order.

    Raises:
        UserError: If there are no templates of the dataset, if their file is not plain YAML with
            PromptSource's two tags, or if a template lacks a name, an id or jinja.
    """
    root = storage.existing_directory(
        directory, what="A directory of templates", remedy="Give the directory of the dataset folders."
    )
    file = root.joinpath(*dataset.split("/"), "templates.yaml")
    if ".." in dataset.split("/") or not file.is_file():
        names.resolve(dataset, _list_datasets(root), kind="templates", where=str(root))
        raise UserError(f"Expected templates at {str(file)!r}, got no file. Fix: correct the directory.")
    templates: dict[str, Template] = {}
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(
            f"Expected templates at {str(file)!r}, got {error.strerror or error}. Fix: correct the directory."
        ) from error
    for entry in reader.read_entries(str(file), content):
        template = _parse_template(f"{str(file)!r}, line {entry.line}", entry.fields, dataset)
        if template.name in templates:
            raise UserError(
                f"{str(file)!r}, line {entry.line}: expected a new name, got {template.name!r} again. Fix: "
                "rename one."
            )
        templates[template.name] = template
    return templates


def _parts(
    template: Template,
    row: Mapping[str, Any],
    choices: tuple[str, ...] | None,
    truncate: int | None,
    row_id: str | None,
) -> tuple[tuple[str, ...], bool]:
    """Returns the parts of a rendered row, and whether a value was cut."""
    variables = _protect(template, row, row_id)
    if "answer_choices" in variables:
        raise UserError(
            f"{_describe(template, row_id)}: expected no column named answer_choices, which are the "
            "template's choices, got one. Fix: rename the column."
        )
    if choices is None or not template.strict:  # the original protects no separators in choices
        variables["answer_choices"] = None if choices is None else list(choices)
    else:
        variables["answer_choices"] = [choice.replace(SEPARATOR, PROTECTOR) for choice in choices]
    if truncate is not None and truncate < 3:
        raise UserError(f"Expected truncate to be 3 or more characters, got {truncate}. Fix: raise it.")
    text, cut = _run(template, template.jinja, variables, row, row_id, truncate)
    return _split(text), cut


class _EmptyText(str):
    """A text of a row that has no character, or white space alone."""


def _protect(template: Template, row: Mapping[str, Any], row_id: str | None) -> dict[str, Any]:
    """Returns the row with the separators in its texts replaced, nested texts too if the template is strict."""
    protected: dict[str, Any] = {}
    for column, value in row.items():
        if isinstance(value, str):
            if len(value) > limits.BUDGET and column in template.columns:
                raise RowError(
                    f"{_describe(template, row_id)}: expected texts of at most {limits.BUDGET:,} characters, "
                    f"got {len(value):,} in column {column!r}. Fix: cut the text or drop the row.",
                    "too long",
                )
            value = value.replace(SEPARATOR, PROTECTOR)
        if (template.strict or type(value) in _NO_PLAIN_VALUES) and column in template.columns:
            value = _mark(template, value, column, row_id)
        protected[column] = value
    return protected


def _mark(template: Template, value: Any, column: str, row_id: str | None) -> Any:
    """Returns a value of a row with its separators replaced and its empty texts marked, nested ones too."""
    if isinstance(value, str):
        return value.replace(SEPARATOR, PROTECTOR) if value.strip() else _EmptyText(value)
    if isinstance(value, Mapping):
        return {key: _mark(template, item, column, row_id) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mark(template, item, column, row_id) for item in value]
    if isinstance(value, set | frozenset):
        raise RowError(
            f"{_describe(template, row_id)}: expected values in an order, got a set in column {column!r}. Fix: "
            "make it a sorted list.",
            "unstable text",
        )
    if isinstance(value, bytes | np.ndarray):
        raise RowError(
            f"{_describe(template, row_id)}: expected a text or another plain value, got {type(value).__name__} in "
            f"column {column!r}. Fix: write text as UTF-8, or pass the row through elm_jax.tasks.columns.to_plain.",
            "rendering fails",
        )
    return value


_NO_PLAIN_VALUES = (bytes, set, frozenset, np.ndarray)


def _run(
    template: Template,
    source: str,
    variables: dict[str, Any],
    row: Mapping[str, Any],
    row_id: str | None,
    truncate: int | None = None,
) -> tuple[str, bool]:
    """Returns the text of a template's source, and whether a value in it was cut."""

    def key() -> str:
        return f"{template.id}\n{storage.fingerprint(row) if row_id is None else row_id}"

    try:
        if truncate is not None and not template.cuts_values:
            source = _add_truncation(source, truncate)
        # A template may change lists in the row, but only for this rendering.
        if _changes_row(source):
            variables = copy.deepcopy(variables)
        text, rendering = sandbox.write(
            source,
            variables,
            key=key,
            watch=_require_value if template.strict else None,
            cut_length=truncate or 0,
            cut_values=template.cuts_values,
        )
        if ADDRESS in text:
            _require_stable(text, row)
    except Exception as error:  # a template can raise whatever Python can
        raise _explain_failure(template, error, row, row_id) from error
    return text, rendering.cut


class _ValueError(Exception):
    """A value that a template may not write, and why."""

    def __init__(self, got: str, reason: RowReason) -> None:
        super().__init__(got)
        self.reason: RowReason = reason


def _require_value(value: Any) -> None:
    """Raises if a value that a template writes is missing."""
    if isinstance(value, list | tuple):
        for item in value:
            _require_value(item)
    elif isinstance(value, _EmptyText):
        raise _ValueError("an empty text", "missing value")
    elif value is None or (isinstance(value, float) and math.isnan(value)):
        raise _ValueError(repr(value), "missing value")


ADDRESS = " at 0x"
"""What is in Python's text of an object that has none of its own, and differs between processes."""
_OBJECT = re.compile(r"<[^<>\n]* at 0x[0-9a-fA-F]+")


def _require_stable(text: str, row: Mapping[str, Any]) -> None:
    """Raises if a text has the address of an object, unless a text of the row has it."""
    texts = list(_find_texts(row))
    for found in _OBJECT.findall(text):
        if not any(found in each for each in texts):
            raise _ValueError(f"{found[:60]}>, which is another in every process", "unstable text")


def _find_texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _find_texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _find_texts(item)


def _explain_failure(
    template: Template, error: Exception, row: Mapping[str, Any], row_id: str | None
) -> UserError:
    """Returns what is wrong: with the row, or with the template as it is."""
    about = _describe(template, row_id)
    if isinstance(error, jinja2.TemplateSyntaxError):
        return UserError(
            f"{about}: expected jinja, got an error in line {error.lineno}: "
            f"{str(error.message).rstrip('.')}. Fix: correct the template."
        )
    reason = str(error).rstrip(".")
    if isinstance(error, SecurityError):
        return UserError(
            f"{about}: expected it to render, got: {reason}. Fix: correct the template or the row."
        )
    if isinstance(error, _ValueError):
        fix = "write another text in its place, as with {{ column or 'none' }}"
        fix = "write the value itself" if error.reason == "unstable text" else fix
        return RowError(f"{about}: expected a value to write, got {reason}. Fix: {fix}.", error.reason)
    if isinstance(error, sandbox.NegativeIndexError):
        return RowError(f"{about}: {reason}. Fix: correct the row.", "label")
    name = re.fullmatch(r"'(.+)' is undefined", str(error))
    if isinstance(error, jinja2.UndefinedError) and name and name[1] not in row:
        have = ", ".join(repr(column) for column in row) or "none"
        return RowError(
            f"{about}: expected column {name[1]!r}, got only {have}. Fix: rename a column.",
            "missing value",
            column=name[1],
        )
    if isinstance(error, jinja2.UndefinedError):
        missing = any(_is_missing(row[column]) for column in template.columns & row.keys())
        too_large = re.search(r"'?list( object)?'? has no element \d", str(error))
        kind = "missing value" if template.strict and missing else "label" if too_large else "no element"
        return RowError(f"{about}: expected an element, got: {reason}. Fix: correct the row.", kind)
    return RowError(
        f"{about}: expected it to render, got: {reason} ({type(error).__name__}). Fix: correct the template or "
        "the row.",
        "rendering fails",
    )


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value)) or value == ""


def _describe(template: Template, row_id: str | None) -> str:
    of = f" of {template.dataset!r}" if template.dataset else ""
    return f"Template {template.name!r}{of}" + ("" if row_id is None else f", row {row_id!r}")


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.replace(PROTECTOR, SEPARATOR).strip() for part in text.split(SEPARATOR))


@functools.lru_cache(maxsize=8192)
def _add_truncation(source: str, length: int) -> str:
    """Returns the source with a filter that cuts every value, added to the text as PromptSource does."""
    return source.replace("}}", f" | string | truncate({length}) }}}}")


@functools.lru_cache(maxsize=8192)
def _changes_row(source: str) -> bool:
    changes = r"\.\s*(append|clear|extend|insert|pop|popitem|remove|reverse|setdefault|sort|update)\b"
    return re.search(changes, source) is not None


def _find_names(template: Template, source: str) -> set[str]:
    try:
        return meta.find_undeclared_variables(sandbox.ENVIRONMENT.parse(source))
    except Exception as error:
        raise _explain_failure(template, error, {}, None) from error


def _parse_template(where: str, fields: Mapping[Any, Any], dataset: str) -> Template:
    for name, optional in [("name", False), ("id", False), ("jinja", False), ("answer_choices", True)]:
        value = fields.get(name)
        if not isinstance(value, str) and not (optional and value is None):
            raise UserError(
                f"{where}: expected text as `{name}` of a template, got {_describe_type(value)}. Fix: "
                "correct it."
            )
    metadata = fields.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise UserError(
            f"{where}: expected a mapping as `metadata` of a template, got {_describe_type(metadata)}. Fix: "
            "correct it."
        )
    return Template(
        name=fields["name"],
        id=fields["id"],
        jinja=fields["jinja"],
        answer_choices=fields.get("answer_choices"),
        metadata=metadata,
        dataset=dataset,
    )


def _describe_type(value: Any) -> str:
    return "none" if value is None else f"a value of type {type(value).__name__}"


def _list_datasets(root: Any) -> list[str]:
    found = [*root.glob("*/templates.yaml"), *root.glob("*/*/templates.yaml")]
    return sorted("/".join(file.parent.relative_to(root).parts) for file in found)
