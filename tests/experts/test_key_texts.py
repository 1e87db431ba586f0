"""Keys are texts in a named format, and the index is all experts' keys, one below the other."""

import numpy as np
import pytest

from elm_jax.errors import UserError
from elm_jax.experts.key_texts import TEXT_FORMATS, format_texts, sample_examples
from elm_jax.records import PromptedExample
from elm_jax.routing.key_index import build_key_index

ROW = PromptedExample("0", "Is it so?", "yes", ("no", "yes"), 1)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("instance", "Instance: Is it so?"),
        ("label", "Answer Choices: no, yes"),
        ("choice", "Answer Choices: {{a}} ||| {{b}}"),
        ("label_instance", "Answer Choices: no, yes, Instance: Is it so?"),
        ("choice_instance", "Answer Choices: {{a}} ||| {{b}}, Instance: Is it so?"),
        ("instance_new", "Is it so?"),
        ("label_new", "no, yes"),
        ("choice_new", "{{a}} ||| {{b}}"),
        ("label_instance_new", "no, yes</s>Is it so?"),
        ("choice_instance_new", "{{a}} ||| {{b}}</s>Is it so?"),
    ],
)
def test_a_row_is_written_as_the_original_wrote_it(name, expected):
    assert format_texts([ROW], name, "{{a}} ||| {{b}}") == (expected,)


def test_all_ten_formats_of_the_original_are_there():
    assert len(TEXT_FORMATS) == 10


def test_a_template_without_choices_reads_none_and_a_row_without_them_nothing():
    assert format_texts([ROW], "choice_new") == ("None",)
    assert format_texts([PromptedExample("0", "Tell!", "tale")], "label_new") == ("",)


def test_an_unknown_format_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match=r"No text format named 'instanse'.*'instance'"):
        format_texts([ROW], "instanse")


def rows(count):
    return [PromptedExample(str(number), "", "") for number in range(count)]


def test_a_sample_is_the_start_of_one_permutation():
    ids = [row.row_id for row in sample_examples(rows(50), 50, seed=3)]
    assert sorted(ids, key=int) == [str(number) for number in range(50)]
    assert ids != sorted(ids, key=int)
    assert [row.row_id for row in sample_examples(rows(50), 8, seed=3)] == ids[:8]
    assert [row.row_id for row in sample_examples(rows(50), 8, seed=4)] != ids[:8]


def test_a_sample_of_fewer_rows_is_all_of_them():
    assert {row.row_id for row in sample_examples(rows(3), 8, seed=0)} == {"0", "1", "2"}


def test_a_sample_of_nothing_is_refused():
    with pytest.raises(UserError, match="got 0"):
        sample_examples(rows(3), 0, seed=0)


def test_the_index_is_all_keys_in_the_order_of_the_experts(library, expert, keys):
    library.add(expert("dream/a"), keys("a0"))
    library.add(expert("cos_e/b", datasets=("cos_e", "quail")), keys("b0", "b1"))
    found = build_key_index(library)
    assert found.experts == ("cos_e/b", "dream/a")
    assert found.datasets == (("cos_e", "quail"), ("dream",))
    assert found.expert_of_row.tolist() == [0, 0, 1]
    assert found.texts == ("b0", "b1", "a0")
    np.testing.assert_array_equal(found.vectors, [[0, 1], [2, 3], [0, 1]])
    assert (found.embedder, found.text_format) == ("toy", "instance")
    assert build_key_index(library, ["dream/a", "cos_e/b"]).texts == ("a0", "b0", "b1")


def test_an_expert_asked_for_twice_is_indexed_once(library, expert, keys):
    library.add(expert("dream/a"), keys("a0"))
    assert build_key_index(library, ["dream/a", "dream/a"]).texts == ("a0",)


def test_experts_without_keys_are_named(library, expert, keys):
    library.add(expert("dream/a"), keys("a0"))
    library.add(expert("dream/b"))
    library.add(expert("dream/c"))
    with pytest.raises(UserError, match=r"2 of 3: 'dream/b', 'dream/c'"):
        build_key_index(library)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"embedder": "other"}, "'toy' of 'dream/a' and 'other' of 'dream/b'"),
        ({"text_format": "label"}, "'instance' of 'dream/a' and 'label' of 'dream/b'"),
        ({"width": 3}, "2 of 'dream/a' and 3 of 'dream/b'"),
    ],
)
def test_keys_made_differently_are_not_mixed(library, expert, keys, changes, said):
    library.add(expert("dream/a"), keys("a0"))
    library.add(expert("dream/b"), keys("b0", **changes))
    with pytest.raises(UserError, match=f"{said}.*elm index --rebuild"):
        build_key_index(library)


def test_an_empty_library_makes_no_index(library):
    with pytest.raises(UserError, match="library at"):
        build_key_index(library)
