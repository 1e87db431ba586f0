"""Old recipes: what they bind under names of before is read, with a warning that gives the new name."""

import re
import warnings

from elm_jax.moved import OLD_PARAMETERS, TRAIN_CONFIG_SECTIONS

IMPORT_ALIASES = {"base", "courses", "elm_jax", "pipeline", "train"}  # under which recipes import what moved
BLOCK_PATTERN = re.compile(r"([A-Za-z_][\w.]*):\s*(?:#.*)?$")
BINDING_PATTERN = re.compile(r"([A-Za-z_][\w.]*)\.(\w+)(\s*=.*)$", re.DOTALL)
PARAMETER_PATTERN = re.compile(r"(\s+)(\w+)(\s*=.*)$", re.DOTALL)
REFERENCE_PATTERN = re.compile(r"@(?:[\w.]+\.)?Budget\b")


def translate(text: str, file: str) -> str:
    """Returns a recipe, or a binding of the command line, with new names in the place of old ones.

    Args:
        text: of the recipe.
        file: for the warnings.
    """
    lines, block, old_names = [], "", set()
    for line in text.splitlines(keepends=True):
        header, parameter = BLOCK_PATTERN.match(line), PARAMETER_PATTERN.match(line)
        if header:
            block = header[1] if _has_renamed_parameters(header[1]) else ""
        elif line.strip() and not line[0].isspace() and line[0] not in "#)]}":
            block = ""
        if header and block:
            continue
        if block and parameter and _is_outside_brackets(lines):
            line = f"{block}.{parameter[2]}{parameter[3]}"
        binding = BINDING_PATTERN.match(line)
        if binding and (new := _new_name(binding[1], binding[2])):
            old_names.add((f"{binding[1]}.{binding[2]}", new))
            line = f"{new}{binding[3]}"
        lines.append(line)
    translated = "".join(lines)
    if REFERENCE_PATTERN.search(translated):
        old_names.add(("Budget", "elm_jax.TrainConfig"))
        translated = REFERENCE_PATTERN.sub("@elm_jax.TrainConfig", translated)
    if old_names:
        renames = "; ".join(f"{old} is now {new}" for old, new in sorted(old_names))
        message = f"{file} has old names, which go in a later version: {renames}."
        warnings.warn(message, FutureWarning, stacklevel=2)
    return _add_config_sections(translated) if old_names and "\n" in text else translated


def _add_config_sections(text: str) -> str:
    """Returns a recipe whose TrainConfig is made of its sections, and which imports what it now names."""
    if not re.search(r"^import elm_jax$", text, re.MULTILINE):
        text = re.sub(r"^(from __gin__ .*\n)", r"\1import elm_jax\n", text, count=1, flags=re.MULTILINE)
    sections = [f"elm_jax.TrainConfig.{name} = @{kind}()\n" for name, kind in TRAIN_CONFIG_SECTIONS.items()]
    return f"{text.rstrip()}\n{''.join(sections)}"


def _new_name(selector: str, parameter: str) -> str | None:
    alias, _, name = selector.rpartition(".")
    known = alias in IMPORT_ALIASES or alias.startswith("elm_jax.runs")
    return OLD_PARAMETERS.get(f"{name}.{parameter}") if known else None


def _has_renamed_parameters(selector: str) -> bool:
    name = selector.rpartition(".")[2]
    return any(old.startswith(f"{name}.") for old in OLD_PARAMETERS)


def _is_outside_brackets(lines: list[str]) -> bool:
    """Tells whether the lines before close all brackets that they open, so that a new parameter can begin."""
    text = re.sub(r"#.*|'[^'\n]*'|\"[^\"\n]*\"", "", "".join(lines))
    return all(text.count(a) == text.count(b) for a, b in ("()", "[]", "{}"))
