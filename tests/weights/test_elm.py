"""Our format of a base: what was saved comes back, and what was changed is refused by name."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from ml_dtypes import bfloat16

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.models import paths
from elm_jax.models.sizes import find_config
from elm_jax.models.t5 import init_params
from elm_jax.weights import base_model, elm

NORM = "encoder/encoder_norm/scale"
LAYER = "decoder/layers_1/mlp/wo/kernel"


@pytest.fixture(scope="module")
def base():
    config = find_config("tiny", vocab_size=24, emb_dim=8, num_heads=2, head_dim=4, mlp_dim=12)
    return base_model.make_base(config, init_params(jax.random.key(0), config))


@pytest.fixture
def saved(base, tmp_path):
    elm.save(tmp_path / "base", base)
    return tmp_path / "base"


def rewrite(saved, change):
    """Changes the named tensors of a base on disk."""
    file = saved / elm.PARAMS_FILE
    arrays = storage.read_arrays(file, what="parameters")
    change(arrays)
    storage.write_arrays(file, arrays)


def test_a_base_comes_back_with_the_same_shape_fingerprint_and_bytes(base, saved):
    found = elm.load(saved)
    assert (found.config, found.fingerprint) == (base.config, base.fingerprint)
    assert jax.tree.structure(found.params) == jax.tree.structure(base.params)
    before, after = paths.flatten(base.params), paths.flatten(found.params)
    assert all(np.asarray(before[path]).tobytes() == after[path].tobytes() for path in before)


def test_saving_what_was_loaded_writes_the_same_files(saved, tmp_path):
    elm.save(tmp_path / "again", elm.load(saved))
    for name in (elm.CONFIG_FILE, elm.PARAMS_FILE):
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()


def test_tensors_on_disk_have_t5x_names_layer_by_layer(saved):
    names = set(storage.read_arrays(saved / elm.PARAMS_FILE, what="parameters"))
    assert {NORM, LAYER, "decoder/layers_0/mlp/wo/kernel", "decoder/logits_dense/kernel"} <= names
    assert not any("/layers/" in name for name in names)


def test_bfloat16_parameters_keep_their_type_and_fingerprint(base, tmp_path):
    half = jax.tree.map(lambda leaf: np.asarray(leaf, bfloat16), base.params)
    narrow = base_model.make_base(replace(base.config, dtype="bfloat16"), half)
    elm.save(tmp_path, narrow)
    found = elm.load(tmp_path)
    assert found.fingerprint == narrow.fingerprint != base.fingerprint
    assert {leaf.dtype for leaf in jax.tree.leaves(found.params)} == {np.dtype(bfloat16)}


def test_the_fingerprint_stands_for_every_bit_of_every_parameter(base):
    flat = {path: np.array(leaf) for path, leaf in paths.flatten(base.params).items()}
    prints = {base_model.make_base(base.config, paths.unflatten(flat)).fingerprint}
    for path in flat:
        changed = flat[path].copy()
        changed.flat[-1] = np.nextafter(changed.flat[-1], np.float32(np.inf))
        prints.add(base_model.make_base(base.config, paths.unflatten({**flat, path: changed})).fingerprint)
    assert len(prints) == len(flat) + 1
    assert base.fingerprint in prints


def test_a_changed_tensor_is_refused(saved):
    def change(arrays):
        arrays[NORM] = arrays[NORM] * np.float32(1.0001)

    rewrite(saved, change)
    with pytest.raises(UserError, match=r"fingerprint .*base'.* was changed"):
        elm.load(saved)


@pytest.mark.parametrize("name", [NORM, LAYER, "decoder/layers_0/mlp/wo/kernel"])
def test_a_missing_tensor_is_named_with_its_file(saved, name):
    rewrite(saved, lambda arrays: arrays.pop(name))
    with pytest.raises(UserError, match=rf"'{name}' of shape .*params\.safetensors'"):
        elm.load(saved)


@pytest.mark.parametrize("name", ["decoder/relpos", "decoder/layers_2/mlp/wo/kernel", "vision/kernel"])
def test_a_tensor_too_many_is_named_with_its_file(saved, name):
    rewrite(saved, lambda arrays: arrays.update({name: np.ones((12, 8), np.float32)}))
    with pytest.raises(UserError, match=rf"params\.safetensors', got '{name}'"):
        elm.load(saved)


@pytest.mark.parametrize("name", [NORM, LAYER])
def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes(saved, name):
    rewrite(saved, lambda arrays: arrays.update({name: np.ones((7, 3), np.float32)}))
    wanted = {NORM: r"\(8,\)", LAYER: r"\(12, 8\)"}[name]
    with pytest.raises(UserError, match=rf"'{name}' in .*params\.safetensors' as {wanted}, got \(7, 3\)"):
        elm.load(saved)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_is_named(saved, keep):
    file = saved / elm.PARAMS_FILE
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"params\.safetensors'"):
        elm.load(saved)


def test_a_missing_directory_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"no/base', got no directory.*[Tt]rain one with"):
        elm.load(tmp_path / "no" / "base")


@pytest.mark.parametrize("name", [elm.CONFIG_FILE, elm.PARAMS_FILE])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(UserError, match=f"{name}'"):
        elm.load(saved)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda told: told.pop("network"), "Expected 'network'"),
        (lambda told: told.pop("fingerprint"), "Expected 'fingerprint'"),
        (lambda told: told.update(format=99), "format 1 .* got 99"),
        (lambda told: told["network"].update(dtype="float16"), "float32 or bfloat16, got 'float16'"),
        (lambda told: told["network"].update(num_encoder_layers=3), "'encoder/layers_2/"),
        (lambda told: told["network"].update(emb_dim=9), r"as \(.*9"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(saved, change, told):
    value = json.loads((saved / elm.CONFIG_FILE).read_text())
    change(value)
    (saved / elm.CONFIG_FILE).write_text(json.dumps(value))
    with pytest.raises(UserError, match=told):
        elm.load(saved)


def test_a_save_cut_short_leaves_no_base_to_load(base, tmp_path, monkeypatch):
    def full_disk(*_):
        raise UserError("the disk is full")

    monkeypatch.setattr(storage, "write_json", full_disk)
    with pytest.raises(UserError, match="the disk is full"):
        elm.save(tmp_path, base)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"config\.json', got no file"):
        elm.load(tmp_path)
