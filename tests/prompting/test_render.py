"""Rows become prompted examples, and what does not is counted."""

import pytest

from elm_jax.errors import RowError, UserError
from elm_jax.prompting.render import Renderings, render, render_row
from elm_jax.prompting.templates import Template
from elm_jax.records import PromptedExample, RowCounts

REVIEW = Template(
    "review", "id", "{% if text %}{{text}} ||| {{answer_choices[label]}}{% endif %}", "bad ||| good"
)


def test_a_row_becomes_an_example_with_its_label():
    made = render([{"text": "fine", "label": 1, "row_id": "x/0"}], REVIEW)
    example = PromptedExample("x/0", "fine", "good", ("bad", "good"), 1)
    assert made == Renderings((example,), RowCounts(1, 1))


def test_rows_are_numbered_where_they_have_no_id_and_skipped_ones_count():
    made = render([{"text": "a", "label": 0}, {"text": "", "label": 0}, {"text": "b", "label": 1}], REVIEW)
    assert [example.row_id for example in made.examples] == ["0", "2"]
    assert made.counts == RowCounts(3, 2, {"does not apply": 1})


def test_another_column_can_hold_the_id():
    rows = [{"text": "a", "label": 0, "key": 17}]
    assert render(rows, REVIEW, row_id="key").examples[0].row_id == "17"


@pytest.mark.parametrize("row", [{"a": "", "b": "t"}, {"a": "i", "b": " "}])
def test_an_empty_input_or_target_is_skipped_unless_kept(row):
    template = Template("t", "id", "{{a}} ||| {{b}}")
    lack = "input" if not row["a"] else "target"
    assert render([row], template).counts == RowCounts(1, 0, {f"empty {lack}": 1})
    kept = render([row], template, keep_empty=True)
    assert kept.examples == (PromptedExample("0", row["a"], row["b"].strip()),)


def test_a_row_to_which_the_template_does_not_apply_is_kept_as_empty_texts():
    kept = render([{"text": "", "label": 0}], REVIEW, keep_empty=True)
    assert kept == Renderings((PromptedExample("0", "", ""),), RowCounts(1, 1))


def test_a_row_with_a_target_outside_its_choices_is_left_out_or_kept_without_a_label():
    negated = Template("t", "id", "{{text}} ||| {{answer_choices[label]}} review.", "bad ||| good")
    rows = [{"text": "fine", "label": 1}]
    assert render(rows, negated).counts == RowCounts(1, 0, {"outside choices": 1})
    kept = render(rows, negated, keep_empty=True)
    assert kept.examples == (PromptedExample("0", "fine", "good review.", ("bad", "good"), None),)
    assert render(rows, negated, is_ranked=False).examples == kept.examples
    assert render([{"text": "", "label": 1}], negated, is_ranked=False).counts.left_out


def test_the_label_is_found_though_the_choices_have_white_space_around_them():
    template = Template("t", "id", "q ||| {{choices[label]}}", "{{choices | join('|||')}}")
    made = render([{"choices": [" a", "b\n"], "label": 1}], template)
    assert made.examples[0].label == 1
    assert made.examples[0].choices == ("a", "b")


def test_a_template_without_choices_gives_none():
    made = render([{"a": "x"}], Template("t", "id", "{{a}} ||| y"))
    assert made == Renderings((PromptedExample("0", "x", "y", (), None),), RowCounts(1, 1))


def test_the_cut_is_passed_on():
    template = Template("t", "id", "{{a}} ||| y")
    assert render([{"a": "x" * 30}], template, truncate=20).examples[0].input == "x" * 17 + "..."
    assert render([{"a": "x" * 30}], template, truncate=None).examples[0].input == "x" * 30


def test_rows_that_are_cut_are_counted():
    template = Template("t", "id", "{{a}} ||| y")
    assert render([{"a": "x" * 30}, {"a": "x"}], template, truncate=20).counts == RowCounts(2, 2, cut=1)


def test_the_row_that_fails_is_named():
    with pytest.raises(RowError, match="row '1': expected column 'text'") as raised:
        render_row({"label": 0}, REVIEW, "1")
    assert (raised.value.reason, raised.value.column) == ("missing value", "text")


def test_a_column_that_some_rows_lack_leaves_these_out_and_one_that_all_lack_is_refused():
    made = render([{"text": "a", "label": 0}, {"label": 0}], REVIEW)
    assert made.counts == RowCounts(2, 1, {"missing value": 1})
    assert [(each.row_id, each.reason) for each in made.unused] == [("1", "missing value")]
    with pytest.raises(UserError, match="'text'"):
        render([{"label": 0}, {"label": 0}], REVIEW)


def test_no_more_rows_are_read_than_give_the_limit_of_examples():
    rows = iter([{"text": "", "label": 0}, *({"text": "a", "label": 0} for _ in range(9))])
    made = render(rows, REVIEW, limit=2)
    assert made.counts == RowCounts(3, 2, {"does not apply": 1})
    assert len(list(rows)) == 7


@pytest.mark.parametrize("label", [-1, "-1", ""])
def test_a_withheld_label_leaves_its_row_out(label):
    made = render([{"text": "a", "label": label}, {"text": "a", "label": 1}], REVIEW, label="label")
    assert made.counts == RowCounts(2, 1, {"label": 1})
