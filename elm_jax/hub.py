"""The Hugging Face hub: lists, downloads and commits files of a repository, with the hub's own client.

The client finds the endpoint, the token and the cache as always: in `HF_ENDPOINT`, in `HF_TOKEN` or by
`hf auth login`, in `HF_HOME`. Errors of the hub and of the network become a `UserError` each.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etils import epath

from elm_jax import storage
from elm_jax.errors import UserError

HUB_PREFIX = "hf:"  # of the address of a repository: hf:owner/name or hf:owner/name@revision
_CACHED = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})/?$")
# The client caches compiled patterns, but no more than some hundreds.
_MAX_PATTERNS = 100


class RepositoryNotFoundError(UserError):
    """The hub has no such repository, or none that this token may read."""


@dataclass(frozen=True)
class RepositoryFiles:
    """The files of a repository at one commit.

    Attributes:
        repository: `owner/name`.
        commit: The commit.
        sizes: Name of a file -> bytes.
    """

    repository: str
    commit: str
    sizes: Mapping[str, int]


def parse_address(name: str) -> tuple[str, str | None]:
    """Splits an address on the hub into its repository and its revision.

    Raises:
        UserError: If it has another form.

    >>> parse_address("hf:google/flan-t5-xl@main"), parse_address("hf:google/flan-t5-xl")
    (('google/flan-t5-xl', 'main'), ('google/flan-t5-xl', None))
    """
    repository, at, revision = name.removeprefix(HUB_PREFIX).partition("@")
    owner, slash, short = repository.partition("/")
    if not (owner and slash and short) or "/" in short or (at and not revision):
        raise UserError(
            f"Expected a repository of the hub as {HUB_PREFIX}owner/name or {HUB_PREFIX}owner/name@revision, "
            f"got {name!r}. Fix: copy its name from the page of the model."
        )
    return repository, revision or None


def find_repository(directory: str) -> tuple[str, str] | None:
    """Returns the repository and the commit of a directory in the hub's cache; None if it lies elsewhere.

    >>> find_repository("hub/models--google--flan-t5-xl/snapshots/" + "7" * 40)[0]
    'google/flan-t5-xl'
    """
    cached = _CACHED.search(directory)
    return (f"{cached[1]}/{cached[2]}", cached[3]) if cached else None


def download_snapshot(
    repository: str,
    patterns: Sequence[str] | None,
    revision: str | None = None,
    *,
    cached: bool = False,
) -> tuple[epath.Path | None, str]:
    """Downloads the files of a repository that match patterns, if the cache lacks them.

    Args:
        repository: `owner/name`.
        patterns: Patterns of file names; None reads the cache alone.
        revision: The revision; default: that of the main branch.
        cached: Whether only the cache is read.

    Returns:
        Their directory and "", or None and the reason why there is none.
    """
    import huggingface_hub

    try:
        directory = huggingface_hub.snapshot_download(
            repository,
            revision=revision,
            allow_patterns=None if patterns is None else list(patterns),
            local_files_only=cached or patterns is None,
        )
    except Exception as error:  # of the hub, its client and the system, of many classes
        return None, f"{type(error).__name__}: {_first_line(error)}"
    return storage.path(directory), ""


def list_files(
    repository: str, revision: str | None = None, *, cached: Sequence[str] = ()
) -> RepositoryFiles:
    """Lists the files of a repository.

    Args:
        repository: `owner/name`.
        revision: The revision; default: that of the main branch.
        cached: Patterns of file names. If there is no network and the cache has files for all of them, its
            files are listed.

    Raises:
        RepositoryNotFoundError: If there is no such repository, or none that this token may read.
        UserError: If there is no such revision, the hub refuses the token, or it cannot be reached.
    """
    import huggingface_hub
    from huggingface_hub.hf_api import RepoFile

    api = huggingface_hub.HfApi()
    try:
        commit = str(api.repo_info(repository, revision=revision).sha)
        tree = api.list_repo_tree(repository, recursive=True, revision=commit)
        return RepositoryFiles(
            repository, commit, {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}
        )
    except Exception as error:
        if cached and _http_status(error) is None:
            directory, _ = download_snapshot(repository, cached, revision, cached=True)
            if directory is not None:
                return _list_snapshot(repository, directory)
        raise _hub_error(error, repository, revision) from None


def download_files(repo: RepositoryFiles, files: Collection[str]) -> epath.Path:
    """Downloads files of a repository that the cache lacks; returns their directory.

    Raises:
        UserError: If the hub refuses, or cannot be reached.
    """
    import huggingface_hub

    directory = ""
    ordered = sorted(files)
    for start in range(0, len(ordered), _MAX_PATTERNS):
        # Names are used as patterns, and a name may contain brackets.
        patterns = [name.replace("[", "[[]") for name in ordered[start : start + _MAX_PATTERNS]]
        try:
            directory = huggingface_hub.snapshot_download(
                repo.repository, revision=repo.commit, allow_patterns=patterns
            )
        except Exception as error:
            raise _hub_error(error, repo.repository, repo.commit) from None
    if not directory:
        raise UserError(f"Expected files of {repo.repository!r} to fetch, got none. Fix: name one.")
    return storage.path(directory)


def create_repository(repository: str, *, private: bool) -> None:
    """Creates an empty repository; if `private` is False, the default of its owner decides.

    Raises:
        UserError: If the hub refuses, or cannot be reached.
    """
    import huggingface_hub

    try:
        huggingface_hub.HfApi().create_repo(repository, private=private or None)
    except Exception as error:
        if _http_status(error) == 409:
            raise UserError(
                f"Expected a repository {repository!r} that this token may read, got one that it may not. "
                "Fix: run `hf auth login`, set HF_TOKEN to a token that may, or choose another name."
            ) from None
        raise _hub_error(error, repository, None, write=True) from None


def commit_files(
    repo: RepositoryFiles,
    files: Mapping[str, storage.PathLike],
    *,
    delete: Collection[str] = (),
    branch: str | None = None,
    message: str,
) -> str:
    """Writes files to a repository in one commit.

    If it is killed, the repository stays as it was. The client's `upload_folder` would make several commits.

    Args:
        repo: The files before; if the repository has another commit by now, nothing is changed.
        files: Name in the repository -> local file.
        delete: The names of files that are deleted.
        branch: The branch; default: main.
        message: The commit message.

    Returns:
        The commit.

    Raises:
        UserError: If the hub refuses, somebody else wrote in between, or the hub cannot be reached.
    """
    import huggingface_hub

    operations: list[Any] = [huggingface_hub.CommitOperationDelete(name) for name in sorted(delete)]
    operations += [
        huggingface_hub.CommitOperationAdd(name, str(directory)) for name, directory in sorted(files.items())
    ]
    try:
        created = huggingface_hub.HfApi().create_commit(
            repo.repository,
            operations,
            commit_message=message,
            revision=branch,
            parent_commit=repo.commit,
        )
    except Exception as error:
        raise _hub_error(error, repo.repository, branch, write=True) from None
    return str(created.oid)


def _list_snapshot(repository: str, directory: epath.Path) -> RepositoryFiles:
    """Lists the files of a snapshot in the cache; the name of its directory is the commit."""
    root = Path(directory)  # the cache is always local
    files = sorted(file for file in root.rglob("*") if file.is_file())
    sizes = {str(file.relative_to(root)): file.stat().st_size for file in files}
    return RepositoryFiles(repository, directory.name, sizes)


def _http_status(error: BaseException | None) -> int | None:
    """Returns the HTTP status that an error, or its cause, reports."""
    while error is not None:
        response = getattr(error, "response", None)
        if response is not None:
            return getattr(response, "status_code", None)
        error = error.__cause__
    return None


def _hub_error(error: Exception, repository: str, revision: str | None, *, write: bool = False) -> UserError:
    """Returns the error that says why the hub refused."""
    from huggingface_hub import constants, errors

    status = _http_status(error)
    token = "Fix: run `hf auth login`, or set HF_TOKEN to a token that may."
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(
            f"Expected a revision of {repository!r} named {revision!r}, got none of that name. Fix: name a "
            "branch, a tag or a commit that its page lists."
        )
    if isinstance(error, errors.GatedRepoError) or status == 403:
        what = "write to" if write else "read"
        return UserError(f"Expected a token that may {what} {repository!r}, got one that may not. {token}")
    if isinstance(error, errors.RepositoryNotFoundError) or (status == 404 and not write):
        return RepositoryNotFoundError(
            f"Expected the repository {repository!r} on the hub, got none that this token may read. Fix: "
            "correct its name; if it is private, run `hf auth login` or set HF_TOKEN."
        )
    if status == 401:
        return UserError(f"Expected a valid token for {repository!r}, got none or an invalid one. {token}")
    if status in (409, 412):
        return UserError(
            f"Expected {repository!r} not to change during the push, got another commit. Fix: push again."
        )
    if isinstance(error, errors.HFValidationError):
        return UserError(
            f"Expected a repository of the hub as {HUB_PREFIX}owner/name, got {repository!r} "
            f"({_first_line(error)}). Fix: correct its name."
        )
    if status is None and not _is_network_error(error):
        return UserError(
            f"Expected the hub's client to succeed for {repository!r}, got {type(error).__name__} "
            f"({_first_line(error):.160}). Fix: update the package huggingface_hub."
        )
    if status is None:
        return UserError(
            f"Expected to reach the hub at {constants.ENDPOINT} for {repository!r}, got no answer "
            f"({type(error).__name__}: {_first_line(error):.120}). Fix: check the network, HF_ENDPOINT and "
            "HF_HUB_OFFLINE."
        )
    return UserError(
        f"Expected an answer of the hub for {repository!r}, got an error {status} "
        f"({_first_line(error):.160}). Fix: try again later."
    )


def _is_network_error(error: BaseException | None) -> bool:
    """Returns whether an error, or its cause, comes from the system or the HTTP client."""
    while error is not None:
        if isinstance(error, OSError) or type(error).__module__.startswith("httpx"):
            return True
        error = error.__cause__
    return False


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")
