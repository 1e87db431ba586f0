"""PromptSource's files are read by name, and its own renderings are reproduced."""

import functools
import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from elm_jax.errors import UserError
from elm_jax.prompting import sandbox
from elm_jax.prompting.template_files import load_templates
from elm_jax.prompting.templates import Rendered
from tests.shared_data import DATA, TEMPLATES

GOLDEN = DATA / "golden" / "promptsource_rendered.json.gz"

ONE = """dataset: d
templates:
  1-2: !Template
    answer_choices: null
    id: 1-2
    jinja: '{{text}} ||| {{label}}'
    metadata: !TemplateMetadata
      choices_in_prompt: false
      metrics: [Accuracy]
      original_task: true
    name: 'with a space '
    reference: ''
"""


def write(directory: Path, folder: str, content: str) -> Path:
    (directory / folder).mkdir(parents=True)
    (directory / folder / "templates.yaml").write_text(content, "utf-8")
    return directory


@pytest.mark.parametrize("folder", ["d", "d/config"])
def test_templates_are_read_by_name_and_no_name_is_stripped(tmp_path, folder):
    found = load_templates(write(tmp_path, folder, ONE), folder)
    assert list(found) == ["with a space "]
    made = found["with a space "]
    assert (made.id, made.dataset, made.metadata["metrics"]) == ("1-2", folder, ["Accuracy"])
    assert made.render({"text": "x", "label": 1}) == Rendered("x", "1")


def test_an_unknown_dataset_is_an_error_with_the_nearest(tmp_path):
    with pytest.raises(UserError, match=r"No templates named 'cosmosqa' .* Did you mean 'cosmos_qa'"):
        load_templates(write(tmp_path, "cosmos_qa", ONE), "cosmosqa")


@pytest.mark.parametrize("dataset", ["", "..", "../d", "/d", "d/"])
def test_only_folders_below_the_directory_are_read(tmp_path, dataset):
    root = write(tmp_path / "root", "e", ONE)
    write(tmp_path, "d", ONE)
    with pytest.raises(UserError):
        load_templates(root, dataset)


def test_an_absent_directory_is_an_error(tmp_path):
    with pytest.raises(UserError, match="got no directory"):
        load_templates(tmp_path / "absent", "d")


def test_a_second_template_of_the_same_name_is_refused(tmp_path):
    twice = ONE + ONE.split("templates:\n")[1].replace("1-2", "3-4")
    with pytest.raises(UserError, match=r"line 13: .* got 'with a space ' again"):
        load_templates(write(tmp_path, "d", twice), "d")


@pytest.mark.parametrize(("field", "value"), [("jinja", "5"), ("name", "null"), ("answer_choices", "[a]")])
def test_a_field_that_is_no_text_is_named_with_its_line(tmp_path, field, value):
    lines = [
        f"    {field}: {value}" if line.startswith(f"    {field}:") else line for line in ONE.splitlines()
    ]
    with pytest.raises(UserError, match=rf"line 3: expected text as `{field}`"):
        load_templates(write(tmp_path, "d", "\n".join(lines)), "d")


@pytest.mark.shared_data
def test_all_renderings_of_the_original_are_reproduced(monkeypatch):
    load = functools.cache(functools.partial(load_templates, TEMPLATES))
    with gzip.open(GOLDEN) as file:
        golden = json.load(file)
    assert len(golden) == 416
    for entry in golden:
        # In this process, whose draws are known.
        made = replace(load(entry["dataset"])[entry["template"]], foreign=False)
        assert made.id == entry["id"]
        assert made.choices(entry["row"]) == as_tuple(entry["choices"])
        assert made.fixed_choices == as_tuple(entry["fixed_choices"])
        for truncate, expected in [(2048, entry["truncated"]), (None, entry["full"])]:
            # The original drew at random, so any of the first eight outcomes of each draw will do.
            outcomes = []
            for outcome in range(8 if entry["random"] else 1):
                if entry["random"]:
                    monkeypatch.setattr(sandbox.Rendering, "draw", lambda self, among, n=outcome: n % among)
                outcomes.append(made.parts(entry["row"], truncate))
            assert tuple(expected) in outcomes, (entry["dataset"], entry["template"], entry["variant"])


def as_tuple(choices: list[str] | None) -> tuple[str, ...] | None:
    return None if choices is None else tuple(choices)


@pytest.mark.shared_data
def test_every_template_of_promptsource_is_read():
    files = sorted(TEMPLATES.rglob("templates.yaml"))
    found = [load_templates(TEMPLATES, "/".join(file.parent.relative_to(TEMPLATES).parts)) for file in files]
    assert sum(map(len, found)) == 2085
    assert any(name.endswith(" ") for templates in found for name in templates)
