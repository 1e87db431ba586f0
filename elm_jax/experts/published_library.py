"""Published libraries: how experts lie in a repository of the hub, what is looked at before they are fetched.

    <repository>/README.md  library.json  <dataset>/<prompt>/expert.json  params.safetensors  keys.safetensors

A repository holds that and nothing else: a pickle or any other file is refused by name before anything is
fetched. Then `expert.json` of every wanted expert is read, and refused if the files beside it cannot be what
it says, by their sizes; only then are these fetched.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from etils import epath

from elm_jax import hub, names, storage
from elm_jax.errors import UserError
from elm_jax.experts import files

CARD_FILE, RECORD_FILE = "README.md", "library.json"
OTHER_FILES = (CARD_FILE, RECORD_FILE, ".gitattributes", "LICENSE", "LICENSE.md", "LICENSE.txt")
PICKLES = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth")
MOST_TEXT = 2**26  # bytes of a description
MOST_KEYS = 2**30  # bytes of an expert's keys
_HEAD, _HEAD_OF_PATH = 2**16, 2**10  # bytes of a safetensors file beside its numbers

PATTERNS = tuple(f"*/*/{name}" for name in files.FILE_NAMES)
"""What the hub's cache must have of a library that is read without a network."""

FileSizes = Mapping[str, Mapping[str, int]]
"""Expert -> file -> bytes."""


def file_sizes_by_expert(held: hub.Contents) -> dict[str, dict[str, int]]:
    """Returns the experts of a repository with the sizes of their files.

    Raises:
        UserError: If it holds a pickle or another file that is no library's, or an expert lacks a file.
    """
    found: dict[str, dict[str, int]] = {}
    for name, size in sorted(held.sizes.items()):
        if name in OTHER_FILES:
            continue
        *home, file = name.split("/")
        if len(home) != 2 or file not in files.FILE_NAMES or not all(map(_is_escaped, home)):
            what = "the pickle" if file.endswith(PICKLES) else "the file"
            raise UserError(
                f"Expected {', '.join(files.FILE_NAMES)} of experts in {held.repository!r}, got {what} {name!r}. "
                "Fix: take it out of the repository, or name a library that `elm experts push` wrote."
            )
        found.setdefault("/".join(map(names.from_directory_name, home)), {})[file] = size
    for expert, sizes in found.items():
        for file in (files.SPEC_FILE, files.PARAMS_FILE):
            if file not in sizes:
                raise UserError(
                    f"Expected {file} of expert {expert!r} in {held.repository!r}, got none. Fix: push the "
                    "expert again."
                )
    return found


def where(expert: str) -> str:
    """Returns the directory of an expert in a library.

    >>> where("dream/baseline so far")
    'dream/baseline%20so%20far'
    """
    return "/".join(map(names.directory_name, names.split_id(expert)))


def select_experts(held: hub.Contents, experts: Iterable[str], only: str | None) -> list[str]:
    """Returns the experts of a repository whose id matches a pattern as file names do; all without one.

    Raises:
        UserError: If there is none.
    """
    every = sorted(experts)
    found = [expert for expert in every if only is None or expert == only or fnmatchcase(expert, only)]
    if not found:
        what = "an expert" if only is None else f"an expert named {only!r}"
        near = names.near_matches(only or "", every) or every[: names.FEW]
        hint = f"name one of {', '.join(near)}" if near else "name a library that `elm experts push` wrote"
        raise UserError(f"Expected {what} in {held.repository!r}, got none of {len(every)}. Fix: {hint}.")
    return found


def fetch_descriptions(
    held: hub.Contents, found: FileSizes, experts: Collection[str], *, base: str | None = None
) -> dict[str, files.ExpertDescription]:
    """Fetches `expert.json` of experts and returns what they say.

    Raises:
        UserError: If one is of another base or of another id, or the files beside it cannot be what it says.
    """
    for expert in experts:
        _require_size(held, expert, files.SPEC_FILE, found[expert][files.SPEC_FILE], 2, MOST_TEXT)
        if files.KEYS_FILE in found[expert]:
            _require_size(held, expert, files.KEYS_FILE, found[expert][files.KEYS_FILE], 8, MOST_KEYS)
    directory = hub.download(held, [f"{where(expert)}/{files.SPEC_FILE}" for expert in experts])
    told = {expert: files.read_description(directory / where(expert)) for expert in experts}
    for expert, description in told.items():
        if description.spec.id != expert:
            raise UserError(
                f"Expected expert {expert!r} at {where(expert)!r} of {held.repository!r}, got one that calls "
                f"itself {description.spec.id!r}. Fix: push it under its own name."
            )
        if base is not None and description.spec.base != base:
            raise UserError(files.other_base(description.spec, base))
        least = _params_bytes(description)
        most = least + _HEAD + _HEAD_OF_PATH * len(description.shapes)
        _require_size(held, expert, files.PARAMS_FILE, found[expert][files.PARAMS_FILE], least, most)
    return told


def fetch_experts(held: hub.Contents, found: FileSizes, experts: Iterable[str]) -> epath.Path:
    """Returns a directory that has these experts' files, whole as a library's; `describe` comes before."""
    return hub.download(held, [f"{where(expert)}/{file}" for expert in experts for file in found[expert]])


def fetch_library(address: str) -> epath.Path:
    """Returns the directory of a whole library at `hf:owner/name` or `hf:owner/name@revision`, fetched.

    Raises:
        UserError: If the hub or its cache has no such library, or it holds what no library does.
    """
    held = hub.contents(*hub.address(address), cached=PATTERNS)
    found = file_sizes_by_expert(held)
    experts = select_experts(held, found, None)
    fetch_descriptions(held, found, experts)
    return fetch_experts(held, found, experts)


def fetch_record(held: hub.Contents) -> dict[str, Any] | None:
    """Fetches `library.json` of a repository and returns what it says; None if it has none."""
    if RECORD_FILE not in held.sizes:
        return None
    _require_size(held, None, RECORD_FILE, held.sizes[RECORD_FILE], 2, MOST_TEXT)
    told = storage.read_json(hub.download(held, [RECORD_FILE]) / RECORD_FILE, what="A library's record")
    if not isinstance(told.get("base"), str) or not isinstance(told.get("scores"), dict):
        raise UserError(
            f"Expected base and scores in {RECORD_FILE} of {held.repository!r}, got another form. Fix: take the "
            "file out of the repository, and push again."
        )
    return told


def _is_escaped(name: str) -> bool:
    return names.directory_name(names.from_directory_name(name)) == name


def _params_bytes(description: files.ExpertDescription) -> int:
    """Returns the bytes of all parameters of an expert, by what its description says."""
    try:
        return sum(
            math.prod(map(int, shape)) * np.dtype(description.dtypes[path]).itemsize
            for path, shape in description.shapes.items()
        )
    except (TypeError, ValueError, KeyError, OverflowError):
        raise UserError(
            f"Expected shapes and types of parameters of {description.spec.id!r}, got another form. Fix: "
            "push the expert again."
        ) from None


def _require_size(
    held: hub.Contents, expert: str | None, file: str, size: int, least: int, most: int
) -> None:
    if not least <= size <= most:
        of = f" of expert {expert!r}" if expert else ""
        raise UserError(
            f"Expected {least:,} to {most:,} bytes of {file}{of} in {held.repository!r}, got {size:,}. Fix: "
            "push it again from a library that `elm experts verify` finds sound."
        )
