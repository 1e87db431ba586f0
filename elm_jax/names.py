"""Names: ids of tasks and experts, and the nearest names of one that is unknown.

A task is one (dataset, prompt) pair, and its expert has the same id, `dataset/prompt`. A dataset never has a
slash; a prompt may have any characters, trailing spaces and slashes included, and is never stripped.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import quote, unquote

from elm_jax.errors import UserError

MAX_NAME_BYTES = 217
"""Of a name on disk: file systems take 255, and what is written has 38 more until it is whole."""
MAX_LISTED_NAMES = 20
"""If no name is near, an error lists all names, up to this many."""


def task_id(dataset: str, prompt: str) -> str:
    """Returns the id of a (dataset, prompt) pair.

    >>> task_id("super_glue_cb", "always/sometimes/never")
    'super_glue_cb/always/sometimes/never'
    """
    if not dataset or "/" in dataset:
        raise UserError(f"Expected a dataset name without a slash, got {dataset!r}. Fix: rename it.")
    if not prompt:
        raise UserError(f"Expected a prompt name for dataset {dataset!r}, got an empty one. Fix: name it.")
    return f"{dataset}/{prompt}"


def split_id(identifier: str) -> tuple[str, str]:
    """Splits an id into its dataset and prompt at the first slash.

    >>> split_id("super_glue_cb/always/sometimes/never")
    ('super_glue_cb', 'always/sometimes/never')
    """
    dataset, slash, prompt = identifier.partition("/")
    if not (dataset and slash and prompt):
        raise UserError(f"Expected an id as dataset/prompt, got {identifier!r}. Fix: name both.")
    return dataset, prompt


def directory_name(part: str) -> str:
    """Returns a name that every file system takes, from which `from_directory_name` returns the original.

    >>> directory_name("C1 or C2? premise, so/because…")
    'C1%20or%20C2%3F%20premise%2C%20so%2Fbecause%E2%80%A6'
    """
    try:
        quoted = quote(part, safe="")
    except UnicodeEncodeError:
        raise UserError(f"Expected a name of whole characters, got {part!r:.60}. Fix: rename it.") from None
    # A leading dot hides a file, and a tilde means a home directory or a backup to some programs.
    quoted = quoted.replace("~", "%7E")
    quoted = f"%2E{quoted[1:]}" if quoted.startswith(".") else quoted
    if len(quoted) > MAX_NAME_BYTES:
        raise UserError(
            f"Expected a name of at most {MAX_NAME_BYTES} bytes as %-encoded, got {len(quoted)} of "
            f"{part!r:.60}. Fix: shorten it."
        )
    return quoted


def from_directory_name(name: str) -> str:
    """Returns the name that `directory_name` was given."""
    return unquote(name)


def is_directory_name(name: str) -> bool:
    """Returns whether a name is one that `directory_name` gives."""
    try:
        return directory_name(from_directory_name(name)) == name
    except UserError:
        return False


def near_matches(name: str, known: Iterable[str], *, most: int = 3) -> list[str]:
    """Returns the known names closest in spelling, best first, ignoring case."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    found = difflib.get_close_matches(name.lower(), list(by_lower), n=most, cutoff=0.5)
    return [by_lower[lower] for lower in found]


def resolve(name: str, known: Iterable[str], *, kind: str, where: str) -> str:
    """Returns a name that has to be known.

    Args:
        name: The name.
        known: All known names.
        kind: What is named, such as "expert".
        where: Where the name was looked for, such as "the library at /data".

    Raises:
        UserError: If the name is unknown; the message has the nearest names.
    """
    known = list(known)
    if name in known:
        return name
    near = near_matches(name, known)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    if not near and 0 < len(known) <= MAX_LISTED_NAMES:
        hint = f" There are {', '.join(known)}."
    raise UserError(f"No {kind} named {name!r} in {where} ({len(known)} known).{hint}")


def lower_first(text: str) -> str:
    """Returns a sentence that can follow a colon: its first letter in lower case.

    >>> lower_first("Give a directory."), lower_first("TFDS's folder")
    ('give a directory.', "TFDS's folder")
    """
    return text[:1].lower() + text[1:] if text[1:2].islower() or text[1:2] == " " else text


def require_free(
    name: str, function: Callable[..., Any], taken: Mapping[str, Callable[..., Any]], *, kind: str
) -> None:
    """Raises if a function cannot be registered under a name: it is no identifier, or another function's.

    A function may be registered again, since a file or a notebook's cell that runs twice defines it anew.
    """
    if not name.isidentifier():
        raise UserError(f"Expected a name of letters, digits and _ for a {kind}, got {name!r}.")
    known = taken.get(name)
    if known is not None and _module_and_name(known) != _module_and_name(function):
        raise UserError(
            f"A {kind} named {name!r} is there already, registered by {'.'.join(_module_and_name(known))}. "
            "Fix: choose another name."
        )


def _module_and_name(function: Callable[..., Any]) -> tuple[str, str]:
    return function.__module__, function.__qualname__
