"""A run's scores become a report, and the report comes back from its file as it was."""

import csv
import dataclasses
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from elm_jax.errors import UserError
from elm_jax.records import Report, Selection
from elm_jax.reporting import significance, summary
from elm_jax.reporting.summary import read_report, summarise, write_report


def test_every_method_task_and_prompt_has_a_row_with_its_interval(make_task):
    scores = [
        make_task("cb/a/b", "base", [True, False, False, False]),
        make_task("cb/a/b", "roe", [True, True, True, False]),
    ]
    report = summarise(scores, [], {})
    assert [(row["method"], row["task"], row["prompt"], row["n"]) for row in report.rows] == [
        ("base", "cb", "a/b", 4),
        ("roe", "cb", "a/b", 4),
    ]
    assert [row["accuracy"] for row in report.rows] == [0.25, 0.75]
    assert all(row["low"] < row["accuracy"] < row["high"] for row in report.rows)
    assert all(row["chance"] == pytest.approx(1 / 3) for row in report.rows)


def test_means_name_macro_and_micro_and_the_share_of_the_oracles_gap(make_task):
    right = {"base": (1, 0, 0), "roe": (3, 2, 0), "oracle": (4, 4, 2)}
    scores = [
        make_task(task, method, [True] * n + [False] * (4 - n))
        for method, counts in right.items()
        for task, n in zip(("a/1", "a/2", "b/1"), counts, strict=True)
    ]
    base, roe, oracle = summarise(scores, [], {}, samples=10).means
    assert (base["macro"], roe["macro"], oracle["macro"]) == pytest.approx((1 / 16, 5 / 16, 3 / 4))
    assert roe["micro"] == pytest.approx(5 / 12)
    assert (base["gap_share"], oracle["gap_share"]) == (0.0, 1.0)
    assert roe["gap_share"] == pytest.approx((5 - 1) / (12 - 1))
    assert [mean["hindsight"] for mean in (base, roe, oracle)] == [False, False, True]


def test_a_task_is_summed_up_over_its_prompts(make_task):
    scores = [make_task("a/1", "base", [True, False]), make_task("a/2", "base", [True, True], choices=2)]
    (task,) = summarise(scores, [], {}).tasks
    assert (task["prompts"], task["n"], task["accuracy"]) == (2, 2, 0.75)
    assert (task["lowest"], task["median"], task["highest"]) == (0.5, 0.75, 1.0)
    assert task["chance"] == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_every_method_that_used_no_hindsight_is_compared_with_the_baseline(report):
    pairs = [(row["a"], row["b"]) for row in report.comparisons]
    assert pairs == [(m, "base") for m in ("multitask", "uniform_merge", "roe_top1", "roe_top3_merge")]
    assert {row["comparisons"] for row in report.comparisons} == {4}
    assert [row["p_holm"] for row in report.comparisons] == list(
        significance.holm(row["p"] for row in report.comparisons)
    )


def test_given_pairs_replace_the_default_ones(make_run):
    report = summarise(**make_run(rows=20), pairs=[("roe_top1", "multitask")], samples=10)
    assert [(row["a"], row["b"], row["comparisons"]) for row in report.comparisons] == [
        ("roe_top1", "multitask", 1)
    ]
    assert report.comparisons[0]["p_holm"] == report.comparisons[0]["p"]


def test_a_selection_names_its_heaviest_expert_and_all_voters(make_task):
    selection = Selection("cb/p", "roe", {"x/1": 0.4, "y/1": 0.6}, {"x/1": 3, "y/1": 2, "z/1": 1}, ("1",) * 6)
    (row,) = summarise([make_task("cb/p", "roe", [True])], [selection], {}, baseline=None).selections
    assert (row["task"], row["prompt"], row["router"]) == ("cb", "p", "roe")
    assert (row["expert"], row["votes"], row["queries"]) == ("y/1", 2, 6)
    assert row["voters"] == {"x/1": 3, "y/1": 2, "z/1": 1}


def test_the_matrix_takes_the_family_of_an_expert_or_of_its_dataset(make_task):
    matrix = [make_task("cb/p", expert, [True, False]) for expert in ("x/1", "x/2", "y/1")]
    report = summarise(
        [make_task("cb/p", "base", [True])], [], {}, experts_matrix=matrix, families={"x": "qa", "x/2": "own"}
    )
    assert [(row["expert"], row["family"], row["accuracy"]) for row in report.matrix] == [
        ("x/1", "qa", 0.5),
        ("x/2", "own", 0.5),
        ("y/1", None, 0.5),
    ]


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        ([], {}, "one method at least, but none came"),
        ([("a/1", "base"), ("a/1", "base")], {}, "Task 'a/1' has two scores by 'base'"),
        ([("a/1", "base"), ("a/2", "base"), ("a/1", "roe")], {}, "'roe' lacks 'a/2', which 'base' has"),
        ([("a/1", "base"), ("a/1", "roe"), ("a/2", "roe")], {}, "'base' lacks 'a/2', which 'roe' has"),
        ([("a/1", "bass")], {}, "No method named 'base' .* Did you mean 'bass'"),
        ([("a/1", "base")], {"pairs": [("rose", "base")]}, "No method named 'rose'"),
        ([("a1", "base")], {}, "form dataset/prompt, but 'a1' came"),
    ],
)
def test_scores_that_make_no_fair_table_are_refused(make_task, scores, options, message):
    with pytest.raises(UserError, match=message):
        summarise([make_task(task, method, [True]) for task, method in scores], [], {}, **options)


def test_a_selection_without_experts_is_refused(make_task):
    with pytest.raises(UserError, match="task 'a/1' by 'roe' has no expert"):
        summarise([make_task("a/1", "base", [True])], [Selection("a/1", "roe", {}, {}, ())], {})


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
    assert set(value) == {"format", *(part.name for part in dataclasses.fields(Report))}
    assert {"method", "task", "prompt", "n", "accuracy", "low", "high"} <= value["rows"][0].keys()
    assert value["environment"]["versions"]["jax"] == "0.10.2"


def test_the_csv_holds_every_number_in_full(report, tmp_path):
    lines = list(csv.DictReader(write_report(report, tmp_path)["csv"].read_text().splitlines()))
    assert [float(line["accuracy"]) for line in lines] == [row["accuracy"] for row in report.rows]


def test_values_that_json_does_not_know_are_written_as_text(make_task, tmp_path):
    report = summarise([make_task("a/1", "base", [True])], [], {"out": tmp_path, "shape": (1, 2)})
    assert report.environment == {"out": str(tmp_path), "shape": [1, 2]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ('{"format": 99}', "should have format 1, but 99 came"),
        ('{"format": 1, "name": "an expert"}', "is no report: it lacks rows, means"),
    ],
)
def test_a_foreign_file_is_refused(tmp_path, content, message):
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_report(tmp_path)


@pytest.mark.parametrize("part", [*summary.PARTS, "environment"])
def test_a_part_of_another_shape_is_refused_by_name(report, tmp_path, part):
    value = json.loads(json.dumps({"format": 1, **dataclasses.asdict(report)}))
    for foreign in ("text", 5, [{"something": "else"}]):
        (tmp_path / "report.json").write_text(json.dumps({**value, part: foreign}))
        with pytest.raises(UserError, match=f"is no report: its {part} should be"):
            read_report(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(["format", "environment", *summary.PARTS]), st.just(1) | JSON))
def test_any_other_json_is_a_report_or_one_clear_error(tmp_path, value):
    (tmp_path / "report.json").write_text(json.dumps(value))
    whole = value.get("format") == 1 and isinstance(value.get("environment"), dict)
    whole = whole and all(value.get(part) == [] for part in summary.PARTS)
    if whole:
        assert read_report(tmp_path) == Report((), (), (), (), value["environment"])
    else:
        with pytest.raises(UserError, match=r"report\.json"):
            read_report(tmp_path)


def test_a_missing_directory_or_file_is_said_so(tmp_path):
    with pytest.raises(UserError, match=r"no directory is there\. Evaluate into it first"):
        read_report(tmp_path / "nowhere")
    with pytest.raises(UserError, match="but no file is there"):
        read_report(tmp_path)


def test_an_unwritable_directory_is_refused(report, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_report(report, tmp_path / "file")
