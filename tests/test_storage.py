"""Files are whole or absent, and say what is wrong with them."""

import resource

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_dtypes import bfloat16

from elm_jax import buckets, storage
from elm_jax.errors import UserError

WORDS = st.text(st.characters(exclude_categories=["Cs"]))


def test_json_comes_back_with_its_format(tmp_path):
    storage.write_json(tmp_path / "a" / "x.json", {"name": "Read And Extract "})
    assert storage.read_json(tmp_path / "a" / "x.json", what="A file") == {
        "format": 1,
        "name": "Read And Extract ",
    }


@given(st.lists(st.dictionaries(WORDS, WORDS, max_size=2)))
def test_json_lines_come_back_whatever_the_strings_hold(tmp_path_factory, rows):
    file = tmp_path_factory.mktemp("lines") / "x.jsonl"
    storage.write_jsonl(file, rows or [{}])
    assert storage.read_jsonl(file, what="Rows") == (rows or [{}])


def test_a_broken_line_is_named(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(UserError, match="line 2 "):
        storage.read_jsonl(tmp_path / "x.jsonl", what="Rows")


def test_another_format_is_refused(tmp_path):
    (tmp_path / "x.json").write_text('{"format": 99}')
    with pytest.raises(UserError, match=r"format 1 .* got 99"):
        storage.read_json(tmp_path / "x.json", what="A file")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    target = tmp_path / "x.json"
    storage.write_json(target, {"value": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, hard))
    try:
        with pytest.raises(UserError, match="File too large"):
            storage.write_json(target, {"value": "2" * (1 << 13)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert storage.read_json(target, what="A file")["value"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


def test_arrays_come_back_and_a_truncated_file_is_named(tmp_path):
    file = tmp_path / "x.safetensors"
    storage.write_arrays(file, {"b": np.arange(6.0).reshape(2, 3).T, "a": np.int32(3)})
    arrays = storage.read_arrays(file, what="Weights")
    np.testing.assert_array_equal(arrays["b"], np.arange(6.0).reshape(2, 3).T)
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"Weights: .*x\.safetensors'"):
        storage.read_arrays(file, what="Weights")


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float16", "int32", "uint8", "bool"])
def test_arrays_of_every_type_come_back_with_it(tmp_path, dtype):
    kind = np.dtype(bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    value = np.array([[0, 1], [1, 0]]).astype(kind)
    storage.write_arrays(tmp_path / "x.safetensors", {"a": value, "scalar": kind.type(1)})
    found = storage.read_arrays(tmp_path / "x.safetensors", what="Weights")
    assert found["a"].dtype == kind
    assert found["scalar"].shape == ()
    np.testing.assert_array_equal(found["a"], value)


def test_a_fingerprint_does_not_depend_on_the_order_of_keys():
    assert storage.fingerprint({"a": 1, "b": [2]}) == storage.fingerprint({"b": [2], "a": 1})
    assert storage.fingerprint({"a": 1}) != storage.fingerprint({"a": 2})


def test_an_array_fingerprint_depends_on_name_shape_type_and_bytes():
    base = {"w": np.zeros((2, 3), np.float32)}
    others = [{"v": base["w"]}, {"w": base["w"].T}, {"w": base["w"].astype(np.int32)}, {"w": base["w"] + 1}]
    prints = {storage.array_fingerprint(tree) for tree in [base, *others]}
    assert len(prints) == 5


@pytest.mark.parametrize("chunk", [2, 1 << 24], ids=["in parts", "in one request"])
def test_an_object_of_a_bucket_is_there_when_its_last_part_is(bucket, monkeypatch, chunk):
    monkeypatch.setattr(buckets, "CHUNK_BYTES", chunk)
    target = bucket / "x.bin"
    storage.write_bytes(target, b"old")

    def parts():
        yield b"new"
        assert storage.read_content(target, what="A file") == b"old"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        storage.write_stream(target, parts())
    assert storage.read_content(target, what="A file") == b"old"
    storage.write_stream(target, [b"new", b"", b"er"])
    assert storage.read_content(target, what="A file") == b"newer"
    assert [file.name for file in bucket.iterdir()] == ["x.bin"]


def test_an_object_that_is_there_is_not_created(bucket):
    assert buckets.create_object(bucket / "x", b"one")
    assert not buckets.create_object(bucket / "x", b"two")
    assert storage.read_content(bucket / "x", what="A file") == b"one"


def test_a_bucket_that_is_missing_is_named(bucket):
    where = f"{bucket}-other/x"
    with pytest.raises(UserError, match=where):
        storage.write_bytes(where, b"")
    with pytest.raises(UserError, match=where):
        storage.writable_directory(where)
    with pytest.raises(UserError, match=where):
        storage.read_content(where, what="A file")


def test_a_kind_of_bucket_that_nobody_knows_is_named():
    with pytest.raises(UserError, match="s4://"):
        storage.path("s4://bucket/x")


def test_text_that_is_half_a_character_has_a_fingerprint_of_its_own():
    halves = {storage.fingerprint({"a": half}) for half in ("\ud800", "\ud801", "?")}
    assert len(halves) == 3


def test_a_format_of_any_size_is_refused_in_a_line(tmp_path):
    storage.write_json(tmp_path / "x.json", {"format": ["a" * 1000] * 1000})
    with pytest.raises(UserError) as refused:
        storage.read_json(tmp_path / "x.json", what="A report")
    assert len(str(refused.value)) < 500
