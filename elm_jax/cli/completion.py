"""`elm completion`: a script with which a shell completes verbs, options, tasks and files by itself.

The script holds all of it, so that no Python starts when somebody presses tab.
"""

import shlex
from collections.abc import Iterator
from typing import Any

from elm_jax import names

TASK_GROUPS = ("train", "unseen", "bigbench", "mini", "mini-train", "mini-unseen")
OPTION_VALUES = {
    "--as": ("experts", "dataset", "multitask"),
    "--dtype": ("float32", "bfloat16"),
    "--group": TASK_GROUPS,
    "--groups": TASK_GROUPS,
    "--kind": ("bottleneck", "lora", "dora", "vera", "ia3", "prompt", "full"),
    "--on-bad-row": ("leave-out", "refuse"),
    "--over": ("rows", "prompts"),
    "--to": ("hf", "t5x", "elm", "peft", "adapters"),
    "--track": ("tensorboard", "wandb"),
}
"""What an option takes; options that are not here take a file or a text."""
TASK_VERBS = ("evaluate", "prepare", "route", "train", "tasks check", "tasks preview", "tasks show")

BASH_SCRIPT = """\
# Completes elm in bash and zsh, without starting Python.
[ -n "$ZSH_VERSION" ] && autoload -Uz bashcompinit compinit && compinit -u && bashcompinit
_elm() {
    local current="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" verb="" words="" at
    for ((at = 1; at < COMP_CWORD; at++)); do
        case "$verb ${COMP_WORDS[at]}" in
            %(verbs)s) verb="${verb:+$verb }${COMP_WORDS[at]}" ;;
        esac
    done
    case "$before" in
%(values)s
        %(takers)s) return ;;
        *) case "$verb" in
%(words)s
        esac ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -o default -F _elm elm
"""


def print_script(shell: str, elm: Any) -> None:
    """Prints the script of a shell.

    Args:
        shell: bash, zsh or fish.
        elm: The command, with its verbs.

    Raises:
        UserError: If there is no script for the shell.
    """
    scripts = {"bash": bash_script, "zsh": bash_script, "fish": fish_script}
    from elm_jax.tasks import specs

    write = scripts[names.resolve(shell, scripts, kind="shell", where="those that elm knows")]
    tasks = sorted({name for spec in specs.task_specs() for name in (spec.dataset, spec.group)})
    print(write(elm, tasks), end="")


def bash_script(elm: Any, tasks: list[str]) -> str:
    """Returns the script for bash, which zsh reads too.

    Args:
        elm: The command, with its verbs.
        tasks: Names of tasks, of datasets or groups.
    """
    every = list(_walk(elm))
    takers = sorted({name for _, command in every for name in _option_names(command, takes_value=True)})
    lines = [
        f'            "{path}") words="{" ".join(_words(path, command, tasks))}" ;;'
        for path, command in every
    ]
    values = [f'        {name}) words="{" ".join(known)}" ;;' for name, known in OPTION_VALUES.items()]
    return BASH_SCRIPT % {
        "verbs": " | ".join(f'"{path if " " in path else f" {path}"}"' for path, _ in every if path),
        "values": "\n".join(values),
        "takers": " | ".join(name for name in takers if name not in OPTION_VALUES),
        "words": "\n".join(lines),
    }


def fish_script(elm: Any, tasks: list[str]) -> str:
    """Returns the script for fish; see `bash_script`."""
    lines = ["# Completes elm in fish, without starting Python."]
    for path, command in _walk(elm):
        seen = [f"__fish_seen_subcommand_from {word}" for word in path.split()] or ["__fish_use_subcommand"]
        others = list(getattr(command, "commands", {}))
        if others and path:
            seen.append(f"not __fish_seen_subcommand_from {' '.join(others)}")
        start = f"complete -c elm -n {shlex.quote('; and '.join(seen))}"
        for name in others:
            help_text = shlex.quote(command.commands[name].get_short_help_str(60))
            lines.append(f"{start} -f -a {name} -d {help_text}")
        for name in _option_names(command):
            flag = f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}"
            known = OPTION_VALUES.get(name)
            needs = f" -x -a {shlex.quote(' '.join(known))}" if known else ""
            if not known and name in _option_names(command, takes_value=True):
                needs = " -r"
            lines.append(f"{start} {flag}{needs}")
        if path in TASK_VERBS:
            lines.append(f"{start} -a {shlex.quote(' '.join(tasks))}")
    return "\n".join(lines) + "\n"


def _walk(command: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields a command and all below it, with their words after `elm`."""
    yield path, command
    for name, each in getattr(command, "commands", {}).items():
        yield from _walk(each, f"{path} {name}".strip())


def _words(path: str, command: Any, tasks: list[str]) -> list[str]:
    """Returns what may follow a verb: those below it, its options, and names of tasks."""
    return [
        *getattr(command, "commands", {}),
        *_option_names(command),
        "--help",
        *(tasks if path in TASK_VERBS else ()),
    ]


def _option_names(command: Any, *, takes_value: bool = False) -> list[str]:
    """Returns the options of a command; or those that a value follows."""
    options = [each for each in command.params if each.param_type_name == "option"]
    return [
        name
        for each in options
        if not takes_value or not (each.is_flag or each.count)
        for name in (*each.opts, *each.secondary_opts)
    ]
