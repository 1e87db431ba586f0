"""Rows of one's own: shards, packed files, encodings, types of CSV, saved directories, the hub."""

import gzip
import json
import subprocess
import sys
import textwrap

import pyarrow as arrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from elm_jax.errors import UserError
from elm_jax.tasks import datasets, raw_rows, rendering, user_tasks
from elm_jax.tasks.data_source import Source

PROMPT = '{jinja: "{{text}} ||| {{answer_choices[label]}}", answer_choices: "no ||| yes"}'
ROWS = [{"text": "é a", "label": 0}, {"text": "b", "label": 1}, {"text": "c", "label": 1}]


def define(folder, fields, prompt=PROMPT):
    lines = textwrap.indent(textwrap.dedent(fields), "    ")
    file = folder / "mine.yaml"
    file.write_text(f"datasets:\n  mine:\n{lines}\n    prompts:\n      p: {prompt}\n")
    return user_tasks.load_tasks(file)[0]


def read(spec, split=None):
    source = Source(splits={spec.dataset: split} if split else {})
    return [(row["text"], row["label"]) for row in raw_rows.load_rows(spec, source)]


def as_jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_csv(rows, delimiter=","):
    return "".join(delimiter.join(map(str, row)) + "\n" for row in [rows[0], *(r.values() for r in rows)])


EXPECTED = [(row["text"], row["label"]) for row in ROWS]


def zstd(content):
    made = arrow.BufferOutputStream()
    with arrow.CompressedOutputStream(made, "zstd") as stream:
        stream.write(content)
    return made.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("name", "content", "fields"),
    [
        ("r.jsonl.gz", gzip.compress(as_jsonl(ROWS).encode(), mtime=0), "jsonl: r.jsonl.gz"),
        ("r.jsonl.zst", zstd(as_jsonl(ROWS).encode()), "jsonl: {train: r.jsonl.zst}"),
        ("r.csv.gz", gzip.compress(as_csv(ROWS).encode(), mtime=0), "csv: r.csv.gz"),
        ("r.tsv", as_csv(ROWS, "\t").encode(), "csv: r.tsv"),
        ("r.tsv.gz", gzip.compress(as_csv(ROWS, "\t").encode(), mtime=0), "csv: r.tsv.gz"),
        ("r.csv", as_csv(ROWS, ";").encode("latin-1"), 'csv: r.csv\ndelimiter: ";"\nencoding: latin-1'),
        ("r.csv", as_csv(ROWS).encode("utf-16"), "csv: r.csv\nencoding: utf-16"),
        ("r.jsonl", as_jsonl(ROWS).encode("cp1252"), "jsonl: r.jsonl\nencoding: cp1252"),
        ("r.csv", as_csv(ROWS).partition("\n")[2].encode(), "csv: r.csv\nheader: [text, label]"),
        ("deep/r.jsonl", as_jsonl(ROWS).encode(), "jsonl: deep/r.jsonl"),
    ],
)
def test_rows_are_the_same_however_they_are_written(tmp_path, monkeypatch, name, content, fields):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # paths are those of the YAML's place
    spec = define(tmp_path, fields)
    assert read(spec) == EXPECTED
    made = rendering.examples(spec)
    assert [example.target for example in made] == ["no", "yes", "yes"]


def test_shards_are_read_in_the_order_of_their_names(tmp_path):
    for number, row in enumerate(ROWS):
        (tmp_path / f"part-{number}.jsonl").write_text(as_jsonl([row]))
    (tmp_path / "part-9.json").write_text("no rows")
    assert (
        read(define(tmp_path, "jsonl: {train: part-*.jsonl, test: [part-2.jsonl, part-0.jsonl]}")) == EXPECTED
    )
    spec = define(tmp_path, "jsonl: {train: 'part-?.jsonl', test: [part-2.jsonl, part-0.jsonl]}")
    assert read(spec, "test") == [EXPECTED[2], EXPECTED[0]]


@pytest.mark.parametrize(
    ("fields", "content"),
    [
        ("jsonl: part-*.jsonl", None),
        ("jsonl: r.jsonl.gz", b"no gzip"),
        ("jsonl: r.jsonl.gz", gzip.compress(as_jsonl(ROWS).encode(), mtime=0)[:-9]),
        ("jsonl: r.jsonl.zst", zstd(as_jsonl(ROWS).encode())[:-9]),
        ("jsonl: r.jsonl.zst", b"no zstd"),
        ("csv: r.csv\nencoding: utf-16", as_csv(ROWS).encode()),
        ("csv: r.csv\nencoding: latin-99", as_csv(ROWS).encode()),
        ("csv: r.csv\nencoding: 8", as_csv(ROWS).encode()),
        ("csv: r.csv\ndelimiter: ';;'", as_csv(ROWS).encode()),
        ("csv: r.csv\ndelimiter: 5", as_csv(ROWS).encode()),
        ("disk: saved", None),
        ("hf: ../mine", None),
        ("hf: hf:owner/name@", None),
        ("hf: 5", None),
    ],
)
def test_rows_that_cannot_be_read_are_one_sentence(tmp_path, fields, content):
    if content is not None:
        (tmp_path / fields.partition("\n")[0].partition(": ")[2]).write_bytes(content)
    with pytest.raises(UserError, match="Fix: "):
        read(define(tmp_path, fields))


def test_columns_of_whole_numbers_are_numbers_and_all_others_are_texts(tmp_path):
    (tmp_path / "r.csv").write_text("text,label,n,code,score,note\nx,1,-7,007,1.5,\ny,0,,12,2,\n")
    spec = define(tmp_path, "csv: r.csv")
    rows = raw_rows.load_rows(spec, Source())
    values = [{name: row[name] for name in row if name != "row_id"} for row in rows]
    assert values == [
        {"text": "x", "label": 1, "n": -7, "code": "007", "score": "1.5", "note": ""},
        {"text": "y", "label": 0, "n": None, "code": "12", "score": "2", "note": ""},
    ]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-(10**17), 10**17) | st.none(), min_size=1, max_size=9))
def test_whole_numbers_of_a_csv_are_those_of_json(tmp_path_factory, numbers):
    folder, rows = tmp_path_factory.getbasetemp(), tmp_path_factory.mktemp("numbers")
    (rows / "r.jsonl").write_text(as_jsonl([{"text": "a", "label": number} for number in numbers]))
    lines = [f"a,{'' if number is None else number}" for number in numbers]
    (rows / "r.csv").write_text("\n".join(["text,label", *lines, ""]))
    in_json = read(define(folder, f"jsonl: {rows.name}/r.jsonl"))
    in_csv = read(define(folder, f"csv: {rows.name}/r.csv"))
    all_empty = all(number is None for number in numbers)
    assert in_csv == ([("a", "")] * len(numbers) if all_empty else in_json)


@pytest.mark.parametrize("index", ["label", "label | int", "[0, 1][label]"])
def test_a_column_of_labels_that_is_mixed_is_refused_by_name(tmp_path, index):
    (tmp_path / "a.csv").write_text("text,label\nx,1\n")
    (tmp_path / "b.csv").write_text("text,label\ny,zero\n")
    prompt = PROMPT.replace("[label]", f"[{index}]")
    with pytest.raises(UserError, match=r"b\.csv', line 2: .*'label'.*'zero'"):
        read(define(tmp_path, "csv: '[ab].csv'", prompt))


@pytest.mark.parametrize(
    "target",
    [
        "{{'good' if stars > 3 else 'bad'}}",
        "{{'good' if stars == 5 else 'bad'}}",
        "{% if stars in [4, 5] %}good{% else %}bad{% endif %}",
        "{{ stars - 1 }}",
        "{{ stars * weight }}",
        "{{ ['bad', 'good'][stars] }}",
    ],
)
def test_a_mixed_column_that_a_template_uses_as_numbers_is_refused_by_name(tmp_path, target):
    (tmp_path / "r.csv").write_text("text,stars,weight\nx,5,2\ny,four,2\n")
    spec = define(tmp_path, "csv: r.csv", f'{{jinja: "{{{{text}}}} ||| {target}"}}')
    with pytest.raises(UserError, match=r"r\.csv', line 3: .*'stars'.*'four'"):
        raw_rows.load_rows(spec, Source())


@pytest.mark.parametrize("target", ["{{stars}}", "{{ stars * 2 }}", "{{ 'a' if stars == 'four' else 'b' }}"])
def test_a_mixed_column_that_a_template_uses_as_texts_is_read(tmp_path, target):
    (tmp_path / "r.csv").write_text("text,stars\nx,5\ny,four\n")
    spec = define(tmp_path, "csv: r.csv", f'{{jinja: "{{{{text}}}} ||| {target}"}}')
    assert [row["stars"] for row in raw_rows.load_rows(spec, Source())] == ["5", "four"]


def test_a_column_of_texts_may_have_numbers_among_them(tmp_path):
    (tmp_path / "r.csv").write_text("text,label\n7,0\nseven,1\n")
    assert read(define(tmp_path, "csv: r.csv")) == [("7", 0), ("seven", 1)]


def test_bytes_that_no_template_reads_are_ignored_and_others_leave_the_row_out(tmp_path):
    images = [{**row, "image": b"\xff\xd8"} for row in ROWS]
    parquet.write_table(arrow.Table.from_pylist(images), tmp_path / "r.parquet")
    spec = define(tmp_path, "parquet: r.parquet")
    assert len(rendering.examples(spec)) == 3
    with pytest.raises(UserError, match="column 'image'"):
        rendering.examples(define(tmp_path, "parquet: r.parquet", '{jinja: "{{image}} ||| {{text}}"}'))


SAVE = """
import sys, datasets
rows = datasets.Dataset.from_list({rows!r})
datasets.DatasetDict(train=rows, test=rows.select([2])).save_to_disk(sys.argv[1])
rows.save_to_disk(sys.argv[2], num_shards=2)
"""


@pytest.mark.parity
def test_directories_that_save_to_disk_wrote_are_read(tmp_path):
    pytest.importorskip("datasets")
    paths = [str(tmp_path / name) for name in ("splits", "one")]
    subprocess.run([sys.executable, "-c", SAVE.format(rows=ROWS), *paths], check=True)
    spec = define(tmp_path, "disk: splits")
    assert (read(spec), read(spec, "test")) == (EXPECTED, EXPECTED[2:])
    assert read(define(tmp_path, "disk: one")) == EXPECTED
    assert read(define(tmp_path, "disk: {train: one, dev: splits/test}"), "dev") == EXPECTED[2:]


def write_stream(folder, rows):
    """Writes what `save_to_disk` writes, as its format is documented."""
    folder.mkdir(parents=True)
    table = arrow.Table.from_pylist(rows)
    with arrow.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), table.schema) as stream:
        stream.write_table(table)
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
    (folder / "state.json").write_text(json.dumps(state))


def test_a_saved_directory_is_one_split_or_several(tmp_path):
    write_stream(tmp_path / "all" / "train", ROWS)
    write_stream(tmp_path / "all" / "test", ROWS[1:])
    (tmp_path / "all" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    spec = define(tmp_path, "disk: all")
    assert (read(spec), read(spec, "test")) == (EXPECTED, EXPECTED[1:])
    assert read(define(tmp_path, "disk: all/test")) == EXPECTED[1:]


@pytest.mark.parametrize(
    ("fields", "name", "revision", "splits"),
    [
        ("hf: hf:owner/name@v2", "owner/name", "v2", {"train": "train"}),
        (
            "hf: owner/name\nsplits: {train: 'train[:80%]', held: 'train[80%:]'}\nevaluate: held",
            "owner/name",
            None,
            {"train": "train[:80%]", "held": "train[80%:]"},
        ),
    ],
)
def test_an_address_on_the_hub_has_a_revision_and_slices(tmp_path, fields, name, revision, splits):
    spec = define(tmp_path, fields)
    (source,) = datasets.user_datasets()["mine"].sources
    assert (source.kind, source.name, source.revision) == ("hub", name, revision)
    assert {split: source.splits.get(split, split) for split in splits} == splits
    assert (spec.split, spec.evaluation_split) == ("train", "held" if "held" in splits else None)


@pytest.mark.parametrize("fields", ["hf: ./local", "sources: [{hub: local}]\nsplits: {train: null}"])
def test_a_directory_in_the_place_of_an_address_is_beside_the_yaml(tmp_path, monkeypatch, fields):
    (tmp_path / "local").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    define(tmp_path, fields)
    (source,) = datasets.user_datasets()["mine"].sources
    assert (tmp_path / "local").samefile(source.name)
