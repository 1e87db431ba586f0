"""A group with rows missing: what is there is evaluated, what is missing is named, and --strict refuses."""

import dataclasses
import io
import json
import time
import urllib.error

import pytest

from elm_jax.data import check, missing_rows, prepare, prepared_files, task_rows, task_selection
from elm_jax.errors import MissingDatasetRowsError, UserError
from elm_jax.evaluation.config import EvaluationConfig
from elm_jax.evaluation.evaluate import evaluate
from elm_jax.records import PromptedExample
from elm_jax.tasks import datasets, sources
from elm_jax.tasks.data_source import Source
from elm_jax.tasks.datasets import all_datasets

TASK = {
    "family": "toy",
    "split": "test",
    "splits": {"test": None},
    "columns": ["text", "label"],
    "prompts": {"p": "accuracy"},
    "inline": {"p": {"jinja": "{{text}} ||| {{answer_choices[label]}}", "answer_choices": "yes ||| no"}},
}
BASE_ALONE = EvaluationConfig(methods=["base"])


def define(**groups):
    """Defines datasets in a group: name -> the source of its rows."""
    for group, own in groups.items():
        made = {name: {**TASK, "sources": [source]} for name, source in own.items()}
        datasets.add_user_datasets(datasets.parse_datasets({"group": group, "datasets": made}, "the test"))


@pytest.fixture(scope="module")
def run(make_run):
    return make_run(experts=(), keyed=False)


@pytest.fixture
def data(tmp_path):
    rows = [{"text": f"row {number}", "label": number % 2} for number in range(6)]
    (tmp_path / "here.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def toys(run, data, monkeypatch):
    """A group of one dataset that is there, one whose file is absent, and two that no server has now."""
    monkeypatch.setattr(missing_rows, "is_reachable", lambda host: False)
    monkeypatch.setenv("HF_HOME", str(data / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(data / "tfds"))
    define(
        toys={
            "here": {"jsonl": {"test": "here.jsonl"}},
            "absent": {"jsonl": {"test": "absent.jsonl"}},
            "far": {"hub": "someone/far"},
            "built": {"tfds": "built:1.0.0"},
        }
    )
    return dataclasses.replace(run, source=dataclasses.replace(run.source, data_dir=data))


def test_what_is_there_of_a_group_is_evaluated_and_the_rest_is_named_with_a_command(toys, capsys):
    report = evaluate(toys, "toys", BASE_ALONE).report
    assert {row.task for row in report.rows} == {"here"}
    told = capsys.readouterr().err
    assert "absent, far, built" in told
    assert "absent.jsonl" in told
    assert "datasets.load_dataset('someone/far')" in told
    assert "tfds build built:1.0.0" in told
    assert set(report.environment["missing"]) == {"absent", "far", "built"}


def test_a_strict_evaluation_refuses_the_group(toys):
    with pytest.raises(UserError, match=r"(?s)rows of absent, far, built.*tfds build"):
        evaluate(toys, ["toys"], dataclasses.replace(BASE_ALONE, strict=True))


@pytest.mark.parametrize("named", [["absent"], ["toys", "absent/p"], ["here", "far"]])
def test_a_task_that_is_named_by_itself_is_never_left_out(toys, named):
    with pytest.raises(UserError, match=r"absent\.jsonl|load_dataset"):
        evaluate(toys, named, BASE_ALONE)


def test_what_fails_to_load_though_its_server_answers_is_left_out_of_a_group_too(toys, monkeypatch, capsys):
    monkeypatch.setattr(missing_rows, "is_reachable", lambda host: True)
    tries = []

    def fail(dataset, source, split):
        tries.append(dataset.name)
        raise MissingDatasetRowsError(f"Expected {dataset.name!r}, got no answer. Fix: ask again.")

    monkeypatch.setattr(sources, "_open_hub", fail)
    monkeypatch.setattr(
        sources, "_open_tfds", lambda source, split, root: fail(all_datasets()["built"], 0, 0)
    )
    report = evaluate(toys, "toys", BASE_ALONE).report
    assert {row.task for row in report.rows} == {"here"}
    assert set(report.environment["missing"]) == {"absent", "far", "built"}
    assert "Expected 'far', got no answer" in capsys.readouterr().err
    assert tries == ["far", "built"]
    with pytest.raises(MissingDatasetRowsError):
        evaluate(toys, "toys", dataclasses.replace(BASE_ALONE, strict=True))


def test_checks_and_preparations_try_no_download_that_cannot_succeed(toys, tmp_path, monkeypatch):
    def never(*arguments):
        raise AssertionError("a download was tried")

    monkeypatch.setattr(sources, "_open_hub", never)
    monkeypatch.setattr(sources, "_open_tfds", never)
    checked = check.check_tasks(task_selection.select_tasks("toys"), toys.source)
    findings = {each.task: [finding.message for finding in each.findings] for each in checked}
    assert findings["here/p"] == []
    assert "absent.jsonl" in findings["absent/p"][0]
    assert "datasets.load_dataset('someone/far')" in findings["far/p"][0]
    assert "tfds build built:1.0.0" in findings["built/p"][0]
    source = dataclasses.replace(toys.source, prepared=tmp_path / "prepared")
    with pytest.raises(UserError, match=r"(?s)3 of 4 tasks.*load_dataset.*tfds build"):
        prepare.prepare_tasks(tasks=["toys"], tokenizer=toys.tokenizer, source=source)
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    assert missing_rows.find_server("hub") == "mirror.example"


def test_prepared_rows_are_not_missing_where_their_server_is(toys, data, tmp_path):
    source = dataclasses.replace(toys.source, prepared=tmp_path / "prepared")
    (spec,) = task_selection.select_tasks("far", source)
    rows = [PromptedExample("0", "Is it?", "yes", ("yes", "no"), 0)]
    file = task_selection.prepared_file(source.prepared, spec, "test")
    for revision, absent in (("", []), ("@main", []), ("x", ["far/p"])):
        key = f"{task_rows.rendering_key(spec, source)}{revision}"
        made = task_rows.tokenize_task(rows, toys.tokenizer, toys.lengths)
        prepared_files.save(file, made, prepared_files.make_cache_key(key, toys.tokenizer, toys.lengths))
        assert list(missing_rows.find_missing([spec], source)) == absent


def test_files_of_one_prompt_are_missing_without_those_of_the_others(data):
    made = {
        **TASK,
        "prompts": {"one": "accuracy", "two": "accuracy"},
        "inline": dict.fromkeys(("one", "two"), TASK["inline"]["p"]),
        "sources": [{"jsonl": {"test": "many-{prompt}.jsonl"}}],
    }
    found = datasets.parse_datasets({"group": "many", "datasets": {"many": made}}, "the test")
    datasets.add_user_datasets(found)
    (data / "many-one.jsonl").write_text((data / "here.jsonl").read_text())
    specs = task_selection.select_tasks("many")
    assert list(missing_rows.find_missing(specs, Source(data_dir=data))) == ["many/two"]


def test_each_server_is_asked_once_and_what_it_has_is_not_missing(data, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(data / "cache"))
    asked = []

    def reaches(host):
        asked.append(host)
        return host == "huggingface.co"

    monkeypatch.setattr(missing_rows, "is_reachable", reaches)
    monkeypatch.setenv("TFDS_DATA_DIR", str(data / "tfds"))
    define(
        others={
            "near": {"hub": "a/near"},
            "beside": {"hub": "a/beside"},
            "old": {"tfds": "old:1.0.0"},
            "older": {"tfds": "older:1.0.0"},
        }
    )
    found = missing_rows.find_missing(task_selection.select_tasks("others"), Source(data_dir=data))
    assert list(found) == ["old/p", "older/p"]
    assert sorted(asked) == ["huggingface.co", "storage.googleapis.com"]


def test_what_was_loaded_from_the_hub_or_prepared_by_tfds_is_there_without_them(data, monkeypatch):
    monkeypatch.setattr(missing_rows, "is_reachable", lambda host: False)
    monkeypatch.setenv("HF_HOME", str(data / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(data / "tfds"))
    define(kept={"loaded": {"hub": "someone/loaded"}, "made": {"tfds": "made:1.0.0"}})
    specs = task_selection.select_tasks("kept")
    assert list(missing_rows.find_missing(specs, Source(data_dir=data))) == ["loaded/p", "made/p"]
    (data / "cache" / "datasets" / "someone___loaded").mkdir(parents=True)
    (data / "tfds" / "made" / "1.0.0").mkdir(parents=True)
    (data / "tfds" / "made" / "1.0.0" / "dataset_info.json").write_text("{}")
    assert missing_rows.find_missing(specs, Source(data_dir=data)) == {}
    assert all(missing_rows.is_here(spec, Source(data_dir=data)) for spec in specs)


def test_a_server_that_answers_is_reachable_and_one_that_is_silent_is_not(monkeypatch):
    answers = {
        "answers": lambda: None,
        "refuses": lambda: (_ for _ in ()).throw(urllib.error.HTTPError("", 403, "", None, None)),
        "absent": lambda: (_ for _ in ()).throw(urllib.error.URLError("no such name")),
        "silent": lambda: time.sleep(60),
    }

    def urlopen(request, timeout):
        answers[request.host]()
        return io.BytesIO()

    monkeypatch.setattr(missing_rows.urllib.request, "urlopen", urlopen)
    monkeypatch.setattr(missing_rows, "SERVER_TIMEOUT_SECONDS", 0.1)
    found = {host: missing_rows.is_reachable(host) for host in answers}
    assert found == {"answers": True, "refuses": True, "absent": False, "silent": False}
