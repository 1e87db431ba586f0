"""Reference: the parts of the documentation that are read off the code when the site is built.

MkDocs calls `on_page_markdown`. A line `<!-- generated: commands -->` of a page gives way to every verb of
`elm` with its options, and so on for the other names of `PARTS`; an unknown one ends the build.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MARK = re.compile(r"^<!-- generated: (\w+)(?: (\S+))? -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Returns a page's text with its generated parts filled in; MkDocs calls it for every page."""
    return MARK.sub(_part, markdown)


def api() -> str:
    """Returns a mark of mkdocstrings for every public name: functions, then records and other classes."""
    import inspect

    import elm_jax

    names = [name for name in elm_jax.__all__ if name != "__version__"]
    functions = [name for name in names if inspect.isfunction(getattr(elm_jax, name))]
    classes = [name for name in names if name not in functions]
    parts = []
    for title, members in (("Functions", functions), ("Records and errors", classes)):
        parts += [f"## {title}", *(f"::: elm_jax.{name}" for name in members)]
    return "\n\n".join(parts)


def commands() -> str:
    """Returns every verb of `elm` with its arguments and options."""
    import typer

    from elm_jax.cli import app

    return "\n\n".join(_told(path, command) for path, command in verbs("elm", typer.main.get_command(app)))


def verbs(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Yields a command's own verbs, those of its groups among them, each with how it is called."""
    inside = getattr(command, "commands", None)
    if inside is None:
        yield path, command
        return
    for name, each in inside.items():
        yield from verbs(f"{path} {name}", each)


def recipes() -> str:
    """Returns the recipes that are complete, with what their heads say of them."""
    parts = []
    for folder in ("recipes", "t5x"):
        for file in sorted((ROOT / "gin" / folder).glob("*.gin")):
            told = _head(file.read_text())
            if "Run" not in told:  # it is included by others
                continue
            name = f"gin/{folder}/{file.name}"
            parts.append(
                f"### {name}\n\n{told['']}\n\n```text\n{_shell(told['Run'])}\n```\n\n"
                f"Takes: {_flat(told['Takes'])}\n\nExpect: {_flat(told['Expect'])}"
            )
    return "\n\n".join(parts)


def macros(file: str) -> str:
    """Returns the macros that a recipe defines, with their values and what is said of them."""
    rows, title = [], ""
    for line in (ROOT / file).read_text().splitlines():
        if heading := re.fullmatch(r"# ([A-Z][\w ]+)", line):
            title = heading[1]
        found = re.fullmatch(r"([A-Z][A-Z0-9_]*) = (.+?)(?:\s+# (.*))?", line)
        if found and rows and title:
            rows.append(("", f"**{title}**", ""))
        if found:
            title = ""
            value = "needed" if "REQUIRED" in found[2] else f"`{found[2]}`"
            rows.append((f"`{found[1]}`", value, found[3] or ""))
    # A title stands in the first cell of a row of its own.
    rows = [(middle, "", "") if not first else (first, middle, last) for first, middle, last in rows]
    return _table(("macro", "without it", "what it is"), rows)


def merges() -> str:
    """Returns the ways to merge experts, with their options."""
    from elm_jax.merging.table import MERGES

    rows = []
    for name, method in sorted(MERGES.items()):
        options = [
            f"`{known}`" + ("" if option.default is None else f" ({option.default})")
            for known, option in method.options.items()
        ]
        rows.append((f"`{name}`", method.description, ", ".join(options)))
    return _table(("merge", "what it makes", "options (without them)"), rows)


PARTS: dict[str, Callable[..., str]] = {
    "api": api,
    "commands": commands,
    "recipes": recipes,
    "macros": macros,
    "merges": merges,
}
"""What a page may ask for; `macros` takes a file."""


def _part(mark: re.Match[str]) -> str:
    if mark[1] not in PARTS:
        raise ValueError(f"A generated part is wanted, one of {', '.join(PARTS)}, but {mark[1]!r} came.")
    return PARTS[mark[1]](*filter(None, [mark[2]]))


def _told(path: str, command: Any) -> str:
    """Returns one verb: what it does, how it is called, its arguments and its options."""
    context = command.make_context(path, [], resilient_parsing=True)
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    parts = [f"## {path}", _flat(command.help or ""), f"```text\n{usage}\n```"]
    rows = [row for each in command.params if (row := _row(each, context))]
    if rows:
        parts.append(_table(("option", "what it is", "without it"), rows))
    return "\n\n".join(parts)


def _row(parameter: Any, context: Any) -> tuple[str, str, str] | None:
    """Returns an option, what it is and its default; None for what `--help` keeps to itself."""
    told = parameter.get_help_record(context)
    if told is None:
        return None
    names, said = re.sub(r"<list\[(\w+)\]>", r"<\1>", told[0]).strip(), told[1]
    found = re.search(r"\s*\[(?:default: (.*?)|(required))\]$", said)
    if found is None:
        return f"`{names}`", said, ""
    return f"`{names}`", said[: found.start()], "needed" if found[2] else f"`{found[1]}`"


def _head(text: str) -> dict[str, str]:
    """Returns the parts of a recipe's head by the word that opens them; its first sentence by none."""
    head = re.match(r"(#.*\n)+", text)
    lines = [line[1:].removeprefix(" ") for line in head[0].splitlines()] if head else []
    found, word = {"": ""}, ""
    for line in lines:
        if not line and word:
            break
        if opens := re.match(r"(Run|Takes|Expect) +", line):
            word, line = opens[1], line[opens.end() :]
        found[word] = f"{found.get(word, '')}\n{line.strip()}".strip()
    return found


def _shell(text: str) -> str:
    """Returns the lines of one command as a shell wants them."""
    return " \\\n    ".join(text.splitlines())


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    """Returns a cell whose bars end no cell, and whose brackets are no links."""
    text = text.replace("|", "&#124;")
    return text if text.startswith("`") else text.replace("[", "&#91;").replace("]", "&#93;")


def _flat(text: str) -> str:
    return " ".join(text.split())
