"""A template renders as PromptSource does, and says what is wrong with it or with the row."""

import hashlib
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elm_jax.errors import RowError, UserError
from elm_jax.prompting import sandbox
from elm_jax.prompting.templates import Rendered, Template
from elm_jax.prompting.values import SEPARATOR_PLACEHOLDER


def template(jinja: str, answer_choices: str | None = None) -> Template:
    return Template(name="a name ", id="an id", jinja=jinja, answer_choices=answer_choices)


def cut(text: str) -> str:
    """What one value becomes where values are cut to 20 characters."""
    return template("{{text}}|||t").render({"text": text}, 20).input


def test_two_parts_are_input_and_target_stripped_at_their_ends_only():
    made = template("\n {{a}}\n\n  {{b}} \n|||\n{{b}} ").render({"a": "x", "b": "y"})
    assert made == Rendered("x\n\n  y", "y", None)


def test_one_part_means_that_the_template_does_not_apply():
    conditional = template("{% if label %}yes ||| {{label}}{% endif %}")
    assert conditional.render({"label": 0}) is None
    assert conditional.render({"label": 1}) == Rendered("yes", "1")


def test_three_parts_are_an_error_naming_the_template_and_the_row():
    with pytest.raises(UserError, match=r"Template 'a name ', row '7': .* got 3 parts"):
        template("a ||| b ||| c").render({}, row_id="7")


def test_a_separator_in_a_text_of_the_row_is_no_separator():
    made = template("{{a}} ||| {{b}}", "{{a}} ||| {{b}}").render({"a": "x|||y", "b": "|||"})
    assert made == Rendered("x|||y", "|||", ("x|||y", "|||"))


def test_a_separator_in_a_nested_text_is_one():
    assert template("{{a[0]}}").render({"a": ["x|||y"]}) == Rendered("x", "y")


def test_templates_may_split_on_the_protector():
    made = template('{{ document.split("' + SEPARATOR_PLACEHOLDER + '||")[1] }} ||| t')
    assert made.render({"document": "one|||||two"}).input == "two"


def test_choices_are_split_stripped_and_visible_to_the_template():
    made = template("{{answer_choices[0]}} ||| {{answer_choices[label]}}", "{{a}} ||| {{b}}  ")
    row = {"a": " x ", "b": "y", "label": 1}
    assert made.choices(row) == ("x", "y")
    assert made.render(row) == Rendered("x", "y", ("x", "y"))


def test_only_choices_that_read_no_column_are_fixed():
    assert template("", "no ||| {{ 'yes' }}").fixed_choices == ("no", "yes")
    assert template("", "no ||| {{ word }}").fixed_choices is None
    assert template("").fixed_choices is None


def test_without_choices_the_template_sees_none():
    assert template("{{answer_choices}} ||| t").render({}).input == "None"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a" * 25, "a" * 25),  # jinja's leeway of 5
        ("a" * 26, "a" * 17 + "..."),
        ("one two three four five six", "one two three..."),  # at a word's end
    ],
)
def test_a_value_is_cut_as_jinja_cuts(text, expected):
    assert cut(text) == expected


def test_targets_are_cut_and_choices_and_loops_are_not_joined_before():
    row = {"texts": ["a" * 30, "b" * 30]}
    made = template("{% for t in texts %}{{t}} {% endfor %}||| {{texts[0]}}", "{{texts[0]}}").render(row, 20)
    assert made == Rendered("a" * 17 + "... " + "b" * 17 + "...", "a" * 17 + "...", ("a" * 30,))


def test_the_cut_binds_tighter_than_an_addition():
    made = template("{{ a + b }} ||| t").render({"a": "a" * 30, "b": "b" * 30}, 20)
    assert made.input == "a" * 30 + "b" * 17 + "..."


def test_nothing_is_cut_on_request():
    text = "word " * 5000
    assert template("{{a}} ||| t").render({"a": text}, None).input == text.strip()


def test_too_short_a_cut_is_refused():
    with pytest.raises(UserError, match=r"truncate to be 3 .* got 2"):
        template("{{a}} ||| t").render({"a": "x"}, 2)


def test_a_missing_column_is_an_error_naming_it_and_the_others():
    with pytest.raises(UserError, match="column 'txt', got only 'text', 'label'"):
        template("{{txt}} ||| {{label}}").render({"text": "a", "label": 1})


def test_a_missing_column_of_the_choices_is_named_too():
    with pytest.raises(UserError, match="column 'ending'"):
        template("x ||| {{answer_choices[label - 1]}}", "{{ending}}").render({"label": 1})


def test_a_column_in_a_branch_not_taken_may_be_missing():
    assert template("{% if a %}{{b}}{% endif %}x ||| t").render({"a": 0}) == Rendered("x", "t")


def test_the_columns_are_those_read_from_the_row():
    made = template("{% set c = a %}{{c}}{{answer_choices}}{{range(3)}} ||| {{b.d}}", "{{e}}")
    assert made.columns == {"a", "b", "e"}


def test_a_column_named_answer_choices_is_refused():
    with pytest.raises(UserError, match="answer_choices"):
        template("x ||| y").render({"answer_choices": ["a"]})


def test_bytes_are_refused_instead_of_printed():
    with pytest.raises(RowError, match="column 'text'"):
        template("{{text}} ||| y").render({"text": b"hello"})


def test_a_text_of_ten_megabytes_is_refused_naming_the_row():
    with pytest.raises(UserError, match=r"row 'r3': .* 10,000,000 in column 'text'"):
        template("{{text}} ||| y").render({"text": "x" * 10_000_000}, row_id="r3")


def test_jinja_that_does_not_compile_is_an_error_naming_its_line():
    with pytest.raises(UserError, match=r"Template 'a name ': .* error in line 2"):
        template("a\n{% if %}b{% endif %} ||| c").render({})


def test_a_failure_of_python_within_a_template_names_row_and_kind():
    with pytest.raises(UserError, match=r"row '4': .* division by zero \(ZeroDivisionError\)"):
        template("{{ 1 / n }}||| t").render({"n": 0}, None, row_id="4")


def test_choice_depends_on_template_and_row_alone():
    words = [str(n) for n in range(1000)]
    made = template("{{ words | choice }} {{ words | choice }} ||| t")
    once = made.render({"words": words}, row_id="r")
    assert once == made.render({"words": words, "other": 1}, row_id="r")
    assert once != made.render({"words": words}, row_id="s")
    assert once != Template("a name ", "another id", made.jinja).render({"words": words}, row_id="r")
    assert once.input.split(" ")[0] != once.input.split(" ")[1]


def test_a_draw_is_a_hash_so_it_is_the_same_everywhere():
    digest = hashlib.blake2b(b"an id\nr\n1", digest_size=8).digest()
    made = template("{{ range(1000) | choice }} ||| t").render({}, row_id="r")
    assert made.input == str(int.from_bytes(digest, "big") % 1000)


def test_without_a_row_id_choice_depends_on_the_row():
    made = template("{{ range(1000) | choice }} ||| t")
    assert made.render({"a": 1, "b": 2}) == made.render({"b": 2, "a": 1})
    assert made.render({"a": 1}) != made.render({"a": 2})


def test_a_cut_changes_no_draw():
    made = template("{{ range(1000) | choice }} ||| t")
    assert made.render({}, 2048, row_id="r") == made.render({}, None, row_id="r")


def test_random_choices_without_a_column_differ_from_row_to_row():
    made = template("x ||| t", "{{ range(1000) | choice }}")
    assert made.choices({}, row_id="1") != made.choices({}, row_id="2")
    assert made.render({}, row_id="1").choices == made.choices({}, row_id="1")


def test_choice_from_an_empty_list_is_an_error():
    with pytest.raises(UserError, match="chooses from an empty list"):
        template("{{ [] | choice }} ||| t").render({})


def test_most_frequent_gives_all_ties_in_order():
    made = template("{{ items | most_frequent | join(',') }} ||| t")
    assert made.render({"items": ["b", "a", "c", "a", "b"]}).input == "b,a"


def test_zip_is_there():
    made = template("{% for a, b in zip(x, y) %}{{a}}{{b}}{% endfor %} ||| t")
    assert made.render({"x": [1, 2], "y": "ab"}).input == "1a2b"


def test_a_template_that_changes_its_row_changes_it_for_one_rendering_only():
    row = {"items": ["a"]}
    made = template("{{ items.append('b') | default('', True) }}{{ items | join }} ||| t")
    assert made.render(row) == made.render(row) == Rendered("ab", "t")
    assert row == {"items": ["a"]}


def test_a_template_is_compiled_once(monkeypatch):
    compiled = []
    original = sandbox.ENVIRONMENT.from_string
    monkeypatch.setattr(
        sandbox.ENVIRONMENT, "from_string", lambda *args: compiled.append(args) or original(*args)
    )
    made = template("compiled once {{a}} ||| t", "{{a}}")
    for number in range(5):
        made.render({"a": number})
    assert len(compiled) == 2  # the text and the choices


def test_a_template_travels_to_another_process():
    made = template("{{a}} ||| t", "no ||| yes")
    made.render({"a": 1})
    assert pickle.loads(pickle.dumps(made)) == made


SOURCE = (
    "{{ }} {% %} {# #} ||| if for in endfor endif set x row | join choice replace ~ + * ( ) [ ] . , 'a' 9 "
    "99999 range zip __class__ append - not macro endmacro recursive loop default"
)
TOKENS = st.sampled_from(SOURCE.split())


@settings(max_examples=150, deadline=None)
@given(st.lists(TOKENS, max_size=25))
def test_any_source_renders_or_is_a_user_error(tokens):
    made = template(" ".join(tokens), "{{x}}")
    try:
        result = made.render({"x": [1, 2], "row": "text"}, row_id="0")
    except UserError:
        return
    assert result is None or isinstance(result, Rendered)


@settings(max_examples=50, deadline=None)
@given(st.text(), st.text())
def test_any_text_of_a_row_arrives_as_it_is(a, b):
    made = Template("t", "id", "{{a}}|||{{b}}", own=True).render({"a": a, "b": b}, None)
    assert made == Rendered(a.strip(), b.strip())
