"""Controls: characters that a terminal obeys, in texts that come from files.

A name, a row or an error of a stranger may hold sequences that move the cursor, rename the window or hide
what was printed. They are shown as JSON writes them, `\\u001b`, so that JSON that is printed stays the same.
"""

import re
import sys
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

# All but tab and newline of C0, C1, and what turns the direction of writing around.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def escape_controls(text: str) -> str:
    r"""Returns a text whose control characters but tabs and ends of lines are escaped.

    >>> print(escape_controls("a\x1b[2Jb"))
    a\u001b[2Jb
    """
    return _CONTROLS.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


class EscapingStream:
    """A text stream that escapes control characters; rich, which draws with some, writes past it.

    Attributes:
        rich_proxied_file: The stream below, by the name that rich looks for.
    """

    def __init__(self, stream: Any) -> None:
        self.rich_proxied_file = stream

    def write(self, text: str) -> int:
        """Writes a text and returns its length."""
        self.rich_proxied_file.write(escape_controls(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


@contextmanager
def escape_output() -> Generator[None, None, None]:
    """Lets no control character reach standard output or standard error, but by rich."""
    streams: list[Any] = [EscapingStream(sys.stdout), EscapingStream(sys.stderr)]
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        yield
