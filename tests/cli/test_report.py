"""`elm report`: tables of one run, two runs side by side, one sentence for a mistake."""

import dataclasses
import json

import pytest

from elm_jax import cli
from elm_jax.evaluation import report
from elm_jax.records import Selection, TaskScores
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


def test_several_runs_are_compared_with_the_first(runs, capsys):
    told = said(capsys, runs[0], runs[1], runs[1])
    assert told.count("## Second run − first run") == 2
    first, second = json.loads(said(capsys, runs[0], runs[1], runs[0], "--json"))
    assert (first["second"], second["second"]) == (runs[1], runs[0])
    assert {row["difference"] for row in second["comparisons"]} == {0.0}


def test_tables_are_exported_of_a_run_of_runs_compared_and_of_a_leaderboard(runs, capsys, tmp_path):
    for number, arguments in enumerate(([runs[0]], runs, [*runs, "--leaderboard"])):
        said(capsys, *arguments, "--export", str(tmp_path / str(number)))
    names = [{file.name for file in (tmp_path / str(number)).iterdir()} for number in range(3)]
    assert {"accuracy.csv", "accuracy.tex", "comparisons.svg", "prompts.svg"} < names[0]
    assert {"comparison.tex", "comparison_by_task.md"} < names[1]
    assert names[2] == {"leaderboard_1.csv", "leaderboard_1.md", "leaderboard_1.tex"}
    assert "roe,30.0" in (tmp_path / "0" / "accuracy.csv").read_text()


def test_evaluations_of_a_run_are_called_by_their_names(runs, capsys):
    workspace = Workspace.open(runs[0])
    row_ids, zeros = tuple(f"row-{row}" for row in range(10)), (0,) * 10
    scores = [TaskScores("a/1", "roe", row_ids, ((-1.0, -2.0),) * 10, zeros, zeros)]
    report.write_run_report(workspace, ReportInputs(scores), [], name="all right")
    assert "Evaluations" in said(capsys, runs[0])
    shown = json.loads(said(capsys, "all right", "--run", runs[0], "--json"))
    assert [mean["macro"] for mean in shown["means"]] == [1.0]
    found = json.loads(said(capsys, "latest", "all right", "--run", runs[0], "--json"))
    assert [row["difference"] for row in found["comparisons"]] == [pytest.approx(0.7)]


def test_the_leaderboard_has_all_methods_of_several_runs_best_first(runs, capsys):
    entries = json.loads(said(capsys, *runs, "--leaderboard", "--json"))
    assert [(row["method"], row["macro"]) for row in entries] == [
        ("roe", 0.8),
        ("roe", 0.3),
        ("base", 0.2),
        ("base", 0.2),
    ]
    assert [row["evaluation"].partition(": ")[0] for row in entries[:2]] == [runs[1], runs[0]]
    assert "Leaderboard of 1 task" in said(capsys, runs[0], "--leaderboard")


def test_what_was_limited_to_some_rows_says_so_in_every_table(tmp_path, capsys):
    rows = tuple(f"row-{row}" for row in range(4))
    right = {"base": (1, 0, 0, 0), "roe": (1, 1, 0, 0)}
    scores = [
        TaskScores("a/1", name, rows, ((-1.0, -2.0),) * 4, picked, (0,) * 4) for name, picked in right.items()
    ]
    places = [str(tmp_path / name) for name in ("first", "second")]
    for place in places:
        asked = ReportInputs(scores, [Selection("a/1", "roe", {"b/c": 1.0}, {"b/c": 2}, ("q", "r"), ())])
        asked = dataclasses.replace(asked, environment={"limit": 4})
        report.write_run_report(Workspace.open(place, create=True), asked, [("roe", "base")])
    for words, tables in (([places[0]], 3), (places, 2), ([*places, "--leaderboard"], 1)):
        told = " ".join(said(capsys, *words).split())
        assert told.count("Limited to 4 rows") == tables


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
