"""Prompts of one's own: PromptSource's files beside one's own datasets, and names that are used twice."""

import json

import pytest

from elm_jax import cli
from elm_jax.errors import UserError
from elm_jax.tasks import datasets, rendering, user_tasks
from elm_jax.tasks.data_source import Source

ROWS = [{"text": "a", "label": 1}, {"text": "b", "label": 0}, {"text": "c", "label": -1}]
FILE = """\
dataset: mine
templates:
  1: !Template
    answer_choices: no ||| yes
    id: '1'
    jinja: '{{text}} Good? ||| {{answer_choices[label]}}'
    metadata: !TemplateMetadata {metrics: [Accuracy]}
    name: 'good '
    reference: ''
  2: !Template
    answer_choices: null
    id: '2'
    jinja: '{{text}} * 2 = ||| {{ text * 2 }}'
    metadata: !TemplateMetadata {metrics: [Accuracy]}
    name: double
    reference: ''
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def write_templates(folder, name):
    (folder / name).mkdir(parents=True)
    (folder / name / "templates.yaml").write_text(FILE)


def load(folder, fields):
    (folder / "mine.yaml").write_text(f"datasets:\n  mine:\n    jsonl: rows.jsonl\n{fields}")
    return user_tasks.load_tasks(folder / "mine.yaml")


@pytest.mark.parametrize("home", [".", "templates"])
@pytest.mark.parametrize("name", ["mine", "glue/mine", "owner/glue/mine"])
def test_promptsources_files_serve_ones_own_datasets(folder, home, name):
    write_templates(folder / home, name)
    specs = load(folder, f"    templates: {name}\n")
    assert [(spec.prompt, spec.metric) for spec in specs] == [
        ("good ", "accuracy"),
        ("double", "exact_match"),
    ]
    good, double = (rendering.examples(spec, source=Source(truncate=None)) for spec in specs)
    assert [(row.input, row.target) for row in good] == [("a Good?", "yes"), ("b Good?", "no")]
    assert good.counts.left_out == {"label": 1}
    assert [row.target for row in double] == ["aa", "bb", "cc"]


def test_a_folder_with_the_datasets_name_needs_not_be_named(folder):
    write_templates(folder, "mine")
    assert [spec.prompt for spec in load(folder, "")] == ["good ", "double"]
    assert [spec.prompt for spec in load(folder, "    prompts: {double: rouge_l}\n")] == ["double"]


def test_a_limit_of_characters_works_on_the_source_as_the_originals_does(folder):
    write_templates(folder, "mine")
    (folder / "rows.jsonl").write_text('{"text": "ab"}\n')
    (spec,) = load(folder, "    prompts: [double]\n")
    # `text * 2 | string | truncate` multiplies a text by a text.
    with pytest.raises(UserError, match="TypeError"):
        rendering.examples(spec)
    assert rendering.examples(spec, source=Source(truncate=None))[0].target == "abab"


def test_a_prompt_that_the_files_lack_is_an_error_with_the_nearest(folder):
    write_templates(folder, "mine")
    with pytest.raises(UserError, match="'double'"):
        load(folder, "    prompts: [doubel]\n")
    with pytest.raises(UserError, match="Fix: "):
        load(folder, "    templates: yours\n")


def test_ones_own_files_are_listed_three_levels_deep(folder, capsys):
    for name in ("mine", "glue/mine", "owner/glue/mine"):
        write_templates(folder / "templates", name)
    cli.app(
        ["prompts", "list", "--templates-dir", str(folder / "templates"), "--json"], standalone_mode=False
    )
    assert json.loads(capsys.readouterr().out) == {"glue/mine": 2, "mine": 2, "owner/glue/mine": 2}


TWICE = {
    "a dataset of YAML": (
        "datasets:\n  mine: {jsonl: rows.jsonl, prompts: {p: {jinja: 'a ||| b'}}}\n  mine: {}\n"
    ),
    "a prompt of YAML": (
        "datasets:\n  mine:\n    jsonl: rows.jsonl\n"
        "    prompts:\n      p: {jinja: 'a ||| b'}\n      p: {jinja: 'a ||| c'}\n"
    ),
    "a prompt and a number": (
        "datasets:\n  mine:\n    jsonl: rows.jsonl\n"
        "    prompts:\n      1: {jinja: 'a ||| b'}\n      '1': {jinja: 'a ||| c'}\n"
    ),
}


@pytest.mark.parametrize("text", TWICE.values(), ids=TWICE)
def test_a_name_that_a_file_defines_twice_is_refused(folder, text):
    (folder / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=r"twice|again"):
        user_tasks.load_tasks(folder / "mine.yaml")
    assert datasets.user_datasets() == {}


def test_a_dataset_that_a_python_file_defines_twice_is_refused_and_a_notebook_may(folder, monkeypatch):
    monkeypatch.chdir(folder)
    define = 'elm_jax.define_task("mine", jsonl="rows.jsonl", prompts={"p": "{{text}} ||| b"})\n'
    (folder / "twice_tasks.py").write_text(f"import elm_jax\n{define}{define}")
    with pytest.raises(UserError, match="'mine' again"):
        user_tasks.load_tasks(folder / "twice_tasks.py")
    for target in ("b", "c"):
        (spec,) = user_tasks.define_task("yours", jsonl="rows.jsonl", prompts={"p": "{{text}} ||| " + target})
        assert rendering.examples(spec)[0].target == target


@pytest.mark.parametrize("names", [("one.yaml", "two.yaml"), ("one.yaml", "two_tasks.py")])
def test_a_dataset_that_two_files_define_is_refused(folder, monkeypatch, names):
    monkeypatch.chdir(folder)
    define = 'define_task("mine", jsonl="rows.jsonl", prompts={"p": "{{text}} ||| c"})'
    for name in names:
        (folder / name).write_text(
            "datasets:\n  mine: {jsonl: rows.jsonl, prompts: {p: {jinja: '{{text}} ||| b'}}}\n"
            if name.endswith("yaml")
            else f"import elm_jax\nelm_jax.{define}\n"
        )
    (spec,) = user_tasks.load_tasks(folder / names[0])
    with pytest.raises(UserError, match="'mine'"):
        user_tasks.load_tasks(folder / names[1])
    assert rendering.examples(spec)[0].target == "b"
    assert user_tasks.load_tasks(folder / names[0]) == [spec]


def raises(split):
    yield {"text": "a"}
    raise KeyError("b")


@pytest.mark.parametrize(
    "rows", [raises, list, lambda split: 5, lambda split: ["a"], lambda split: [], lambda split: 1 / 0]
)
def test_a_function_of_rows_that_fails_is_one_sentence(rows):
    (spec,) = user_tasks.define_task("mine", rows=rows, prompts={"p": "{{text}} ||| b"})
    with pytest.raises(UserError, match="Fix: correct the function"):
        rendering.examples(spec)


def test_a_template_that_reads_our_ids_of_rows_is_refused():
    rows = [{"row_id": "mine", "text": "a"}]
    (spec,) = user_tasks.define_task(
        "mine", rows=lambda split: rows, prompts={"p": "{{row_id}} ||| {{text}}"}
    )
    with pytest.raises(UserError, match="'row_id'"):
        rendering.examples(spec)
