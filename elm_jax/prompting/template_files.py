"""Template files: PromptSource's YAML files, a folder for every dataset, read into templates."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from etils import epath

from elm_jax import names, storage
from elm_jax.errors import UserError
from elm_jax.prompting import promptsource, reader
from elm_jax.prompting.templates import Template


def load_templates(directory: storage.PathLike, dataset: str, *, strict: bool = False) -> dict[str, Template]:
    """Reads the templates of a dataset from a directory laid out as PromptSource's.

    Args:
        directory: A directory with a folder for every dataset.
        dataset: The folder: "dataset", "dataset/config" or "owner/dataset/config".
        strict: Whether the templates are strict.

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
        names.resolve(dataset, list_folders(root), kind="templates", where=str(root))
        raise UserError(f"Expected templates at {str(file)!r}, got no file. Fix: correct the directory.")
    templates: dict[str, Template] = {}
    content = storage.read_content(file, what="Templates", most=storage.MOST_TEXT)
    for entry in reader.read_entries(str(file), content):
        template = _parse_template(f"{str(file)!r}, line {entry.line}", entry.fields, dataset, strict)
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


def list_folders(directory: epath.Path) -> list[str]:
    """Returns the folders below a directory that have templates, which are up to three levels deep."""
    found = [file for depth in range(1, 4) for file in directory.glob("*/" * depth + "templates.yaml")]
    return sorted("/".join(file.parent.relative_to(directory).parts) for file in found)


def _parse_template(where: str, fields: Mapping[Any, Any], dataset: str, strict: bool) -> Template:
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
        strict=strict,
    )


def _describe_type(value: Any) -> str:
    return "none" if value is None else f"a value of type {type(value).__name__}"
