"""Your own tasks: a few lines of YAML or Python, and they are like the catalogue's; mistakes are named."""

import json
import sys
from pathlib import Path

import pytest

from elm_jax import cli
from elm_jax.data import prepare, task_rows, task_selection, worker_pool
from elm_jax.errors import UserError
from elm_jax.session import opening, settings
from elm_jax.session.workspace import Workspace
from elm_jax.tasks import data_source, datasets, rendering, specs, task_templates, user_tasks
from elm_jax.tokenizers import sentencepiece

EXAMPLE = Path(__file__).parent / "own_reviews" / "reviews.yaml"
GOOD = "reviews/is it good"
ROWS = [{"text": "It broke.", "label": 0}, {"text": "I like it.", "label": 1}]
PYTHON = """\
import elm_jax

elm_jax.define_task(
    "films",
    jsonl={"train": "films.jsonl"},
    prompts={
        "good or bad": ("{{text}} ||| {{answer_choices[label]}}", "bad ||| good"),
        "retell": "{{answer}} ||| {{text}}",
    },
)
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def written(folder, text):
    (folder / "mine.yaml").write_text(text)
    return folder / "mine.yaml"


MINE = """\
datasets:
  mine:
    jsonl: rows.jsonl
    prompts:
      good: {jinja: "{{text}} ||| {{answer_choices[label]}}", answer_choices: "no ||| yes"}
"""


def test_the_example_is_at_most_fifteen_lines_and_gives_two_tasks():
    assert len(EXAMPLE.read_text().splitlines()) <= 15
    found = user_tasks.load_tasks(EXAMPLE)
    assert [spec.id for spec in found] == [GOOD, "reviews/would you buy"]
    assert {spec.metric for spec in found} == {"accuracy"}
    made = rendering.examples(found[0], "train").examples
    assert made[0].input == "The lamp broke on the first day. Is this good?"
    assert made[0].choices == ("no", "yes")
    assert [example.target for example in made] == ["no", "yes", "no", "yes"]
    assert made[0].row_id == "reviews/train/0"


def test_the_examples_of_the_docstring_are_those_that_work():
    """The YAML in the module's docstring is read as it stands."""
    lines = (user_tasks.__doc__ or "").splitlines()
    start = lines.index("    datasets:")
    end = next(at for at in range(start, len(lines)) if not lines[at])
    assert end - start <= 15
    tree = user_tasks.read_yaml("docstring", "\n".join(lines[start:end]).encode())
    assert [spec.id for spec in user_tasks._add(tree, "docstring", ".")] == [GOOD, "reviews/would you buy"]


def test_what_was_added_is_found_like_any_other():
    user_tasks.load_tasks(EXAMPLE)
    assert specs.find_task(GOOD).group == "own"
    assert {spec.id for spec in specs.task_specs("own")} == {GOOD, "reviews/would you buy"}
    assert [spec.id for spec in task_selection.select_tasks(["reviews"])] == [GOOD, "reviews/would you buy"]
    with pytest.raises(UserError, match=f"Did you mean '{GOOD}'"):
        specs.find_task("reviews/is it god")


def test_a_python_file_defines_tasks_too_and_a_prompt_without_choices_generates(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "films.jsonl").write_text('{"text": "Long.", "label": 0, "answer": "A film"}\n')
    (tmp_path / "film_tasks.py").write_text(PYTHON)
    ranked, told = user_tasks.load_tasks(tmp_path / "film_tasks.py")
    assert (ranked.metric, told.metric) == ("accuracy", "exact_match")
    (example,) = rendering.examples(told, "train").examples
    assert (example.input, example.target, example.choices) == ("A film", "Long.", ())
    assert user_tasks.load_tasks(tmp_path / "film_tasks.py") == [ranked, told]


def test_rows_may_come_from_a_function():
    (spec,) = user_tasks.define_task(
        "made up",
        rows=lambda split: [{"n": at, "split": split} for at in range(3)],
        splits=("train", "test"),
        prompts={"count": "{{split}} {{n}} ||| {{n}}"},
    )
    assert [example.input for example in rendering.examples(spec, "test").examples] == [
        "test 0",
        "test 1",
        "test 2",
    ]


def test_one_that_is_defined_again_is_the_new_one(folder):
    file = written(folder, MINE)
    (spec,) = user_tasks.load_tasks(file)
    before = task_rows.load_examples(spec, data_source.Source())
    written(folder, MINE.replace("{{text}}", "Well: {{text}}"))
    user_tasks.load_tasks(file)
    after = task_rows.load_examples(spec, data_source.Source())
    assert [example.input for example in before] == ["It broke.", "I like it."]
    assert [example.input for example in after] == ["Well: It broke.", "Well: I like it."]


def test_they_are_prepared_in_other_processes_and_noticed_when_their_file_changes(folder, tmp_path):
    tokenizer = sentencepiece.train(["It broke. I like it no yes"], tmp_path / "m", 60, extra_ids=0)
    file = written(folder, MINE + '      sure: {jinja: "{{text}} Sure? ||| {{label}}"}\n')
    source = data_source.Source(prepared=tmp_path / "p")

    def made():
        return [outcome.made for outcome in prepare.prepare_tasks(tasks=[str(file)], **how)]

    how = {"tokenizer": tokenizer, "source": source, "processes": 2}
    assert made() == [True, True]
    assert made() == [False, False]
    (folder / "rows.jsonl").write_text('{"text": "New.", "label": 1}\n')
    assert made() == [True, True]
    written(folder, file.read_text().replace("Sure?", "Really?"))
    assert made() == [False, True]


def test_what_another_process_cannot_be_told_is_prepared_here(tmp_path):
    tokenizer = sentencepiece.train(["a b c d"], tmp_path / "m", 60, extra_ids=0)
    for name in ("one", "two"):
        user_tasks.define_task(name, rows=lambda split: [{"n": "a"}], prompts={"p": "{{n}} ||| b"})
    source = data_source.Source(prepared=tmp_path / "p")
    made = prepare.prepare_tasks(tasks=["one", "two"], tokenizer=tokenizer, source=source, processes=2)
    assert [outcome.rows for outcome in made] == [1, 1]


def test_a_run_remembers_the_files_that_define_its_tasks(tmp_path):
    sentencepiece.train(["a b c d"], tmp_path / "m", 60)
    workspace = Workspace.open(tmp_path / "run", create=True)
    settings.add_task_files(workspace, [EXAMPLE])
    settings.add_task_files(workspace, [EXAMPLE])
    source = opening.load_data_settings(tmp_path / "run", vocabulary_file=tmp_path / "m").source
    assert list(source.tasks) == [str(EXAMPLE.resolve())]
    assert task_selection.resolve_task(GOOD, source).dataset == "reviews"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("datasets:", "dataset:", "to hold a mapping `datasets`"),
        ("  mine:", "  my/ne:", "got 'my/ne'"),
        ("  mine:", "  dream:", "got 'dream' of the catalogue"),
        ("  mine:", "  mini_size_animal:", "got 'mini_size_animal' of the embedded suite"),
        ("datasets:", "group: train\ndatasets:", "got 'train' of the catalogue"),
        ("    jsonl: rows.jsonl\n", "", "expected files of rows"),
        ("jsonl:", "jsnol:", "expected files of rows"),
        ("    jsonl: rows.jsonl", "    jsonl: rows.jsonl\n    colums: [text]", "No field named 'colums'"),
        ("jinja:", "jina:", "prompt 'good': expected the texts `jinja`"),
        ("      good: {", "      good: 5 #", "expected `prompts`"),
        ("datasets:", "datasets: [", "expected plain YAML"),
        ("datasets:", "datasets: !!python/object:os.system", "expected plain YAML"),
        ('"no ||| yes"', "7", "expected the texts `jinja`"),
    ],
)
def test_a_mistake_names_the_file_and_the_place(folder, old, new, message):
    file = written(folder, MINE.replace(old, new))
    with pytest.raises(UserError, match=message):
        user_tasks.load_tasks(file)
    assert datasets.user_datasets() == {}


def test_a_file_that_is_not_there_and_code_that_fails_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="got no file"):
        user_tasks.load_tasks(tmp_path / "none.yaml")
    (tmp_path / "broken_tasks.py").write_text("1 / 0\n")
    with pytest.raises(UserError, match=r"'broken_tasks' .*ZeroDivisionError"):
        user_tasks.load_tasks(tmp_path / "broken_tasks.py")


@pytest.mark.parametrize("name", ["json", "colorsys"])  # imported already, and not yet
def test_a_file_with_the_name_of_another_module_is_refused_and_hides_it_from_no_process(tmp_path, name):
    (tmp_path / f"{name}.py").write_text("")
    before = user_tasks.find_module_file(name)
    with pytest.raises(UserError, match=f"another module, '{name}'"):
        user_tasks.load_tasks(tmp_path / f"{name}.py")
    with worker_pool.open_pool(1) as pool:
        assert pool.submit(user_tasks.find_module_file, name).result() == before


def test_a_yaml_file_names_no_function_that_would_be_called(folder):
    text = MINE.replace("jsonl: rows.jsonl", 'sources: [{function: "os:getenv"}]\n    splits: {train: 2}')
    with pytest.raises(UserError, match="'os:getenv'"):
        user_tasks.load_tasks(written(folder, text))
    assert "mine" not in datasets.user_datasets()


def test_columns_that_are_named_are_checked_before_a_row_is_read(folder):
    (spec,) = user_tasks.load_tasks(
        written(folder, MINE.replace("    jsonl", "    columns: [txt, label]\n    jsonl"))
    )
    with pytest.raises(UserError, match=r"template 'good' of 'mine' .* got 'text'"):
        task_templates.find_template(spec)


def test_a_label_of_minus_one_is_refused_not_taken_for_the_last_choice():
    def examples(jinja, row):
        (spec,) = user_tasks.define_task(
            "mine", rows=lambda split: [row], prompts={"p": (jinja, "no ||| yes")}
        )
        return rendering.examples(spec, "train").examples

    with pytest.raises(UserError, match="expected a label, got label=-1"):
        examples("a ||| {{answer_choices[label]}}", {"label": -1})
    # A template that only speaks of labels needs none.
    assert examples("Which label? {{text}} ||| yes", {"text": "b"})[0].input == "Which label? b"


def test_the_commands_know_the_tasks_of_a_file(capsys):
    cli.app(["tasks", "list", "--tasks", str(EXAMPLE), "--group", "own", "--json"], standalone_mode=False)
    assert [entry["id"] for entry in json.loads(capsys.readouterr().out)] == [GOOD, "reviews/would you buy"]
    cli.app(["tasks", "show", GOOD, "--tasks", str(EXAMPLE)], standalone_mode=False)
    assert "Is this good?" in capsys.readouterr().out


def test_the_old_name_of_define_task_is_read_with_a_warning():
    from elm_jax.tasks import own

    with pytest.warns(FutureWarning, match="elm_jax.define_task"):
        define = own.define
    assert define is user_tasks.define_task


def test_of_two_modules_of_one_name_the_one_that_was_named_last_is_run(tmp_path, monkeypatch):
    for place in ("first", "second"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "two_of_a_name.py").write_text(f"PLACE = {place!r}\n")
        monkeypatch.chdir(tmp_path / place)
        monkeypatch.delitem(sys.modules, "two_of_a_name", raising=False)
        assert place == user_tasks.import_user_module("two_of_a_name").PLACE
