"""Every task is found by name, and one door leads to its rows, template and examples."""

import dataclasses
import json
from pathlib import Path

import pytest

from elm_jax.errors import UserError
from elm_jax.prompting.render import render
from elm_jax.tasks import columns, mini, sources, specs

SHARED = Path(__file__).parents[2] / ".." / "shared"
DATA = SHARED / "data"
TEMPLATES = DATA / "promptsource" / "templates"
EXPERTS = SHARED / "reference" / "experts.json"
METRICS = {"accuracy": "accuracy", "rougeL": "rouge_l", "em": "exact_match"}

STORY = "InputStoryid,InputSentence1,InputSentence2,InputSentence3,InputSentence4,"
STORY += "RandomFifthSentenceQuiz1,RandomFifthSentenceQuiz2,AnswerRightEnding\n"
ENDING = """templates:
  x: !Template
    answer_choices: '{{sentence_quiz1}} ||| {{sentence_quiz2}}'
    id: x
    jinja: '{{input_sentence_1}} ||| {{answer_choices[answer_right_ending - 1]}}'
    name: Choose Story Ending
"""


@pytest.fixture
def folders(tmp_path):
    """A data directory with one story, and a directory of templates for it."""
    for file, content in [
        ("data/story_cloze/2016.csv", STORY + "id,One.,Two.,Three.,Four.,Five.,Six.,2\n"),
        ("templates/story_cloze/2016/templates.yaml", ENDING),
    ]:
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text(content)
    return {"data_dir": tmp_path / "data", "templates_dir": tmp_path / "templates"}


def test_every_task_is_one_dataset_and_prompt_with_an_id_of_its_own():
    found = specs.task_specs()
    assert len({spec.id for spec in found}) == len(found)
    assert all(spec.id == f"{spec.dataset}/{spec.prompt}" for spec in found)


@pytest.mark.parametrize(("group", "count"), [("train", 18), ("unseen", 5)])
def test_a_group_has_its_tasks_alone(group, count):
    found = specs.task_specs(group)
    assert len(found) == count
    assert {spec.group for spec in found} == {group}


def test_the_embedded_suite_is_there():
    embedded = [spec for spec in specs.task_specs() if spec.group.startswith("mini")]
    assert embedded == mini.task_specs()


def test_an_unknown_group_or_task_is_an_error_with_the_nearest():
    with pytest.raises(UserError, match=r"No group named 'trian' .* Did you mean 'train'"):
        specs.task_specs("trian")
    with pytest.raises(UserError, match=r"No task named 'dream/basline' .* Did you mean 'dream/baseline'"):
        specs.find_task("dream/basline")


def test_the_catalogue_names_only_readers_and_adapters_that_exist():
    for dataset in specs.datasets().values():
        assert dataset.reader in sources.READERS
        assert dataset.adapter in columns.ADAPTERS
        assert dataset.split in dataset.files


def test_a_story_is_read_rendered_and_labelled(folders):
    spec = specs.find_task("story_cloze/Choose Story Ending")
    made = specs.examples(spec, "validation", **folders)
    (example,) = made.examples
    assert example.row_id == "story_cloze/validation/0"
    assert (example.input, example.target) == ("One.", "Six.")
    assert (example.choices, example.label) == (("Five.", "Six."), 1)


def test_a_missing_directory_is_one_clear_sentence(folders, tmp_path):
    spec = specs.find_task("story_cloze/Choose Story Ending")
    for wrong, message in [
        ({"data_dir": None}, "no data directory was given"),
        ({"data_dir": tmp_path / "absent"}, "no directory is there"),
        ({"templates_dir": None}, "no directory of templates was given"),
        ({"templates_dir": tmp_path / "absent"}, "no directory is there"),
        ({"templates_dir": tmp_path}, "No templates named 'story_cloze/2016'"),
    ]:
        with pytest.raises(UserError, match=message):
            specs.examples(spec, "validation", **(folders | wrong))


def test_a_missing_file_names_the_splits_that_are_there(tmp_path):
    (tmp_path / "dream").mkdir()
    (tmp_path / "dream" / "dev.json").write_text("[]")
    with pytest.raises(UserError, match=r"train split of 'dream'.*no file is there.*there are: validation"):
        specs.load_rows(specs.find_task("dream/baseline"), "train", tmp_path)


def test_an_unknown_split_is_an_error_with_the_nearest(folders):
    spec = specs.find_task("story_cloze/Choose Story Ending")
    with pytest.raises(UserError, match=r"No split named 'valid' .* Did you mean 'validation'"):
        specs.load_rows(spec, "valid", folders["data_dir"])


def test_a_prompt_that_the_templates_lack_is_an_error_with_the_nearest(folders):
    spec = dataclasses.replace(specs.find_task("story_cloze/Choose Story Ending"), prompt="Choose Ending")
    with pytest.raises(UserError, match=r"No template named 'Choose Ending' .* 'Choose Story Ending'"):
        specs.template_for(spec, folders["templates_dir"])


def test_a_template_that_applies_to_no_row_is_an_error(folders):
    file = folders["templates_dir"] / "story_cloze/2016/templates.yaml"
    file.write_text(ENDING.replace(" ||| {{answer_choices", " {{answer_choices"))
    spec = specs.find_task("story_cloze/Choose Story Ending")
    with pytest.raises(UserError, match=r"applies to none of the 1 rows of the validation split"):
        specs.examples(spec, "validation", **folders)


def test_embedded_examples_need_no_directory_and_follow_the_seed():
    spec = specs.task_specs("mini-unseen")[0]
    made = specs.examples(spec, "validation", seed=1)
    assert made == specs.examples(spec, "validation", seed=1)
    assert made != specs.examples(spec, "validation", seed=2)
    assert made.skipped == made.outside == 0
    assert all(example.label is not None for example in made.examples)


@pytest.mark.skipif(not EXPERTS.exists(), reason="the reference facts are not beside the checkout")
def test_prompts_configs_splits_and_metrics_are_the_papers():
    facts = json.loads(EXPERTS.read_text())
    for dataset in specs.datasets().values():
        fact = facts["train" if dataset.group == "train" else "unseen_eval"][dataset.name]
        assert list(dataset.prompts) == fact["prompts"]
        assert dataset.templates == fact["promptsource"]
        assert dataset.config == (None if fact["config"] == "none" else fact["config"])
        assert dataset.split == fact.get("train_split", fact.get("split"))
        for prompt, detail in fact.get("prompt_details", {}).items():
            assert dataset.prompts[prompt] == METRICS[detail["seen_metric"]]


@pytest.mark.skipif(not TEMPLATES.exists(), reason="the real data are not beside the checkout")
@pytest.mark.parametrize(("dataset", "count"), [("dream", 2040), ("cosmos_qa", 2985), ("story_cloze", 1871)])
def test_real_rows_render_with_a_target_among_their_choices(dataset, count):
    found = [spec for spec in specs.task_specs() if spec.dataset == dataset]
    rows = specs.load_rows(found[0], "validation", DATA)
    assert len(rows) == count
    for spec in found:
        # Every 60th row: the checks of the annotations make rendering slow in tests.
        made = render(rows[::60], specs.template_for(spec, TEMPLATES))
        assert (made.skipped, made.outside) == (0, 0)
        assert {example.label is None for example in made.examples} == {spec.metric != "accuracy"}
