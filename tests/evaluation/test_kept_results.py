"""A finished evaluation asks no router and makes no table again, unless what they read has changed."""

import json
import shutil
from dataclasses import replace

import pytest

from elm_jax import cli
from elm_jax.errors import UserError
from elm_jax.evaluation import evaluate, report_directories, scorer_selection
from elm_jax.evaluation import report as reports
from elm_jax.evaluation.config import EvaluationConfig
from elm_jax.experts.library import Library
from elm_jax.reporting import page, report_files, tables
from elm_jax.routing.index import index
from elm_jax.session import opening
from tests.run_fixtures import TRAINED, add_expert

CONFIG = EvaluationConfig(methods=("roe", "bm25", "roe:experts=2+average"), queries=4)


@pytest.fixture(scope="module")
def evaluated(make_run, unseen):
    run = make_run()
    evaluate.evaluate(run, unseen, CONFIG)
    return run


@pytest.fixture
def run(evaluated, tmp_path):
    return opening.open_run(shutil.copytree(evaluated.workspace.root, tmp_path / "run"))


@pytest.fixture
def counted(monkeypatch):
    """How often routers were asked, and reports made."""
    done = {"routed": 0, "reported": 0}

    def count(module, name, key):
        function = getattr(module, name)

        def call(*args, **kwargs):
            done[key] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(module, name, call)

    count(scorer_selection, "route_tasks", "routed")
    count(reports, "write_run_report", "reported")
    return done


def test_a_finished_evaluation_is_read(run, unseen, counted):
    before = (run.workspace.report / "report.json").read_bytes()
    again = evaluate.evaluate(run, unseen, CONFIG)
    assert counted == {"routed": 0, "reported": 0}
    assert (run.workspace.report / "report.json").read_bytes() == before
    assert {row.method for row in again.report.rows} == {"base", *CONFIG.methods}
    assert all(file.exists() for file in again.files.values())
    assert set(again.files) == {"html", "md", "csv", "json"}


def test_a_report_has_a_map_of_the_keys_and_queries_that_routers_compared(evaluated, unseen):
    run = evaluated
    drawn = report_files.read_report(run.workspace.report).key_map
    assert [points.name for points in drawn.keys] == sorted(Library.open(run.workspace.library).ids())
    assert {points.name for points in drawn.queries} == {spec.dataset for spec in unseen}
    assert drawn.query_count == CONFIG.queries * len(unseen)
    assert scorer_selection.load_selection(run.workspace).key_map == drawn


def test_without_a_router_of_keys_there_is_no_map(run, unseen):
    result = evaluate.evaluate(run, unseen, EvaluationConfig(methods=("uniform",)))
    assert result.report.key_map is None


def remove_an_expert(run):
    Library.open(run.workspace.library).remove(TRAINED[0])


def replace_an_expert(run):
    keys = Library.open(run.workspace.library).load_keys(TRAINED[0])
    add_expert(run, TRAINED[0], "bottleneck", {"width": 4}, seed=99)
    Library.open(run.workspace.library).write_keys(TRAINED[0], keys)


def embed_other_keys(run):
    index(run, size=3, rebuild=True)


def remove_a_composite(run):
    library = Library.open(run.workspace.composites)
    library.remove(library.ids()[0])


def damage_the_choices(run):
    (run.workspace.root / "choices.json").write_text("{")


@pytest.mark.parametrize(
    "change",
    [remove_an_expert, replace_an_expert, embed_other_keys, remove_a_composite, damage_the_choices],
)
def test_routers_are_asked_again_if_what_they_read_has_changed(run, unseen, counted, change):
    change(run)
    evaluate.evaluate(run, unseen, CONFIG)
    assert counted["routed"] == len(CONFIG.methods)


def test_other_options_are_other_choices(run, unseen, counted):
    evaluate.evaluate(run, unseen, EvaluationConfig(methods=CONFIG.methods, queries=5))
    assert counted["routed"] == len(CONFIG.methods)
    evaluate.evaluate(run, unseen, EvaluationConfig(methods=CONFIG.methods, queries=5, normalization="mean"))
    assert counted == {"routed": len(CONFIG.methods), "reported": 2}


@pytest.mark.parametrize("name", ["report.json", "report.html", "rows.jsonl", "made_from.json"])
def test_a_report_that_was_changed_is_made_again(run, unseen, counted, name):
    file = run.workspace.report / name
    before = json.loads((run.workspace.report / "report.json").read_text())["rows"]
    file.write_text(file.read_text() + " ")
    if name == "made_from.json":
        file.write_text("[" * 99999)
    evaluate.evaluate(run, unseen, CONFIG)
    assert counted == {"routed": 0, "reported": 1}
    assert json.loads((run.workspace.report / "report.json").read_text())["rows"] == before


def test_a_damaged_history_stops_nothing_and_missing_settings_do(run, unseen):
    (run.workspace.root / "seconds.json").write_text('{"format": 1, "seconds": {"route": "long"}}')
    (run.workspace.report / "report.json").unlink()
    assert evaluate.evaluate(run, unseen, CONFIG) is not None
    (run.workspace.root / "run.json").unlink()
    with pytest.raises(UserError, match=r"run\.json"):
        evaluate.evaluate(run.workspace.root, unseen, CONFIG)


def test_no_evaluation_overwrites_another(run, unseen):
    first = (run.workspace.report / "report.json").read_bytes()
    evaluate.evaluate(run, unseen, EvaluationConfig(methods=("uniform",)))
    (kept,) = run.workspace.reports.iterdir()
    assert (kept / "report.json").read_bytes() == first
    evaluate.evaluate(run, unseen, EvaluationConfig(methods=("uniform",), batch_tokens=512))
    assert [each.name for each in run.workspace.reports.iterdir()] == [kept.name]  # the same results again
    stored = report_directories.list_reports(run.workspace)
    assert [each.name for each in stored] == ["latest", kept.name]


def test_a_named_evaluation_stands_apart_and_is_read_again_but_not_replaced(run, unseen, counted):
    latest = (run.workspace.report / "report.json").read_bytes()
    config = EvaluationConfig(methods=("uniform",), name="all alike")
    result = evaluate.evaluate(run, unseen, config)
    assert counted["reported"] == 1
    assert evaluate.evaluate(run, unseen, config).report == result.report
    assert counted["reported"] == 1
    assert (run.workspace.report / "report.json").read_bytes() == latest
    (named,) = report_directories.list_reports(run.workspace)[1:]
    assert (named.name, named.report) == ("all alike", result.report)
    with pytest.raises(UserError, match="all alike"):
        evaluate.evaluate(run, unseen, EvaluationConfig(methods=("bm25",), name="all alike"))
    assert report_directories.list_reports(run.workspace)[1].report == result.report


@pytest.mark.parametrize("name", ["", "latest", "a/b", "..\\x"])
def test_an_evaluation_cannot_have_every_name(run, unseen, name):
    for dry_run in (True, False):
        with pytest.raises(UserError):
            evaluate.evaluate(run, unseen, EvaluationConfig(methods=("uniform",), name=name), dry_run=dry_run)


def test_a_damaged_report_disturbs_no_other(run, unseen, capsys):
    evaluate.evaluate(run, unseen, EvaluationConfig(methods=("uniform",), name="damaged"))
    (run.workspace.reports / "damaged" / "report.json").write_text("{")
    latest, damaged = report_directories.list_reports(run.workspace)
    assert (latest.report is not None, damaged.name, damaged.report) == (True, "damaged", None)
    cli.app(["report", str(run.workspace.root)], standalone_mode=False)
    assert "its report is damaged" in capsys.readouterr().out
    cli.app(["report", str(run.workspace.root), "--leaderboard"], standalone_mode=False)
    assert "damaged" in capsys.readouterr().err


def test_a_limited_evaluation_says_so_in_its_tables(run, unseen):
    limited = opening.open_run(run.workspace.root, source=replace(run.source, limit=5))
    report = evaluate.evaluate(limited, unseen, EvaluationConfig(methods=("uniform",))).report
    for make_table in (tables.methods_table, tables.comparisons_table):
        assert "Limited to 5 rows of each task" in make_table(report).caption
    assert page.render_html(report).count("imited to 5 rows of each task") == 3
