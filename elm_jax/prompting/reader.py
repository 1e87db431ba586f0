"""The reader of PromptSource's YAML: plain values, its two tags, and no code."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from elm_jax.errors import UserError

DEEPEST = 100
"""How many levels a file may nest; the real ones nest six."""


@dataclass(frozen=True)
class Entry:
    """One `!Template` of a file, and the line where it starts."""

    line: int
    fields: Mapping[Any, Any]


def read_entries(file: str, content: bytes) -> list[Entry]:
    """Returns the templates of a file's content, in order; `file` is how errors name it.

    A tag other than `!Template` and `!TemplateMetadata`, and whatever else is no plain YAML of templates, is
    a `UserError` naming the file and the line.
    """
    tree = read_yaml(file, content)
    entries = tree.get("templates") if isinstance(tree, dict) else None
    if not isinstance(entries, dict):
        raise UserError(f"{file!r} should hold a mapping named templates, but none is there.")
    for key, entry in entries.items():
        if not isinstance(entry, Entry):
            raise UserError(f"{file!r} should tag every template with !Template, but {key!r} is without.")
    return list(entries.values())


def read_yaml(file: str, content: bytes) -> Any:
    """Returns the content of a YAML file, with an `Entry` for each template in it."""
    try:
        text = content.decode("utf-8-sig")
        _check_shape(file, text)
        return yaml.load(text, Loader=_Loader)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file!r}, line {line}, should be UTF-8 text, but is not.") from error
    except yaml.reader.ReaderError as error:
        line = content.decode("utf-8-sig").count("\n", 0, error.position) + 1
        raise UserError(
            f"{file!r}, line {line}, holds a character that YAML forbids ({error.reason})."
        ) from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{file!r}, line {line}, is not plain YAML: {error.problem}.") from error


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML's plain values and PromptSource's two tags."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except yaml.YAMLError:
            raise
        except Exception as error:  # a date or number that only looks like one fails in any way
            problem = f"{getattr(node, 'value', None)!r} cannot be read ({error})"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error


def _entry(loader: Any, node: Any) -> Entry:
    return Entry(node.start_mark.line + 1, loader.construct_mapping(node, deep=True))


_Loader.add_constructor("!Template", _entry)
_Loader.add_constructor("!TemplateMetadata", lambda loader, node: loader.construct_mapping(node, deep=True))


def _check_shape(file: str, text: str) -> None:
    """Refuses two shapes that plain parsing does not survive.

    Nesting so deep that the C parser overruns its stack, and anchors within anchors, which make much of
    little.
    """
    anchored: list[bool] = []  # for each collection that is open
    for event in yaml.parse(text, Loader=_Loader):
        wrong = None
        if isinstance(event, yaml.CollectionStartEvent):
            anchored.append(event.anchor is not None)
            wrong = f"nests more than {DEEPEST} levels deep" if len(anchored) > DEEPEST else None
        elif isinstance(event, yaml.CollectionEndEvent):
            anchored.pop()
        elif isinstance(event, yaml.AliasEvent) and any(anchored):
            wrong = "refers to an anchor from within another"
        if wrong:
            raise UserError(f"{file!r}, line {event.start_mark.line + 1}, {wrong}.")
