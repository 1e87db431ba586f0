"""The whole path, at the smallest size: what it leaves behind, that it resumes, and what it refuses."""

import json
import shutil
from collections import Counter
from contextlib import contextmanager

import pytest
from sentencepiece import SentencePieceProcessor

from elm_jax import cli, storage
from elm_jax.data import task_rows, task_selection
from elm_jax.errors import ContaminationError, UserError
from elm_jax.evaluation import evaluate
from elm_jax.evaluation.config import EvaluationConfig
from elm_jax.experts.library import Library
from elm_jax.launch import recipes
from elm_jax.pipelines import pipeline
from elm_jax.pipelines.pipeline import PipelineConfig
from elm_jax.scoring import scorer as scoring
from elm_jax.session import opening
from elm_jax.session.opening import VOCABULARY_FILE
from elm_jax.tasks import data_source
from elm_jax.telemetry import training_view
from elm_jax.telemetry.progress import Stages
from elm_jax.training import trainer as training
from elm_jax.training.pretraining import Pretraining
from elm_jax.training.train import train_experts
from tests.training_configs import train_config

TRAINED = ["mini_size_animal", "mini_sentiment_film"]
UNSEEN = ["mini_size_suitcase"]
METHODS = ["base", "multitask", "uniform_merge", "roe_top1", "roe_top2_merge", "best_single", "oracle"]


def run(out, stages=None, **changes):
    settings = {
        "pretraining": Pretraining(vocabulary_kind="word", steps=6, batch_size=8),
        "training": train_config(steps=6, batch_size=4, rate=1e-2, options={"width": 4}, dropout=0.1),
        "source": data_source.Source(limit=20),
        "lengths": data_source.Lengths(prompt=24, answer=8),
        "train_rows": 24,
        "keys": 10,
        "evaluation": EvaluationConfig(queries=6, merged=2),
    }
    config = PipelineConfig(**{**settings, **changes})
    return pipeline.run_pipeline(TRAINED, UNSEEN, out, config, stages=stages or Stages())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    return out, run(out)


def test_words_of_trained_and_of_unseen_tasks_count_apart_in_the_order_of_the_vocabulary(finished):
    out, _ = finished
    counts = Counter()
    for names, rows, evaluation in ((TRAINED, 24, False), (UNSEEN, 20, True)):
        source = data_source.Source(limit=rows)
        texts, inputs = set(), set()
        for spec in task_selection.select_tasks(names, source, evaluation=evaluation):
            for row in task_rows.load_examples(spec, source):
                texts |= {row.input, row.target, *row.choices}
                inputs.add(row.input)
        # What the base reads is there once more: the inputs of the trained tasks.
        counts.update(word for text in [*texts, *(() if evaluation else inputs)] for word in text.split())
    model = SentencePieceProcessor(model_file=str(out / "base" / VOCABULARY_FILE))
    words = [model.id_to_piece(at).removeprefix("▁") for at in range(3, model.get_piece_size())]
    assert set(words) == set(counts)
    assert [counts[word] for word in words] == sorted(counts.values(), reverse=True)


def test_the_report_holds_every_method_on_every_prompt(finished):
    out, outcome = finished
    report = json.loads((out / "report" / "report.json").read_text())
    assert {row["method"] for row in report["rows"]} == set(METHODS)
    assert len(report["rows"]) == 2 * len(METHODS)
    assert all(row["n"] == 20 and row["low"] <= row["accuracy"] <= row["high"] for row in report["rows"])
    assert [mean["method"] for mean in report["means"]] == METHODS
    assert {(pair["a"], pair["b"]) for pair in report["comparisons"]} >= {
        ("roe_top1", "base"),
        ("roe_top1", "multitask"),
    }
    assert {selection["task"] for selection in report["selections"]} == set(UNSEEN)
    assert all(selection["votes"] <= 6 for selection in report["selections"])
    assert report["environment"]["devices"]
    assert len(report["matrix"]) == 4 * 2
    assert sorted(outcome.files) == ["csv", "html", "json", "md"]


def test_every_expert_is_in_the_library_with_its_keys_and_the_composites_are_not(finished):
    out, _ = finished
    library = Library.open(out / "library")
    assert len(library.ids()) == 4
    assert all(len(library.load_keys(expert).texts) == 10 for expert in library.ids())
    assert library.verify() == []
    composites = Library.open(out / "composites")
    assert "multitask/baseline" in composites.ids()
    assert composites.spec("multitask/baseline").datasets == tuple(sorted(TRAINED))


def test_the_oracle_is_no_worse_than_any_expert_and_the_best_expert_than_any_other(finished):
    _, outcome = finished
    of = {(row.method, row.prompt): row.accuracy for row in outcome.report.rows}
    best: dict[str, float] = {}
    for row in outcome.report.matrix:
        best[row.prompt] = max(best.get(row.prompt, 0.0), row.accuracy)
    assert all(of["oracle", prompt] == accuracy for prompt, accuracy in best.items())


def test_a_second_run_trains_nothing_scores_nothing_and_says_the_same(finished, monkeypatch):
    out, outcome = finished

    def never(*arguments, **options):
        raise AssertionError("work was repeated")

    monkeypatch.setattr(training, "train", never)
    monkeypatch.setattr(scoring, "score_rows", never)
    again = run(out)
    assert again.report.rows == outcome.report.rows
    assert again.report.comparisons == outcome.report.comparisons


class Stopped(Stages):
    """Stages in which somebody presses Ctrl-C as soon as one of them advances."""

    def __init__(self, title: str) -> None:
        super().__init__()
        self.title = title

    @contextmanager
    def stage(self, title, total):
        with super().stage(title, total) as advance:

            def stop(done, remark=""):
                if title.startswith(self.title):
                    raise KeyboardInterrupt
                advance(done, remark)

            yield stop


class StoppedInTraining(Stages):
    """The same, where what advances is training."""

    def __init__(self, title: str, monkeypatch) -> None:
        super().__init__()
        told = training_view.LineView.__call__

        def stop(lines, event, reading):
            if lines._title.startswith(title):
                raise KeyboardInterrupt
            told(lines, event, reading)

        monkeypatch.setattr(training_view.LineView, "__call__", stop)


def test_a_run_that_is_stopped_again_and_again_ends_with_the_same_numbers(finished, tmp_path):
    _, outcome = finished
    for title in ("train the base", "train 4 experts", "train 1 expert"):
        with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
            run(tmp_path, stages=StoppedInTraining(title, patched))
    for title in ("embed keys", "route", "score"):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, stages=Stopped(title))
    assert run(tmp_path).report.rows == outcome.report.rows


def test_another_recipe_in_the_same_directory_is_refused(finished):
    out, _ = finished
    other = train_config(steps=7, batch_size=4, rate=1e-2, options={"width": 4}, dropout=0.1)
    with pytest.raises(UserError, match="with another steps"):
        run(out, training=other)


def test_a_tuple_among_the_options_is_the_same_recipe_when_it_is_given_again(finished, tmp_path):
    shutil.copytree(finished[0] / "base", tmp_path / "base")
    lengths = data_source.Lengths(prompt=24, answer=8)
    source = data_source.Source(limit=4)
    base = tmp_path / "base"
    opened = opening.open_run(tmp_path, initial_checkpoint=base, source=source, lengths=lengths)
    specs = task_selection.select_tasks(["mini_size_animal"], opened.source)[:1]
    config = train_config(steps=1, batch_size=2, kind="lora", options={"rank": 1, "projections": ("query",)})
    made = train_experts(opened, specs, config)
    assert train_experts(opened, specs, config) == made


def test_an_expert_is_never_called_unseen_on_its_own_dataset(finished):
    out, _ = finished
    opened = opening.open_run(out, source=data_source.Source(limit=4))
    with pytest.raises(ContaminationError, match="was trained on mini_size_animal"):
        evaluate.evaluate(opened, task_selection.select_tasks(["mini_size_animal"]))


def test_a_task_without_choices_cannot_be_ranked(finished):
    out, _ = finished
    opened = opening.open_run(out)
    found = task_rows.load_examples(task_selection.select_tasks(UNSEEN)[0], opened.source)[:1]
    bare = [type(found[0])(**{**vars(found[0]), "choices": ()})]
    with pytest.raises(UserError, match="no answer choices"):
        task_rows.build_scoring_rows(bare, opened.tokenizer, opened.lengths, task="x/y")


def test_scores_of_other_rows_are_scored_anew(finished):
    out, _ = finished
    evaluate.evaluate(
        opening.open_run(out, source=data_source.Source(limit=8)),
        UNSEEN,
        EvaluationConfig(queries=6, merged=2),
    )
    report = storage.read_json(out / "report" / "report.json", what="A report")
    assert {row["n"] for row in report["rows"]} == {8}


def test_route_explains_its_choice(finished, capsys):
    out, _ = finished
    cli.app(
        ["route", "mini_size_suitcase", "--run", str(out), "--queries", "6", "--explain"],
        standalone_mode=False,
    )
    said = capsys.readouterr().out
    assert "of 6 votes" in said
    assert "nearest is mini_" in said


def test_experts_are_listed_shown_and_verified(finished, capsys):
    out, _ = finished
    cli.app(["experts", "list", "--run", str(out)], standalone_mode=False)
    cli.app(["experts", "show", "mini_size_animal/than a dog", "--run", str(out)], standalone_mode=False)
    cli.app(["experts", "verify", "--run", str(out)], standalone_mode=False)
    said = capsys.readouterr().out
    assert "parameters" in said
    assert "encoder/layers/attention_adapter/down/kernel" in said
    assert "4 experts are sound" in said


def test_an_unknown_expert_is_answered_with_the_nearest(finished, capsys):
    out, _ = finished
    with pytest.raises(SystemExit) as stop:
        cli.main(["experts", "show", "mini_size_animal/than a dgo", "--run", str(out)])
    assert stop.value.code == 2
    assert "Did you mean 'mini_size_animal/than a dog'" in capsys.readouterr().err


def test_one_more_expert_tomorrow_leaves_the_others_as_they_are(finished, capsys):
    out, _ = finished
    library = Library.open(out / "library")
    before = {expert: storage.file_fingerprint(_params(out, expert)) for expert in library.ids()}
    asked = [
        "train",
        "mini_size_thing/compare with a chair",
        "--steps",
        "2",
        "--batch-size",
        "2",
        "--width",
        "4",
    ]
    cli.app([*asked, "--limit", "8", "--run", str(out)], standalone_mode=False)
    cli.app(["index", "--size", "10", "--run", str(out)], standalone_mode=False)
    assert capsys.readouterr().out.split("\n")[:2] == ["mini_size_thing/compare with a chair"] * 2
    assert {expert: storage.file_fingerprint(_params(out, expert)) for expert in before} == before
    library.remove("mini_size_thing/compare with a chair")


def _params(out, expert):
    dataset, prompt = expert.split("/", 1)
    return out / "library" / dataset / prompt.replace(" ", "%20") / "params.safetensors"


def test_a_base_from_elsewhere_is_remembered(finished, tmp_path):
    out, _ = finished
    first = opening.open_run(tmp_path / "new", initial_checkpoint=out / "base")
    assert opening.open_run(tmp_path / "new").base.fingerprint == first.base.fingerprint


def test_a_recipe_says_what_the_base_is_held_in(finished, tmp_path):
    out, _ = finished
    bindings = {"INITIAL_CHECKPOINT_PATH": str(out / "base"), "MODEL_DIR": str(tmp_path), "DTYPE": "bfloat16"}
    bindings |= {"MIXTURE_OR_TASK_NAME": TRAINED, "EVAL_TASKS": UNSEEN, "EXPERT_OPTIONS": {"nothing": 1}}
    told = [f"{name} = {value!r}" for name, value in bindings.items()]
    with pytest.raises(UserError, match="nothing"):  # it goes on to training, which has no such option
        recipes.bind(
            pipeline.run_pipeline, ["gin/runs/pipeline.gin", "gin/models/t5_tiny_from_scratch.gin"], told
        )()
    assert opening.open_run(tmp_path).base.config.dtype == "bfloat16"


def test_a_run_remembers_how_it_reads_data(finished):
    out, _ = finished
    opened = opening.open_run(out)
    assert opened.source == data_source.Source(limit=20, prepared=str(out.resolve() / "prepared"))
    assert opened.lengths == data_source.Lengths(prompt=24, answer=8)
