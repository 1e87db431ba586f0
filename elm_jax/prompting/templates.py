"""Templates: PromptSource's way to write prompts, read from its YAML files and rendered as it renders them.

A template is jinja source. Rendered with a row of a dataset it gives parts divided by `|||`: two are an input
and a target; one means that the template does not apply to the row. The format is that of Bach et al. (2022),
arXiv 2202.01279; the rendering is held against the original's output.
"""

import copy
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jinja2
from jinja2 import meta
from jinja2.exceptions import SecurityError

from elm_jax import names, storage
from elm_jax.errors import UserError
from elm_jax.prompting import limits, reader, sandbox

SEPARATOR = "|||"
PROTECTOR = "3ed2dface8203c4c9dfb1a5dc58e41e0"
"""Stands for a separator within the row while it is rendered. Some templates split on it, so it is fixed."""
TRUNCATE = 2048
"""To how many characters the original cuts every value that a template writes."""


@dataclass(frozen=True)
class Rendered:
    """What a template made of a row."""

    input: str
    target: str
    choices: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Template:
    """One way to turn a dataset's rows into prompts; the fields are the YAML's, none of them stripped."""

    name: str
    id: str
    jinja: str
    answer_choices: str | None = None  # jinja source too
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)
    dataset: str = ""  # only for messages

    def render(
        self, row: Mapping[str, Any], truncate: int | None = TRUNCATE, *, row_id: str | None = None
    ) -> Rendered | None:
        """Returns the input and target for a row, or None where the template does not apply to it.

        Every value written is cut to `truncate` characters, at a word's end where there is one, targets too;
        None cuts nothing. Random filters depend on the template's id and on `row_id` alone (on the row's
        content where no id is given). Raises `UserError` on a missing column, three or more parts, and jinja
        that does not compile or fails on the row.
        """
        choices = self.choices(row, row_id=row_id)
        parts = _parts(self, row, choices, truncate, row_id)
        if len(parts) > 2:
            raise UserError(
                f"{_about(self, row_id)} should give an input and a target, but gave {len(parts)} parts. "
                f"Write {SEPARATOR!r} once in it, and see that no answer choice of the row holds it."
            )
        return Rendered(*parts, choices) if len(parts) == 2 else None

    def parts(
        self, row: Mapping[str, Any], truncate: int | None = TRUNCATE, *, row_id: str | None = None
    ) -> tuple[str, ...]:
        """Returns the parts that `render` judges, however many there are."""
        return _parts(self, row, self.choices(row, row_id=row_id), truncate, row_id)

    def choices(self, row: Mapping[str, Any], *, row_id: str | None = None) -> tuple[str, ...] | None:
        """Returns the row's answer choices, never truncated; None where the template has none."""
        if self.answer_choices is None:
            return None
        if self._constant_choices is not None:
            return self._constant_choices
        return _split(_run(self, self.answer_choices, _protected(self, row, row_id), row, row_id))

    @functools.cached_property
    def fixed_choices(self) -> tuple[str, ...] | None:
        """The answer choices if they are the same for every row, else None."""
        if self.answer_choices is None or _names_read(self, self.answer_choices):
            return None
        return _split(_run(self, self.answer_choices, {}, {}, None))

    @functools.cached_property
    def columns(self) -> frozenset[str]:
        """The columns of a row that the template may read."""
        read = _names_read(self, self.jinja) | _names_read(self, self.answer_choices or "")
        return frozenset(read - {"answer_choices"} - sandbox.ENVIRONMENT.globals.keys())

    @functools.cached_property
    def _constant_choices(self) -> tuple[str, ...] | None:
        # Choices that read no column may still be drawn at random for each row.
        random = re.search(r"\|\s*(choice|random)\b", self.answer_choices or "")
        return None if random else self.fixed_choices


def load_templates(directory: storage.PathLike, dataset: str) -> dict[str, Template]:
    """Reads the templates of a dataset from a directory laid out as PromptSource's.

    `directory` has a folder for every dataset, `dataset` is "dataset" or "dataset/config". Returns the
    templates by name, in the file's order. A tag other than PromptSource's two, anything else that is not
    plain YAML, and a template without a name, id or jinja is a `UserError` naming the file and the line.
    """
    root = storage.existing_directory(
        directory, what="A directory of templates", remedy="Give the directory that holds dataset folders."
    )
    file = root.joinpath(*dataset.split("/"), "templates.yaml")
    if ".." in dataset.split("/") or not file.is_file():
        names.resolve(dataset, _datasets(root), kind="templates", where=str(root))
        raise UserError(f"Templates are wanted at {str(file)!r}, but no file is there.")
    templates: dict[str, Template] = {}
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"Templates are wanted at {str(file)!r}, but {error.strerror or error}.") from error
    for entry in reader.read_entries(str(file), content):
        template = _template(f"{str(file)!r}, line {entry.line}", entry.fields, dataset)
        if template.name in templates:
            raise UserError(
                f"{str(file)!r}, line {entry.line}: a second template is named {template.name!r}. Rename one."
            )
        templates[template.name] = template
    return templates


def _parts(
    template: Template,
    row: Mapping[str, Any],
    choices: tuple[str, ...] | None,
    truncate: int | None,
    row_id: str | None,
) -> tuple[str, ...]:
    variables = _protected(template, row, row_id)
    if "answer_choices" in variables:
        raise UserError(
            f"{_about(template, row_id)} calls its choices answer_choices, and a column of the row has that "
            "name too. Rename the column."
        )
    variables["answer_choices"] = None if choices is None else list(choices)
    source = template.jinja if truncate is None else _truncating(template.jinja, truncate)
    return _split(_run(template, source, variables, row, row_id))


def _protected(template: Template, row: Mapping[str, Any], row_id: str | None) -> dict[str, Any]:
    """Returns the row with the separators of its own texts (not of nested ones) protected."""
    protected: dict[str, Any] = {}
    for column, value in row.items():
        if isinstance(value, str):
            if len(value) > limits.BUDGET:
                raise UserError(
                    f"{_about(template, row_id)} takes texts of up to {limits.BUDGET:,} characters, but "
                    f"column {column!r} holds {len(value):,}. Cut it or drop the row."
                )
            value = value.replace(SEPARATOR, PROTECTOR)
        elif isinstance(value, bytes) or type(value).__name__ == "ndarray":
            raise UserError(
                f"{_about(template, row_id)} takes plain Python values, but column {column!r} holds "
                f"{type(value).__name__}. Pass the row through elm_jax.tasks.columns.plain first."
            )
        protected[column] = value
    return protected


def _run(
    template: Template, source: str, variables: dict[str, Any], row: Mapping[str, Any], row_id: str | None
) -> str:
    def key() -> str:
        return f"{template.id}\n{storage.fingerprint(row) if row_id is None else row_id}"

    try:
        # Lists within the row may be changed by a template, but only for this one rendering.
        if _changes_row(source):
            variables = copy.deepcopy(variables)
        return sandbox.run(source, variables, key=key)
    except Exception as error:  # a template can raise whatever Python can
        raise UserError(_failure(template, error, row, row_id)) from error


def _failure(template: Template, error: Exception, row: Mapping[str, Any], row_id: str | None) -> str:
    about = _about(template, row_id)
    if isinstance(error, jinja2.TemplateSyntaxError):
        return (
            f"{about} should be jinja, but its line {error.lineno} is not: {str(error.message).rstrip('.')}."
        )
    name = re.fullmatch(r"'(.+)' is undefined", str(error))
    if isinstance(error, jinja2.UndefinedError) and name and name[1] not in row:
        have = ", ".join(repr(column) for column in row) or "none"
        return f"{about} reads column {name[1]!r}, but the row has only these columns: {have}."
    reason = str(error).rstrip(".")
    kind = "" if isinstance(error, SecurityError) else f" ({type(error).__name__})"
    return f"{about} cannot be rendered: {reason}{kind}."


def _about(template: Template, row_id: str | None) -> str:
    of = f" of {template.dataset!r}" if template.dataset else ""
    return f"Template {template.name!r}{of}" + ("" if row_id is None else f", at row {row_id!r},")


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.replace(PROTECTOR, SEPARATOR).strip() for part in text.split(SEPARATOR))


@functools.lru_cache(maxsize=8192)
def _truncating(source: str, length: int) -> str:
    """Returns the source with every value that it writes cut, as the original does: by changing the text."""
    if length < 3:
        raise UserError(f"Values can be cut to 3 characters or more, but truncate={length} came.")
    return source.replace("}}", f" | string | truncate({length}) }}}}")


@functools.lru_cache(maxsize=8192)
def _changes_row(source: str) -> bool:
    changes = r"\.\s*(append|clear|extend|insert|pop|popitem|remove|reverse|setdefault|sort|update)\b"
    return re.search(changes, source) is not None


def _names_read(template: Template, source: str) -> set[str]:
    try:
        return meta.find_undeclared_variables(sandbox.ENVIRONMENT.parse(source))
    except Exception as error:
        raise UserError(_failure(template, error, {}, None)) from error


def _template(where: str, fields: Mapping[Any, Any], dataset: str) -> Template:
    for name, optional in [("name", False), ("id", False), ("jinja", False), ("answer_choices", True)]:
        value = fields.get(name)
        if not isinstance(value, str) and not (optional and value is None):
            raise UserError(f"{where}: a template's `{name}` should be text, but {_kind(value)} came.")
    metadata = fields.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise UserError(f"{where}: a template's `metadata` should be a mapping, but {_kind(metadata)} came.")
    return Template(
        name=fields["name"],
        id=fields["id"],
        jinja=fields["jinja"],
        answer_choices=fields.get("answer_choices"),
        metadata=metadata,
        dataset=dataset,
    )


def _kind(value: Any) -> str:
    return "none" if value is None else f"a value of type {type(value).__name__}"


def _datasets(root: Any) -> list[str]:
    found = [*root.glob("*/templates.yaml"), *root.glob("*/*/templates.yaml")]
    return sorted("/".join(file.parent.relative_to(root).parts) for file in found)
