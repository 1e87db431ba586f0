"""Inputs that change after something was made of them: every later verb refuses them or does them again."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from elm_jax import cli
from elm_jax.data import prepare, task_selection
from elm_jax.errors import UserError
from elm_jax.evaluation import ranking, results_cache
from elm_jax.evaluation import report as reports
from elm_jax.evaluation.config import EvaluationConfig
from elm_jax.evaluation.evaluate import evaluate
from elm_jax.evaluation.results_cache import Cell
from elm_jax.evaluation.tasks import load_tasks
from elm_jax.experts.library import Library
from elm_jax.merging.merge import merge
from elm_jax.routing.index import index
from elm_jax.routing.route import route
from elm_jax.session import opening
from elm_jax.session.workspace import Workspace
from elm_jax.statistics import expert_statistics
from elm_jax.tasks.data_source import Lengths
from elm_jax.tokenizers import sentencepiece
from elm_jax.training.train import train
from tests.training_configs import train_config

ROE = EvaluationConfig(methods=["roe"], queries=4)
CELLS = [Cell("lamps/p", "base"), Cell("lamps/p", "lights/p")]
CONFIG = train_config(steps=1, batch_size=4, rate=1e-3, kind="bottleneck", options={"width": 2})
TASKS = """
datasets:
  lights:
    jsonl: {train: lights.jsonl}
    prompts:
      p: {answer_choices: "dog ||| cat", jinja: "Is the {{text}} lit? ||| {{answer_choices[label]}}"}
  lamps:
    jsonl: {test: lamps.jsonl}
    prompts:
      p: {answer_choices: "dog ||| cat", jinja: "Is the {{text}} lit? ||| {{answer_choices[label]}}"}
"""


def rows(name):
    return [{"text": f"the oldest of all {name} {number}", "label": number % 2} for number in range(40)]


def write(folder, name, made):
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "tasks.yaml").write_text(TASKS)
    for name in ("lights", "lamps"):
        write(folder, name, rows(name))
    return folder


@pytest.fixture(scope="module")
def root(make_run, folder):
    """A run with an expert, its keys and an evaluation."""
    root = make_run(experts=(), keyed=False, rows=40).workspace.root
    run = opened(root, folder)
    train(run, "lights", CONFIG)
    index(run, size=4)
    evaluate(run, "lamps", ROE)
    return root


@pytest.fixture(autouse=True)
def restored(folder, root):
    """Puts every input and result back after a test."""
    files = [*folder.iterdir(), root / "base" / opening.VOCABULARY_FILE, root / "run.json"]
    files += [file for made in ("scores", "report") for file in Path(root / made).rglob("*.json*")]
    before = {file: file.read_bytes() for file in files}
    yield
    for file, content in before.items():
        file.write_bytes(content)


def opened(root, folder):
    return opening.open_run(root, task_files=[folder / "tasks.yaml"])


def load(run):
    return load_tasks(run, task_selection.select_tasks("lamps", run.source, evaluation=True))


def missing_scores(run):
    return ranking.missing_cells(run, CELLS, load(run))


def flip(folder, name, of=None):
    made = rows(of or name)
    write(folder, name, [{**row, "label": row["label"] ^ (at < 12)} for at, row in enumerate(made)])


def reword(folder, name):
    file = folder / "tasks.yaml"
    file.write_text(re.sub(rf"({name}:.*?)Is the", r"\1See the", file.read_text(), count=1, flags=re.DOTALL))


def choose_otherwise(folder, name):
    file = folder / "tasks.yaml"
    pattern = rf"({name}:.*?)\|\|\| cat"
    file.write_text(re.sub(pattern, r"\1||| animal", file.read_text(), count=1, flags=re.DOTALL))


CHANGES = [
    (flip, "label of 12 of 40 rows"),
    (reword, "input of 40 of 40 rows"),
    (choose_otherwise, "choices of 40 of 40 rows"),
]


@pytest.mark.parametrize(("change", "said"), CHANGES)
def test_verbs_that_read_training_rows_refuse_those_that_changed_by_name(root, folder, change, said):
    change(folder, "lights")
    run = opened(root, folder)
    for use in (
        lambda: train(run, "lights", CONFIG),
        lambda: index(run),
        lambda: index(run, rebuild=True),
        lambda: expert_statistics.load_merge_statistics(run, ["lights/p"], "fisher", []),
    ):
        with pytest.raises(UserError, match=said):
            use()


@pytest.mark.parametrize(("change", "said"), CHANGES)
def test_verbs_that_use_an_expert_say_that_its_rows_changed(root, folder, change, said, capsys):
    merged = merge(opened(root, folder), ["lights/p"], id="merged/one").spec
    capsys.readouterr()
    change(folder, "lights")
    run = opened(root, folder)
    column = said.partition(" ")[0]
    for use, expert, told in (
        (lambda: route(run, "lamps", queries=4), "lights/p", said),
        (lambda: merge(run, ["lights/p"]), "lights/p", said),
        # A merged expert keeps no digests of single rows.
        (lambda: merge(run, [merged.id]), merged.id, f"{column} of some of 40 rows"),
    ):
        use()
        lines = capsys.readouterr().err.splitlines()
        assert any(told in line and f"when {expert} was trained" in line for line in lines)
    assert any(said in line and "lights/p" in line for line in reports.describe_changes(run.workspace))


@pytest.mark.parametrize(("change", "said"), CHANGES)
def test_verify_names_experts_whose_training_rows_changed(root, folder, change, said, capsys):
    opened(root, folder)
    change(folder, "lights")
    with pytest.raises(SystemExit) as stop:
        cli.main(["experts", "verify", "--run", str(root)])
    assert stop.value.code == 1
    told = capsys.readouterr().out
    assert told.startswith("lights/p: ")
    assert said in told


def test_a_local_directory_of_the_hubs_kind_that_changed_is_noticed_by_every_later_verb(
    root, tmp_path, capsys
):
    pytest.importorskip("datasets", reason="the extra hub is not installed")
    (tmp_path / "hub").mkdir()
    write(tmp_path / "hub", "train", rows("lights"))
    write(tmp_path / "hub", "test", rows("lamps"))
    (tmp_path / "hubby.yaml").write_text(
        "datasets:\n  hubby:\n    hf: hub\n    splits: {train: 'train[:30]', test: test}\n    prompts:\n"
        "      p: {answer_choices: 'dog ||| cat', jinja: 'Is {{text}}? ||| {{answer_choices[label]}}'}\n"
    )
    run = opening.open_run(root, task_files=[tmp_path / "hubby.yaml"])
    made_for = {"tokenizer": run.tokenizer, "source": replace(run.source, prepared=tmp_path / "prepared")}

    def prepared():
        (made,) = prepare.prepare_tasks(tasks=["hubby"], **made_for)
        return made.made

    train(run, "hubby", CONFIG)
    assert (prepared(), prepared()) == (True, False)
    os.utime(tmp_path / "hub" / "train.jsonl", (1, 1))
    assert not prepared()
    assert train(run, "hubby", CONFIG) == ["hubby/p"]
    flip(tmp_path / "hub", "train", of="lights")
    try:
        for use in (lambda: train(run, "hubby", CONFIG), lambda: index(run, experts=["hubby/p"])):
            with pytest.raises(UserError, match="label of 12 of 30 rows"):
                use()
        assert prepared()
        assert "label of 12 of 30 rows" in expert_statistics.check_inputs(run, ["hubby/p"])["hubby/p"]
        capsys.readouterr()
        with pytest.raises(SystemExit):
            cli.main(["experts", "verify", "--run", str(root)])
        assert "label of 12 of 30 rows" in capsys.readouterr().out
    finally:
        Library.open(root / "library").remove("hubby/p")


def test_an_evaluation_keeps_which_experts_were_trained_on_other_rows(root, folder, capsys):
    flip(folder, "lights")
    report = evaluate(opened(root, folder), "lamps", ROE).report
    assert "label of 12 of 40 rows" in report.environment["changed_experts"]["lights/p"]
    assert "label of 12 of 40 rows" in capsys.readouterr().err


@pytest.mark.parametrize(("change", "said"), CHANGES)
def test_scores_of_rows_that_changed_are_no_longer_current_and_it_is_said_why(
    root, folder, change, said, capsys
):
    assert missing_scores(opened(root, folder)) == []
    change(folder, "lamps")
    assert any(said in line for line in reports.describe_changes(Workspace.open(root)))
    run = opened(root, folder)
    assert missing_scores(run) == CELLS
    capsys.readouterr()
    results_cache.say_changed_tasks(run, {name: task.identity for name, task in load(run).items()})
    told = capsys.readouterr().err
    assert said in told
    assert "lamps/p is scored again" in told


def test_an_evaluation_after_a_change_is_of_the_new_rows_and_current_then(root, folder):
    evaluate(opened(root, folder), "lamps", ROE)
    (file,) = Path(root / "scores" / "lamps" / "p").glob("base*.jsonl")
    predicted = [json.loads(line)["prediction"] for line in file.read_text().splitlines()[1:]]
    write(folder, "lamps", [{**row, "label": 0} for row in rows("lamps")])
    after = evaluate(opened(root, folder), "lamps", ROE).report
    (accuracy,) = [row.accuracy for row in after.rows if row.method == "base"]
    assert accuracy * 40 == pytest.approx(predicted.count(0))
    assert reports.describe_changes(Workspace.open(root)) == []


def test_inputs_that_were_touched_and_not_changed_are_current(root, folder, capsys):
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes())
        os.utime(file, (1, 1))
    # Another column and an empty line: other bytes, and the same rows.
    for name in ("lights", "lamps"):
        write(folder, name, [{**row, "note": "n"} for row in rows(name)])
        with (folder / f"{name}.jsonl").open("a") as stream:
            stream.write("\n")
    run = opened(root, folder)
    assert train(run, "lights", CONFIG) == ["lights/p"]
    assert index(run) == []
    assert missing_scores(run) == []
    results_cache.say_changed_tasks(run, {name: task.identity for name, task in load(run).items()})
    expert_statistics.check_inputs(run, ["lights/p"])
    assert reports.describe_changes(run.workspace) == []
    told = capsys.readouterr().err
    assert "again" not in told
    assert "differ" not in told


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"truncate": 3}, "truncate"),
        ({"limit": 20}, "rows"),
        ({"input_eos": False}, "input_eos"),
        ({"limit": 20, "seed": 7}, "seed"),
    ],
)
def test_training_refuses_other_settings_of_rows_by_name(root, folder, fields, said):
    opened(root, folder)
    with pytest.raises(UserError, match=said):
        train(opening.open_run(root, overrides=fields), "lights", CONFIG)


@pytest.mark.parametrize(
    ("fields", "lengths", "said"),
    [
        ({"truncate": 3}, None, "input of 40 of 40 rows, truncate"),
        ({"input_eos": False}, None, "input_eos"),
        ({}, Lengths(8, 4), "prompt tokens, answer tokens"),
    ],
)
def test_scores_of_other_settings_of_rows_are_no_longer_current(root, folder, fields, lengths, said, capsys):
    opened(root, folder)
    run = opening.open_run(root, overrides=fields)
    run = run if lengths is None else replace(run, lengths=lengths)
    assert missing_scores(run) == CELLS
    capsys.readouterr()
    results_cache.say_changed_tasks(run, {name: task.identity for name, task in load(run).items()})
    assert said in capsys.readouterr().err


def test_keys_of_an_expert_are_made_of_the_rows_that_it_was_trained_on_whatever_the_run_reads_now(
    root, folder
):
    opened(root, folder)
    library = Library.open(root / "library")
    before = library.load_keys("lights/p").texts
    run = opening.open_run(root, overrides={"truncate": 3, "limit": 5})
    assert index(run) == []
    assert index(run, size=4, rebuild=True) == ["lights/p"]
    assert library.load_keys("lights/p").texts == before


def test_keys_that_were_cut_otherwise_than_queries_are_refused(root, folder):
    run = replace(opened(root, folder), lengths=Lengths(8, 4))
    with pytest.raises(UserError, match="max_length"):
        index(run)
    with pytest.raises(UserError, match="max_length"):
        route(run, "lamps", queries=4)


def test_an_expert_that_was_trained_with_ends_of_inputs_is_named_where_there_are_none(root, folder, capsys):
    opened(root, folder)
    run = opening.open_run(root, overrides={"input_eos": False})
    assert expert_statistics.check_inputs(run, ["lights/p"]) == {"lights/p": "input_eos"}
    assert "input_eos differ from when lights/p was trained" in capsys.readouterr().err


def test_a_report_says_which_experts_were_made_again_since(root, folder):
    run = opened(root, folder)
    library = Library.open(root / "library")
    expert, keys = library.load_expert("lights/p"), library.load_keys("lights/p")
    other = replace(expert, params=jax.tree.map(lambda leaf: leaf + 1, expert.params))
    library.add(other, keys, replace=True)
    try:
        (told,) = reports.describe_changes(run.workspace)
    finally:
        library.add(expert, keys, replace=True)
    assert told.startswith("lights/p differs")
    assert reports.describe_changes(run.workspace) == []


def test_nothing_is_read_of_training_data_that_is_not_here(root, folder, monkeypatch):
    run = opened(root, folder)
    (folder / "lights.jsonl").rename(folder / "away.jsonl")
    try:
        assert expert_statistics.check_inputs(run, ["lights/p"]) == {}
    finally:
        (folder / "away.jsonl").rename(folder / "lights.jsonl")


def rotate(root):
    """Rotates the pieces of a vocabulary: as many ids, of other words."""
    from sentencepiece import sentencepiece_model_pb2

    file = root / "base" / opening.VOCABULARY_FILE
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(file.read_bytes())
    pieces = [piece.piece for piece in proto.pieces[3:]]
    for piece, other in zip(proto.pieces[3:], [*pieces[1:], pieces[0]], strict=True):
        piece.piece = other
    file.write_bytes(proto.SerializeToString())


def test_another_vocabulary_is_refused_by_every_verb_that_uses_an_expert(root, folder, capsys):
    before = sentencepiece.load(root / "base" / opening.VOCABULARY_FILE, opening.EXTRA_IDS)
    rotate(root)
    run = opened(root, folder)
    assert run.tokenizer.size == before.size
    assert run.tokenizer.fingerprint != before.fingerprint
    for use in (
        lambda: train(run, "lights", CONFIG),
        lambda: index(run),
        lambda: route(run, "lamps"),
        lambda: merge(run, ["lights/p"]),
        lambda: evaluate(run, "lamps", ROE),
    ):
        with pytest.raises(UserError, match="vocabulary"):
            use()
    with pytest.raises(SystemExit) as stop:
        cli.main(["experts", "verify", "--run", str(root)])
    assert stop.value.code == 1
    assert "lights/p: was trained with another vocabulary" in capsys.readouterr().out
    # The base alone belongs to no vocabulary but the run's, so it is scored again.
    evaluate(run, "lamps", EvaluationConfig(methods=["base"]))
    assert "vocabulary" in capsys.readouterr().err


def test_an_expert_of_the_first_versions_is_used_and_said_to_be_unknown(root, folder, capsys):
    run = opened(root, folder)
    library = Library.open(root / "library")
    expert, keys = library.load_expert("lights/p"), library.load_keys("lights/p")
    file = root / "library" / "lights" / "p" / "expert.json"
    whole = file.read_bytes()
    value = json.loads(whole)
    for name in ("made_of", "vocabulary"):
        del value["recipe"][name]
    try:
        file.write_text(json.dumps(value))
        flip(folder, "lights")
        assert train(opened(root, folder), "lights", CONFIG) == ["lights/p"]
        assert "Not known to be trained on these rows" in capsys.readouterr().err
    finally:
        file.write_bytes(whole)
    assert expert.spec.recipe["vocabulary"] == run.tokenizer.fingerprint == keys.made_of["vocabulary"]
    assert list(keys.made_of["rows"]) == ["lights/p"]


def test_a_selection_carries_the_digest_of_its_queries(root, folder):
    first = route(opened(root, folder), "lamps", queries=4)[0].rows
    assert first == route(opened(root, folder), "lamps", queries=4)[0].rows
    reword(folder, "lamps")
    assert first != route(opened(root, folder), "lamps", queries=4)[0].rows
