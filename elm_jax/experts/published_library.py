"""Published libraries: the files of a library in a repository of the Hugging Face hub, checked and fetched.

    <repository>/README.md  library.json
        <dataset>/<prompt>/expert.json  params.safetensors  keys.safetensors  gates.safetensors

A repository holds nothing else: it is refused if it has a pickle or any other file, before anything is
fetched. Then `expert.json` of every selected expert is fetched, and refused if the sizes of the other files
do not match it. Only then are these fetched.
"""

from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from etils import epath

from elm_jax import hub, names, storage
from elm_jax.errors import UserError
from elm_jax.experts import files

CARD_FILE, RECORD_FILE = "README.md", "library.json"
OTHER_FILES = (CARD_FILE, RECORD_FILE, ".gitattributes", "LICENSE", "LICENSE.md", "LICENSE.txt")
PICKLES = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth")
MAX_TEXT_BYTES = 2**26  # of a description

FILE_PATTERNS = tuple(f"*/*/{name}" for name in files.FILE_NAMES)
"""The files that the hub's cache must have for a library to be read without a network."""

FileSizes = Mapping[str, Mapping[str, int]]
"""Expert -> name of a file -> bytes."""


def file_sizes_by_expert(repo: hub.RepositoryFiles) -> dict[str, dict[str, int]]:
    """Returns the experts of a repository with the sizes of their files.

    Raises:
        UserError: If it holds a pickle or any file that does not belong to a library, or an expert lacks one.
    """
    found: dict[str, dict[str, int]] = {}
    for name, size in sorted(repo.sizes.items()):
        if name in OTHER_FILES:
            continue
        *home, file = name.split("/")
        if len(home) != 2 or file not in files.FILE_NAMES or not all(map(names.is_directory_name, home)):
            what = "the pickle" if file.endswith(PICKLES) else "the file"
            raise UserError(
                f"Expected {', '.join(files.FILE_NAMES)} of experts in {repo.repository!r}, got {what} "
                f"{name!r}. Fix: delete it from the repository, or name another library."
            )
        found.setdefault("/".join(map(names.from_directory_name, home)), {})[file] = size
    for expert, sizes in found.items():
        for file in (files.SPEC_FILE, files.PARAMS_FILE):
            if file not in sizes:
                raise UserError(
                    f"Expected {file} of expert {expert!r} in {repo.repository!r}, got none. Fix: push the "
                    "expert again."
                )
    return found


def select_experts(repo: hub.RepositoryFiles, experts: Iterable[str], only: str | None) -> list[str]:
    """Returns the experts of a repository that a pattern selects.

    Args:
        repo: The repository.
        experts: The ids of all its experts.
        only: An id, or a pattern of ids as in file names; None for all.

    Raises:
        UserError: If it selects none.
    """
    every = sorted(experts)
    found = [expert for expert in every if only is None or expert == only or fnmatchcase(expert, only)]
    if not found:
        what = "an expert" if only is None else f"an expert named {only!r}"
        near = names.near_matches(only or "", every) or every[: names.MAX_LISTED_NAMES]
        hint = f"name one of {', '.join(near)}" if near else "name a library that `elm experts push` wrote"
        raise UserError(f"Expected {what} in {repo.repository!r}, got none of {len(every)}. Fix: {hint}.")
    return found


def fetch_descriptions(
    repo: hub.RepositoryFiles, file_sizes: FileSizes, experts: Collection[str], *, base: str | None = None
) -> dict[str, files.ExpertDescription]:
    """Fetches and checks the descriptions of experts.

    Args:
        repo: The repository.
        file_sizes: The sizes of its files by expert.
        experts: The ids of the selected experts.
        base: The fingerprint of the base that they should have; default: any.

    Raises:
        UserError: If an expert has another base or another id, or the sizes of its files do not match.
    """
    for expert in experts:
        _require_size(repo, expert, files.SPEC_FILE, file_sizes[expert][files.SPEC_FILE], 2, MAX_TEXT_BYTES)
    directory = hub.download_files(
        repo, [f"{files.relative_directory(expert)}/{files.SPEC_FILE}" for expert in experts]
    )
    descriptions = {
        expert: files.read_description(directory / files.relative_directory(expert)) for expert in experts
    }
    for expert, description in descriptions.items():
        if description.spec.id != expert:
            raise UserError(
                f"Expected expert {expert!r} in its directory of {repo.repository!r}, got "
                f"{description.spec.id!r}. Fix: push it under its own id."
            )
        files.require_base(description.spec, base)
        least, most = files.params_bytes(description), files.max_params_bytes(description)
        _require_size(repo, expert, files.PARAMS_FILE, file_sizes[expert][files.PARAMS_FILE], least, most)
        for file in files.ADDED_FILES:
            if file in file_sizes[expert]:
                most = files.max_added_bytes(description, file)
                _require_size(repo, expert, file, file_sizes[expert][file], 8, most)
    return descriptions


def fetch_experts(repo: hub.RepositoryFiles, file_sizes: FileSizes, experts: Iterable[str]) -> epath.Path:
    """Fetches all files of experts, which `fetch_descriptions` checked; returns the library's directory."""
    return hub.download_files(
        repo,
        [f"{files.relative_directory(expert)}/{file}" for expert in experts for file in file_sizes[expert]],
    )


def fetch_library(address: str) -> epath.Path:
    """Fetches the library at `hf:owner/name` or `hf:owner/name@revision`; returns its directory.

    Raises:
        UserError: If neither the hub nor its cache has such a library, or it holds other files.
    """
    repo = hub.list_files(*hub.parse_address(address), cached=FILE_PATTERNS)
    found = file_sizes_by_expert(repo)
    experts = select_experts(repo, found, None)
    fetch_descriptions(repo, found, experts)
    return fetch_experts(repo, found, experts)


def fetch_record(repo: hub.RepositoryFiles) -> dict[str, Any] | None:
    """Fetches `library.json` of a repository; None if it has none.

    Raises:
        UserError: If it is too large or has another form.
    """
    if RECORD_FILE not in repo.sizes:
        return None
    _require_size(repo, None, RECORD_FILE, repo.sizes[RECORD_FILE], 2, MAX_TEXT_BYTES)
    return read_record(hub.download_files(repo, [RECORD_FILE]) / RECORD_FILE, repo.repository)


def read_record(file: epath.Path, repository: str) -> dict[str, Any]:
    """Reads the `library.json` of a repository; raises a UserError if it has another form."""
    record = storage.read_json(file, what="A library's record")
    if not isinstance(record.get("base"), str) or not isinstance(record.get("scores"), dict):
        raise UserError(
            f"Expected base and scores in {RECORD_FILE} of {repository!r}, got another form. Fix: "
            "delete the file from the repository, and push again."
        )
    return record


def _require_size(
    repo: hub.RepositoryFiles, expert: str | None, file: str, size: int, least: int, most: int
) -> None:
    if not least <= size <= most:
        of = f" of expert {expert!r}" if expert else ""
        raise UserError(
            f"Expected {least:,} to {most:,} bytes of {file}{of} in {repo.repository!r}, got {size:,}. Fix: "
            "push it again from a library that `elm experts verify` finds sound."
        )
