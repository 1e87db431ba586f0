"""The identity of rows: every input that can change them is a part of it, and nothing that cannot."""

import dataclasses
import json
import os

import pytest

from elm_jax.data import identity, prepared_files, row_digests, task_rows, tokenized_rows
from elm_jax.data.identity import RowsIdentity, describe_all_changes, describe_changes
from elm_jax.data.task_selection import make_seqio_spec, prepared_file
from elm_jax.records import PromptedExample
from elm_jax.tasks import datasets, specs
from elm_jax.tasks.data_source import Lengths, Source
from elm_jax.tokenizers import sentencepiece

ENTRY = {
    "family": "toy",
    "split": "test",
    "splits": {"test": None},
    "columns": ["text", "label"],
    "prompts": {"p": "accuracy"},
    "inline": {"p": {"jinja": "{{text}} ||| {{answer_choices[label]}}", "answer_choices": "yes ||| no"}},
}


def define(source, **fields):
    """Defines a dataset `toy`, in place of the one before, and returns its task."""
    made = datasets.parse_datasets(
        {"group": "toys", "datasets": {"toy": {**ENTRY, "sources": [source], **fields}}}, "the test"
    )
    datasets.add_user_datasets(made)
    return specs.find_task("toy/p")


def settings(source, data_dir=None, **fields):
    return identity.identify_settings(define(source, **fields), Source(data_dir=data_dir))


def differing(before, now):
    return {name for name in before if before[name] != now[name]}


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    rows = [{"text": f"row {number}", "label": number % 2, "other": 0} for number in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


FILE = {"jsonl": {"test": "rows.jsonl"}}
INLINE = ENTRY["inline"]["p"]


@pytest.mark.parametrize(
    ("fields", "changed"),
    [
        ({"inline": {"p": {**INLINE, "jinja": "So: {{text}} ||| {{answer_choices[label]}}"}}}, {"template"}),
        ({"inline": {"p": {**INLINE, "answer_choices": "yes ||| never"}}}, {"answer_choices"}),
        ({"columns": ["text", "label", "other"]}, {"rows"}),
        ({"label": "other"}, {"rows"}),
        ({"family": "another"}, set()),
    ],
)
def test_what_a_definition_says_of_rows_is_a_part_of_their_identity(data, fields, changed):
    assert differing(settings(FILE, data), settings(FILE, data, **fields)) == changed


@pytest.mark.parametrize(
    ("fields", "changed"),
    [
        ({"truncate": 3}, {"truncate"}),
        ({"truncate": None}, {"truncate"}),
        ({"limit": 2}, {"limit", "rows"}),
        ({"seed": 7}, {"seed"}),
        ({"faithful": ("empty_renderings",)}, {"faithful"}),
        ({"prepared": "elsewhere"}, set()),
    ],
)
def test_what_a_run_says_of_rows_is_a_part_of_their_identity(data, fields, changed):
    spec, source = define(FILE), Source(data_dir=data)
    now = identity.identify_settings(spec, dataclasses.replace(source, **fields))
    assert differing(identity.identify_settings(spec, source), now) == changed


def test_tokenizer_ends_of_inputs_and_lengths_are_a_part_of_the_identity_of_tokens(data):
    words = sentencepiece.train(["a b"], data / "m", 50, kind="word", extra_ids=0)
    others = sentencepiece.train(["c d"], data / "n", 50, kind="word", extra_ids=0)
    before = identity.identify_tokens(words, Lengths(8, 4))
    for tokenizer, lengths, changed in (
        (others, Lengths(8, 4), "vocabulary"),
        (dataclasses.replace(words, input_eos=False), Lengths(8, 4), "input_eos"),
        (words, Lengths(9, 4), "prompt tokens"),
        (words, Lengths(8, 5), "answer tokens"),
    ):
        assert differing(before, identity.identify_tokens(tokenizer, lengths)) == {changed}


def touch(path):
    content = path.read_bytes()
    path.write_bytes(content)
    os.utime(path, (1, 1))


def test_a_file_is_its_bytes_and_not_its_time(data):
    before = settings(FILE, data)
    touch(data / "rows.jsonl")
    assert settings(FILE, data) == before
    (data / "rows.jsonl").write_text('{"text": "other", "label": 0}\n')
    assert differing(before, settings(FILE, data)) == {"rows"}


def test_a_local_directory_of_the_hubs_kind_is_the_bytes_of_all_of_its_files(data):
    folder = data / "local"
    (folder / "data").mkdir(parents=True)
    file = folder / "data" / "test.jsonl"
    file.write_text('{"text": "a", "label": 0}\n')
    source = {"hub": str(folder)}
    before = settings(source)
    touch(file)
    assert settings(source) == before
    file.write_text('{"text": "a", "label": 1}\n')
    assert differing(before, settings(source)) == {"rows"}
    file.write_text('{"text": "a", "label": 0}\n')
    assert settings(source) == before
    (folder / "more.jsonl").write_text("{}\n")
    assert differing(before, settings(source)) == {"rows"}


@pytest.mark.parametrize("config", [{}, {"config": "plain"}])
def test_a_dataset_of_the_hub_is_its_revision_and_what_was_downloaded(data, config):
    source = {"hub": "owner/name", **config}
    before = settings(source)
    assert differing(before, settings({**source, "revision": "v2"})) == {"rows"}
    loaded = data / "cache" / "datasets" / "owner___name" / "plain" / "0.0.0"
    (loaded / "abc").mkdir(parents=True)
    first = settings(source)
    assert differing(before, first) == {"revision"}
    (loaded / "def").mkdir()
    second = settings(source)
    assert differing(first, second) == {"revision"}
    refs = data / "cache" / "hub" / "datasets--owner--name" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("abc")
    assert differing(second, settings(source)) == {"revision"}


def test_a_dataset_of_tfds_is_its_version_and_the_files_that_describe_it(data):
    folder = data / "tfds" / "made" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}")
    before = settings({"tfds": "made:1.0.0"})
    touch(folder / "dataset_info.json")
    assert settings({"tfds": "made:1.0.0"}) == before
    (folder / "dataset_info.json").write_text('{"splits": []}')
    assert differing(before, settings({"tfds": "made:1.0.0"})) == {"rows"}
    assert differing(before, settings({"tfds": "made:1.1.0"})) == {"rows"}


def test_a_function_is_the_file_of_its_code(data, monkeypatch):
    monkeypatch.syspath_prepend(str(data))
    (data / "some_rows_of_a_test.py").write_text("def rows(split):\n    return []\n")
    source = {"function": "some_rows_of_a_test:rows"}
    before = settings(source)
    (data / "some_rows_of_a_test.py").write_text("def rows(split):\n    return [1]\n")
    assert differing(before, settings(source)) == {"rows"}


def test_a_task_of_seqio_is_the_rows_that_were_prepared_of_it(data):
    spec, source = make_seqio_spec("theirs"), Source(prepared=data / "prepared")
    words = sentencepiece.train(["a b"], data / "m", 50, kind="word", extra_ids=0)
    made = tokenized_rows.tokenize_examples(
        [PromptedExample("0", "a", "b", ("a", "b"), 1)], words, Lengths(8, 4)
    )
    found = []
    for key in ("one-tokens", "one-others", "two-tokens"):
        prepared_files.save(prepared_file(source.prepared, spec, "train"), made, key)
        found.append(identity.identify_settings(spec, source))
    assert found[0] == found[1]
    assert differing(found[0], found[2]) == {"rows"}


def test_prepared_rows_are_read_where_the_revision_is_the_same_or_not_known(data):
    source = Source(prepared=data / "prepared")
    spec = define({"hub": "owner/name"})
    words = sentencepiece.train(["a b"], data / "m", 50, kind="word", extra_ids=0)
    key = task_rows.rendering_key(spec, source)
    made = tokenized_rows.tokenize_examples(
        [PromptedExample("0", "a", "b", ("a", "b"), 1)], words, Lengths(8, 4)
    )
    for revision, here in (("", True), ("@abc", True)):
        prepared_files.save(prepared_file(source.prepared, spec, "test"), made, f"{key}{revision}-tokens")
        assert task_rows.is_prepared(spec, source) is here
    (data / "cache" / "datasets" / "owner___name" / "plain" / "0.0.0" / "def").mkdir(parents=True)
    assert not task_rows.is_prepared(spec, source)


def noted(examples, **changes):
    own = {"template": "t", "truncate": 2048, "vocabulary": "v", "rows": "r"}
    return RowsIdentity(own | changes, row_digests.digest_rows(examples))


def rows(label=0):
    return [PromptedExample(str(at), "in", "yes", ("yes", "no"), label) for at in range(4)]


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (noted(rows()), ""),
        (noted(rows(), rows="another file", template="of the same text"), ""),
        (noted(rows(), vocabulary="w"), "vocabulary"),
        (noted(rows(1), rows="another file"), "label of 4 of 4 rows"),
        (noted(rows(1), template="u", truncate=3), "label of 4 of 4 rows, template, truncate"),
    ],
)
def test_changes_are_named_by_their_columns_and_by_what_caused_them(now, said):
    assert describe_changes(noted(rows()), now) == said


def test_changes_of_several_tasks_are_named_task_by_task_and_unknown_ones_are_not():
    made = {"a/p": noted(rows()).to_json(), "b/p": noted(rows()).to_json()}
    now = {"a/p": noted(rows(1)).to_json(), "b/p": noted(rows()).to_json(), "c/p": noted(rows()).to_json()}
    assert describe_all_changes({"made_of": made}, {"made_of": now}) == "a/p: label of 4 of 4 rows"
    assert describe_all_changes({}, {"made_of": now}) == ""


def test_a_merged_recipe_says_what_all_parts_were_trained_on_in_few_bytes():
    parts = [{"made_of": {name: noted(rows()).to_json()}} for name in ("a/p", "b/p")]
    merged = identity.merge_identities(parts)
    assert list(merged["made_of"]) == ["a/p", "b/p"]
    assert len(json.dumps(merged)) < len(json.dumps(parts))
    now = {"made_of": {"a/p": noted(rows(1)).to_json()}}
    assert describe_all_changes(merged, now) == "label of some of 4 rows"
    assert identity.merge_identities([{}]) == {}


READING = {"split": "test", "limit": 40, "seed": 1, "truncate": None, "faithful": ["case"]}


@pytest.mark.parametrize(
    "value",
    [
        *(None, 3, {}, {"settings": {}}, {"settings": {}, "digests": {"count": 1}}),
        *(
            noted(rows(), **READING | {field: wrong}).to_json()
            for field, wrong in (("split", 3), ("limit", "x"), ("seed", None), ("faithful", "case"))
        ),
        noted(rows(), limit=40).to_json(),
    ],
)
def test_what_is_no_identity_is_none(value):
    assert identity.from_json(value) is None
    for whole in (noted(rows()), noted(rows(), **READING)):
        assert identity.from_json(whole.to_json()) == whole
