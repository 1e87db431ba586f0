"""Lookup: the library of a run that has an expert."""

from collections.abc import Callable
from dataclasses import dataclass, field

from elm_jax.experts.files import ExpertDescription
from elm_jax.experts.library import Library
from elm_jax.session.workspace import Workspace

BASE = "base"
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


def find_library(workspace: Workspace, expert: str) -> Library:
    """Returns the library of a run that has an expert: that of trained experts, else that of merged ones."""
    return library_finder(workspace)(expert)


def library_finder(workspace: Workspace) -> Callable[[str], Library]:
    """Returns `find_library` for one run, as a function of the id; merged experts are listed once."""
    composites = Library.open(workspace.composites, create=True)
    merged = set(composites.ids())

    def find(expert: str) -> Library:
        if expert not in merged:
            return Library.open(workspace.library)
        library = Library.open(workspace.library, create=True)
        return library if expert in library else composites

    return find
