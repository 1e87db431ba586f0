"""Generates the parts of the documentation that come from the code, when the site is built.

MkDocs calls `on_files`, which adds a page for each module, and `on_page_markdown`. A line
`<!-- generated: commands -->` of a page is replaced by all commands of `elm` with their options, and so on
for the other names of `PARTS`; an unknown name ends the build.
"""

import ast
import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MARK = re.compile(r"^<!-- generated: (\w+)(?: (\S+))? -->$", re.MULTILINE)


def on_files(files: Any, config: Any) -> Any:
    """Returns MkDocs' files with a page for each module, outside the navigation: `modules.md` lists them."""
    from mkdocs.structure.files import File, InclusionLevel

    for place, text in module_pages().items():
        files.append(File.generated(config, place, content=text, inclusion=InclusionLevel.NOT_IN_NAV))
    return files


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


def module_files() -> dict[str, Path]:
    """Returns the package's modules with their files, those of `elm_jax` itself before those of its rooms."""
    files = [file for file in (ROOT / "elm_jax").rglob("*.py") if not file.name.startswith("_")]
    files.sort(key=lambda file: (file.parent, file.name))
    return {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in files}


def module_pages() -> dict[str, str]:
    """Returns a page for each module: its name, and mkdocstrings' mark for what is in it.

    Search shows pages that people wrote before these.
    """
    head = "---\nsearch: {boost: 0.2}\n---\n\n"
    options = "{show_root_heading: false, show_root_toc_entry: false, heading_level: 2}"
    return {
        f"modules/{module}.md": f"{head}# {module} {{#{module}}}\n\n::: {module}\n    options: {options}\n"
        for module in module_files()
    }


def modules() -> str:
    """Returns a table of modules for each room, with the first sentences of their docstrings."""
    parts = []
    for folder, files in itertools.groupby(module_files().items(), key=lambda item: item[1].parent):
        room = ".".join(folder.relative_to(ROOT).parts)
        rows = [(f"[`{name}`](modules/{name}.md)", _first_line(file)) for name, file in files]
        parts.append(f"## {room}\n\n{_first_line(folder / '__init__.py')}\n\n")
        parts[-1] += "\n".join(
            f"| {name} | {_cell(text)} |" for name, text in [("module", "what it is"), ("---", "---"), *rows]
        )
    return "\n\n".join(parts)


def commands() -> str:
    """Returns all commands of `elm` with their arguments and options."""
    import typer

    from elm_jax.cli import app

    return "\n\n".join(
        _command_section(path, command) for path, command in leaf_commands("elm", typer.main.get_command(app))
    )


def leaf_commands(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Yields all commands below a group, each with how it is called."""
    subcommands = getattr(command, "commands", None)
    if subcommands is None:
        yield path, command
        return
    for name, each in subcommands.items():
        yield from leaf_commands(f"{path} {name}", each)


def recipes() -> str:
    """Returns the recipes that can be run, with what their heads say."""
    parts = []
    for folder in ("recipes", "t5x"):
        for file in sorted((ROOT / "gin" / folder).glob("*.gin")):
            head = _head(file.read_text())
            if "Run" not in head:  # other recipes include it
                continue
            name = f"gin/{folder}/{file.name}"
            parts.append(
                f"### {name}\n\n{head['']}\n\n```text\n{_shell(head['Run'])}\n```\n\n"
                f"Takes: {_flat(head['Takes'])}\n\nExpect: {_flat(head['Expect'])}"
            )
    return "\n\n".join(parts)


def macros(file: str) -> str:
    """Returns the macros that a recipe defines, with their values and comments."""
    rows, title = [], ""
    for line in (ROOT / file).read_text().splitlines():
        if heading := re.fullmatch(r"# ([A-Z][\w ]+)", line):
            title = heading[1]
        found = re.fullmatch(r"([A-Z][A-Z0-9_]*) = (.+?)(?:\s+# (.*))?", line)
        if found and rows and title:
            rows.append(("", f"**{title}**", ""))
        if found:
            title = ""
            value = "required" if "REQUIRED" in found[2] else f"`{found[2]}`"
            rows.append((f"`{found[1]}`", value, found[3] or ""))
    # A title stands in the first cell of a row of its own.
    rows = [(middle, "", "") if not first else (first, middle, last) for first, middle, last in rows]
    return _table(("macro", "default", "what it is"), rows)


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
    return _table(("merge", "what it makes", "options (default)"), rows)


PARTS: dict[str, Callable[..., str]] = {
    "api": api,
    "commands": commands,
    "recipes": recipes,
    "macros": macros,
    "modules": modules,
    "merges": merges,
}
"""Functions by the name in a page's mark; `macros` takes a file."""


def _part(mark: re.Match[str]) -> str:
    if mark[1] not in PARTS:
        raise ValueError(
            f"Expected one of {', '.join(PARTS)}, got {mark[1]!r}. Fix: name one of them in the page."
        )
    return PARTS[mark[1]](*filter(None, [mark[2]]))


def _command_section(path: str, command: Any) -> str:
    """Returns one command: what it does, how it is called, its arguments and options."""
    context = command.make_context(path, [], resilient_parsing=True)
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    parts = [f"## {path}", _flat(command.help or ""), f"```text\n{usage}\n```"]
    rows = [row for each in command.params if (row := _row(each, context))]
    if rows:
        parts.append(_table(("option", "what it is", "default"), rows))
    return "\n\n".join(parts)


def _row(parameter: Any, context: Any) -> tuple[str, str, str] | None:
    """Returns an option, what it is and its default; None for a hidden one."""
    record = parameter.get_help_record(context)
    if record is None:
        return None
    names, text = re.sub(r"<list\[(\w+)\]>", r"<\1>", record[0]).strip(), record[1]
    default = re.search(r"\s*\[(?:default: (.*?)|(required))\]$", text)
    if default is None:
        return f"`{names}`", text, ""
    return f"`{names}`", text[: default.start()], "required" if default[2] else f"`{default[1]}`"


def _first_line(file: Path) -> str:
    return (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0]


def _head(text: str) -> dict[str, str]:
    """Returns the parts of a recipe's head by their first word; the opening sentences by an empty one."""
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
    """Returns the lines of one command with a shell's continuations."""
    return " \\\n    ".join(text.splitlines())


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    """Escapes bars, which would end a cell, and brackets, which would be links."""
    text = text.replace("|", "&#124;")
    return text if text.startswith("`") else text.replace("[", "&#91;").replace("]", "&#93;")


def _flat(text: str) -> str:
    return " ".join(text.split())
