"""Files of results: every line is as the schema says, and what lies there already has a defined outcome."""

import dataclasses
import json
from pathlib import Path

import jsonschema
import pytest

from elm_jax import storage
from elm_jax.errors import DamagedResultsError, UserError
from elm_jax.evaluation import generation, ranking, results_cache
from elm_jax.evaluation.config import ScoringOptions
from elm_jax.evaluation.expert_stacks import ExpertStack
from elm_jax.evaluation.results_cache import Cell
from elm_jax.evaluation.tasks import load_tasks
from elm_jax.experts.lookup import BASE_SCORER
from tests.run_fixtures import ROWS, TRAINED


@pytest.fixture(scope="module")
def run(make_run):
    return make_run(keyed=False)


@pytest.fixture(scope="module")
def validator():
    jsonschema.Draft202012Validator.check_schema(results_cache.line_schema())
    return jsonschema.Draft202012Validator(results_cache.line_schema())


@pytest.fixture
def kept(run, unseen):
    """The file of the base's scores of a task, whole."""
    cell = Cell(unseen[0].id, BASE_SCORER)
    ranking.score_cells(run, [cell], load_tasks(run, unseen))
    where = results_cache.cell_file(run.workspace.scores, cell, (), limit=ROWS)
    whole = where.read_text()
    yield where
    where.write_text(whole)


def test_every_line_that_is_written_is_as_the_schema_says(run, unseen, validator):
    cells = [Cell(spec.id, name) for spec in unseen for name in (BASE_SCORER, TRAINED[0])]
    some = Cell(unseen[0].id, TRAINED[1], (0, 5))
    tasks = load_tasks(run, unseen)
    for normalization in ("sum", "mean", "calibrated", "length:0.5", "pmi:a dog"):
        options = ScoringOptions(normalization=normalization)
        ranking.score_cells(run, [*cells, some], tasks, options)
    generation.generate_answers(run, [*cells, some], tasks)
    files = [
        file
        for folder in (run.workspace.scores, run.workspace.generated)
        for file in Path(folder).rglob("*.jsonl")
    ]
    assert len(files) == 5 * 7 + 5
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert len(lines) == 8 * len(cells) * (1 + ROWS) + 8 * (1 + 2)
    for line in lines:
        validator.validate(line)


@pytest.mark.parametrize(
    "line",
    [
        {"row": "a", "label": -1, "prediction": 0, "scores": [-1.0]},
        {"row": "a", "label": 0, "prediction": 0, "scores": []},
        {"row": "a", "label": 0, "prediction": 0, "scores": [-1.0], "more": 1},
        {"format": 2, "task": "t/p", "expert": "base", "stamp": "0" * 16, "score": "sum"},
        {"row": "a", "target": "x", "prediction": None, "value": None},
    ],
)
def test_the_schema_refuses_other_lines(validator, line):
    assert not validator.is_valid(line)


@pytest.mark.parametrize("change", [{"stamp": "0" * 16}, {"format": 0}])
def test_scores_of_other_rows_or_an_older_format_are_made_anew(run, unseen, kept, change):
    whole = kept.read_text()
    head, *lines = whole.splitlines()
    kept.write_text("\n".join([json.dumps(json.loads(head) | change), *lines[:2]]) + "\n")
    ranking.score_cells(run, [Cell(unseen[0].id, BASE_SCORER)], load_tasks(run, unseen))
    assert kept.read_text() == whole


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"format": 99, "stamp": "x"}\n', "got 99 in"),
        ("my notes\n", "got another form"),
        ("", "got another form"),
        ("[1, 2]\n", "got another form"),
        ('{"accuracy": 0.5}\n', "got another form"),
    ],
)
def test_a_file_of_a_later_version_or_of_somebody_else_is_refused_and_stays(run, unseen, kept, content, said):
    kept.write_text(content)
    with pytest.raises(UserError, match=said):
        ranking.score_cells(run, [Cell(unseen[0].id, BASE_SCORER)], load_tasks(run, unseen))
    assert kept.read_text() == content


def test_scores_of_a_few_rows_lie_beside_those_of_more_and_cost_them_nothing(run, unseen, kept):
    before = kept.read_bytes()
    fewer = dataclasses.replace(run, source=dataclasses.replace(run.source, limit=2))
    cell = Cell(unseen[0].id, BASE_SCORER)
    assert len(ranking.score_cells(fewer, [cell], load_tasks(fewer, unseen))[cell].row_ids) == 2
    assert kept.read_bytes() == before
    assert len(ranking.score_cells(run, [cell], load_tasks(run, unseen))[cell].row_ids) == ROWS


def replace_digit(text):
    at = text.rindex("scores")
    digit = next(place for place in range(at, len(text)) if text[place].isdigit())
    return text[:digit] + str((int(text[digit]) + 1) % 10) + text[digit + 1 :]


DAMAGES = {
    "a row more": lambda text: text + '{"row": "a"}\n',
    "a row less": lambda text: "".join(text.splitlines(keepends=True)[:-1]),
    "rows in another order": lambda text: "".join(
        [text.splitlines(keepends=True)[place] for place in (0, 2, 1, *range(3, ROWS + 1))]
    ),
    "another score": replace_digit,
    "another number of right rows": lambda text: text.replace('"right": ', '"right": 1', 1),
    "cut": lambda text: text[: len(text) // 2],
    "no checksum": lambda text: text.replace('"checksum"', '"checksun"'),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_file_that_was_changed_afterwards_is_named_and_made_anew(run, unseen, kept, damage, capsys):
    whole, cell, tasks = kept.read_text(), Cell(unseen[0].id, BASE_SCORER), load_tasks(run, unseen)
    before = ranking.score_cells(run, [cell], tasks)[cell]
    kept.write_text(damage(whole))
    assert kept.read_text() != whole
    capsys.readouterr()
    assert ranking.score_cells(run, [cell], tasks)[cell] == before
    assert kept.read_text() == whole
    assert str(kept) in capsys.readouterr().err


FORGERIES = {
    "prediction is not the best": lambda head, rows: rows[0].update(prediction=1 - rows[0]["prediction"]),
    "another label": lambda head, rows: rows[0].update(label=1 - rows[0]["label"]),
    "another row": lambda head, rows: rows[0].update(row="another"),
    "a score too many": lambda head, rows: rows[0]["scores"].append(-1e9),
    "no number": lambda head, rows: rows[0]["scores"].__setitem__(0, float("nan")),
    "text as a score": lambda head, rows: rows[0]["scores"].__setitem__(0, "best"),
    "a row less": lambda head, rows: rows.pop(),
    "more right": lambda head, rows: head.update(right=head["right"] + 1),
    "fewer rows": lambda head, rows: head.update(rows=head["rows"] - 1),
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES)
def test_scores_that_do_not_follow_are_refused_even_with_a_checksum_that_fits(run, unseen, kept, forge):
    cell, tasks = Cell(unseen[0].id, BASE_SCORER), load_tasks(run, unseen)
    head, *rows = map(json.loads, kept.read_text().splitlines())
    del head["checksum"]
    forge(head, rows)
    storage.write_sealed_lines(kept, head, rows)
    with pytest.raises(DamagedResultsError, match=kept.name):
        ranking.score_cells(run, [cell], tasks)[cell]


def test_groups_hold_task_by_task_until_they_are_large_enough(monkeypatch):
    monkeypatch.setattr(results_cache, "ROWS_PER_GROUP", 5)
    stack = ExpertStack({"a": 0, "b": 1}, {})
    of = {"t/1": 4, "t/2": 2, "t/3": 9}
    cells = [Cell(task, scorer) for scorer in ("a", "b", "c") for task in of]
    found = results_cache.group_cells(stack, [*cells, Cell("t/3", "a", (0, 1))], of)
    # Eight rows of the first task are enough; four of the second want the third's.
    last = [Cell("t/3", "a"), Cell("t/3", "b"), Cell("t/3", "a", (0, 1))]
    assert found == [
        [Cell("t/1", "a"), Cell("t/1", "b")],
        [Cell("t/2", "a"), Cell("t/2", "b"), *last],
    ]
