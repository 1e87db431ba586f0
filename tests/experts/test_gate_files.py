"""Gates of an expert: they come back as they were, stay with its very parameters, and damage is told."""

from dataclasses import replace

import numpy as np
import pytest

from elm_jax.errors import UserError
from elm_jax.experts import files, gate_files
from elm_jax.models import paths
from elm_jax.models.expert_kinds import KINDS
from elm_jax.models.shapes import expert_shapes
from elm_jax.records import Expert, ExpertSpec, Gates

NAME, PATH = "dream/baseline", "decoder/layers/mlp/wo"


def make_lora(value=1.0):
    flat = {
        f"{PATH}/lora_a": np.full((2, 5, 3), value, np.float32),
        f"{PATH}/lora_b": np.full((2, 3, 4), value, np.float32),
    }
    return Expert(ExpertSpec(NAME, "lora", "base", tuple(flat), ("dream",), 1), paths.unflatten(flat))


@pytest.fixture
def held(library):
    """A library with one LoRA expert, and gates that fit it."""
    library.add(make_lora())
    vectors = {PATH: np.arange(10, dtype=np.float32).reshape(2, 5)}
    return library, Gates(vectors, library.describe(NAME).checksum, {"steps": 3})


def directory(library):
    return library.root / files.relative_directory(NAME)


def test_gates_come_back_as_they_were_and_the_expert_stays_as_it_is(held):
    library, gates = held
    before = {file.name: file.read_bytes() for file in directory(library).iterdir()}
    assert not library.has_gates(NAME)
    library.write_gates(NAME, gates)
    found = library.load_gates(NAME)
    assert (found.checksum, found.recipe) == (gates.checksum, {"steps": 3})
    np.testing.assert_array_equal(found.vectors[PATH], gates.vectors[PATH])
    after = {file.name: file.read_bytes() for file in directory(library).iterdir()}
    assert after.items() - before.items() == {(gate_files.GATES_FILE, after[gate_files.GATES_FILE])}
    assert library.verify() == []


def test_an_expert_of_other_parameters_loses_the_gates_and_refuses_the_old_ones(held):
    library, gates = held
    library.write_gates(NAME, gates)
    library.add(make_lora(2.0), replace=True)
    with pytest.raises(UserError, match="elm train"):
        library.load_gates(NAME)
    with pytest.raises(UserError, match="got those of"):
        library.write_gates(NAME, gates)


@pytest.mark.parametrize(
    "vectors",
    [
        {},
        {PATH: np.zeros((2, 4), np.float32)},
        {PATH: np.full((2, 5), np.nan, np.float32)},
        {PATH: np.zeros((2, 5), np.float32), "other": np.zeros((2, 5), np.float32)},
    ],
)
def test_gates_that_are_not_one_for_every_projection_are_refused(held, vectors):
    library, gates = held
    with pytest.raises(UserError, match="Fix: train them again"):
        library.write_gates(NAME, replace(gates, vectors=vectors))
    assert not library.has_gates(NAME)


def test_an_expert_that_is_no_lora_has_no_gates(library, expert):
    library.add(expert())
    gates = Gates({}, library.describe(NAME).checksum)
    with pytest.raises(UserError, match="LoRA"):
        library.write_gates(NAME, gates)


def test_of_all_kinds_lora_alone_has_gates(one_layer):
    options = {"rank": 2, "alpha": 8, "rslora": True}
    shapes = {
        kind: {
            path: leaf.shape for path, leaf in paths.flatten(expert_shapes(one_layer, kind, given)).items()
        }
        for kind, given in {**{each: {} for each in KINDS}, "lora": options}.items()
    }
    assert [kind for kind in KINDS if gate_files.gate_shapes(shapes[kind])] == ["lora"]
    owners = {path.rpartition("/")[0] for path in shapes["lora"]}
    assert set(gate_files.gate_shapes(shapes["lora"])) == owners


def test_gates_that_were_changed_or_are_of_another_expert_are_told(held):
    library, gates = held
    library.write_gates(NAME, gates)
    file = directory(library) / gate_files.GATES_FILE
    sound = file.read_bytes()
    changed = bytearray(sound)
    changed[sound.index(np.float32(9).tobytes())] ^= 1
    for content in (bytes(changed), sound[:-3], b"rubbish"):
        file.write_bytes(content)
        (finding,) = library.verify()
        assert "gates" in finding.problem
        with pytest.raises(UserError, match="--restart"):
            library.load_gates(NAME)
    gate_files.write_gates(directory(library), "dream/other", library.describe(NAME).shapes, gates)
    (finding,) = library.verify()
    assert "those of 'dream/other'" in finding.problem


def test_a_copy_of_an_expert_has_its_gates_and_one_without_gets_them(held, tmp_path, keys):
    library, gates = held
    library.write_gates(NAME, gates)
    other = type(library).open(tmp_path / "other", create=True)
    other.add(make_lora(), keys("one"))
    other.add_missing_files(NAME, directory(library))
    np.testing.assert_array_equal(other.load_gates(NAME).vectors[PATH], gates.vectors[PATH])
    assert other.load_keys(NAME).texts == ("one",)
    third = type(library).open(tmp_path / "third", create=True)
    third.add_copy(directory(library))
    assert third.fingerprint(NAME) == library.fingerprint(NAME)
    library.remove_gates(NAME)
    assert third.fingerprint(NAME) != library.fingerprint(NAME)
