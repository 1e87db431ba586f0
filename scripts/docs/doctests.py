"""Makes the examples of docstrings blocks of code, which mkdocstrings would show as quotations."""

import re

import griffe

EXAMPLE = re.compile(r"^>>> .*(?:\n(?!\n).*)*", re.MULTILINE)


class Doctests(griffe.Extension):
    """Puts fences around each example, from its first `>>>` to the next empty line."""

    def on_instance(self, *, obj: griffe.Object, **_: object) -> None:
        """Griffe calls this for each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(
                lambda found: f"```pycon\n{found.group()}\n```", obj.docstring.value
            )
