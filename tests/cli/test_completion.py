"""Completion: the shell itself says what may follow, at once."""

import shutil
import subprocess

import pytest
import typer

from elm_jax import cli
from elm_jax.cli import completion
from elm_jax.models import expert_kinds
from elm_jax.tasks.specs import task_specs

TASKS = ["dream", "train"]
CASES = [
    (["ev"], {"evaluate"}),
    (["experts", "ex"], {"export"}),
    (["train", "--st"], {"--steps"}),
    (["train", "dr"], {"dream"}),
    (["train", "--kind", "bott"], {"bottleneck"}),
    (["experts", "list", "--sc"], {"--scores"}),
    (["evaluate", "--data-dir", "own_d"], {"own_data"}),
]
BASH = """
source "$1"; shift
COMP_WORDS=(elm "$@"); COMP_CWORD=$#
_elm
[ ${#COMPREPLY[@]} -gt 0 ] && printf '%s\n' "${COMPREPLY[@]}" || compgen -f -- "${@: -1}"
"""
ZSH = """
autoload -Uz compinit bashcompinit; compinit -u -D; bashcompinit
source "$1"; shift
complete_as_zsh_calls_it() { emulate -L sh; setopt kshglob noshglob braceexpand nokshautoload; _elm; }
COMP_WORDS=(elm "$@"); COMP_CWORD=$#
complete_as_zsh_calls_it
print -rl -- $COMPREPLY
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """Writes the script for a shell and returns its path."""

    def script(write):
        file = tmp_path_factory.mktemp("completion") / write.__name__
        file.write_text(write(typer.main.get_command(cli.app), TASKS))
        return file

    return script


def run(shell, *words, where):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run([shell, *words], capture_output=True, text=True, cwd=where, check=True)
    assert done.stderr == ""
    return set(done.stdout.split())


@pytest.mark.parametrize(("words", "wanted"), CASES)
def test_bash_completes_verbs_options_values_tasks_and_files(script, tmp_path, words, wanted):
    (tmp_path / "own_data").mkdir()
    found = run("bash", "-c", BASH, "bash", script(completion.bash_script), *words, where=tmp_path)
    assert found == wanted


@pytest.mark.parametrize(("words", "wanted"), CASES[:-1])
def test_zsh_reads_the_script_of_bash_and_picks_by_what_is_typed_itself(script, tmp_path, words, wanted):
    found = run("zsh", "-fc", ZSH, "zsh", script(completion.bash_script), *words, where=tmp_path)
    assert wanted <= found
    assert not {"--rank", "push"} <= found  # of two verbs


@pytest.mark.parametrize(("words", "wanted"), CASES)
def test_fish_completes_verbs_options_values_tasks_and_files(script, tmp_path, words, wanted):
    (tmp_path / "own_data").mkdir()
    line = f'source {script(completion.fish_script)}; complete -C "elm {" ".join(words)}"'
    found = run("fish", "--no-config", "-c", line, where=tmp_path)
    assert {word.rstrip("/") for word in found} & {*wanted} == wanted


def test_the_values_of_options_are_those_that_there_are():
    assert set(completion.OPTION_VALUES["--kind"]) == set(expert_kinds.KINDS)
    assert set(completion.OPTION_VALUES["--group"]) <= {spec.group for spec in task_specs()} | {"mini"}


def test_the_script_knows_the_tasks_of_the_catalogue(capsys):
    cli.app(["completion", "bash"], standalone_mode=False)
    assert "story_cloze" in capsys.readouterr().out
