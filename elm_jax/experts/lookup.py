"""Lookup: the library of a run that has an expert."""

from collections.abc import Callable

from elm_jax.experts.library import Library
from elm_jax.session.workspace import Workspace

BASE = "base"
"""The id that stands for the base without an expert."""


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
