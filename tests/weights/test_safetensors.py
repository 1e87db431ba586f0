"""Safetensors: read and written as the package of that name does it, and one sentence for anything else."""

import json
from contextlib import suppress

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_dtypes import bfloat16
from safetensors import deserialize

from elm_jax.errors import UserError
from elm_jax.weights import safetensors as ours
from elm_jax.weights import tensors

RNG = np.random.default_rng(0)
ARRAYS = {
    "matrix": RNG.normal(size=(5, 7)).astype(np.float32),
    "half": RNG.normal(size=(3, 2, 4)).astype(bfloat16),
    "old": RNG.normal(size=(4,)).astype(np.float16),
    "scalar": np.float64(3.5),
    "none": np.zeros((0, 3), np.float32),
    "whole": np.arange(3),
}


def raw(header, body=b""):
    """Returns a file with this header, whatever it says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


@pytest.fixture
def file(tmp_path):
    named = {name: np.asarray(value) for name, value in ARRAYS.items() if name != "half"}
    safetensors.numpy.save_file(named, tmp_path / "x.safetensors", {"format": "pt"})
    return tmp_path / "x.safetensors"


def test_tensors_are_read_as_the_package_wrote_them(file):
    found = ours.list_tensors(file)
    assert found.keys() == ARRAYS.keys() - {"half"}
    for name, tensor in found.items():
        assert (tensor.shape, tensor.dtype) == (np.shape(ARRAYS[name]), np.asarray(ARRAYS[name]).dtype)
        np.testing.assert_array_equal(tensor.read(), ARRAYS[name])


def test_the_package_reads_what_is_written_views_and_bfloat16_included(tmp_path):
    wide = RNG.normal(size=(300, 4001)).astype(np.float32)  # more than one block
    named = {**{name: np.asarray(value) for name, value in ARRAYS.items()}, "turned": wide.T}
    ours.write(tmp_path / "x.safetensors", named, {"format": "pt"})
    found = dict(deserialize((tmp_path / "x.safetensors").read_bytes()))
    assert found.keys() == named.keys()
    for name, told in found.items():
        assert tuple(told["shape"]) == named[name].shape
        assert bytes(told["data"]) == np.ascontiguousarray(named[name]).tobytes()


def test_a_tensor_is_read_turned_and_converted_on_the_way(tmp_path):
    wide = RNG.normal(size=(300, 4001)).astype(np.float32)
    ours.write(tmp_path / "x.safetensors", {"wide": wide}, {})
    tensor = tensors.transpose(ours.list_tensors(tmp_path / "x.safetensors")["wide"])
    out = np.empty((4001, 300), bfloat16)
    tensor.read_into(out)
    np.testing.assert_array_equal(out, wide.T.astype(bfloat16))


def test_a_tensor_times_a_number_is_rounded_once(file):
    out = np.empty((5, 7), np.float32)
    tensors.scale(ours.list_tensors(file)["matrix"], 0.3).read_into(out)
    np.testing.assert_array_equal(out, ARRAYS["matrix"] * np.float32(0.3))


@given(share=st.floats(0, 1, exclude_max=True))
@settings(deadline=None)
def test_a_file_cut_anywhere_is_one_sentence_that_names_it(tmp_path_factory, share):
    file = tmp_path_factory.mktemp("cut") / "x.safetensors"
    whole = raw({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}, bytes(12))
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=r"x\.safetensors'"):
        ours.list_tensors(file)


def test_a_file_cut_within_its_tensors_names_the_first_that_is_not_whole(file):
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(UserError, match=r"'\w+' should end at byte \d+, but the file has \d+"):
        ours.list_tensors(file)


def test_a_file_that_shrinks_after_its_header_was_read_is_one_sentence(file):
    tensor = ours.list_tensors(file)["matrix"]
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"'matrix' in '.*x\.safetensors'"):
        tensor.read()


@given(content=st.binary(max_size=200))
@settings(deadline=None)
def test_any_other_file_is_one_sentence(tmp_path_factory, content):
    file = tmp_path_factory.mktemp("any") / "x.safetensors"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.safetensors"):
        ours.list_tensors(file)


@given(
    header=st.dictionaries(
        st.sampled_from(["a", "__metadata__"]),
        st.recursive(
            st.none() | st.integers() | st.text(max_size=3) | st.sampled_from(["F32", "I64", "F7"]),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets"]), inner, max_size=3)
            ),
            max_leaves=8,
        ),
        min_size=1,
    )
)
@settings(deadline=None)
def test_any_other_header_is_read_or_one_sentence(tmp_path_factory, header):
    file = tmp_path_factory.mktemp("header") / "x.safetensors"
    file.write_bytes(raw(header))
    with suppress(UserError):
        ours.list_tensors(file)


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        (
            {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]},
            r"'a' of \(3,\) should have 12 bytes, but has 8",
        ),
        ({"dtype": "F32", "shape": [3], "data_offsets": [8, 20]}, "'a' should end at byte"),
        (
            {"dtype": "F32", "shape": [-3], "data_offsets": [0, 12]},
            "should have type, shape and place of 'a'",
        ),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "last tensor ends at byte"),
        ({"dtype": "F8_E4M3", "shape": [12], "data_offsets": [0, 12]}, "BF16, F16, .* got F8_E4M3"),
        ({"shape": [1], "data_offsets": [0, 8]}, "should have type, shape and place of 'a'"),
    ],
)
def test_a_header_that_cannot_be_names_the_tensor(tmp_path, entry, told):
    (tmp_path / "x.safetensors").write_bytes(raw({"a": entry}, bytes(12)))
    with pytest.raises(UserError, match=told):
        ours.list_tensors(tmp_path / "x.safetensors")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    file = tmp_path / "x.safetensors"
    ours.write(file, {"a": np.zeros(3, np.float32)}, {})
    before = file.read_bytes()

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "ascontiguousarray", full_disk)
    with pytest.raises(UserError, match="No space left on device"):
        ours.write(file, {"a": np.ones(3, np.float32)}, {})
    assert file.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["x.safetensors"]
