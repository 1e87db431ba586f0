"""Reader of PromptSource's YAML: plain values and its two tags, and no code."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from elm_jax.errors import UserError

MAX_DEPTH = 100
"""Levels that a file may nest; PromptSource's files nest six."""


@dataclass(frozen=True)
class Entry:
    """One `!Template` of a file, and the line where it starts."""

    line: int
    fields: Mapping[Any, Any]


def read_entries(file: str, content: bytes) -> list[Entry]:
    """Returns the templates of a file's content, in order.

    Args:
        file: The file's name in errors.
        content: Its bytes.

    Raises:
        UserError: If it is not plain YAML of templates, or has tags other than `!Template` and
            `!TemplateMetadata`; the message names the line.
    """
    tree = read_yaml(file, content)
    entries = tree.get("templates") if isinstance(tree, dict) else None
    if not isinstance(entries, dict):
        raise UserError(f"Expected {file!r} to hold a mapping `templates`, got none. Fix: add it.")
    for key, entry in entries.items():
        if not isinstance(entry, Entry):
            raise UserError(
                f"Expected every template of {file!r} to have the tag !Template, got {key!r} without. Fix: "
                "add it."
            )
    return list(entries.values())


def read_yaml(file: str, content: bytes) -> Any:
    """Returns the content of a YAML file, with an `Entry` for each template in it."""
    try:
        text = content.decode("utf-8-sig")
        _require_safe_shape(file, text)
        return yaml.load(text, Loader=_Loader)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{file!r}, line {line}: expected UTF-8, got other bytes. Fix: save the file as UTF-8."
        ) from error
    except yaml.reader.ReaderError as error:
        line = content.decode("utf-8-sig").count("\n", 0, error.position) + 1
        raise UserError(
            f"{file!r}, line {line}: expected YAML, got a character that it forbids ({error.reason}). Fix: "
            "remove it."
        ) from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(
            f"{file!r}, line {line}: expected plain YAML, got: {error.problem}. Fix: correct the line."
        ) from error


_MERGE = "tag:yaml.org,2002:merge"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML's plain values and PromptSource's two tags."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the name {key.value!r} twice", key.start_mark
                    )
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep=deep)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except yaml.YAMLError:
            raise
        except Exception as error:  # what only looks like a date or a number fails with any error
            problem = f"{getattr(node, 'value', None)!r} cannot be read ({error})"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error


def _entry(loader: Any, node: Any) -> Entry:
    return Entry(node.start_mark.line + 1, loader.construct_mapping(node, deep=True))


_Loader.add_constructor("!Template", _entry)
_Loader.add_constructor("!TemplateMetadata", lambda loader, node: loader.construct_mapping(node, deep=True))


def _require_safe_shape(file: str, text: str) -> None:
    """Raises for two shapes that break plain parsing.

    These are nesting so deep that the C parser's stack overflows, and anchors within anchors, which expand
    without bound.
    """
    anchored: list[bool] = []  # of each open collection
    for event in yaml.parse(text, Loader=_Loader):
        problem = None
        if isinstance(event, yaml.CollectionStartEvent):
            anchored.append(event.anchor is not None)
            problem = f"nesting of more than {MAX_DEPTH} levels" if len(anchored) > MAX_DEPTH else None
        elif isinstance(event, yaml.CollectionEndEvent):
            anchored.pop()
        elif isinstance(event, yaml.AliasEvent) and any(anchored):
            problem = "an alias within an anchor"
        if problem:
            raise UserError(
                f"{file!r}, line {event.start_mark.line + 1}: expected simpler YAML, got {problem}. Fix: "
                "flatten it."
            )
