"""Lookup: the library of a run that has an expert."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from elm_jax.errors import UserError
from elm_jax.experts.files import ExpertDescription
from elm_jax.experts.library import Library
from elm_jax.session.run_directory import Workspace

BASE_SCORER = "base"
"""The id that stands for the base without an expert."""


@dataclass(frozen=True)
class DescribedLibrary(Library):
    """A library for one verb: every description is read once, however many tasks ask for it."""

    _known: dict[str, ExpertDescription] = field(default_factory=dict, init=False, compare=False, repr=False)

    def describe(self, identifier: str) -> ExpertDescription:
        """Returns an expert's description, as it was when it was first asked for."""
        if identifier not in self._known:
            self._known[identifier] = super().describe(identifier)
        return self._known[identifier]


def libraries(workspace: Workspace) -> tuple[Library, Library]:
    """Returns the libraries of a run, of trained and of merged experts; either may not exist yet."""
    return Library(workspace.library), Library(workspace.composites)


def remove_leftovers(workspace: Workspace) -> None:
    """Deletes what killed commands left in a run: temporary files, temporary directories and locks."""
    workspace.remove_leftovers()
    for library in libraries(workspace):
        library.remove_unfinished()


def find_library(workspace: Workspace, expert: str) -> Library:
    """Returns the library of a run that has an expert: that of trained experts, else that of merged ones."""
    return library_finder(workspace)(expert)


def library_finder(workspace: Workspace) -> Callable[[str], Library]:
    """Returns `find_library` for one run, as a function of the id; merged experts are listed once."""
    library, composites = libraries(workspace)
    merged, is_there = set(composites.ids()), library.root.is_dir()

    def find(expert: str) -> Library:
        if expert not in merged:
            return library if is_there else Library.open(library.root)  # raises
        return library if expert in library else composites

    return find


def match_experts(workspace: Workspace, patterns: Iterable[str]) -> dict[str, Library]:
    """Returns the experts of a run that ids or patterns name, each with its library.

    Args:
        workspace: The run's directory.
        patterns: Ids, or patterns as the shell has them, such as `dream/*`, which match merged experts only
            if they match no other.

    Raises:
        UserError: If an id is unknown, or a pattern matches nothing.
    """
    found: dict[str, Library] = {}
    every = [(library, library.ids()) for library in libraries(workspace)]
    for pattern in patterns:
        exact = next((library for library, ids in every if pattern in ids), None)
        if exact is None and not set("*?[") & set(pattern):
            Library.open(workspace.library).spec(pattern)  # raises, naming what is near
        matching = {pattern: exact} if exact else {}
        for library, ids in every:
            if not matching:
                matching = {each: library for each in ids if fnmatchcase(each, pattern)}
        if not matching:
            raise UserError(
                f"Expected experts that match {pattern!r}, got none. Fix: `elm experts list` names them."
            )
        found |= matching
    return found
