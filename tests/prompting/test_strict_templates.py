"""Templates of one's own: a limit cuts values and changes none, and a row that gives no text is refused."""

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elm_jax.errors import RowError
from elm_jax.prompting.render import render
from elm_jax.prompting.templates import Template

COLUMNS = {
    "n": st.integers(-50, 50),
    "m": st.integers(1, 9),
    "words": st.text("ab c", min_size=1).filter(str.strip),
    "bars": st.text("a|", min_size=1, max_size=12).filter(lambda text: text[0] != "|"),
    "long": st.text("xy ", min_size=30, max_size=60).filter(lambda text: len(text.split()) > 1),
}
NUMBERS = ["n", "m", "words | length", "words.split() | length - 1"]
TEXTS = ["words", "long", "long | upper", "words | replace('a', 'b')", "(words, long) | join(' ')"]
TEXTS += ["bars", "bars.split('|')[0]", "bars | replace('|||', '-')", "'in' if '|||' in bars else 'out'"]


def numbers(inner):
    pairs = st.tuples(inner, st.sampled_from("+-*"), inner).map(" ".join)
    return pairs.map("({})".format) | inner.map("({}) | abs".format)


def texts(inner):
    return st.tuples(inner, inner).map("({0[0]} ~ {0[1]})".format) | inner.map("({}) | title".format)


NUMBER = st.recursive(st.sampled_from(NUMBERS), numbers, max_leaves=4)
TEXT = st.recursive(st.sampled_from(TEXTS), texts, max_leaves=4)
CONDITION = st.tuples(NUMBER, st.sampled_from(["==", "<", ">=", "!="]), NUMBER).map(" ".join)
CHOICE = st.tuples(TEXT, CONDITION, NUMBER).map("({0[0]} if {0[1]} else {0[2]})".format)
EXPRESSION = NUMBER | TEXT | CONDITION | CHOICE


def strict(jinja, answer_choices=None):
    return Template("t", "id", jinja, answer_choices, strict=True, own=True)


def cut(text, length):
    return jinja2.Environment().from_string("{{ text | truncate(length) }}").render(text=text, length=length)


@settings(max_examples=100, deadline=None)
@given(
    row=st.fixed_dictionaries(COLUMNS),
    expressions=st.lists(EXPRESSION, min_size=1, max_size=3),
    length=st.integers(8, 40) | st.none(),
)
def test_a_target_is_what_jinja_alone_computes_each_value_cut(row, expressions, length):
    alone = jinja2.Environment()
    values = [str(alone.compile_expression(expression)(**row)) for expression in expressions]
    expected = "-".join(value if length is None else cut(value, length) for value in values).strip()
    jinja = "q ||| " + "-".join("{{ " + expression + " }}" for expression in expressions)
    made = strict(jinja).render(row, length)
    assert made.target == expected
    assert made.cut == (length is not None and any(cut(value, length) != value for value in values))


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("a * b", "9"),
        ("a == b", "True"),
        ("a + b", "6"),
        ("w.split() | length - 1", "2"),
        ("'}}' ~ a", "}}3"),
    ],
)
@pytest.mark.parametrize("truncate", [None, 3, 2048])
def test_no_limit_changes_what_an_expression_computes(expression, expected, truncate):
    row = {"a": 3, "b": 3, "w": "x y z"}
    made = strict("q ||| {{ " + expression + " }}").render(row, truncate)
    assert made.target == expected


def test_a_text_that_is_computed_with_is_whole_and_the_text_that_is_written_is_cut():
    jinja = "{% set s %}{{ a }}{% endset %}{% macro m(x) %}{{ x }}!{% endmacro %}"
    jinja += "{{ s | length }} {{ m(a) | length }} ||| {{ s }}"
    made = strict(jinja).render({"a": "x" * 30}, 20)
    assert (made.input, made.target) == ("30 31", "x" * 17 + "...")


@pytest.mark.parametrize(
    "block",
    [
        "{% filter upper %}{{ a }}{% endfilter %}",
        "{% macro m() %}{{ caller() | upper }}{% endmacro %}{% call m() %}{{ a }}{% endcall %}",
    ],
)
def test_a_block_that_is_written_is_cut_as_a_value_is(block):
    made = strict(block + " ||| {{ a }}").render({"a": "x" * 30}, 20)
    assert (made.input, made.target, made.cut) == ("X" * 17 + "...", "x" * 17 + "...", True)


@pytest.mark.parametrize(
    ("jinja", "parts"),
    [
        ("{{ a }}{{ ' ||| ' }}{{ b }}", ("x ||| y", "b")),
        ("{{ [a, b] | join('|||') }}", ("x ||| y", "b")),
        ("{{ '{} ||| {}'.format(a, b) }}", ("x ||| y", "b")),
        ("{{ a.split('|||')[1] }} ||| {{ a | replace('|||', '+') }}", ("y", "x + y")),
        ("{{ a == 'x ||| y' }} ||| {{ '|||' in a }}", ("True", "True")),
    ],
)
def test_a_separator_divides_where_the_template_writes_it_and_nowhere_else(jinja, parts):
    made = strict(jinja).render({"a": "x ||| y", "b": "b"})
    assert (made.input, made.target) == parts


@pytest.mark.parametrize("value", [None, float("nan"), "", "  "])
@pytest.mark.parametrize(
    "jinja",
    [
        "{{ a }}! ||| y",
        "{{ a | string }}! ||| y",
        "{{ d.a }}! ||| y",
        "{{ a | upper | trim }}! ||| y",
        "{{ b ~ a }}! ||| y",
        "{{ b + (a | title) }}! ||| y",
        "{{ '%s' % a }}! ||| y",
        "{{ '{}'.format(a) }}! ||| y",
        "{{ [b, a] | join(', ') }}! ||| y",
        "{{ [b, a] | map('upper') | join(', ') }}! ||| y",
        "{{ {'of': a} }}! ||| y",
        "{{ a | int }}! ||| y",
        "{{ a.strip() }}! ||| y",
    ],
)
def test_a_missing_value_that_is_written_leaves_the_row_out(jinja, value):
    with pytest.raises(RowError) as raised:
        strict(jinja).render({"a": value, "b": "b", "d": {"a": value}})
    assert raised.value.reason == "missing value"


@pytest.mark.parametrize(
    "jinja",
    [
        "{{ a or 'none' }} ||| y",
        "{{ a | default('none', true) }} ||| y",
        "{% if a %}{{ a }}{% else %}none{% endif %} ||| y",
        "{% macro m(x) %}{{ x or 'none' }}{% endmacro %}{{ m(a) }} ||| y",
        "{% if a | int(5) == 5 %}none{% endif %} ||| y",
        "none ||| y",
    ],
)
@pytest.mark.parametrize("value", [None, ""])
def test_a_template_may_write_a_text_in_the_place_of_a_missing_value(jinja, value):
    assert strict(jinja).render({"a": value}).input == "none"


@pytest.mark.parametrize("value", [None, "", float("nan")])
@pytest.mark.parametrize("choices", ["{{ c }} ||| b", "{{ [c, 'b'] | join('|||') }}"])
def test_a_choice_that_is_missing_leaves_the_row_out(choices, value):
    with pytest.raises(RowError) as raised:
        strict("q ||| {{ answer_choices[1] }}", choices).render({"c": value})
    assert raised.value.reason == "missing value"


def test_the_text_none_is_no_missing_value():
    assert strict("{{ a }} ||| y").render({"a": "None"}).input == "None"


def test_a_missing_value_is_written_by_the_templates_of_the_original():
    assert Template("t", "id", "{{ a }}! ||| y").render({"a": None}).input == "None!"


@pytest.mark.parametrize(
    ("jinja", "label", "reason"),
    [
        ("q ||| {{ answer_choices[label] }}", -1, "label"),
        ("q ||| {{ answer_choices[label - 1] }}", 0, "label"),
        ("q ||| {{ ['a', 'b'][label] }}", -2, "label"),
        ("q ||| {{ answer_choices[label] }}", 2, "label"),
        ("q ||| {{ answer_choices[label] }}", None, "missing value"),
        ("q ||| {{ {'a': 'x'}[label] }}", "b", "no element"),
        ("q ||| {{ label.x }}", {}, "no element"),
        ("q ||| {{ answer_choices[label] }}", "1", "label"),
        ("q ||| {{ answer_choices[label | int] }}", "zero", "label"),
        ("q ||| {{ answer_choices[label | int] }}", 0.5, "label"),
        ("q ||| {{ answer_choices[label | int] }}", "0.5", "label"),
        ("q ||| {{ answer_choices[label | int] }}", None, "missing value"),
        ("q ||| {{ label + 1 }}", "a", "rendering fails"),
        ("q ||| {{ label + 1 }}", None, "missing value"),
        ("q ||| maybe", 0, "outside choices"),
        ("q ||| {{ '' }}", 0, "empty target"),
        ("{{ '' }} ||| a", 0, "empty input"),
        ("q", 0, "does not apply"),
    ],
)
def test_a_row_that_cannot_be_used_is_left_out_with_its_reason(jinja, label, reason):
    made = render([{"label": label}], strict(jinja, "a ||| b"))
    assert made.counts.left_out == {reason: 1}


@pytest.mark.parametrize(
    ("jinja", "expected"),
    [
        ("q ||| {{ answer_choices[-1] }}", "b"),
        ("q ||| {{ answer_choices[-n] }}", "b"),
        ("q ||| {{ {-1: 'a', 1: 'b'}[0 - n] }}", "a"),
        ("q ||| {{ answer_choices['1' | int] }}", "b"),
        ("q ||| {{ answer_choices['one' | int(1)] }}", "b"),
    ],
)
def test_an_index_that_is_written_with_its_sign_counts_from_the_end(jinja, expected):
    assert strict(jinja, "a ||| b").render({"n": 1}).target == expected


class Thing:
    """What Python writes with an address."""


@pytest.mark.parametrize(
    "jinja",
    [
        "{{ d.items }}",
        "{{ '%s' % d.items }}",
        "{{ d.items | upper }}",
        "{{ [d.keys] }}",
        "{{ [d] | map('length') }}",
        "{{ thing }}",
        "{{ s }}",
    ],
)
def test_a_text_that_another_process_would_write_otherwise_is_never_rendered(jinja):
    row = {"d": {"a": 1}, "thing": Thing(), "s": {"a", "b"}}
    with pytest.raises(RowError) as raised:
        strict(jinja + " ||| y").render(row)
    assert raised.value.reason == "unstable text"


def test_a_row_may_speak_of_addresses_itself():
    text = "<function f at 0x7f0000000000>"
    assert strict("{{ a }} ||| y").render({"a": text}).input == text


@pytest.mark.parametrize(
    "jinja", ["{{ c }} ||| {{ answer_choices[0] }}", "{{ d.c[0] }} ||| {{ answer_choices[0] }}"]
)
def test_the_separators_of_a_row_are_kept_in_choices_and_nested_texts(jinja):
    row = {"c": "x ||| z", "d": {"c": ["x ||| z"]}}
    made = strict(jinja, "{{ c }} ||| y").render(row)
    assert (made.input, made.target, made.choices) == ("x ||| z", "x ||| z", ("x ||| z", "y"))


def test_a_list_as_target_is_the_accepted_answers_and_the_first_is_the_target():
    made = strict("{{ q }} ||| {{ answers }}").render({"q": "?", "answers": ["x" * 30, "b ||| c"]}, 20)
    assert made.target == "x" * 17 + "..."
    assert made.accepted == (made.target, "b ||| c")
    assert strict("{{ q }} ||| {{ answers }}").render({"q": "?", "answers": ["a"]}).accepted == ()
    numbers = strict("{{ q }} ||| {{ answers }}").render({"q": "?", "answers": [3, 4.5]})
    assert (numbers.target, numbers.accepted) == ("3", ("3", "4.5"))
    left_out = render([{"q": "?", "answers": []}], strict("{{ q }} ||| {{ answers }}")).counts.left_out
    assert left_out == {"empty target": 1}
