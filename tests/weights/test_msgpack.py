"""MessagePack: Flax's files read in place, and one sentence for any other file."""

from contextlib import suppress

import flax.serialization
import jax.numpy as jnp
import numpy as np
import pytest
from flax.serialization import msgpack_serialize
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_dtypes import bfloat16

from elm_jax.errors import UserError
from elm_jax.weights import msgpack
from elm_jax.weights.tensors import Tensor

RNG = np.random.default_rng(0)
TREE = {
    "encoder": {"kernel": RNG.normal(size=(40, 30)).astype(np.float32), "half": np.ones((2, 3), bfloat16)},
    "step": np.int32(7),
    "told": {
        "version": 3,
        "name": "x" * 300,
        "rate": 0.5,
        "big": 2**40,
        "less": -300,
        "none": None,
        "on": True,
    },
    "list": [1, -1, "a", 70000],
}


def read(tree):
    """Reads the arrays of a tree."""
    if isinstance(tree, dict):
        return {name: read(value) for name, value in tree.items()}
    return tree.read() if isinstance(tree, Tensor) else tree


@pytest.fixture
def file(tmp_path):
    (tmp_path / "x.msgpack").write_bytes(msgpack_serialize(TREE))
    return tmp_path / "x.msgpack"


def test_a_tree_is_what_flax_reads_of_it(file):
    found = read(msgpack.list_tensors(file))
    assert found["told"] == TREE["told"]
    assert found["list"] == TREE["list"]
    assert found["step"] == 7
    for name, value in TREE["encoder"].items():
        assert found["encoder"][name].dtype == value.dtype
        np.testing.assert_array_equal(found["encoder"][name], value)


def test_an_array_in_chunks_is_put_together(tmp_path, monkeypatch):
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 100)
    whole = RNG.normal(size=(7, 9)).astype(np.float32)
    (tmp_path / "x.msgpack").write_bytes(msgpack_serialize({"a": jnp.asarray(whole)}))
    tensor = msgpack.list_tensors(tmp_path / "x.msgpack")["a"]
    assert (tensor.name, tensor.shape) == ("a", (7, 9))
    np.testing.assert_array_equal(tensor.read(), whole)


@given(share=st.floats(0, 1, exclude_max=True))
@settings(deadline=None)
def test_a_file_cut_anywhere_is_one_sentence_that_names_it(tmp_path_factory, share):
    file = tmp_path_factory.mktemp("cut") / "x.msgpack"
    whole = msgpack_serialize(TREE)
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=r"MessagePack file .*x\.msgpack'"):
        msgpack.list_tensors(file)


@given(content=st.binary(max_size=100))
@settings(deadline=None)
def test_any_other_file_is_read_or_one_sentence(tmp_path_factory, content):
    file = tmp_path_factory.mktemp("any") / "x.msgpack"
    file.write_bytes(content)
    with suppress(UserError):
        assert isinstance(msgpack.list_tensors(file), dict)


@given(place=st.integers(0, 10**6), byte=st.integers(0, 255))
@settings(deadline=None)
def test_a_changed_byte_is_read_or_one_sentence(tmp_path_factory, place, byte):
    file = tmp_path_factory.mktemp("changed") / "x.msgpack"
    content = bytearray(msgpack_serialize({"a": {"b": np.ones((2, 2), np.float32)}, "c": 1}))
    content[place % len(content)] = byte
    file.write_bytes(content)
    with suppress(UserError):
        read(msgpack.list_tensors(file))


def test_a_file_that_goes_down_forever_is_one_sentence(tmp_path):
    (tmp_path / "x.msgpack").write_bytes(b"\x91" * 5000)
    with pytest.raises(UserError, match="more than 64 levels deep"):
        msgpack.list_tensors(tmp_path / "x.msgpack")
