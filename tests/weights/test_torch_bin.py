"""PyTorch's `.bin`: never unpickled here, and explained where torch is not installed."""

import os
import pickle
import sys
import warnings

import pytest

from elm_jax.errors import UserError
from elm_jax.weights.load import load_base


class Malicious:
    """What a pickle can do: unpickling it makes a directory."""

    def __init__(self, where):
        self.where = where

    def __reduce__(self):
        return os.mkdir, (str(self.where),)


@pytest.fixture
def place(t5_1_1, writers, tmp_path):
    place = writers["hf"](tmp_path, t5_1_1)
    (place / "model.safetensors").unlink()
    (place / "pytorch_model.bin").write_bytes(pickle.dumps(Malicious(tmp_path / "harmed")))
    return place


def test_without_torch_a_bin_is_explained(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"pytorch_model\.bin'.*pip install torch"):
        load_base(place)


@pytest.mark.parity
@pytest.mark.parametrize("cut", [False, True])
def test_with_torch_a_pickle_of_something_else_is_refused_in_one_sentence_and_not_run(place, tmp_path, cut):
    pytest.importorskip("torch", reason="torch is not installed; elm_jax[parity] brings it")
    file = place / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[: 10 if cut else None])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with pytest.raises(UserError, match=r"refuses \(UnpicklingError\)"):
            load_base(place)
    assert said == []
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "told"),
    [
        (
            lambda torch: torch.zeros(2, 2).to(torch.float8_e4m3fn),
            r"got torch\.float8_e4m3fn as torch\.strided",
        ),
        (lambda torch: torch.eye(2).to_sparse(), r"got torch\.float32 as torch\.sparse_coo"),
    ],
    ids=["float8", "sparse"],
)
def test_numbers_that_are_not_plain_are_one_sentence(place, make, told):
    torch = pytest.importorskip("torch", reason="torch is not installed; elm_jax[parity] brings it")
    torch.save({"shared.weight": make(torch)}, place / "pytorch_model.bin")
    with pytest.raises(UserError, match=told):
        load_base(place)


@pytest.mark.parametrize("name", ["model.pkl", "weights.pt", "state.ckpt", "x.pickle"])
def test_a_pickle_by_another_name_is_never_opened(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps(Malicious(tmp_path / "harmed")))
    for where in (tmp_path, tmp_path / name):
        with pytest.raises(UserError, match=rf"the pickle .*{name}'"):
            load_base(where)
    assert not (tmp_path / "harmed").exists()
