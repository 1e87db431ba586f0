"""The verbs by `elm_jax`'s own names, as a script calls them: a run or its directory, names or specs."""

import socket

import numpy as np
import pytest

import elm_jax
from elm_jax.errors import ContaminationError

TASK, UNSEEN = "mini_sentiment_film", "mini_size_suitcase"
CONFIG = elm_jax.TrainConfig(
    expert=elm_jax.ExpertConfig(options={"width": 4}),
    schedule=elm_jax.ScheduleConfig(steps=2),
    batch=elm_jax.BatchConfig(size=4),
)


@pytest.fixture(scope="module", autouse=True)
def no_network():
    """Every test of this file runs where no connection can be made: no verb asks for one unless told to."""

    def refuse(*address):
        raise AssertionError(f"a connection was made to {address}")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        yield


def test_a_connection_would_be_seen():
    with pytest.raises(AssertionError, match="a connection was made"):
        socket.create_connection(("127.0.0.1", 9))


@pytest.fixture(scope="module")
def place(make_run):
    """The directory of a run with an untrained base and no expert yet."""
    return make_run(experts=(), rows=6, keyed=False).workspace.root


@pytest.fixture(scope="module")
def trained(place):
    return elm_jax.train(place, TASK, config=CONFIG)


@pytest.fixture(scope="module")
def run(place, trained):
    opened = elm_jax.open_run(place)
    elm_jax.index(opened, size=4)
    return opened


def test_training_returns_the_ids_of_what_the_library_then_has(place, trained):
    library = elm_jax.Library.open(place / "library")
    assert library.ids() == tuple(sorted(trained))
    assert {spec.id for spec in elm_jax.task_specs("mini-train") if spec.dataset == TASK} == set(trained)
    assert {library.spec(expert).recipe["steps"] for expert in trained} == {2}


def test_only_keys_that_lack_are_embedded(place, run, trained):
    assert elm_jax.index(place, size=4) == []
    assert elm_jax.index(run, experts=trained[:1], size=3, rebuild=True) == trained[:1]
    assert len(elm_jax.Library.open(place / "library").load_keys(trained[0]).texts) == 3


def test_an_open_run_and_its_directory_and_names_and_specs_are_alike(place, run):
    specs = [spec for spec in elm_jax.task_specs("mini") if spec.dataset == UNSEEN]
    by_name = elm_jax.route(place, UNSEEN, queries=3)
    assert [selection.task for selection in by_name] == [spec.id for spec in specs]
    assert elm_jax.route(run, specs, queries=3) == by_name
    assert elm_jax.route(run, specs[0], queries=3) == by_name[:1]


def test_a_merge_is_the_mean_of_its_experts_and_lies_with_the_composites(place, trained):
    merged = elm_jax.merge(place, trained, id="merged/film")
    library = elm_jax.Library.open(place / "library")
    kernels = [
        np.asarray(expert.params["encoder"]["layers"]["mlp_adapter"]["down"]["kernel"])
        for expert in (*map(library.load_expert, trained), merged)
    ]
    np.testing.assert_allclose(kernels[-1], np.mean(kernels[:-1], axis=0), rtol=1e-6)
    assert elm_jax.Library.open(place / "composites").ids() == ("merged/film",)


def test_an_evaluation_reports_every_method_and_the_base_on_every_row(run):
    outcome = elm_jax.evaluate(run, UNSEEN, elm_jax.EvaluationConfig(methods=["roe", "uniform"], queries=3))
    assert outcome is not None
    assert {(row.method, row.n) for row in outcome.report.rows} == {
        (method, 6) for method in ("base", "roe", "uniform")
    }
    assert all(file.exists() for file in outcome.files.values())


def test_an_expert_is_not_evaluated_as_unseen_on_what_it_was_trained_on(run):
    with pytest.raises(ContaminationError, match=TASK):
        elm_jax.evaluate(run, TASK, elm_jax.EvaluationConfig(methods=["roe"]))


def test_a_run_that_is_open_takes_no_other_base(run):
    with pytest.raises(elm_jax.UserError, match="open_run"):
        elm_jax.train(run, TASK, initial_checkpoint="t5-small")


def test_a_base_is_scored_with_as_the_run_has_it(place, run):
    model = elm_jax.load_model(place / "base")
    assert model.fingerprint == run.base.fingerprint
    scores = elm_jax.score_choices(model, np.array([[5, 6, 1]]), np.array([[[7, 1], [8, 1]]]))
    assert scores.shape == (1, 2)
    assert (scores < 0).all()


def test_where_rows_come_from_is_said_when_a_run_is_opened(place, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "datasets:\n  films:\n    jsonl: {train: films.jsonl}\n    prompts:\n      good:\n"
        '        answer_choices: "no ||| yes"\n        jinja: "{{text}} ||| {{answer_choices[label]}}"\n'
    )
    lines = ['{"text": "A film was good .", "label": 1}'] * 4
    (tmp_path / "films.jsonl").write_text("\n".join(lines))
    opened = elm_jax.open_run(
        place, task_files=[tmp_path / "mine.yaml"], data_dir=tmp_path, overrides={"limit": 2}
    )
    assert (opened.source.data_dir, opened.source.limit) == (tmp_path, 2)
    again = elm_jax.open_run(place)  # files of tasks are remembered, what was said once of rows is not
    assert [str(file) for file in again.source.tasks] == [str(tmp_path / "mine.yaml")]
    assert (again.source.data_dir, again.source.limit) == (None, 6)
    assert elm_jax.find_task("films/good").dataset == "films"
