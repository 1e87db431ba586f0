"""`elm report`: tables of one run, two runs side by side, one sentence for a mistake."""

import json

import pytest

from elm_jax import cli
from elm_jax.evaluation import report
from elm_jax.records import TaskScores
from elm_jax.reporting.summary import ReportInputs
from elm_jax.session.workspace import Workspace


@pytest.fixture
def runs(tmp_path):
    """Two runs of ten rows: `roe` gets 3 right in the first, 8 in the second."""
    places = []
    for name, right in (("first", 3), ("second", 8)):
        rows = tuple(f"row-{row}" for row in range(10))
        scores = [
            TaskScores(
                "a/1",
                method,
                rows,
                ((-1.0, -2.0),) * 10,
                tuple(int(row >= n) for row in range(10)),
                (0,) * 10,
            )
            for method, n in (("base", 2), ("roe", right))
        ]
        places.append(str(tmp_path / name))
        workspace = Workspace.open(places[-1], create=True)
        report.write_run_report(workspace, ReportInputs(scores), [("roe", "base")])
    return places


def said(capsys, *arguments):
    cli.app(["report", *arguments], standalone_mode=False)
    return capsys.readouterr().out


def test_one_run_is_shown_as_tables_with_the_path_of_its_page(runs, capsys):
    for arguments in ([runs[0]], ["--run", runs[0]]):
        told = said(capsys, *arguments)
        assert "Accuracy in percent" in told
        assert "roe − base" in told
        assert told.splitlines()[-1].endswith("report.html")


def test_one_run_as_json_is_its_report(runs, capsys):
    assert [mean["macro"] for mean in json.loads(said(capsys, runs[1], "--json"))["means"]] == [0.2, 0.8]


def test_two_runs_are_compared_in_markdown(runs, capsys):
    lines = said(capsys, *runs).splitlines()
    assert lines[0] == "## Second run − first run"
    (roe,) = [line for line in lines if line.startswith("| roe | 30.0 ")]
    assert " | +50.0 | " in roe
    assert " | 5 : 0 | " in roe
    assert "## Difference by task" in lines


def test_two_runs_are_compared_in_json(runs, capsys):
    found = json.loads(said(capsys, *runs, "--method", "base=roe", "--json"))
    assert (found["first"], found["second"]) == tuple(runs)
    (row,) = found["comparisons"]
    assert (row["b"], row["a"], row["difference"]) == ("base", "roe", pytest.approx(0.6))
    assert [told["task"] for told in row["by_task"]] == ["a"]


def test_over_prompts_a_run_of_several_is_compared_without_a_file_written(tmp_path, capsys):
    rows = tuple(f"row-{row}" for row in range(10))
    zeros = (0,) * 10
    scores = [
        TaskScores(
            f"a/{n}", name, rows, ((-1.0, -2.0),) * 10, tuple(int(row >= right) for row in range(10)), zeros
        )
        for name, rights in (("base", (2, 3)), ("roe", (4, 9)))
        for n, right in enumerate(rights)
    ]
    workspace = Workspace.open(tmp_path / "run", create=True)
    report.write_run_report(workspace, ReportInputs(scores), [("roe", "base")])
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    (of_rows,) = json.loads(said(capsys, str(tmp_path / "run"), "--json"))["comparisons"]
    (of_prompts,) = json.loads(said(capsys, str(tmp_path / "run"), "--over", "prompts", "--json"))[
        "comparisons"
    ]
    assert (of_rows["over"], of_prompts["over"]) == ("rows", "prompts")
    assert of_prompts["difference"] == of_rows["difference"] == pytest.approx(0.4)
    assert of_prompts["low"] < of_rows["low"] < of_rows["high"] < of_prompts["high"]
    assert "for prompts like these" in said(capsys, str(tmp_path / "run"), "--over", "prompts")
    assert {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["{0}", "{1}", "{0}"], "got 3"),
        (["{0}", "--method", "roe"], "--method, got one"),
        (["{0}", "--over", "prompts"], "one prompt each"),
        (["{0}", "{1}", "--method", "rose"], "No method named 'rose'"),
        (["{0}/nothing"], "got no directory"),
    ],
)
def test_a_mistake_is_one_sentence(runs, capsys, extra, message):
    with pytest.raises(SystemExit) as stop:
        cli.main(["report", *(word.format(*runs) for word in extra)])
    told = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in told
    assert told.count("\n") == 1
