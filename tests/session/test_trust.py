"""Python that a run names is run only if the user named it or agreed to it, once for each content."""

import json
import shutil
import sys

import pytest
from typer.testing import CliRunner

from elm_jax.cli import app, command_line
from elm_jax.errors import UntrustedCodeError
from elm_jax.session import opening, settings, trust
from elm_jax.session.workspace import Workspace

CODE = """
import elm_jax, pathlib
pathlib.Path(__file__).with_name("it_ran").write_text("yes")
prompts = {"one": "{{text}} ||| b"}
elm_jax.define_task("of_a_stranger", rows=lambda split: [{"text": "a"}], prompts=prompts)
"""
PREVIEW = ["tasks", "preview", "of_a_stranger/one", "--run"]


@pytest.fixture(autouse=True)
def user(tmp_path, monkeypatch):
    """A user who has trusted nothing yet."""
    monkeypatch.setenv("ELM_JAX_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def made(make_run):
    return make_run(keyed=False, experts=())


@pytest.fixture
def run(made, tmp_path):
    """A stranger's run, whose settings name a Python file in it."""
    root = shutil.copytree(made.workspace.root, tmp_path / "run")
    (root / "strange_tasks.py").write_text(CODE)
    told = json.loads((root / "run.json").read_text())
    told["source"]["tasks"] = ["strange_tasks.py"]
    (root / "run.json").write_text(json.dumps(told))
    return root


@pytest.fixture
def forget():
    """Does what a new process would: no module of the run is loaded."""
    before = list(sys.path)

    def do():
        sys.modules.pop("strange_tasks", None)

    yield do
    do()
    sys.path[:] = before


def ran(root):
    found = (root / "it_ran").exists()
    (root / "it_ran").unlink(missing_ok=True)
    return found


@pytest.mark.parametrize(
    "open_it",
    [
        opening.open_run,
        opening.load_data_settings,
        lambda root: opening.load_task_files(Workspace.open(root)),
    ],
)
def test_opening_a_run_runs_no_code_until_it_is_trusted(run, forget, open_it):
    with pytest.raises(UntrustedCodeError) as caught:
        open_it(run)
    assert caught.value.files == (str(run / "strange_tasks.py"),)
    assert not ran(run)
    trust.remember(caught.value.files)
    open_it(run)
    assert ran(run)


def test_a_file_that_was_changed_is_not_trusted_any_more(run, forget):
    trust.remember([run / "strange_tasks.py"])
    (run / "strange_tasks.py").write_text(CODE + "\n# more")
    with pytest.raises(UntrustedCodeError):
        opening.open_run(run)
    assert not ran(run)


def test_a_file_that_the_user_names_is_trusted_later_too(run, forget):
    opening.open_run(run, task_files=[run / "strange_tasks.py"])
    assert ran(run)
    forget()
    opening.open_run(run)
    assert ran(run)


def test_a_run_that_the_user_makes_is_trusted(made, tmp_path, forget):
    file = tmp_path / "strange_tasks.py"
    file.write_text(CODE)
    workspace = Workspace.open(shutil.copytree(made.workspace.root, tmp_path / "own"))
    settings.add_task_files(workspace, [file])
    with pytest.raises(UntrustedCodeError):  # that `open_run` of another run named it, say
        opening.open_run(workspace.root)
    settings.save_run_settings(workspace, None, opening.Source(tasks=[str(file)]), None)
    opening.open_run(workspace.root)
    assert ran(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"[" * 99999, b'{"format": 1, "files": 3}'])
def test_a_damaged_memory_trusts_nothing_and_is_written_anew(run, forget, tmp_path, content):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / trust.TRUSTED_FILE).write_bytes(content)
    with pytest.raises(UntrustedCodeError):
        opening.open_run(run)
    trust.remember([run / "strange_tasks.py"])
    opening.open_run(run)


@pytest.mark.parametrize("place", [0, 2, 4])
def test_the_command_line_asks_once(run, forget, place):
    command = [*PREVIEW, str(run)]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 2
    assert "strange_tasks.py" in refused.output
    assert not ran(run)
    trusted = [*command]
    trusted.insert(place, "--trust") if place < 4 else trusted.append("--trust")
    assert CliRunner().invoke(app, trusted).exit_code == 0
    assert ran(run)
    forget()
    assert CliRunner().invoke(app, command).exit_code == 0
    assert ran(run)


@pytest.mark.parametrize(("answer", "runs"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_a_terminal_asks(run, forget, monkeypatch, answer, runs):
    monkeypatch.setattr(command_line, "is_interactive", lambda: True)
    told = CliRunner().invoke(app, [*PREVIEW, str(run)], input=answer)
    assert told.exit_code == (0 if runs else 2)
    assert ran(run) == runs


def test_trust_holds_where_it_cannot_be_noted(run, forget, tmp_path):
    (tmp_path / "cache").write_text("no directory")
    assert CliRunner().invoke(app, [*PREVIEW, str(run), "--trust"]).exit_code == 0
    assert ran(run)
