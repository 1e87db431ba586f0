"""Help: quick, in sections, with an example in every text; and one sentence for what cannot be read."""

import re
import shlex
import subprocess
import sys

import pytest
import typer

from elm_jax import cli
from elm_jax.cli import help_texts


def verbs(command, path="elm"):
    """Returns every verb by how it is called, groups too."""
    found = {path: command}
    for name, each in getattr(command, "commands", {}).items():
        found |= verbs(each, f"{path} {name}")
    return found


VERBS = verbs(typer.main.get_command(cli.app))


def error_of(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        cli.main(list(words))
    assert stop.value.code == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    return sentence


@pytest.mark.parametrize("path", [path for path, each in VERBS.items() if not hasattr(each, "commands")])
def test_every_verb_has_an_example_of_options_that_it_has(path):
    command = VERBS[path]
    shown = help_texts.examples(command)
    assert shown
    for example in shown:
        words = shlex.split(example, comments=True)
        assert " ".join(words).startswith(path)
        own = words[len(path.split()) :]
        own = own[: own.index(">")] if ">" in own else own
        own = own[: own.index(">>")] if ">>" in own else own
        context = command.make_context(path, cli.expand_gin_flags(own))
        assert context.params.keys() <= {each.name for each in command.params}


@pytest.mark.parametrize("path", VERBS)
def test_help_fits_80_columns_and_cuts_no_sentence(path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        cli.main([*path.split()[1:], "--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert all(len(line) <= 80 for line in said.splitlines())
    assert not re.search(r"[a-z]\.\.\.$", said, re.MULTILINE)


def test_the_quickstart_comes_first(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    listed = re.findall(r"^  (\w+)  ", capsys.readouterr().out, re.MULTILINE)
    assert listed[0] == "quickstart"


@pytest.mark.parametrize("module", ["elm_jax", "elm_jax.cli"])
def test_the_module_is_the_command_and_says_its_version(module):
    done = subprocess.run(
        [sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"elm_jax \d+\.\d+\.\d+\S*\n", done.stdout)


def test_help_imports_neither_rich_nor_numbers():
    code = (
        "import sys\nfrom elm_jax import cli\n"
        "try: cli.main(['--help'])\nexcept SystemExit: pass\n"
        "print([name for name in ('rich', 'numpy', 'jax', 'yaml') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("words", "mend"),
    [
        (["trian"], "Fix: `elm train`"),
        (["experts", "lst"], "Fix: `elm experts list`."),
        (["train", "--stepps", "4"], "Fix: write --steps."),
        (["tasks", "show"], "Fix: write it as in `elm tasks show dream/baseline`."),
        (["train", "--steps", "many"], "Fix: write it as in `elm train reviews.yaml"),
        (["train", "--steps"], "Fix: write it as in `elm train reviews.yaml"),
        (["experts", "list", "--scores=yes"], "Fix: write it as in `elm experts list"),
        (["completion", "tcsh"], "Did you mean 'zsh' or 'fish' or 'bash'?"),
    ],
)
def test_a_command_that_cannot_be_read_is_one_sentence_with_one_that_can(capsys, words, mend):
    assert mend in error_of(capsys, *words)


def test_quiet_and_verbose_may_stand_behind_the_verb(capsys):
    with pytest.raises(SystemExit):
        cli.main(["tasks", "show", "no such task", "--verbose"])
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.splitlines()[-1].startswith("elm: No task")
    assert error_of(capsys, "tasks", "show", "no such task", "-q").startswith("elm: No task")
