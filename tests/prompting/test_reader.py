"""The reader takes plain YAML with two tags, and names file and line of anything else."""

import contextlib

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from elm_jax.errors import UserError
from elm_jax.prompting import reader


def read(text: str) -> object:
    return reader.read_yaml("f.yaml", text.encode())


def test_a_template_comes_with_the_line_where_it_starts():
    content = b"dataset: d\ntemplates:\n  x: !Template\n    name: 'a '\n  y: !Template {name: b}\n"
    entries = reader.read_entries("f.yaml", content)
    assert [(entry.line, entry.fields) for entry in entries] == [(3, {"name": "a "}), (5, {"name": "b"})]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: !!python/object/apply:os.system ['touch x']", 2),
        ("a: !!python/name:os.system ''", 1),
        ("\n\na: !Unknown {}", 3),
        ("a: 1\nb: ]", 2),
        ("a: *nothing", 1),
        ("a: &x [1]\nb: &y [*x, *x]\nc: [*y, *y]", 2),
        ("a: &x\n  b: *x", 2),
        ("a: 1\n---\nb: 2", 2),
        ("a:\n  ? [list]\n  : 1", 2),
        ("a: 1\nb: 2020-99-99", 2),
        ("a: !!int x", 1),
        ("a: !!bool x", 1),
        ("a: 1\nb: \x00", 2),
        ("a: 1\nb: \x07", 2),
        ("a: 1\n" + "[" * 100_000, 2),
        ("- " * 100_000 + "a", 1),
    ],
)
def test_what_is_no_plain_yaml_is_an_error_naming_file_and_line(text, line):
    with pytest.raises(UserError, match=rf"'f.yaml', line {line}:"):
        read(text)


def test_bytes_that_are_no_utf_8_are_named_by_line():
    with pytest.raises(UserError, match=r"'f.yaml', line 2: expected UTF-8"):
        reader.read_yaml("f.yaml", b"a: 1\nb: \xff\n")


@pytest.mark.parametrize("text", ["", "5", "templates: []", "templates: null", "other: {}"])
def test_a_file_without_templates_is_refused(text):
    with pytest.raises(UserError, match="to hold a mapping `templates`"):
        reader.read_entries("f.yaml", text.encode())


def test_a_template_without_its_tag_is_refused():
    with pytest.raises(UserError, match="'x' without"):
        reader.read_entries("f.yaml", b"templates:\n  x: {name: a}")


def test_an_anchor_stands_for_its_value():
    assert read("a: &x {b: 1}\nc: *x") == {"a": {"b": 1}, "c": {"b": 1}}


def test_a_byte_order_mark_is_passed_over():
    assert reader.read_yaml("f.yaml", b"\xef\xbb\xbfa: 1") == {"a": 1}


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(st.binary(max_size=60), st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")))
)
def test_any_bytes_are_read_or_are_a_user_error(content):
    with contextlib.suppress(UserError):
        reader.read_yaml("f.yaml", content)


KEYS = ["a: ", "- ", "!Template ", "!!int ", "!!binary ", "&x ", "*x", "<<: ", "? ", "2020-1-1", "~"]
MARKS = ["[", "]", "{", "}", ",", "\n", "\n  ", "'", '"', "%"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(KEYS + MARKS)))
def test_any_yaml_like_text_is_read_or_is_a_user_error(pieces):
    with contextlib.suppress(UserError):
        reader.read_entries("f.yaml", "".join(pieces).encode())


@settings(max_examples=50, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner)))
def test_plain_values_come_back(value):
    assert read(yaml.safe_dump({"value": value})) == {"value": value}
