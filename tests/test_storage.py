"""Files are whole or absent, and say what is wrong with them."""

import numpy as np
import pytest

from elm_jax import storage
from elm_jax.errors import UserError


def test_json_comes_back_with_its_format(tmp_path):
    storage.write_json(tmp_path / "a" / "x.json", {"name": "Read And Extract "})
    assert storage.read_json(tmp_path / "a" / "x.json", what="A file") == {
        "format": 1,
        "name": "Read And Extract ",
    }


def test_another_format_is_refused(tmp_path):
    (tmp_path / "x.json").write_text('{"format": 99}')
    with pytest.raises(UserError, match=r"should have format 1, but 99 came"):
        storage.read_json(tmp_path / "x.json", what="A file")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    target = tmp_path / "x.json"
    storage.write_json(target, {"value": 1})

    def full_disk(self, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(storage.path(target)), "write_bytes", full_disk)
    with pytest.raises(UserError, match="No space left on device"):
        storage.write_json(target, {"value": 2})
    assert storage.read_json(target, what="A file")["value"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


def test_arrays_come_back_and_a_truncated_file_is_named(tmp_path):
    file = tmp_path / "x.safetensors"
    storage.write_arrays(file, {"b": np.arange(6.0).reshape(2, 3).T, "a": np.int32(3)})
    arrays = storage.read_arrays(file, what="Weights")
    np.testing.assert_array_equal(arrays["b"], np.arange(6.0).reshape(2, 3).T)
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"Weights at '.*x.safetensors' is no whole safetensors file"):
        storage.read_arrays(file, what="Weights")


def test_a_fingerprint_does_not_depend_on_the_order_of_keys():
    assert storage.fingerprint({"a": 1, "b": [2]}) == storage.fingerprint({"b": [2], "a": 1})
    assert storage.fingerprint({"a": 1}) != storage.fingerprint({"a": 2})


def test_an_array_fingerprint_depends_on_name_shape_type_and_bytes():
    base = {"w": np.zeros((2, 3), np.float32)}
    others = [{"v": base["w"]}, {"w": base["w"].T}, {"w": base["w"].astype(np.int32)}, {"w": base["w"] + 1}]
    prints = {storage.array_fingerprint(tree) for tree in [base, *others]}
    assert len(prints) == 5
