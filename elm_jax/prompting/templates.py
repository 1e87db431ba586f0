"""Templates: PromptSource's templates, read from its YAML files and rendered as PromptSource renders them.

A template is jinja source. Rendered with a row of a dataset it gives parts separated by `|||`: two are an
input and a target; one means that the template does not apply to the row. The format is that of Bach et al.
(2022), arXiv 2202.01279; tests compare the rendering with the original's output.
"""

import copy
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jinja2
from etils import epath
from jinja2 import meta
from jinja2.exceptions import SecurityError

from elm_jax import names, storage
from elm_jax.errors import UserError
from elm_jax.prompting import isolation, limits, promptsource, reader, sandbox

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
    """

    input: str
    target: str
    choices: tuple[str, ...] | None = None


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
        foreign: Whether it is a stranger's, and runs in a process of its own.
    """

    name: str
    id: str
    jinja: str
    answer_choices: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)
    dataset: str = ""
    foreign: bool = False

    @isolation.apart(0)
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
            UserError: If a column is missing, if there are three or more parts, or if the jinja does not
                compile or fails on the row.
        """
        choices = self.choices(row, row_id=row_id)
        parts = _parts(self, row, choices, truncate, row_id)
        if len(parts) > 2:
            raise UserError(
                f"{_describe(self, row_id)}: expected an input and a target, got {len(parts)} parts. Fix: "
                f"write {SEPARATOR!r} once in the template, and in no answer choice."
            )
        return Rendered(*parts, choices) if len(parts) == 2 else None

    @isolation.apart(0)
    def parts(
        self, row: Mapping[str, Any], truncate: int | None = TRUNCATE, *, row_id: str | None = None
    ) -> tuple[str, ...]:
        """Returns all parts of a rendered row, of which `render` requires one or two."""
        return _parts(self, row, self.choices(row, row_id=row_id), truncate, row_id)

    @isolation.apart(0)
    def choices(self, row: Mapping[str, Any], *, row_id: str | None = None) -> tuple[str, ...] | None:
        """Returns the row's answer choices, never truncated; None if the template has none."""
        if self.answer_choices is None:
            return None
        if self._constant_choices is not None:
            return self._constant_choices
        return _split(_run(self, self.answer_choices, _protect(self, row, row_id), row, row_id))

    @functools.cached_property
    @isolation.apart(0)
    def fixed_choices(self) -> tuple[str, ...] | None:
        """The answer choices if they are the same for every row, else None."""
        if self.answer_choices is None or _find_names(self, self.answer_choices):
            return None
        return _split(_run(self, self.answer_choices, {}, {}, None))

    @functools.cached_property
    @isolation.apart(0)
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
    if _is_own(root):
        return templates
    return {name: replace(template, foreign=True) for name, template in templates.items()}


def _is_own(directory: epath.Path) -> bool:
    """Returns whether a directory is the package's own, or PromptSource's release in the cache."""
    package = Path(__file__).resolve().parents[1]
    release = Path(promptsource.release_directory()).resolve()
    return any(Path(directory).resolve().is_relative_to(root) for root in (package, release))


def _parts(
    template: Template,
    row: Mapping[str, Any],
    choices: tuple[str, ...] | None,
    truncate: int | None,
    row_id: str | None,
) -> tuple[str, ...]:
    variables = _protect(template, row, row_id)
    if "answer_choices" in variables:
        raise UserError(
            f"{_describe(template, row_id)}: expected no column named answer_choices, which are the "
            "template's choices, got one. Fix: rename the column."
        )
    variables["answer_choices"] = None if choices is None else list(choices)
    source = template.jinja if truncate is None else _add_truncation(template.jinja, truncate)
    return _split(_run(template, source, variables, row, row_id))


def _protect(template: Template, row: Mapping[str, Any], row_id: str | None) -> dict[str, Any]:
    """Returns the row with the separators in its texts replaced; nested texts are left."""
    protected: dict[str, Any] = {}
    for column, value in row.items():
        if isinstance(value, str):
            if len(value) > limits.BUDGET:
                raise UserError(
                    f"{_describe(template, row_id)}: expected texts of at most {limits.BUDGET:,} characters, "
                    f"got {len(value):,} in column {column!r}. Fix: cut the text or drop the row."
                )
            value = value.replace(SEPARATOR, PROTECTOR)
        elif isinstance(value, bytes) or type(value).__name__ == "ndarray":
            raise UserError(
                f"{_describe(template, row_id)}: expected plain Python values, got {type(value).__name__} in "
                f"column {column!r}. Fix: pass the row through elm_jax.tasks.columns.to_plain first."
            )
        protected[column] = value
    return protected


def _run(
    template: Template, source: str, variables: dict[str, Any], row: Mapping[str, Any], row_id: str | None
) -> str:
    def key() -> str:
        return f"{template.id}\n{storage.fingerprint(row) if row_id is None else row_id}"

    try:
        # A template may change lists in the row, but only for this rendering.
        if _changes_row(source):
            variables = copy.deepcopy(variables)
        return sandbox.run(source, variables, key=key)
    except Exception as error:  # a template can raise whatever Python can
        raise UserError(_describe_failure(template, error, row, row_id)) from error


def _describe_failure(
    template: Template, error: Exception, row: Mapping[str, Any], row_id: str | None
) -> str:
    about = _describe(template, row_id)
    if isinstance(error, jinja2.TemplateSyntaxError):
        return (
            f"{about}: expected jinja, got an error in line {error.lineno}: "
            f"{str(error.message).rstrip('.')}. Fix: correct the template."
        )
    name = re.fullmatch(r"'(.+)' is undefined", str(error))
    if isinstance(error, jinja2.UndefinedError) and name and name[1] not in row:
        have = ", ".join(repr(column) for column in row) or "none"
        return f"{about}: expected column {name[1]!r}, got only {have}. Fix: rename a column."
    reason = str(error).rstrip(".")
    kind = "" if isinstance(error, SecurityError) else f" ({type(error).__name__})"
    return f"{about}: expected it to render, got: {reason}{kind}. Fix: correct the template or the row."


def _describe(template: Template, row_id: str | None) -> str:
    of = f" of {template.dataset!r}" if template.dataset else ""
    return f"Template {template.name!r}{of}" + ("" if row_id is None else f", row {row_id!r}")


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.replace(PROTECTOR, SEPARATOR).strip() for part in text.split(SEPARATOR))


@functools.lru_cache(maxsize=8192)
def _add_truncation(source: str, length: int) -> str:
    """Returns the source with a filter that cuts every value, added to the text as PromptSource does."""
    if length < 3:
        raise UserError(f"Expected truncate to be 3 or more characters, got {length}. Fix: raise it.")
    return source.replace("}}", f" | string | truncate({length}) }}}}")


@functools.lru_cache(maxsize=8192)
def _changes_row(source: str) -> bool:
    changes = r"\.\s*(append|clear|extend|insert|pop|popitem|remove|reverse|setdefault|sort|update)\b"
    return re.search(changes, source) is not None


def _find_names(template: Template, source: str) -> set[str]:
    try:
        return meta.find_undeclared_variables(sandbox.ENVIRONMENT.parse(source))
    except Exception as error:
        raise UserError(_describe_failure(template, error, {}, None)) from error


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
