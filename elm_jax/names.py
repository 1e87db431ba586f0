"""Names: how tasks and experts are called, and what a misspelt one may have meant.

A task is one (dataset, prompt) pair, and its expert carries the same id, `dataset/prompt`. A dataset never
holds a slash; a prompt may hold anything, trailing spaces and slashes included, and is never stripped.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import quote, unquote

from elm_jax.errors import UserError

FEW = 20
"""As many names are all told where none is near."""


def task_id(dataset: str, prompt: str) -> str:
    """Returns the id of a (dataset, prompt) pair.

    >>> task_id("super_glue_cb", "always/sometimes/never")
    'super_glue_cb/always/sometimes/never'
    """
    if not dataset or "/" in dataset:
        raise UserError(f"A dataset name is wanted without a slash, but {dataset!r} came.")
    if not prompt:
        raise UserError(f"A prompt name is wanted for dataset {dataset!r}, but an empty one came.")
    return f"{dataset}/{prompt}"


def split_id(identifier: str) -> tuple[str, str]:
    """Splits an id into its dataset and prompt at the first slash.

    >>> split_id("super_glue_cb/always/sometimes/never")
    ('super_glue_cb', 'always/sometimes/never')
    """
    dataset, slash, prompt = identifier.partition("/")
    if not (dataset and slash and prompt):
        raise UserError(f"An id has the form dataset/prompt, but {identifier!r} came.")
    return dataset, prompt


def directory_name(part: str) -> str:
    """Returns a name that every file system takes and that `from_directory_name` turns back.

    >>> directory_name("C1 or C2? premise, so/because…")
    'C1%20or%20C2%3F%20premise%2C%20so%2Fbecause%E2%80%A6'
    """
    # A name that starts with a dot is hidden, and one with a tilde is a home directory or a backup to some.
    quoted = quote(part, safe="").replace("~", "%7E")
    return f"%2E{quoted[1:]}" if quoted.startswith(".") else quoted


def from_directory_name(name: str) -> str:
    """The inverse of `directory_name`."""
    return unquote(name)


def near_matches(name: str, known: Iterable[str], *, most: int = 3) -> list[str]:
    """Returns the known names closest in spelling, best first; case does not count."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    found = difflib.get_close_matches(name.lower(), list(by_lower), n=most, cutoff=0.5)
    return [by_lower[lower] for lower in found]


def resolve(name: str, known: Iterable[str], *, kind: str, where: str) -> str:
    """Returns `name` if it is known; otherwise an error with the nearest ones.

    `kind` is what the name is of ("expert"), `where` the place it was looked for ("the library at /data").
    """
    known = list(known)
    if name in known:
        return name
    near = near_matches(name, known)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    if not near and 0 < len(known) <= FEW:
        hint = f" There are {', '.join(known)}."
    raise UserError(f"No {kind} named {name!r} in {where} ({len(known)} known).{hint}")


def require_free(
    name: str, function: Callable[..., Any], taken: Mapping[str, Callable[..., Any]], *, kind: str
) -> None:
    """Raises if a function cannot be registered under a name: it is no identifier, or another function's.

    A function may be registered again, since a file or a notebook's cell that runs twice defines it anew.
    """
    if not name.isidentifier():
        raise UserError(f"Expected a name of letters, digits and _ for a {kind}, got {name!r}.")
    known = taken.get(name)
    if known is not None and _origin(known) != _origin(function):
        raise UserError(
            f"A {kind} named {name!r} is there already, registered by {'.'.join(_origin(known))}. Fix: "
            "choose another name."
        )


def _origin(function: Callable[..., Any]) -> tuple[str, str]:
    return function.__module__, function.__qualname__
