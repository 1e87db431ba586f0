"""Evaluation by any methods: what each of them is scored with, that nothing is done twice, what is marked."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from elm_jax.data import task_rows, task_selection
from elm_jax.errors import ContaminationError, UserError
from elm_jax.evaluation import evaluate, ranking, report, results_cache
from elm_jax.evaluation import scorer_selection as choosing
from elm_jax.evaluation.config import EvaluationConfig, ScoringOptions
from elm_jax.evaluation.results_cache import Cell
from elm_jax.evaluation.tasks import load_tasks
from elm_jax.experts.library import Library
from elm_jax.models import sharding
from elm_jax.records import TaskScores
from elm_jax.routing import index
from elm_jax.scoring import generator as writing
from elm_jax.scoring import scorer as engine
from elm_jax.session import opening
from elm_jax.tasks import datasets
from tests.run_fixtures import BOTTLENECK, LORA, ROWS, TRAINED, UNSEEN, add_expert

METHODS = (
    "roe",
    "roe:experts=2+average",
    "bm25",
    "centroid",
    "uniform",
    "roe_per_instance",
    f"one=fixed:expert={TRAINED[2]}",
)
TOKENS = ("arrow:k=2", "spectr:k=2", "average_activation:k=2", "mbc:groups=2", "lorahub:shots=3,trials=8")


@pytest.fixture(scope="module")
def run(make_run):
    return make_run()


@pytest.fixture(scope="module")
def outcome(run, unseen):
    return evaluate.evaluate(run, unseen, EvaluationConfig(methods=METHODS, queries=4, oracle=True))


@pytest.fixture(scope="module")
def lora(make_run):
    return make_run(LORA)


def kept(run, task, scorer):
    """The scores of a file, by row."""
    where = results_cache.cell_file(run.workspace.scores, Cell(task, scorer), (), limit=ROWS)
    return {row["row"]: row for row in map(json.loads, where.read_text().splitlines()[1:])}


def accuracies(outcome):
    return {(row.method, row.prompt): row.accuracy for row in outcome.report.rows}


def never(*arguments, **options):
    raise AssertionError("work was repeated")


def test_every_method_has_every_task_and_says_what_it_is(outcome):
    names = ["base", *METHODS[:-1], "one", "best_single", "oracle"]
    assert {row.method for row in outcome.report.rows} == set(names)
    assert len(outcome.report.rows) == 2 * len(names)
    told = {row.method: row for row in outcome.report.methods}
    assert told["roe:experts=2+average"].merge == "average"
    assert told["roe"].merge is None
    assert told["one"].router == f"fixed:expert={TRAINED[2]}"
    assert told["oracle"].labels == "hindsight"
    assert len(outcome.report.matrix) == len(TRAINED) * 2


def test_a_fixed_expert_and_the_oracle_are_what_the_matrix_says(outcome):
    matrix = {(row.expert, row.prompt): row.accuracy for row in outcome.report.matrix}
    found = accuracies(outcome)
    for prompt in {prompt for _, prompt in matrix}:
        assert found["one", prompt] == matrix[TRAINED[2], prompt]
        assert found["oracle", prompt] == max(matrix[expert, prompt] for expert in TRAINED)


def test_every_row_may_have_an_expert_of_its_own(run, unseen, outcome):
    del outcome
    chosen = choosing.load_selection(run.workspace)
    task = unseen[0].id
    experts = chosen.scorers["roe_per_instance"][task]
    assert len(experts) == ROWS
    assert len(set(experts)) > 1
    examples = task_rows.load_examples(unseen[0], run.source)
    cells = ranking.cells_of_scorer(task, experts)
    found = ranking.load_or_compute_scores(
        ranking.score_cells(run, cells, load_tasks(run, unseen)), task, experts, "each"
    )
    assert found.row_ids == tuple(example.row_id for example in examples)
    for expert, row, own in zip(experts, found.row_ids, found.scores, strict=True):
        np.testing.assert_allclose(own, kept(run, task, expert)[row]["scores"], rtol=1e-5, atol=1e-5)


def test_on_a_mesh_rows_are_split_and_no_prediction_changes(run, unseen, outcome, tmp_path, monkeypatch):
    meshes = []

    def noted(config, params, *arguments, **options):
        meshes.append(dict(sharding.mesh_of(params).shape))
        return score_rows(config, params, *arguments, **options)

    score_rows = engine.score_rows
    monkeypatch.setattr(engine, "score_rows", noted)
    made = shutil.ignore_patterns("scores", "report", "selections", "choices.json")
    shutil.copytree(run.workspace.root, tmp_path / "copy", ignore=made)
    there = opening.open_run(tmp_path / "copy")
    again = evaluate.evaluate(
        there, unseen, EvaluationConfig(methods=METHODS, queries=4, mesh={"data": 4, "fsdp": 2})
    )
    found = accuracies(outcome)
    assert accuracies(again) == {key: found[key] for key in accuracies(again)}
    assert meshes
    assert all(mesh["data"] == 4 and mesh["fsdp"] == 2 for mesh in meshes)


def test_a_second_evaluation_scores_nothing_and_says_the_same(run, unseen, outcome, monkeypatch):
    monkeypatch.setattr(engine, "score_rows", never)
    again = evaluate.evaluate(run, unseen, EvaluationConfig(methods=METHODS, queries=4, oracle=True))
    assert again.report.rows == outcome.report.rows
    assert again.report.comparisons == outcome.report.comparisons
    assert again.report.examples == outcome.report.examples


def test_of_experts_that_no_method_chose_the_rows_are_not_read_again(run, unseen, outcome, monkeypatch):
    read, real = [], results_cache.read_cell
    monkeypatch.setattr(
        results_cache, "read_cell", lambda where, *rest: read.append(where) or real(where, *rest)
    )
    again = evaluate.evaluate(run, unseen, EvaluationConfig(methods=["roe"], queries=4, oracle=True))
    assert again.report.matrix == outcome.report.matrix
    chosen = choosing.load_selection(run.workspace).scorers["roe"]
    wanted = {(spec.id, scorer) for spec in unseen for scorer in ("base", chosen[spec.id])}
    wanted |= {(spec.id, again.report.environment["best_single"]) for spec in unseen}
    best = {
        (f"{row.task}/{row.prompt}", row.expert)
        for row in again.report.matrix
        for top in [max(each.accuracy for each in again.report.matrix if each.prompt == row.prompt)]
        if row.accuracy == top
    }
    cells = {
        results_cache.cell_file(run.workspace.scores, Cell(*cell), (), limit=ROWS) for cell in wanted | best
    }
    assert set(read) <= cells
    assert len(cells) < len(unseen) * (len(TRAINED) + 1)


def test_a_files_head_counts_its_rows_unless_some_are_left_out(run, unseen):
    cell = Cell(unseen[0].id, TRAINED[0])
    found = ranking.score_cells(run, [cell], load_tasks(run, unseen))
    right = [label == told for label, told in zip(found[cell].labels, found[cell].predictions, strict=True)]
    assert (found.count(cell).n, found.count(cell).right) == (ROWS, sum(right))
    fewer = found.count(cell, found[cell].row_ids[:3])
    assert (fewer.n, fewer.right) == (ROWS - 3, sum(right[3:]))


def test_without_the_oracle_only_what_methods_need_is_scored(make_run, unseen):
    run = make_run()
    outcome = evaluate.evaluate(run, unseen, EvaluationConfig(methods=[f"fixed:expert={TRAINED[0]}"]))
    files = {file.name for file in run.workspace.scores.glob("*/*/*.jsonl")}
    assert files == {f"{name}.limit_{ROWS}.jsonl" for name in ("base", "mini_size_animal%2Fbeside%20a%20dog")}
    assert outcome.report.matrix == ()


def test_experts_of_several_kinds_are_evaluated_together(make_run, unseen):
    kinds = dict(zip(TRAINED, [BOTTLENECK, ("bottleneck", {"width": 6}), LORA, ("full", {})], strict=True))
    outcome = evaluate.evaluate(make_run(kinds), unseen, EvaluationConfig(queries=4, oracle=True))
    assert [row.method for row in outcome.report.means] == ["base", "roe_top1", "best_single", "oracle"]
    assert {row.expert for row in outcome.report.matrix} == set(TRAINED)


def test_tokens_choose_clusters_serve_and_a_few_labels_are_kept_apart(lora, unseen):
    outcome = evaluate.evaluate(lora, unseen, EvaluationConfig(methods=TOKENS, queries=4))
    assert {row.method for row in outcome.report.rows} == {"base", *TOKENS}
    labels = {row.method: row.labels for row in outcome.report.methods}
    assert labels[TOKENS[-1]] == "few"
    assert {labels[method] for method in TOKENS[:-1]} == {"none"}
    # The task has no training split: the three rows that were shown count for no method.
    assert {row.n for row in outcome.report.rows} == {ROWS - 3}
    chosen = choosing.load_selection(lora.workspace)
    assert len(chosen.gates) == 3
    assert {len(rows) for rows in chosen.left_out.values()} == {3}
    fitted = [row for row in outcome.report.selections if row.router == "lorahub"]
    assert len(fitted) == 2
    assert set(fitted[0].weights) == set(TRAINED)


def test_gates_are_scored_once_and_anew_where_an_expert_is_another(lora, unseen, monkeypatch):
    evaluate.evaluate(lora, unseen, EvaluationConfig(methods=["arrow:k=1"], queries=4))
    before = choosing.load_selection(lora.workspace).scorers["arrow:k=1"][unseen[0].id]
    with monkeypatch.context() as patched:
        patched.setattr(engine, "score_rows", never)
        evaluate.evaluate(lora, unseen, EvaluationConfig(methods=["arrow:k=1"], queries=4))
    add_expert(lora, TRAINED[0], *LORA, seed=9)
    evaluate.evaluate(lora, unseen, EvaluationConfig(methods=["arrow:k=1"], queries=4))
    after = choosing.load_selection(lora.workspace).scorers["arrow:k=1"][unseen[0].id]
    assert after != before
    assert kept(lora, unseen[0].id, after) != kept(lora, unseen[0].id, before)


def test_a_gate_over_one_expert_scores_as_that_expert(lora, unseen):
    only = TRAINED[1]
    evaluate.evaluate(
        lora,
        unseen,
        EvaluationConfig(
            experts=[only], methods=["spectr", f"fixed:expert={only}", "lorahub:trials=3"], queries=4
        ),
    )
    chosen = choosing.load_selection(lora.workspace).scorers["spectr"]
    for spec in unseen:
        gated, alone = kept(lora, spec.id, chosen[spec.id]), kept(lora, spec.id, only)
        for row, own in alone.items():
            np.testing.assert_allclose(gated[row]["scores"], own["scores"], rtol=1e-4, atol=1e-4)


def test_an_expert_is_never_called_unseen_on_its_own_dataset(run, unseen):
    trained = task_selection.select_tasks([TRAINED[0]])
    with pytest.raises(ContaminationError, match="with --seen"):
        evaluate.evaluate(run, [*unseen, *trained], EvaluationConfig(methods=["roe"]))


def test_the_base_alone_needs_no_expert_and_is_seen_by_none(make_run, run, unseen):
    bare = make_run(experts=(), keyed=False)
    found = evaluate.evaluate(bare, unseen, EvaluationConfig(methods=["base"]))
    assert {row.method for row in found.report.rows} == {"base"}
    again, _ = report.rebuild_report(bare.workspace)
    assert again.rows == found.report.rows
    with pytest.raises(UserError, match="--method base"):
        evaluate.evaluate(bare, unseen, EvaluationConfig(methods=["bm25"]))
    trained = task_selection.select_tasks([TRAINED[0]], evaluation=True)
    seen = evaluate.evaluate(run, trained, EvaluationConfig(methods=["plain=base"]))
    assert [(row.method, row.seen) for row in seen.report.rows] == [("plain", False)]


def test_seen_results_are_marked_and_routers_pass_over_what_was_trained_there(run):
    specs = task_selection.select_tasks([TRAINED[0]], evaluation=True)
    methods = ["roe", "roe:seen=true", "uniform", f"other=fixed:expert={TRAINED[2]}"]
    methods += [f"own=fixed:expert={TRAINED[0]}"]
    outcome = evaluate.evaluate(
        run, specs, EvaluationConfig(methods=methods, queries=4, oracle=True, seen=True)
    )
    marked = {row.method: row.seen for row in outcome.report.rows}
    assert marked["own"] is True
    assert not any(marked[name] for name in ("base", "roe", "uniform", "other", "oracle", "best_single"))
    seen = {row.expert: row.seen for row in outcome.report.matrix}
    assert seen == {name: name.startswith("mini_size_animal/") for name in TRAINED}
    chosen = choosing.load_selection(run.workspace)
    assert chosen.scorers["roe"][specs[0].id] in TRAINED[2:]
    (uniform,) = chosen.composites.values()
    assert uniform.members == tuple(sorted(TRAINED[2:]))


def test_other_ways_to_score_are_made_of_sums_without_the_network(run, unseen, outcome, monkeypatch):
    del outcome
    cells, tasks = [Cell(unseen[0].id, TRAINED[0])], load_tasks(run, unseen)

    def score(normalization):
        options = ScoringOptions(normalization=normalization)
        return ranking.score_cells(run, cells, tasks, options)[cells[0]].scores

    score("calibrated")
    monkeypatch.setattr(engine, "score_rows", never)
    ranked = tasks[unseen[0].id].prompts
    sums, mean, calibrated = map(score, ("sum", "mean", "calibrated"))
    for row, own, per_token, less in zip(ranked, sums, mean, calibrated, strict=True):
        lengths = [len(answer) for answer in row.answers]
        np.testing.assert_allclose(per_token, np.array(own) / lengths, rtol=1e-5)
        # All rows of the task have the same two choices, so what is taken off is the same for all.
        np.testing.assert_allclose(np.subtract(own, less), np.subtract(sums[0], calibrated[0]), atol=1e-4)
    where = results_cache.cell_file(run.workspace.scores, cells[0], (), "mean", ROWS)
    assert json.loads(where.read_text().splitlines()[0])["score"] == "mean"


def test_a_way_to_score_that_does_not_exist_is_refused_before_routing(run, unseen):
    with pytest.raises(UserError, match="No score named 'summ'"):
        evaluate.evaluate(run, unseen, EvaluationConfig(normalization="summ"))


def test_examples_to_look_at_start_with_what_the_first_retrieval_got_wrong(outcome):
    examples = outcome.report.examples
    right = [example.answers["roe"].right for example in examples]
    assert len(examples) == 2 * ROWS
    assert right == sorted(right)
    first = examples[0]
    assert first.answers["roe"].prediction in first.choices
    assert first.answers["roe"].prediction != first.target
    assert len(first.answers["base"].scores) == len(first.choices)


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Two tasks of one's own over the same rows, one with choices and one that is answered in free text."""
    monkeypatch.setattr(datasets, "_user_datasets", {})
    lines = [{"text": f"a small dog {number}", "label": number % 2} for number in range(6)]
    (tmp_path / "pets.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "pets.yaml").write_text(
        """
datasets:
  pets:
    jsonl: {validation: pets.jsonl}
    split: validation
    prompts:
      choose:
        answer_choices: "cat ||| dog"
        jinja: "{{text}} what ||| {{answer_choices[label]}}"
      say:
        metric: exact_match
        jinja: "{{text}} say ||| {{['cat', 'dog'][label]}}"
"""
    )
    return task_selection.select_tasks([str(tmp_path / "pets.yaml")], evaluation=True)


def test_tasks_without_choices_are_answered_by_the_same_methods(run, written, monkeypatch):
    methods = ["roe", "roe_per_instance", "roe:experts=2"]
    outcome = evaluate.evaluate(run, written, EvaluationConfig(methods=methods, queries=4, oracle=True))
    assert {row.prompt for row in outcome.report.rows} == {"choose"}
    found = {row.method: row for row in outcome.report.generated}
    assert set(found) == {"base", *methods, "best_single", "oracle"}
    assert {row.measure for row in found.values()} == {"exact match"}
    assert {(row.task, row.prompt, row.n, row.seen) for row in found.values()} == {("pets", "say", 6, False)}
    assert found["oracle"].value >= found["best_single"].value
    said = [example for example in outcome.report.examples if example.prompt == "say"]
    assert len(said) == 6
    assert said[0].choices == ()
    assert said[0].answers["roe"].scores is None
    monkeypatch.setattr(writing, "generate_rows", never)
    again = evaluate.evaluate(run, written, EvaluationConfig(methods=methods, queries=4, oracle=True))
    assert again.report.generated == outcome.report.generated


def test_rows_are_rendered_as_an_evaluation_says_in_place_of_the_run(run, written):
    cut = evaluate.evaluate(run, written[:1], EvaluationConfig(methods=["base"], truncate=3))
    assert {row.input for row in cut.report.examples} == {"... what"}
    long = replace(run, source=replace(run.source, truncate=3))
    whole = evaluate.evaluate(long, written[:1], EvaluationConfig(methods=["base"], truncate=0))
    assert {row.input for row in whole.report.examples} == {f"a small dog {row} what" for row in range(6)}


def test_tasks_that_are_all_answered_in_free_text_are_reported_alone(run, written):
    outcome = evaluate.evaluate(
        run, [written[1]], EvaluationConfig(methods=["roe", "lorahub:shots=2,trials=8"], queries=4)
    )
    assert outcome.report.rows == ()
    assert {row.n for row in outcome.report.generated} == {4}


def test_an_estimate_comes_first_and_a_dry_run_scores_nothing(make_run, unseen, monkeypatch):
    run = make_run()
    told = []
    methods = [f"fixed:expert={TRAINED[0]}"]
    assert (
        evaluate.evaluate(
            run, unseen, EvaluationConfig(methods=methods), on_estimate=told.append, dry_run=True
        )
        is None
    )
    (ahead,) = told
    assert (ahead.cost.cells, ahead.cost.pairs) == (4, 4 * ROWS)
    assert ahead.cost.tokens > 0
    assert ahead.flops_per_second > 0
    assert "48 pairs of row and expert in 4 files" in str(ahead)
    assert not run.workspace.scores.exists()
    evaluate.evaluate(run, unseen, EvaluationConfig(methods=methods))
    evaluate.evaluate(run, unseen, EvaluationConfig(methods=methods), on_estimate=told.append, dry_run=True)
    assert str(told[1]) == "Nothing is left to score: all results are there."


def test_a_multitask_expert_that_is_not_there_is_asked_for_in_vain(run, unseen):
    with pytest.raises(UserError, match="'multitask'"):
        evaluate.evaluate(run, unseen, EvaluationConfig(methods=["multitask"]))


def test_methods_are_judged_before_a_base_is_read(run):
    with pytest.raises(UserError, match="router 'arrow'"):
        evaluate.check_methods(run.workspace, ["arrow"])
    with pytest.raises(UserError, match="Did you mean 'roe'"):
        evaluate.check_methods(run.workspace, ["reo"])


def test_more_shots_than_rows_are_refused(lora, unseen):
    with pytest.raises(UserError, match=f"Expected {ROWS} labelled rows of '{UNSEEN}/"):
        evaluate.evaluate(lora, unseen, EvaluationConfig(methods=[f"lorahub:shots={ROWS}"]))


def test_shots_come_from_a_training_split_where_there_is_one(lora):
    specs = task_selection.select_tasks(["mini_opposite_word"], evaluation=True)[:1]
    outcome = evaluate.evaluate(lora, specs, EvaluationConfig(methods=["lorahub:shots=3,trials=8"]))
    assert {row.n for row in outcome.report.rows} == {ROWS}
    (fitted,) = choosing.load_selection(lora.workspace).composites.values()
    recipe = Library.open(lora.workspace.composites).spec(fitted.id).recipe
    assert all(row.startswith("train-") for row in recipe["shots"])


def test_scores_with_rows_left_out_keep_the_others_in_order():
    found = TaskScores("t/p", "m", ("a", "b", "c"), ((1.0,), (2.0,), (3.0,)), (0, 0, 0), (0, 0, 0))
    assert ranking.drop_rows(found, ["b"]).row_ids == ("a", "c")
    assert ranking.drop_rows(found, ["b"]).scores == ((1.0,), (3.0,))
    assert ranking.drop_rows(found, []) == found


def test_a_base_in_another_type_scores_anew_and_the_report_says_so(make_run, unseen, monkeypatch):
    place = make_run().workspace.root
    wide = evaluate.evaluate(place, unseen, EvaluationConfig(methods=["base", "roe"], queries=4))
    config = EvaluationConfig(methods=["base", "roe"], queries=4, dtype="bfloat16")
    with pytest.raises(UserError, match=r"/bfloat16'.*--dtype"):
        evaluate.evaluate(place, unseen, config)
    index.index(place, rebuild=True, dtype="bfloat16")
    narrow = evaluate.evaluate(place, unseen, config)
    told = [each.report.environment["network"]["dtype"] for each in (wide, narrow)]
    assert told == ["float32", "bfloat16"]
    assert wide.report.environment["base"] == narrow.report.environment["base"]
    run = opening.open_run(place)
    found = kept(run, unseen[0].id, "base")
    monkeypatch.setattr(engine, "score_rows", never)
    evaluate.evaluate(place, unseen, config)
    assert kept(run, unseen[0].id, "base") == found
    with pytest.raises(AssertionError, match="work was repeated"):
        evaluate.evaluate(place, unseen, EvaluationConfig(methods=["base"], queries=4))
    with pytest.raises(UserError, match="Expected a run's directory beside dtype"):
        evaluate.evaluate(run, unseen, EvaluationConfig(dtype="bfloat16"))


def test_a_dry_run_writes_nothing_and_needs_no_lock(make_run, unseen):
    run = make_run(experts=TRAINED[:2])
    before = sorted(map(str, Path(run.workspace.root).rglob("*")))
    config = EvaluationConfig(methods=["roe:experts=2"])
    with run.workspace.lock("evaluate"):
        during = sorted(map(str, Path(run.workspace.root).rglob("*")))
        assert evaluate.evaluate(run, unseen, config, dry_run=True) is None
        assert sorted(map(str, Path(run.workspace.root).rglob("*"))) == during
        with pytest.raises(UserError, match=r"elm evaluate \(process"):
            evaluate.evaluate(run, unseen, config)
    assert sorted(map(str, Path(run.workspace.root).rglob("*"))) == before
