"""Answers of a run: kept whole with what they are worth, written once, judged anew without the network."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from elm_jax.data import task_rows, task_selection
from elm_jax.errors import UserError
from elm_jax.evaluation import generation, results_cache
from elm_jax.evaluation.results_cache import Cell
from elm_jax.evaluation.tasks import load_tasks
from elm_jax.experts.library import Library
from elm_jax.experts.lookup import BASE_SCORER
from elm_jax.models import expert_layers as ex
from elm_jax.models import paths
from elm_jax.models.sizes import find_config
from elm_jax.models.t5 import init_params
from elm_jax.records import Expert, ExpertSpec
from elm_jax.reporting import text_metrics
from elm_jax.scoring import generator as engine
from elm_jax.session import opening, settings
from elm_jax.session.workspace import Workspace
from elm_jax.tasks import data_source
from elm_jax.tokenizers import sentencepiece
from elm_jax.weights import base_model, elm

ROWS = 12
TASKS = ["mini_size_animal/than a dog", "mini_sentiment_film"]
EXPERTS = ["mini_calendar_day/one", "mini_calendar_day/two"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on an untrained base of one layer a stack, with two experts drawn at random."""
    workspace = Workspace.open(tmp_path_factory.mktemp("run"), create=True)
    source, lengths = data_source.Source(limit=ROWS), data_source.Lengths(prompt=24, answer=5)
    examples = [
        each for spec in task_selection.select_tasks(TASKS) for each in task_rows.load_examples(spec, source)
    ]
    texts = [text for each in examples for text in (each.input, *each.choices)]
    tokenizer = sentencepiece.train(
        texts, workspace.base / opening.VOCABULARY_FILE, 400, kind="word", extra_ids=opening.EXTRA_IDS
    )
    layers = {"num_encoder_layers": 1, "num_decoder_layers": 1}
    config = find_config(
        "tiny", vocab_size=tokenizer.size, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=16, **layers
    )
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), config))
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), shapes)
    elm.save(workspace.base, base_model.make_base(config, params))
    settings.save_run_settings(workspace, None, source, lengths)
    opened = opening.open_run(workspace.root)
    library = Library.open(workspace.library, create=True)
    for number, expert in enumerate(EXPERTS):
        add(
            library,
            opened,
            expert,
            ex.init_expert("bottleneck", jax.random.key(number), params, {"width": 4}),
            1 + number,
        )
    return opened


def add(library, run, expert, tree, by):
    grown = jax.tree.map(lambda leaf: np.asarray(leaf * by), tree)
    owned = tuple(sorted(paths.flatten(grown)))
    spec = ExpertSpec(expert, "bottleneck", run.base.fingerprint, owned, ("mini_calendar_day",), 1)
    library.add(Expert(spec, grown))


@pytest.fixture(scope="module")
def specs(run):
    return task_selection.select_tasks(TASKS, run.source)


@pytest.fixture(scope="module")
def tasks(run, specs):
    return load_tasks(run, specs)


@pytest.fixture(scope="module")
def wanted(specs):
    """One expert and the base for one task, both experts for the others."""
    first, *others = [spec.id for spec in specs]
    return results_cache.make_cells({first: [EXPERTS[0], BASE_SCORER], **dict.fromkeys(others, EXPERTS)})


@pytest.fixture(scope="module")
def finished(run, tasks, wanted):
    return generation.generate_answers(run, wanted, tasks)


@pytest.fixture
def no_network(monkeypatch):
    def never(*arguments, **options):
        raise AssertionError("answers were written again")

    monkeypatch.setattr(engine, "generate_rows", never)


def test_every_wanted_pair_has_an_answer_to_every_row(run, specs, tasks, wanted, finished):
    assert set(finished) == set(wanted)
    for (task, expert, *_), answers in finished.items():
        examples = task_rows.load_examples(next(spec for spec in specs if spec.id == task), run.source)
        assert (answers.task, answers.scorer) == (task, expert)
        assert answers.row_ids == tuple(example.row_id for example in examples)
        assert answers.targets == tuple(example.target for example in examples)
        assert len(answers.predictions) == len(answers.metric.rows) == ROWS
        assert all(len(run.tokenizer.encode(told)) <= 5 for told in answers.predictions)
        assert answers.metric.measure == "exact match"
    assert len({answers.predictions for answers in finished.values()}) == len(finished)


def test_answers_of_an_expert_are_those_that_it_writes_alone(run, specs, tasks, finished):
    task = specs[0].id
    tree = Library.open(run.workspace.library).load_expert(EXPERTS[0]).params
    prompts = list(
        task_rows.tokenize_task(
            task_rows.load_examples(specs[0], run.source), run.tokenizer, run.lengths
        ).inputs
    )
    stack = jax.tree.map(lambda leaf: np.asarray(leaf)[None], tree)
    found = engine.generate_rows(
        run.base.config, run.base.params, prompts, engine.AnswerLimit(5, run.tokenizer.eos), stack
    )
    assert [run.tokenizer.decode(answer[answer > 0].tolist()) for answer in found] == list(
        finished[Cell(task, EXPERTS[0])].predictions
    )


def test_a_file_holds_the_value_of_the_task_and_a_line_for_each_row(run, specs, tasks, finished):
    place = run.workspace.root / "generated" / "mini_size_animal" / "than%20a%20dog"
    kept = [f"{name}.limit_{ROWS}.jsonl" for name in ("base", "mini_calendar_day%2Fone")]
    assert sorted(file.name for file in place.iterdir()) == kept
    head, *lines = map(json.loads, (place / kept[0]).read_text().splitlines())
    answers = finished[Cell(specs[0].id, "base")]
    assert (head["measure"], head["value"]) == ("exact match", answers.metric.value)
    assert head["low"] <= head["value"] <= head["high"]
    assert [row["prediction"] for row in lines] == list(answers.predictions)
    assert lines[0].keys() == {"row", "target", "prediction", "value"}


def test_a_second_call_writes_nothing_and_says_the_same(run, specs, tasks, wanted, finished, no_network):
    assert generation.generate_answers(run, wanted, tasks) == finished


def test_another_measure_judges_what_is_kept(run, specs, tasks, finished, no_network, monkeypatch):
    asked = []

    def hook(targets, predictions, inputs):
        asked.append(list(inputs))
        return [float(len(told)) for told in predictions]

    monkeypatch.setitem(text_metrics.HOOKS, "length", hook)
    task = specs[0].id
    told = generation.generate_answers(run, [Cell(task, "base")], tasks, metric="length")[Cell(task, "base")]
    assert told.predictions == finished[Cell(task, "base")].predictions
    assert told.metric.value == np.mean([len(each) for each in told.predictions])
    assert asked == [[example.input for example in task_rows.load_examples(specs[0], run.source)]]
    assert generation.generate_answers(run, [Cell(task, "base")], tasks) == {
        Cell(task, "base"): finished[Cell(task, "base")]
    }


def test_the_originals_bleu_comes_by_name_or_with_all_of_its_ways(run, specs, tasks, finished, no_network):
    pytest.importorskip("sacrebleu", reason="the extra generation is not installed")
    task = specs[0].id
    faithful = replace(run, source=replace(run.source, faithful=("all",)))
    named = replace(run, source=replace(run.source, faithful=("swapped_bleu",)))
    for of, swapped, measure in (
        (run, None, "bleu (intl)"),
        (named, None, "bleu (intl, swapped)"),
        (faithful, None, "bleu (intl, swapped)"),
        (faithful, False, "bleu (intl)"),
        (run, True, "bleu (intl, swapped)"),
    ):
        told = generation.generate_answers(
            of, [Cell(task, "base")], tasks, metric="bleu", swapped_bleu=swapped
        )
        assert told[Cell(task, "base")].metric.measure == measure
    generation.generate_answers(run, [Cell(task, "base")], tasks)  # as it was


def test_a_run_that_was_stopped_writes_only_what_is_missing(run, specs, tasks, wanted, finished, monkeypatch):
    file = run.workspace.root / "generated" / "mini_size_animal" / "than%20a%20dog"
    file = file / f"base.limit_{ROWS}.jsonl"
    before = file.read_bytes()
    file.unlink()
    asked = []
    whole = engine.generate_rows

    def counted(config, params, prompts, *others, **options):
        asked.append(len(prompts))
        return whole(config, params, prompts, *others, **options)

    monkeypatch.setattr(engine, "generate_rows", counted)
    assert generation.generate_answers(run, wanted, tasks) == finished
    assert asked == [ROWS]
    assert file.read_bytes() == before


def test_other_rows_are_answered_anew(run, specs, tasks, finished):
    task = specs[0].id
    fewer = replace(run, source=replace(run.source, limit=3))
    told = generation.generate_answers(fewer, [Cell(task, "base")], load_tasks(fewer, specs))[
        Cell(task, "base")
    ]
    assert len(told.predictions) == 3
    generation.generate_answers(run, [Cell(task, "base")], tasks)  # as it was


def test_an_unknown_measure_is_refused_before_anything_is_written(run, specs, tasks, no_network):
    with pytest.raises(UserError, match="pip install bert-score"):
        generation.generate_answers(run, [Cell(specs[0].id, EXPERTS[1])], tasks, metric="bert_score")


def test_an_expert_whose_weights_hold_nan_is_named(run, specs, tasks):
    library = Library.open(run.workspace.library)
    tree = ex.init_expert("bottleneck", jax.random.key(0), run.base.params, {"width": 4})
    add(library, run, "mini_calendar_day/broken", tree, np.nan)
    with pytest.raises(UserError, match="'mini_calendar_day/broken', got NaN for row"):
        generation.generate_answers(run, [Cell(specs[0].id, "mini_calendar_day/broken")], tasks)
    library.remove("mini_calendar_day/broken")
