"""Every verb that reads rows says what became of them, or refuses those that cannot be used."""

import json
from dataclasses import replace

import pytest

from elm_jax import cli
from elm_jax.data import prepare, task_selection
from elm_jax.data.prepare import describe_result
from elm_jax.errors import UserError
from elm_jax.evaluation.config import EvaluationConfig
from elm_jax.evaluation.evaluate import evaluate
from elm_jax.evaluation.tasks import load_tasks
from elm_jax.routing.index import index
from elm_jax.routing.route import route
from elm_jax.session import opening
from elm_jax.training.train import train
from tests.training_configs import train_config

ROWS = [{"text": f"the film {number}", "label": number % 2} for number in range(6)]
BAD = [{"text": None, "label": 0}, {"text": "the dog", "label": 7}, {"text": "the dog", "label": 7}]
SAID = "9 rows read, 6 used, 3 left out (2 label, 1 missing value)"
CONFIG = train_config(steps=1, batch_size=2, rate=1e-3, kind="bottleneck", options={"width": 2})
PROMPT = "p: {answer_choices: 'dog ||| cat', jinja: 'Is {{text}}? ||| {{answer_choices[label]}}'}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS + BAD))
    (folder / "tasks.yaml").write_text(
        "datasets:\n"
        f"  lanterns: {{jsonl: {{train: rows.jsonl}}, prompts: {{{PROMPT}}}}}\n"
        f"  candles: {{jsonl: {{test: rows.jsonl}}, prompts: {{{PROMPT}}}}}\n"
    )
    return folder


@pytest.fixture(scope="module")
def root(make_run, folder):
    run = make_run(experts=(), keyed=False, rows=None)
    train(opening.open_run(run.workspace.root, task_files=[folder / "tasks.yaml"]), "lanterns", CONFIG)
    return run.workspace.root


@pytest.fixture
def run(root, folder):
    return opening.open_run(root, task_files=[folder / "tasks.yaml"])


def test_every_verb_says_how_many_rows_were_read_used_and_left_out_and_why(run, root, folder, capsys):
    def said():
        return " ".join(capsys.readouterr().err.split())

    said()
    train(run, "lanterns", CONFIG)
    assert SAID in said()
    index(run, size=4)
    assert SAID in said()
    route(run, "candles", queries=4)
    assert SAID in said()
    report = evaluate(run, "candles", EvaluationConfig(methods=["roe"], queries=4)).report
    told = said()
    assert SAID in told
    assert "The model does not see all: " in told
    assert [(row.n, row.left_out) for row in report.rows] == [(6, 3)] * len(report.rows)
    (made,) = prepare.prepare_tasks(
        tasks=["candles"], tokenizer=run.tokenizer, source=replace(run.source, prepared=folder / "prepared")
    )
    assert SAID in describe_result(made)
    for verb in ("preview", "check"):
        options = {"preview": ["--rows", "6"], "check": []}[verb]
        with pytest.raises(SystemExit) as stop:
            cli.main(["tasks", verb, "candles/p", "--tasks", str(folder / "tasks.yaml"), *options])
        assert stop.value.code == (verb == "check")
    out = capsys.readouterr().out
    assert out.count(SAID) == 1  # of the check
    assert "6 rows read, 6 used." in out  # of the preview, as far as it read


def test_every_verb_refuses_rows_that_cannot_be_used_where_it_is_told_to(run, root, folder):
    strict = replace(run, source=replace(run.source, on_bad_row="refuse"))
    for use in (
        lambda: train(strict, "lanterns", replace(CONFIG, seed=1)),
        lambda: index(strict, size=4, rebuild=True),
        lambda: route(strict, "candles", queries=4),
        lambda: evaluate(strict, "candles", EvaluationConfig(methods=["base"])),
        lambda: prepare.prepare_tasks(
            tasks=["candles"],
            tokenizer=run.tokenizer,
            source=replace(strict.source, prepared=folder / "other"),
        ),
    ):
        with pytest.raises(UserError, match=r"3 left out \(2 label, 1 missing value\)"):
            use()


def test_a_task_is_ranked_by_its_metric_and_choices_of_another_are_words(run, tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "negated.yaml").write_text(
        "datasets:\n  negated:\n    jsonl: {test: rows.jsonl}\n    prompts:\n"
        "      ranked: {answer_choices: bad ||| good, jinja: '{{text}} ||| {{answer_choices[label]}}'}\n"
        "      free:\n        answer_choices: bad ||| good\n        metric: exact_match\n"
        "        jinja: '{{text}} ||| {{answer_choices[label]}} review.'\n"
    )
    specs = task_selection.select_tasks(str(tmp_path / "negated.yaml"), run.source)
    ranked, free = load_tasks(run, specs).values()
    assert (ranked.is_ranked, free.is_ranked) == (True, False)
    assert [example.target for example in free.examples][:2] == ["bad review.", "good review."]
