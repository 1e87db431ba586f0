"""No control character of a file reaches a terminal or a log, and printed JSON stays the same."""

import io
import json
import sys

import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from typer.testing import CliRunner

from elm_jax.cli import app
from elm_jax.controls import escape_controls, escape_output
from elm_jax.errors import UserError
from elm_jax.telemetry.jsonl_log import Journal, read_journal
from elm_jax.telemetry.progress import SafeConsole, Stages

HOSTILE = "\x1b]0;title\x07\x1b[2J\x9b31m\r\x7f\u202e"


def is_harmless(text):
    return not any(char in text for char in HOSTILE if ord(char) < 32 or 127 <= ord(char) < 160) and (
        "\u202e" not in text
    )


@given(st.text())
def test_escaped_text_has_tabs_and_ends_of_lines_alone(text):
    left = [char for char in escape_controls(text) if ord(char) < 32 or 127 <= ord(char) < 160]
    assert set(left) <= {"\t", "\n"}
    assert [char for char in left if char == "\n"] == [char for char in text if char == "\n"]


@given(st.text())
def test_json_that_is_escaped_means_the_same(text):
    assert json.loads(escape_controls(json.dumps([text], ensure_ascii=False))) == [text]


def test_errors_name_controls_and_do_not_hold_them():
    assert str(UserError(f"got {HOSTILE}")) == (
        "got \\u001b]0;title\\u0007\\u001b[2J\\u009b31m\\u000d\\u007f\\u202e"
    )


def test_output_is_escaped_while_it_is_asked_for(capsys):
    with escape_output():
        print(HOSTILE)
        print(HOSTILE, file=sys.stderr)
    out, err = capsys.readouterr()
    assert is_harmless(out + err)
    print("\x1b[0m")
    assert capsys.readouterr().out == "\x1b[0m\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_consoles_escape_texts_and_still_draw(terminal):
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    stream = io.StringIO()
    console = SafeConsole(file=stream, force_terminal=terminal, width=200)
    console.print(table, HOSTILE)
    stages = Stages(console)
    with stages.stage(f"[bold]{HOSTILE}", 2) as advance:
        advance(1, HOSTILE)
    shown = stream.getvalue()
    for hostile in ("\x1b]0;", "\x07", "\x1b[2J", "\x9b", "\x7f", "\u202e"):
        assert hostile not in shown
    assert ("\x1b[" in shown) == terminal


def test_a_journal_holds_names_without_controls_and_gives_them_back(tmp_path):
    file = epath.Path(tmp_path / "training.jsonl")
    journal = Journal(file)
    journal.write([{"kind": "failed", "expert": HOSTILE, "step": 1}])
    journal.close()
    assert is_harmless(file.read_text())
    assert read_journal(file)[0]["expert"] == HOSTILE


def test_commands_print_no_controls(tmp_path):
    file = tmp_path / "tasks.yaml"
    prompt = {"jinja": "{{text}} ||| x" + HOSTILE}
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": HOSTILE}) + "\n")
    name = "evil" + "\x1b[2J"
    file.write_text(json.dumps({"datasets": {name: {"jsonl": "rows.jsonl", "prompts": {"p": prompt}}}}))
    runner = CliRunner()
    for command in (
        ["tasks", "list", "--tasks", str(file)],
        ["tasks", "list", "--json", "--tasks", str(file)],
        ["tasks", "show", f"{name}/p", "--tasks", str(file)],
        ["tasks", "preview", f"{name}/p", "--tasks", str(file)],
        ["tasks", "show", f"{name}/none", "--tasks", str(file)],
    ):
        told = runner.invoke(app, command)
        assert told.exit_code in (0, 2), told
        assert is_harmless(told.output), command
        assert command[1] == "preview" or command[2].endswith("/none") or "evil\\u001b[2J" in told.output
