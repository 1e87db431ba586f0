"""A report comes back from its folder as it was; what is none is refused, with what to do."""

import csv
import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from elm_jax.errors import UserError
from elm_jax.reporting import metrics, report_files
from elm_jax.reporting.records import GeneratedResult, Report
from elm_jax.reporting.report_files import read_report, read_rows, write_report
from elm_jax.reporting.summary import PairedTest, ReportInputs, build_report

PARTS = [part.name for part in dataclasses.fields(Report)]


def test_a_report_comes_back_as_it_was_and_makes_the_same_pages(report, tmp_path):
    paths = write_report(report, tmp_path / "new" / "report")
    assert {ending: path.name for ending, path in paths.items()} == {
        ending: f"report.{ending}" for ending in ("html", "md", "csv", "json")
    }
    assert sorted(file.name for file in paths["json"].parent.iterdir()) == sorted(
        p.name for p in paths.values()
    )
    read = read_report(paths["json"].parent)
    assert read == report
    again = write_report(read, tmp_path / "again")
    assert all(again[ending].read_bytes() == path.read_bytes() for ending, path in paths.items())


def test_the_json_is_the_record_field_by_field(report, tmp_path):
    value = json.loads(write_report(report, tmp_path)["json"].read_text())
    assert set(value) == {"format", "checksum", *(part.name for part in dataclasses.fields(Report))}
    assert {"method", "task", "prompt", "n", "accuracy", "low", "high"} <= value["rows"][0].keys()
    assert value["environment"]["versions"]["jax"] == "0.10.2"


def test_a_report_written_before_its_rows_were_records_is_written_back_equal(tmp_path):
    before = Path(__file__).with_name("report_of_before.json").read_text()
    (tmp_path / "report.json").write_text(before)
    read = read_report(tmp_path)
    assert (read.means[0].method, read.examples[0].answers["base"].right) == ("base", False)
    written = json.loads(write_report(read, tmp_path)["json"].read_text())
    assert [written.pop(part) for part in ("equal_choices", "task_rows", "tied_with_best")] == [[], [], []]
    assert written.pop("key_map") is None
    assert [row.pop("over") for row in written["comparisons"]] == ["rows"] * len(read.comparisons)
    assert len(written.pop("checksum")) == 16
    assert [(row.pop("tied"), row.pop("left_out")) for row in written["rows"]] == [(0, 0)] * len(read.rows)
    assert written == json.loads(before)


def test_the_csv_holds_every_number_in_full(report, tmp_path):
    lines = list(csv.DictReader(write_report(report, tmp_path)["csv"].read_text().splitlines()))
    assert [float(line["accuracy"]) for line in lines] == [row.accuracy for row in report.rows]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ('{"format": 99}', "format 1 .* got 99"),
        ('{"format": 1, "name": "an expert"}', "without rows, means"),
    ],
)
def test_a_foreign_file_is_refused(tmp_path, content, message):
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_report(tmp_path)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_another_shape_is_refused_by_name(report, tmp_path, part):
    value = json.loads(json.dumps({"format": 1, **dataclasses.asdict(report)}))
    for foreign in ("text", 5, [{"something": "else"}]):
        (tmp_path / "report.json").write_text(json.dumps({**value, part: foreign}))
        with pytest.raises(UserError, match=rf"report\.json.*`{part}"):
            read_report(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example({**json.loads(json.dumps(dataclasses.asdict(Report((), (), (), (), {"x": [1]})))), "format": 1})
@given(st.dictionaries(st.sampled_from(["format", *PARTS]), st.just(1) | JSON))
def test_any_other_json_is_a_report_or_one_clear_error(tmp_path, value):
    (tmp_path / "report.json").write_text(json.dumps(value))
    empty = json.loads(json.dumps(dataclasses.asdict(Report((), (), (), (), {}))))
    whole = value.get("format") == 1 and set(PARTS) - set(report_files.OPTIONAL_REPORT_FIELDS) <= value.keys()
    of_form = all(
        isinstance(content, dict) if part == "environment" else content == empty[part]
        for part, content in value.items()
        if part != "format"
    )
    if whole and of_form:
        read = json.loads(json.dumps(dataclasses.asdict(read_report(tmp_path))))
        assert {**read, "format": 1} == {**empty, **value}
    else:
        with pytest.raises(UserError, match=r"report\.json"):
            read_report(tmp_path)


def test_a_missing_directory_or_file_is_said_so(tmp_path):
    with pytest.raises(UserError, match=r"got no directory\. Fix: evaluate into it first"):
        read_report(tmp_path / "nowhere")
    with pytest.raises(UserError, match="got no file"):
        read_report(tmp_path)


def test_an_unwritable_directory_is_refused(report, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_report(report, tmp_path / "file")


@pytest.mark.parametrize(
    ("content", "message"),
    [('{"format": 99}', "format 1 .* got 99"), ('{"format": 1, "rows": []}', "without means")],
)
def test_a_report_of_another_version_is_refused_with_what_to_do(tmp_path, content, message):
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(UserError, match=rf"{message}.*`elm evaluate`"):
        read_report(tmp_path)


def test_what_every_row_counts_comes_back(make_task, tmp_path):
    scores = [
        make_task("a/1", "base", [True, False, True], row_ids=["x", "y", "z"]),
        make_task("b/1", "base", [False]),
        dataclasses.replace(make_task("b/1", "roe", [True]), seen=True),
    ]
    turned = {"row_ids": ("z", "y", "x"), "labels": (2, 1, 0), "predictions": (0, 1, 0)}
    turned["scores"] = ((-1.0, -1.0, -1.0), (-2.0, -1.0, -2.0), (-1.0, -2.0, -3.0))
    scores.insert(1, dataclasses.replace(scores[0], method="roe", **turned))
    report = build_report(ReportInputs(scores), test=PairedTest(10))
    write_report(report, tmp_path, scores)
    read = read_rows(tmp_path, read_report(tmp_path))
    found = {
        (task.method, task.task): (task.row_ids, metrics.row_credits(task).tolist())
        for tasks in read.values()
        for task in tasks
    }
    assert found == {
        ("base", "a/1"): (("x", "y", "z"), [1, 0, 1]),
        ("roe", "a/1"): (("z", "y", "x"), [1 / 3, 1, 1]),  # three choices of z score the same
        ("base", "b/1"): (("row-0",), [0]),
        ("roe", "b/1"): (("row-0",), [1]),
    }
    assert [task.seen for task in read["roe"]] == [False, True]


def test_rows_that_are_missing_or_of_another_report_are_refused(make_task, tmp_path):
    scores = [make_task("a/1", "base", [True, False])]
    report = build_report(ReportInputs(scores))
    write_report(report, tmp_path)
    with pytest.raises(UserError, match=r"rows.jsonl"):
        read_rows(tmp_path, report)
    write_report(report, tmp_path, scores)
    other = build_report(ReportInputs([make_task("a/1", "base", [True, True])]))
    with pytest.raises(UserError, match="those of another one"):
        read_rows(tmp_path, other)


def test_generated_answers_have_a_csv_of_their_own(tmp_path):
    row = GeneratedResult("roe", "haiku", "p", 3, "bleu (intl)", 12.5, None, None, True)
    write_report(build_report(ReportInputs(generated=[row])), tmp_path)
    (line,) = csv.DictReader((tmp_path / "generated.csv").read_text().splitlines())
    assert line == {
        **{name: str(value) for name, value in vars(row).items()},
        "low": "",
        "high": "",
        "seen": "1",
    }
