"""Reads the examples of a page of the documentation, in order.

A block with a title is a file of that name; `text` titled Output is what the block before it prints. An
indented block is Python if it begins with an import, else a shell's commands. A comment before a block says
why it is not run, `<!-- not run: WHY -->`; `<!-- not run below: WHY -->` holds to the page's end.
"""

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

REASON = re.compile(r"<!-- not run( below)?: (\S.*\S) -->")
LISTED = re.compile(r"([-*+]|\d+\.) ")


@dataclass(frozen=True)
class Block:
    """One example of a page.

    Attributes:
        where: Page and line.
        language: bash, python or another.
        title: A file's name, Output or empty.
        text: The example.
        reason: Why it is not run; empty if it is run.
    """

    where: str
    language: str
    title: str
    text: str
    reason: str


def blocks(page: Path) -> list[Block]:
    """Returns the fenced blocks of a page, and the indented ones outside lists."""
    found: list[Block] = []
    lines, at, before, below = page.read_text().splitlines(), 0, "", ""
    while at < len(lines):
        line, start = lines[at], at
        fence = re.match(r"( *)```(\w*) ?(.*)$", line)
        skipped = REASON.fullmatch(before.strip())
        below = skipped[2] if skipped and skipped[1] else below
        if fence:
            at += 1
            while lines[at].strip() != "```":
                at += 1
            text, language, told = lines[start + 1 : at], fence[2], fence[3]
        elif line.startswith("    ") and not (lines[start - 1].strip() or LISTED.match(before)):
            while at + 1 < len(lines) and (lines[at + 1].startswith("    ") or not lines[at + 1].strip()):
                at += 1
            text, language, told = lines[start : at + 1], "", ""
        else:
            before = line if line.strip() and not line.startswith("    ") else before
            at += 1
            continue
        text = textwrap.dedent("\n".join(text)).strip("\n") + "\n"
        language = language or ("python" if re.match(r"from |import ", text) else "bash")
        title = re.search(r'title="(.+?)"', told)
        where = f"{page.name}:{start + 1}"
        found.append(
            Block(where, language, title[1] if title else "", text, skipped[2] if skipped else below)
        )
        before, at = "", at + 1
    return found


def commands(text: str) -> list[str]:
    """Returns the commands of a shell's block, each on one line."""
    joined = re.sub(r"\\\n\s*", " ", text)
    return [
        line.strip() for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")
    ]
