"""Every task is found by name, and one door leads to its rows, template and examples."""

import dataclasses
import json
import shutil

import pytest

from elm_jax.errors import UserError
from elm_jax.prompting.render import render
from elm_jax.records import RowCounts
from elm_jax.tasks import mini, raw_rows, rendering, specs, subsets, task_templates
from elm_jax.tasks.data_source import Source
from elm_jax.tasks.datasets import Training
from tests.shared_data import DATA, TEMPLATES

STORY = "InputStoryid,InputSentence1,InputSentence2,InputSentence3,InputSentence4,"
STORY += "RandomFifthSentenceQuiz1,RandomFifthSentenceQuiz2,AnswerRightEnding\n"
ENDING = """templates:
  x: !Template
    answer_choices: '{{sentence_quiz1}} ||| {{sentence_quiz2}}'
    id: x
    jinja: '{{input_sentence_1}} ||| {{answer_choices[answer_right_ending - 1]}}'
    name: Choose Story Ending
"""


def load_rows(spec, split, data_dir=None, *, rows=None, **source):
    where = Source(data_dir=data_dir, splits={spec.dataset: split}, limit=rows, **source)
    return raw_rows.load_rows(spec, where)


def examples(spec, split, **source):
    return rendering.examples(spec, split, source=Source(**source))


@pytest.fixture(autouse=True)
def an_empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("ELM_JAX_CACHE", str(tmp_path / "cache"))


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


@pytest.mark.parametrize(
    ("group", "count"), [("train", 296), ("unseen", 113), ("bigbench", 13), ("targets", 16)]
)
def test_a_group_has_its_tasks_alone(group, count):
    found = specs.task_specs(group)
    assert len(found) == count
    assert {spec.group for spec in found} == {group}


def test_the_embedded_suite_is_one_group_of_two():
    of_both = specs.task_specs("mini")
    assert of_both == mini.task_specs()
    assert {spec.group for spec in of_both} == {"mini-train", "mini-unseen"}
    assert {specs.get_listed_group(spec) for spec in of_both} == {"mini"}


def test_a_task_says_what_evaluation_reads():
    splits = {
        name: specs.find_task(name) for name in ("dream/baseline", "trec/trec1", "anli_r1/must be true")
    }
    found = {name: (spec.split, spec.evaluation_split) for name, spec in splits.items()}
    assert found == {
        "dream/baseline": ("train", "validation"),
        "trec/trec1": ("train", "test"),
        "anli_r1/must be true": ("validation", None),
    }


def test_the_embedded_suite_is_there():
    embedded = [spec for spec in specs.task_specs() if spec.group.startswith("mini")]
    assert embedded == mini.task_specs()


def test_an_unknown_group_or_task_is_an_error_with_the_nearest():
    with pytest.raises(UserError, match=r"No group named 'trian' .* Did you mean 'train'"):
        specs.task_specs("trian")
    with pytest.raises(UserError, match=r"No task named 'dream/basline' .* Did you mean 'dream/baseline'"):
        specs.find_task("dream/basline")


def test_a_story_is_read_rendered_and_labelled(folders):
    spec = specs.find_task("story_cloze/Choose Story Ending")
    made = examples(spec, "validation", **folders)
    (example,) = made.examples
    assert example.row_id == "story_cloze/validation/0"
    assert (example.input, example.target) == ("One.", "Six.")
    assert (example.choices, example.label) == (("Five.", "Six."), 1)


def test_a_missing_directory_is_one_clear_sentence(folders, tmp_path):
    spec = specs.find_task("story_cloze/Choose Story Ending")
    for wrong, message in [
        ({"data_dir": None}, r"got none\. Fix: ask its authors"),
        ({"data_dir": tmp_path / "absent"}, "got no directory"),
        (
            {"templates_dir": None},
            "elm prompts fetch",
        ),
        ({"templates_dir": tmp_path / "absent"}, "got no directory"),
        ({"templates_dir": tmp_path}, "No templates named 'story_cloze/2016'"),
    ]:
        with pytest.raises(UserError, match=message):
            examples(spec, "validation", **(folders | wrong))


def test_a_missing_file_names_the_splits_that_are_there(tmp_path):
    (tmp_path / "dream").mkdir()
    (tmp_path / "dream" / "dev.json").write_text("[]")
    with pytest.raises(UserError, match=r"train split of 'dream'.*got no file.*splits validation"):
        load_rows(specs.find_task("dream/baseline"), "train", tmp_path)


def test_an_unknown_split_is_an_error_with_the_nearest(folders):
    spec = specs.find_task("story_cloze/Choose Story Ending")
    with pytest.raises(UserError, match=r"No split named 'valid' .* Did you mean 'validation'"):
        load_rows(spec, "valid", folders["data_dir"])


def test_a_prompt_that_the_templates_lack_is_an_error_with_the_nearest(folders):
    spec = dataclasses.replace(specs.find_task("story_cloze/Choose Story Ending"), prompt="Choose Ending")
    with pytest.raises(UserError, match=r"No template named 'Choose Ending' .* 'Choose Story Ending'"):
        task_templates.find_template(spec, folders["templates_dir"])


def test_a_template_that_applies_to_no_row_is_an_error(folders):
    file = folders["templates_dir"] / "story_cloze/2016/templates.yaml"
    file.write_text(ENDING.replace(" ||| {{answer_choices", " {{answer_choices"))
    spec = specs.find_task("story_cloze/Choose Story Ending")
    with pytest.raises(UserError, match="1 rows of the validation split"):
        examples(spec, "validation", **folders)


def test_fetched_templates_are_used_where_no_directory_is_given(folders, tmp_path):
    spec = specs.find_task("story_cloze/Choose Story Ending")
    assert not task_templates.has_template(spec)
    shutil.copytree(folders["templates_dir"], tmp_path / "cache" / "promptsource" / "0.2.3" / "templates")
    assert task_templates.has_template(spec)
    given = task_templates.find_template(spec, folders["templates_dir"])
    # PromptSource's release in the cache is no stranger's, as a directory that is given may be.
    assert given.foreign
    assert task_templates.find_template(spec) == dataclasses.replace(given, foreign=False)


def test_a_template_that_reads_a_column_the_dataset_has_not_is_an_error(folders):
    file = folders["templates_dir"] / "story_cloze/2016/templates.yaml"
    file.write_text(ENDING.replace("input_sentence_1", "sentence_1"))
    spec = specs.find_task("story_cloze/Choose Story Ending")
    with pytest.raises(UserError, match=r"got 'sentence_1'"):
        task_templates.find_template(spec, folders["templates_dir"])


@pytest.fixture
def dreams(tmp_path):
    """A data directory with 12 dialogues of DREAM in its training split and 3 in its validation split."""
    (tmp_path / "data" / "dream").mkdir(parents=True)
    for split, count in [("train", 12), ("dev", 3)]:
        dialogues = [
            [["W: Hi."], [{"question": f"{n}?", "choice": ["W", "M"], "answer": "M"}], str(n)]
            for n in range(count)
        ]
        (tmp_path / "data" / "dream" / f"{split}.json").write_text(json.dumps(dialogues))
    return tmp_path / "data"


def test_training_rows_are_the_start_of_the_papers_permutation(dreams):
    spec = specs.find_task("dream/baseline")
    numbers = list(subsets.shuffled_rows(12, 12, seed=42))
    every = load_rows(spec, "train", dreams)
    assert [row["row_id"] for row in every] == [f"dream/train/{number}" for number in numbers]
    assert [row["question"] for row in every] == [f"{number}?" for number in numbers]
    assert load_rows(spec, "train", dreams, rows=4) == every[:4]
    assert load_rows(spec, "train", dreams, rows=4, seed=1) != every[:4]


def test_other_splits_are_whole_and_in_order_unless_a_number_is_given(dreams):
    spec = specs.find_task("dream/baseline")
    every = load_rows(spec, "validation", dreams)
    assert [row["question"] for row in every] == ["0?", "1?", "2?"]
    few = load_rows(spec, "validation", dreams, rows=2)
    assert few == [every[number] for number in subsets.shuffled_rows(3, 2, seed=42)]


def test_training_takes_no_more_rows_than_the_paper(dreams, monkeypatch):
    monkeypatch.setattr(raw_rows, "training", lambda dataset, prompt: Training(1, 1.0, 1, 1, 1, rows=5))
    assert len(load_rows(specs.find_task("dream/baseline"), "train", dreams)) == 5
    assert len(load_rows(specs.find_task("dream/baseline"), "validation", dreams)) == 3


def write_dbpedia(directory, labels):
    (directory / "dbpedia_csv").mkdir(parents=True)
    lines = "".join(f'"{label}","title {n}","text"\n' for n, label in enumerate(labels))
    (directory / "dbpedia_csv" / "train.csv").write_text(lines)


DBPEDIA = "dbpedia_14/pick_one_category_for_the_following_text"


def test_the_first_rows_are_taken_only_when_asked_for_and_only_where_the_original_did(dreams):
    write_dbpedia(dreams, [1] * 9)
    first = load_rows(specs.find_task(DBPEDIA), "train", dreams, rows=3, faithful=["first_rows"])
    assert [row["title"] for row in first] == ["title 0", "title 1", "title 2"]
    drawn = load_rows(specs.find_task(DBPEDIA), "train", dreams, rows=3)
    assert [row["title"] for row in drawn] == [f"title {n}" for n in subsets.shuffled_rows(9, 3, seed=42)]
    spec = specs.find_task("dream/baseline")
    assert load_rows(spec, "train", dreams, faithful=["first_rows"]) == load_rows(spec, "train", dreams)


def test_dbpedias_labels_are_right_unless_the_originals_shift_is_asked_for(tmp_path):
    write_dbpedia(tmp_path, [1, 14, 13])
    spec = specs.find_task(DBPEDIA)
    right = load_rows(spec, "train", tmp_path, faithful=["first_rows"])
    assert [row["label"] for row in right] == [0, 13, 12]
    shifted = load_rows(spec, "train", tmp_path, faithful=["first_rows", "dbpedia_labels"])
    # There is no fifteenth class, so the second row goes.
    assert [(row["row_id"][-1], row["label"]) for row in shifted] == [("0", 1), ("2", 13)]


def write_combinations(directory):
    for source in specs.all_datasets()["conceptual_combinations"].sources[:1]:
        for file in source.files["default"]:
            (directory / file).parent.mkdir(parents=True)
            example = {"input": file.split("/")[2], "target_scores": {"a": 1, "b": 0}}
            two = {"input": "two right", "target_scores": {"a": 1, "b": 1}}
            (directory / file).write_text(json.dumps({"examples": [example, two]}))


def test_homonyms_count_once_unless_asked_for_twice(tmp_path):
    write_combinations(tmp_path)
    spec = specs.find_task("conceptual_combinations/zero_shot")
    once = examples(spec, spec.split, data_dir=tmp_path)
    # Rows with two right choices are left out and counted.
    assert once.counts == RowCounts(12, 6, {"does not apply": 6})
    twice = examples(spec, spec.split, data_dir=tmp_path, faithful=["homonyms"])
    homonyms = [example for example in twice.examples if "homonyms" in example.input]
    assert len(twice.examples) == 7
    assert [example.row_id for example in homonyms] == [
        "conceptual_combinations/default/6",
        "conceptual_combinations/default/12",
    ]
    assert twice.examples[:6] == once.examples


def test_empty_renderings_are_kept_only_when_asked_for(folders):
    file = folders["templates_dir"] / "story_cloze/2016/templates.yaml"
    file.write_text(ENDING.replace("answer_choices[answer_right_ending - 1]", "answer_choices[9:] | join"))
    spec = specs.find_task("story_cloze/Choose Story Ending")
    kept = examples(spec, "validation", faithful=["empty_renderings"], **folders)
    assert [example.target for example in kept.examples] == [""]
    with pytest.raises(UserError, match="can be used, got none"):
        examples(spec, "validation", **folders)


def test_an_unknown_switch_is_an_error_with_the_nearest(dreams):
    with pytest.raises(UserError, match=r"No switch named 'homonym' .* 'homonyms'"):
        load_rows(specs.find_task("dream/baseline"), "train", dreams, faithful=["homonym"])


def test_texts_of_bigbench_and_ct0_are_never_truncated(tmp_path):
    long = "word " * 1000
    files = {
        "bigbench/hindu_knowledge/task.json": {
            "examples": [{"input": long, "target_scores": {"a|b": 0, "c": 1}}],
        },
        "ct0_data/asset/asset/simplification_2.validation.json": {"src": [long], "tgt": [["x", "y"]]},
    }
    for file, content in files.items():
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text(json.dumps(content))
    spec = specs.find_task("hindu_knowledge/zero_shot")
    (example,) = examples(spec, spec.split, data_dir=tmp_path).examples
    assert example.input == f"Q: {long}\n choice: a|b\n choice: c\nA:"
    assert (example.choices, example.label, example.target) == (("a|b", "c"), 1, "c")
    spec = specs.find_task("asset/simplification_2")
    (example,) = examples(spec, spec.split, data_dir=tmp_path).examples
    assert (example.input, example.target, example.choices) == (long.strip(), "x", ())
    # Another prompt's file has other rows, so ids name the prompt.
    assert example.row_id == "asset/simplification_2/validation/0"


def test_embedded_examples_need_no_directory_and_follow_the_seed():
    spec = specs.task_specs("mini-unseen")[0]
    made = examples(spec, "validation", seed=1)
    assert made == examples(spec, "validation", seed=1)
    assert made != examples(spec, "validation", seed=2)
    assert made.counts == RowCounts(len(made), len(made))
    assert all(example.label is not None for example in made.examples)


@pytest.mark.shared_data
@pytest.mark.parametrize(("dataset", "count"), [("dream", 2040), ("cosmos_qa", 2985), ("story_cloze", 1871)])
def test_real_rows_render_with_a_target_among_their_choices(dataset, count):
    found = [spec for spec in specs.task_specs() if spec.dataset == dataset]
    rows = load_rows(found[0], "validation", DATA)
    assert len(rows) == count
    for spec in found:
        # Every 60th row: the checks of the annotations make rendering slow in tests.
        made = render(rows[::60], task_templates.find_template(spec, TEMPLATES))
        assert not made.counts.left_out
        assert {example.label is None for example in made.examples} == {spec.metric != "accuracy"}


BIGBENCH = {
    "code_line_description": 60,
    "conceptual_combinations": 103,
    "hindu_knowledge": 175,
    "known_unknowns": 46,
    "logic_grid_puzzle": 1000,
    "logical_deduction": 1500,
    "misconceptions": 219,
    "strategyqa": 2290,
    "winowhy": 2865,
}


@pytest.mark.shared_data
@pytest.mark.parametrize(("dataset", "count"), BIGBENCH.items())
def test_real_bigbench_tasks_have_as_many_rows_as_published(dataset, count):
    spec = specs.find_task(f"{dataset}/zero_shot")
    rows = load_rows(spec, spec.split, DATA)
    assert len(rows) == count == specs.all_datasets()[dataset].splits["default"]
    made = render(rows[::60], task_templates.find_template(spec), truncate=None)
    assert not made.counts.left_out
    assert all(example.label is not None for example in made.examples)
