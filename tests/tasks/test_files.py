"""Readers of files give plain rows, and name file and line of whatever is wrong."""

import csv
import io
import json
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from elm_jax.errors import UserError
from elm_jax.tasks import datasets, files
from elm_jax.tasks.file_rows import join_rows
from tests.shared_data import DATA

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=5)
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "rows"


def read(reader, file: Path, content: str | bytes) -> list[files.FileRow]:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(datasets.READERS[reader](file))


def test_jsonl_gives_a_row_a_line_and_passes_over_empty_ones(file):
    assert read("jsonl", file, '{"a": [1, "x"]}\r\n\n{"a": null}') == [{"a": [1, "x"]}, {"a": None}]


def test_a_line_separator_of_unicode_ends_no_line(file):
    assert read("jsonl", file, '{"a": "x\u2028y\x85z"}\n') == [{"a": "x\u2028y\x85z"}]


def test_csv_gives_texts_by_header(file):
    content = '\ufeffa,b\r\n1,"x, ""y""\nz"\r\n,\r\n'
    assert read("csv", file, content) == [{"a": "1", "b": 'x, "y"\nz'}, {"a": "", "b": ""}]


def test_csv_without_a_header_takes_the_names_it_is_given(file):
    file.write_text('"3","a, b"\n"1",""\n')
    assert list(files.read_csv(file, header=("label", "text"))) == [
        {"label": "3", "text": "a, b"},
        {"label": "1", "text": ""},
    ]
    with pytest.raises(UserError, match=r"line 1: expected 3 columns .* got 2"):
        files.read_csv(file, header=("label", "text", "more"))


def test_parquet_gives_rows_whole_or_those_asked_for(file):
    rows = [{"text": f"row {n}", "choices": {"label": ["A", "B"], "n": [n, n]}} for n in range(4)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    read = files.read_parquet(file)
    assert list(read) == rows
    assert list(read.take([2, 0])) == [rows[2], rows[0]]


def test_a_parquet_file_of_no_rows_or_with_a_long_text_is_an_error(file):
    parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), file)
    with pytest.raises(UserError, match="rows', got none"):
        files.read_parquet(file)
    parquet.write_table(pyarrow.table({"text": ["x", "y" * 10_000_000]}), file)
    with pytest.raises(UserError, match=r"rows', row 2: .* 10,000,000 in column 'text'"):
        list(files.read_parquet(file))


def test_a_long_text_in_a_csv_is_read_and_the_parsers_limit_is_put_back(file):
    limit = csv.field_size_limit()
    assert read("csv", file, "a\n" + "x" * 200_000)[0]["a"] == "x" * 200_000
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("reader", "content", "message"),
    [
        ("jsonl", "", "got none"),
        ("jsonl", " \n\n", "got none"),
        ("jsonl", '{"a": 1}\n{"a": ', "line 2: expected JSON"),
        ("jsonl", '{"a": 1}\n[1]', "line 2: expected a JSON object"),
        ("jsonl", b'{"a": 1}\n{"a": "\xff"}', "line 2: expected UTF-8"),
        ("jsonl", '{"a": 1}\n\n{"a": "\0"}', "line 3: .* NUL"),
        ("jsonl", '{"a": 1}\n{"a": ["\\u0000"]}', "line 2: .* NUL .* column 'a'"),
        ("jsonl", '{"a": {"b": "\\ud800"}}', "line 1: .* half a surrogate pair in column 'a'"),
        ("jsonl", '{"a": 1}\n{"a": "' + "x" * 10_000_000 + '"}', "line 2: .* 10,000,000 in column 'a'"),
        (
            "jsonl",
            '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}",
            "line 1: expected (JSON that can be read|a row)",
        ),
        ("jsonl", '{"a": ' + "9" * 5000 + "}", "line 1: expected JSON that can be read"),
        ("csv", "", "got none"),
        ("csv", "a,b\n", "got none"),
        ("csv", 'a,b\n1,2\n"x\ny",2\n1\n', "line 5: expected 2 columns .* got 1"),
        ("csv", "a,b\n1,2,3\n", "line 2: expected 2 columns .* got 3"),
        ("csv", "a,b\n\n", "line 2: expected 2 columns .* got 0"),
        ("csv", "a,a\n1,2\n", "line 1: .* got 'a' twice"),
        ("csv", "a,\n1,2\n", "line 1: .* got an empty one"),
        ("csv", 'a\n"x', "line 2: expected valid CSV"),
        ("csv", 'a\n"x"y\n', "line 2: expected valid CSV"),
        ("csv", b"a\n\xff\n", "line 2: expected UTF-8"),
        ("csv", "a\nx\0y\n", "line 2: .* NUL"),
        ("csv", "a\n" + "x" * 3_000_000, "line 2: .* 3,000,000 in column 'a'"),
        ("csv", "a\n" + "x" * 10_000_000, "line 2: expected valid CSV, got field larger than field limit"),
        ("parquet", "", "Expected a Parquet file at"),
        ("parquet", b"PAR1 and nothing PAR1", "Expected a Parquet file at"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_bad_input_is_an_error_naming_file_and_place(file, reader, content, message):
    with pytest.raises(UserError, match=message) as error:
        read(reader, file, content)
    assert "rows'" in str(error.value)


@pytest.mark.parametrize("reader", datasets.READERS)
def test_an_absent_file_and_a_folder_are_errors(tmp_path, reader):
    for place in (tmp_path / "absent", tmp_path):
        with pytest.raises(UserError, match=r"Expected (rows in|a Parquet file at|a directory that)"):
            datasets.READERS[reader](place)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.dictionaries(NAMES, TEXTS | st.integers() | st.lists(TEXTS)), min_size=1))
def test_jsonl_rows_come_back(tmp_path_factory, rows):
    file = tmp_path_factory.mktemp("jsonl") / "rows"
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    assert read("jsonl", file, content) == rows


@settings(max_examples=50, deadline=None)
@given(st.data(), st.lists(NAMES, min_size=1, max_size=4, unique=True))
def test_csv_rows_come_back(tmp_path_factory, data, header):
    rows = data.draw(st.lists(st.lists(TEXTS, min_size=len(header), max_size=len(header)), min_size=1))
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([header, *rows])
    file = tmp_path_factory.mktemp("csv") / "rows"
    assert read("csv", file, text.getvalue()) == [dict(zip(header, row, strict=True)) for row in rows]


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(datasets.READERS)), st.binary(max_size=40))
def test_any_bytes_are_rows_or_a_user_error(tmp_path_factory, reader, content):
    try:
        rows = read(reader, tmp_path_factory.mktemp("any") / "rows", content)
    except UserError:
        return
    assert rows


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("reader", "name", "count"),
    [
        ("csv", "cosmos_qa/valid.csv", 2985),
        ("csv", "story_cloze/2016.csv", 1871),
    ],
)
def test_the_real_files_have_as_many_rows_as_published(reader, name, count):
    assert len(datasets.READERS[reader](DATA / name)) == count


@settings(max_examples=30, deadline=None)
@given(st.data(), st.lists(st.dictionaries(NAMES, TEXTS, min_size=1), min_size=1, max_size=8))
def test_rows_are_read_in_any_order_from_files_one_after_the_other(tmp_path_factory, data, rows):
    folder = tmp_path_factory.mktemp("parts")
    cut = data.draw(st.integers(0, len(rows) - 1))
    parts = [part for part in (rows[:cut], rows[cut:]) if part]
    for number, part in enumerate(parts):
        (folder / str(number)).write_text("".join(json.dumps(row) + "\n\n" for row in part))
    read = join_rows([files.read_jsonl(folder / str(number)) for number in range(len(parts))])
    numbers = data.draw(st.lists(st.integers(0, len(rows) - 1)))
    assert len(read) == len(rows)
    assert list(read.take(numbers)) == [rows[number] for number in numbers]


@settings(max_examples=30, deadline=None)
@given(st.data(), st.integers(1, 40), st.integers(1, 7))
def test_parquet_rows_are_read_in_any_order_over_row_groups(tmp_path_factory, data, count, of_group):
    file = tmp_path_factory.mktemp("parquet") / "rows"
    parquet.write_table(pyarrow.table({"n": list(range(count))}), file, row_group_size=of_group)
    read = files.read_parquet(file)
    numbers = data.draw(st.lists(st.integers(0, count - 1)))
    start = data.draw(st.integers(0, count))
    assert [row["n"] for row in read.take(numbers)] == numbers
    assert [row["n"] for row in read.take(range(start, count))] == list(range(start, count))


def test_a_row_that_is_not_asked_for_is_not_parsed(file):
    file.write_text('{"a": 1}\nno JSON\n{"a": 3}\n')
    assert list(files.read_jsonl(file).take([2, 0])) == [{"a": 3}, {"a": 1}]
