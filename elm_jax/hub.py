"""The Hugging Face hub: what a repository holds, files of it, and one commit to it, by the hub's own client.

The client takes the endpoint, the token and the cache from where it always does: `HF_ENDPOINT`, `HF_TOKEN` or
`hf auth login`, `HF_HOME`. What the hub refuses, or that there is no network, is one sentence.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etils import epath

from elm_jax import storage
from elm_jax.errors import UserError

HUB = "hf:"  # before a repository of the hub, hf:owner/name or hf:owner/name@revision
# The client compiles every pattern for every file where there are more than its cache of patterns holds.
_PATTERNS = 100


class Absent(UserError):
    """The hub has no such repository, or none that this token may read."""


@dataclass(frozen=True)
class Contents:
    """What a repository holds at one commit."""

    repository: str
    commit: str
    sizes: Mapping[str, int]  # file -> bytes


def address(name: str) -> tuple[str, str | None]:
    """Returns the repository and the revision of an address on the hub.

    Raises:
        UserError: If it is no such address.

    >>> address("hf:google/flan-t5-xl@main"), address("hf:google/flan-t5-xl")
    (('google/flan-t5-xl', 'main'), ('google/flan-t5-xl', None))
    """
    repository, at, revision = name.removeprefix(HUB).partition("@")
    owner, slash, short = repository.partition("/")
    if not (owner and slash and short) or "/" in short or (at and not revision):
        raise UserError(
            f"Expected a repository of the hub as {HUB}owner/name or {HUB}owner/name@revision, got {name!r}. "
            "Fix: copy its name from the page of the model."
        )
    return repository, revision or None


def snapshot(
    repository: str,
    patterns: Sequence[str] | None,
    revision: str | None = None,
    *,
    cached: bool = False,
) -> tuple[epath.Path | None, str]:
    """Returns the directory of a repository's files that match, fetched where absent, or None and the reason.

    Without patterns, or where what is `cached` is asked for, nothing is fetched: it is what the cache has.
    """
    import huggingface_hub

    try:
        place = huggingface_hub.snapshot_download(
            repository,
            revision=revision,
            allow_patterns=None if patterns is None else list(patterns),
            local_files_only=cached or patterns is None,
        )
    except Exception as error:  # the hub's, its client's and the system's, by many names
        return None, f"{type(error).__name__}: {_first_line(error)}"
    return storage.path(place), ""


def contents(repository: str, revision: str | None = None, *, cached: Sequence[str] = ()) -> Contents:
    """Returns what a repository holds at a revision.

    Without a network it is what the cache has of it, where that has all files of the patterns `cached`.

    Raises:
        Absent: If there is no such repository, or none that this token may read.
        UserError: If there is no such revision, the hub refuses the token, or it cannot be reached.
    """
    import huggingface_hub
    from huggingface_hub.hf_api import RepoFile

    api = huggingface_hub.HfApi()
    try:
        commit = str(api.repo_info(repository, revision=revision).sha)
        tree = api.list_repo_tree(repository, recursive=True, revision=commit)
        return Contents(
            repository, commit, {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}
        )
    except Exception as error:
        if cached and _status(error) is None:
            place, _ = snapshot(repository, cached, revision, cached=True)
            if place is not None:
                return _of_directory(repository, place)
        raise _refused(error, repository, revision) from None


def download(held: Contents, files: Collection[str]) -> epath.Path:
    """Returns the directory of files of a repository, of which those are fetched that the cache lacks.

    Raises:
        UserError: If the hub refuses, or cannot be reached.
    """
    import huggingface_hub

    place = ""
    wanted = sorted(files)
    for start in range(0, len(wanted), _PATTERNS):
        # A name is a pattern too, and what the hub has may hold brackets.
        patterns = [name.replace("[", "[[]") for name in wanted[start : start + _PATTERNS]]
        try:
            place = huggingface_hub.snapshot_download(
                held.repository, revision=held.commit, allow_patterns=patterns
            )
        except Exception as error:
            raise _refused(error, held.repository, held.commit) from None
    if not place:
        raise UserError(f"Expected files of {held.repository!r} to fetch, got none. Fix: name one.")
    return storage.path(place)


def create(repository: str, *, private: bool) -> None:
    """Makes an empty repository; one that is not said to be private is what its owner has by default.

    Raises:
        UserError: If the hub refuses, or cannot be reached.
    """
    import huggingface_hub

    try:
        huggingface_hub.HfApi().create_repo(repository, private=private or None)
    except Exception as error:
        if _status(error) == 409:
            raise UserError(
                f"Expected a repository {repository!r} that this token may read, got one that it may not. "
                "Fix: run `hf auth login`, set HF_TOKEN to a token that may, or choose another name."
            ) from None
        raise _refused(error, repository, None, write=True) from None


def commit(
    held: Contents,
    files: Mapping[str, storage.PathLike],
    *,
    delete: Collection[str] = (),
    branch: str | None = None,
    message: str,
) -> str:
    """Puts files into a repository, in one commit on top of what it held; returns the commit.

    Until that commit nobody sees any of it: a push that is killed leaves the repository as it was. The
    client's `upload_folder` would make several commits of many files.

    Args:
        held: What the repository held; if it has another commit by now, nothing is changed.
        files: Name in the repository -> local file.
        delete: Files that go.
        branch: The branch; main by default.
        message: What the commit is for.

    Raises:
        UserError: If the hub refuses, somebody else wrote in between, or the hub cannot be reached.
    """
    import huggingface_hub

    operations: list[Any] = [huggingface_hub.CommitOperationDelete(name) for name in sorted(delete)]
    operations += [
        huggingface_hub.CommitOperationAdd(name, str(place)) for name, place in sorted(files.items())
    ]
    try:
        made = huggingface_hub.HfApi().create_commit(
            held.repository,
            operations,
            commit_message=message,
            revision=branch,
            parent_commit=held.commit,
        )
    except Exception as error:
        raise _refused(error, held.repository, branch, write=True) from None
    return str(made.oid)


def _of_directory(repository: str, place: epath.Path) -> Contents:
    """Returns what a snapshot in the cache holds; its directory has the name of the commit."""
    root = Path(place)  # the cache is always local
    files = sorted(file for file in root.rglob("*") if file.is_file())
    sizes = {str(file.relative_to(root)): file.stat().st_size for file in files}
    return Contents(repository, place.name, sizes)


def _status(error: BaseException | None) -> int | None:
    """Returns the status of the hub's answer that an error, or what it came from, tells of."""
    while error is not None:
        response = getattr(error, "response", None)
        if response is not None:
            return getattr(response, "status_code", None)
        error = error.__cause__
    return None


def _refused(error: Exception, repository: str, revision: str | None, *, write: bool = False) -> UserError:
    """Returns the sentence that says why the hub did not do what it was asked."""
    from huggingface_hub import constants, errors

    status = _status(error)
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
        return Absent(
            f"Expected the repository {repository!r} on the hub, got none that this token may read. Fix: "
            "correct its name; if it is private, run `hf auth login` or set HF_TOKEN."
        )
    if status == 401:
        return UserError(
            f"Expected a token that the hub knows, for {repository!r}, got none or another. {token}"
        )
    if status in (409, 412):
        return UserError(
            f"Expected {repository!r} to stay as it was while it was written to, got another commit in "
            "between. Fix: push again."
        )
    if isinstance(error, errors.HFValidationError):
        return UserError(
            f"Expected a repository of the hub as {HUB}owner/name, got {repository!r} "
            f"({_first_line(error)}). Fix: correct its name."
        )
    if status is None and not _is_of_network(error):
        return UserError(
            f"Expected the hub's client to take part with {repository!r}, got {type(error).__name__} "
            f"({_first_line(error):.160}). Fix: bring the package huggingface_hub up to date."
        )
    if status is None:
        return UserError(
            f"Expected to reach the hub at {constants.ENDPOINT} for {repository!r}, got no answer "
            f"({type(error).__name__}: {_first_line(error):.120}). Fix: check the network, HF_ENDPOINT and "
            "HF_HUB_OFFLINE."
        )
    return UserError(
        f"Expected the hub to take part with {repository!r}, got an error {status} "
        f"({_first_line(error):.160}). Fix: try again later."
    )


def _is_of_network(error: BaseException | None) -> bool:
    """Says whether an error, or what it came from, is the system's or the HTTP client's."""
    while error is not None:
        if isinstance(error, OSError) or type(error).__module__.startswith("httpx"):
            return True
        error = error.__cause__
    return False


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")
