"""Doctests: examples in docstrings, which mkdocstrings would show as quotations, become blocks of code."""

import re

import griffe

EXAMPLE = re.compile(r"^>>> .*(?:\n(?!\n).*)*", re.MULTILINE)


class Doctests(griffe.Extension):
    """Puts fences around every example, from its first `>>>` to the next empty line."""

    def on_instance(self, *, obj: griffe.Object, **_: object) -> None:
        """Griffe calls it for every module, class, function and attribute that it has read."""
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(
                lambda found: f"```pycon\n{found.group()}\n```", obj.docstring.value
            )
