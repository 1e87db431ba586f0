"""`elm report`'s work: a run's report written, read again, and two runs compared from their folders."""

import dataclasses
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from elm_jax.errors import UserError
from elm_jax.evaluation import report
from elm_jax.records import TaskScores
from elm_jax.reporting.records import GeneratedResult, MethodAnswer, MethodDescription, RowExample
from elm_jax.reporting.summary import ReportInputs
from elm_jax.session.workspace import Workspace


def scores(counts, rows=6):
    """Every method gets the first so many rows of a/1 and b/1 right."""
    labels = (0,) * rows
    return [
        TaskScores(
            task=task,
            method=method,
            row_ids=tuple(f"row-{row}" for row in range(rows)),
            scores=((-1.0, -2.0),) * rows,
            predictions=tuple(int(row >= right) for row in range(rows)),
            labels=labels,
        )
        for method, right in counts.items()
        for task in ("a/1", "b/1")
    ]


def evaluated(place, counts, **options):
    workspace = Workspace.open(place, create=True)
    made = scores(counts)
    return workspace, report.write_run_report(workspace, ReportInputs(made, **options), [])


def test_a_report_is_written_and_its_pages_are_made_again_from_it(tmp_path):
    workspace, (made, files) = evaluated(tmp_path, {"base": 1, "roe": 4})
    assert made.environment["packages"]["jax"]
    assert Path(sys.argv[0]).name in made.environment["command"]
    written = datetime.strptime(made.environment["written"], "%Y-%m-%d %H:%M UTC").replace(tzinfo=UTC)
    assert timedelta(0) <= datetime.now(UTC) - written < timedelta(minutes=10)
    assert [mean.macro for mean in made.means] == pytest.approx([1 / 6, 4 / 6])
    page = files["html"].read_bytes()
    files["html"].unlink()
    read, again = report.rebuild_report(workspace)
    assert read == made
    assert again["html"].read_bytes() == page


@pytest.mark.parametrize("packed", [False, True])
def test_a_report_names_the_commit_that_git_names(tmp_path, packed):
    def git(*words, place=tmp_path / "own"):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(
            ["git", "-C", str(place), *identity, *words], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    (tmp_path / "own").mkdir()
    assert report._read_commit(tmp_path / "own" / ".git") == ""
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "one")
    git("worktree", "add", "-q", "-b", "other", str(tmp_path / "beside"))
    git("commit", "-q", "--allow-empty", "-m", "two", place=tmp_path / "beside")
    if packed:
        git("pack-refs", "--all")
    for place in (tmp_path / "own", tmp_path / "beside"):
        assert report._read_commit(place / ".git") == git("rev-parse", "HEAD", place=place)
    git("checkout", "-q", "--detach")
    assert report._read_commit(tmp_path / "own" / ".git") == git("rev-parse", "HEAD")


def test_a_run_without_the_base_has_a_report_without_gaps(tmp_path):
    _, (made, _) = evaluated(tmp_path, {"roe": 4, "oracle": 5})
    assert [mean.gap_share for mean in made.means] == [None, None]


def test_base_and_oracle_are_known_by_their_router_whatever_they_are_called(tmp_path):
    told = [
        MethodDescription(name, router, None, labels)
        for name, router, labels in (
            ("plain", "base", "none"),
            ("mine", "roe", "none"),
            ("top", "oracle", "hindsight"),
        )
    ]
    _, (made, _) = evaluated(tmp_path, {"plain": 1, "mine": 2, "top": 5}, methods=told)
    assert [mean.gap_share for mean in made.means] == pytest.approx([0, 1 / 4, 1])


def test_methods_answers_and_rows_to_look_at_reach_the_report(tmp_path):
    told = MethodDescription("lorahub", "lorahub", None, "few", "5 rows")
    written = GeneratedResult("base", "haiku", "p", 2, "bleu (intl)", 3.0, None, None, False)
    answers = {"base": MethodAnswer("x", True, (-1.0, -2.0))}
    example = RowExample("a", "1", "row-0", "?", ("x", "y"), "x", answers)
    options = {"methods": [told], "generated": [written], "examples": [example]}
    _, (made, _) = evaluated(tmp_path, {"base": 1, "lorahub": 4}, **options)
    assert made.methods[1] == told
    assert (made.generated, made.examples) == ((written,), (example,))


def test_two_runs_are_compared_from_their_directories_or_their_reports_alone(tmp_path):
    first, _ = evaluated(tmp_path / "first", {"base": 1, "roe": 2})
    second, _ = evaluated(tmp_path / "second", {"base": 1, "roe": 5})
    base, roe = report.compare_runs(first.root, second.report)
    assert (base.difference, roe.difference) == pytest.approx((0.0, 0.5))
    assert (roe.better_a, roe.better_b, roe.comparisons) == (6, 0, 2)
    (other,) = report.compare_runs(first.root, second.root, ["base=roe"])
    assert (other.b, other.a) == ("base", "roe")
    assert other.difference == pytest.approx(4 / 6)


def test_a_run_that_was_not_evaluated_is_refused(tmp_path):
    workspace = Workspace.open(tmp_path, create=True)
    for ask in (lambda: report.rebuild_report(workspace), lambda: report.compare_runs(tmp_path, tmp_path)):
        with pytest.raises(UserError, match="Expected a report in"):
            ask()


def test_a_report_of_an_older_version_says_to_evaluate_once_more(tmp_path):
    workspace, (made, files) = evaluated(tmp_path, {"base": 1})
    old = {"format": 1, **dataclasses.asdict(made)}
    del old["methods"]
    files["json"].write_text(json.dumps(old))
    with pytest.raises(UserError, match=r"without methods.*`elm evaluate`"):
        report.rebuild_report(workspace)


def test_runs_over_other_rows_are_refused_by_name(tmp_path):
    first, _ = evaluated(tmp_path / "first", {"roe": 2})
    second = Workspace.open(tmp_path / "second", create=True)
    report.write_run_report(second, ReportInputs(scores({"roe": 2}, rows=5)), [])
    with pytest.raises(UserError, match=r"row 'row-5' in '.*first' alone \(1 such rows\)"):
        report.compare_runs(first.root, second.root)
