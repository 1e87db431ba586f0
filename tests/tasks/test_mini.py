"""The embedded suite has the shape it promises, and gives nothing away but its facts."""

import functools
import re
from collections import Counter, defaultdict

import jinja2
import pytest

from elm_jax.errors import UserError
from elm_jax.prompting.template_files import load_templates
from elm_jax.prompting.templates import Rendered, Template
from elm_jax.tasks import mini, mini_words

SEED = 7
SPECS = mini.task_specs()
TRAIN = [spec for spec in SPECS if spec.group == "mini-train"]
UNSEEN = [spec for spec in SPECS if spec.group == "mini-unseen"]


def template_of(spec) -> Template:
    return load_templates(mini.PROMPTS_DIR, spec.dataset)[spec.prompt]


@functools.cache
def rendered(spec, split):
    """Every row through plain jinja, which is quick enough here to look at all of them."""
    template = template_of(spec)
    choices, prompt = (jinja2.Template(text) for text in (template.answer_choices, template.jinja))
    found = []
    for row in mini.make_rows(spec.dataset, split, seed=SEED):
        shown = [choice.strip() for choice in choices.render(row).split("|||")]
        asked, target = prompt.render(row, answer_choices=shown).split("|||")
        found.append(Rendered(asked.strip(), target.strip(), tuple(shown)))
    return found


def words_of(texts):
    return {word for text in texts for word in text.split()}


def test_six_families_each_have_two_training_datasets_and_one_unseen_with_two_prompts_each():
    shape = defaultdict(Counter)
    for spec in SPECS:
        shape[spec.family, spec.group][spec.dataset] += 1
    families = {spec.family for spec in SPECS}
    assert len(families) == 6
    for family in families:
        assert sorted(shape[family, "mini-train"].values()) == [2, 2]
        assert sorted(shape[family, "mini-unseen"].values()) == [2]
    assert (len(TRAIN), len(UNSEEN)) == (24, 12)
    assert {spec.split for spec in TRAIN} == {"train"}
    assert {spec.split for spec in UNSEEN} == {"validation"}


def test_no_prompt_of_an_unseen_dataset_is_worded_like_a_training_one():
    assert not {template_of(spec).jinja for spec in TRAIN} & {template_of(spec).jinja for spec in UNSEEN}
    names = [spec.prompt for spec in SPECS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.id)
def test_every_row_renders_to_a_short_prompt_whose_target_is_the_labelled_choice(spec):
    for split in mini.SPLITS:
        for row, made in zip(
            mini.make_rows(spec.dataset, split, seed=SEED), rendered(spec, split), strict=True
        ):
            assert made.target == made.choices[row["label"]]
            assert 2 <= len(made.choices) <= 4
            assert len(set(made.choices)) == len(made.choices)
            assert len(made.input.split()) <= 25


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.id)
def test_our_renderer_gives_what_jinja_gives(spec):
    rows = mini.make_rows(spec.dataset, "validation", seed=SEED)[:3]
    assert [template_of(spec).render(row) for row in rows] == rendered(spec, "validation")[:3]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.id)
def test_no_input_is_repeated_within_a_split_or_between_them(spec):
    inputs = [made.input for split in mini.SPLITS for made in rendered(spec, split)]
    assert len(inputs) == sum(mini.SPLITS.values()) == len(set(inputs))


@pytest.mark.parametrize("dataset", mini.DATASETS)
def test_the_right_choice_stands_in_every_position_equally_often(dataset):
    for split, count in mini.SPLITS.items():
        labels = Counter(row["label"] for row in mini.make_rows(dataset, split, seed=SEED))
        choices = mini.DATASETS[dataset].choices
        assert labels == dict.fromkeys(range(choices), count // choices)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.id)
def test_knowing_how_often_each_choice_is_right_in_training_does_not_help(spec):
    right = Counter(made.target for made in rendered(spec, "train"))
    found = rendered(spec, "validation")
    hits = [max(made.choices, key=right.__getitem__) == made.target for made in found]
    chance = sum(1 / len(made.choices) for made in found) / len(found)
    assert sum(hits) / len(hits) < chance + 0.10


def test_the_same_seed_gives_the_same_rows_and_another_gives_others():
    for dataset in mini.DATASETS:
        assert mini.make_rows(dataset, "train", seed=1) == mini.make_rows(dataset, "train", seed=1)
        assert mini.make_rows(dataset, "train", seed=1) != mini.make_rows(dataset, "train", seed=2)
    assert mini.make_statements(1) == mini.make_statements(1)
    assert mini.make_statements(1) != mini.make_statements(2)


def test_every_word_of_prompts_and_choices_is_in_the_statements():
    known = words_of(mini.make_statements(SEED))
    for spec in SPECS:
        made = rendered(spec, "train") + rendered(spec, "validation")
        unknown = words_of([text for one in made for text in (one.input, *one.choices)]) - known
        assert not unknown, spec.id
    assert 300 <= len(known) <= 500


def test_no_statement_holds_a_prompt_or_the_beginning_of_an_answer_to_one():
    statements = mini.make_statements(SEED)
    for spec in SPECS:
        wording = re.split(r"{{.*?}}", template_of(spec).jinja.split("|||")[0].strip())
        asked = re.compile(".+".join(re.escape(piece) for piece in wording))
        assert not [text for text in statements if asked.search(text)], spec.id


def test_every_fact_is_stated():
    statements = mini.make_statements(SEED)
    said = {(word, other) for text in statements for word in text.split() for other in text.split()}
    for dataset in mini.DATASETS.values():
        assert {
            (word, answer) for subject, answer in dataset.facts for word in subject.split(" and ")
        } <= said


def test_facts_are_what_anyone_would_say():
    assert dict(mini_words.DAY_AFTER)["sunday"] == "monday"
    assert dict(mini_words.MONTH_AFTER)["december"] == "january"
    assert dict(mini_words.OPPOSITE_OF)["cold"] == "hot"
    assert dict(mini_words.LETTER_OF)["robin"] == "r"
    assert "an owl is a bird ." in mini.make_statements(SEED)


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'mini_calendar_day'"):
        mini.make_rows("mini_calender_day", "train", seed=0)
    with pytest.raises(UserError, match="train or validation, got 'test'"):
        mini.make_rows("mini_calendar_day", "test", seed=0)
