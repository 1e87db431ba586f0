"""Lookup: the library that an expert of a run lies in."""

from collections.abc import Callable

from elm_jax.experts.library import Library
from elm_jax.session.workspace import Workspace

BASE = "base"
"""What stands for the base alone where an expert's id is wanted."""


def find_library(workspace: Workspace, expert: str) -> Library:
    """Returns the library that an expert lies in: the experts', or that of what was made of several tasks.

    Where both have one of that id it is the experts'.
    """
    return library_finder(workspace)(expert)


def library_finder(workspace: Workspace) -> Callable[[str], Library]:
    """Returns `home` for many experts, of which the directories are listed once."""
    composites = Library.open(workspace.composites, create=True)
    made = set(composites.ids())

    def home_of(expert: str) -> Library:
        if expert not in made:
            return Library.open(workspace.library)
        library = Library.open(workspace.library, create=True)
        return library if expert in library else composites

    return home_of
