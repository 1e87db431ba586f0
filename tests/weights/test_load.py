"""Loading: what a directory is, where its parameters go, and what a name stands for."""

import io
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

import elm_jax
from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.models import meshes, paths, sharding
from elm_jax.weights import elm, load, t5x_write, tensors
from elm_jax.weights.load import detect_format, load_base, load_model


@pytest.fixture
def everywhere(t5_1_1, writers, tmp_path):
    """The same model in every format."""
    elm.save(tmp_path / "elm", t5_1_1)
    t5x_write.save(tmp_path / "t5x", t5_1_1)
    writers["hf"](tmp_path / "hf", t5_1_1)
    writers["hf"](tmp_path / "flax", t5_1_1, weights="flax")
    writers["legacy"](tmp_path / "legacy", writers["tree"](t5_1_1.params))
    return tmp_path


def test_a_model_is_the_same_whatever_it_is_read_from(t5_1_1, everywhere, same):
    for place in everywhere.iterdir():
        found = elm_jax.load_model(place)
        assert found.fingerprint == t5_1_1.fingerprint
        assert found.config == t5_1_1.config
        assert same(found.params, t5_1_1.params)
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(found.params))


def test_formats_are_told_apart(everywhere):
    found = {place.name: detect_format(storage.path(place)) for place in everywhere.iterdir()}
    assert found == {"elm": "elm", "t5x": "t5x", "hf": "hf", "flax": "hf", "legacy": "t5x"}


def test_a_file_of_a_checkpoint_stands_for_it(t5_1_1, everywhere):
    for file in ("hf/model.safetensors", "elm/params.safetensors", "flax/flax_model.msgpack"):
        assert load_base(everywhere / file).fingerprint == t5_1_1.fingerprint


@pytest.mark.parametrize("kind", ["elm", "t5x", "hf", "flax", "legacy"])
def test_a_type_is_converted_to_on_the_way(t5_1_1, everywhere, kind):
    found = load_model(everywhere / kind, dtype="bfloat16")
    assert found.config.dtype == "bfloat16"
    assert {leaf.dtype for leaf in jax.tree.leaves(found.params)} == {jnp.bfloat16.dtype}
    assert found.fingerprint == load_model(everywhere / "hf", dtype=jnp.bfloat16).fingerprint
    kernel = found.params["encoder"]["layers"]["mlp"]["wo"]["kernel"]
    wanted = t5_1_1.params["encoder"]["layers"]["mlp"]["wo"]["kernel"]
    np.testing.assert_array_equal(kernel, wanted.astype(jnp.bfloat16))


def test_parameters_lie_as_a_function_of_path_and_shape_says(t5_1_1, everywhere, same):
    mesh = jax.make_mesh((4,), ("x",), devices=jax.devices()[:4])
    asked = {}

    def sharding_of(path, shape):
        asked[path] = shape
        axes: list[str | None] = [None] * len(shape)
        if path.endswith("kernel") and shape[1] % 4 == 0:
            axes[1] = "x"
        return NamedSharding(mesh, PartitionSpec(*axes)) if any(axes) else None

    found = load_model(everywhere / "hf", sharding=sharding_of)
    flat = paths.flatten(found.params)
    assert asked == {path: leaf.shape for path, leaf in flat.items()}
    query = flat["encoder/layers/attention/query/kernel"]
    assert {shard.data.shape for shard in query.addressable_shards} == {(2, 2, 10)}
    assert len(flat["encoder/encoder_norm/scale"].devices()) == 1
    assert found.fingerprint == t5_1_1.fingerprint
    assert same(found.params, t5_1_1.params)


def test_parameters_lie_on_a_mesh_by_the_rules_of_the_network(t5_1_1, everywhere, same):
    mesh = meshes.make_mesh(jax.devices()[:4], data=1, fsdp=2, tensor=2)
    found = load_model(everywhere / "t5x", sharding=mesh)
    wanted = paths.flatten(sharding.param_shardings(mesh, t5_1_1.params))
    assert {path: leaf.sharding for path, leaf in paths.flatten(found.params).items()} == wanted
    assert same(found.params, t5_1_1.params)


def test_parameters_lie_as_a_tree_or_one_sharding_says(t5_1_1, everywhere):
    last = SingleDeviceSharding(jax.devices()[-1])
    for given in (last, jax.tree.map(lambda _: last, dict(t5_1_1.params))):
        found = load_model(everywhere / "elm", sharding=given)
        assert {leaf.sharding for leaf in jax.tree.leaves(found.params)} == {last}


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ([], "got nothing"),
        (["notes.txt", "a.csv"], r"got a\.csv, notes\.txt"),
        (["config.json"], "a configuration without its weights"),
        (["adapter_config.json"], "an expert, which `elm convert` reads, but no model"),
        (["expert.json", "params.safetensors"], "an expert, which `elm convert` reads, but no model"),
    ],
)
def test_a_directory_that_is_no_model_is_told_with_what_it_holds(tmp_path, names, told):
    for name in names:
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=told):
        load_model(tmp_path)


@pytest.mark.parametrize("where", ["/no/where", "./nowhere", "~/nowhere-at-all"])
def test_a_path_that_is_not_there_is_one_sentence(where):
    with pytest.raises(UserError, match="got no directory"):
        load_model(where)


def test_a_changed_base_of_ours_is_refused(t5_1_1, everywhere):
    file = everywhere / "elm" / "params.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="it was changed after it was written"):
        load_model(everywhere / "elm")


@pytest.mark.parametrize("kind", ["elm", "hf", "shards"])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_load_onto_a_mesh_reads_each_byte_once(t5_1_1, writers, tmp_path, monkeypatch, kind, dtype):
    place = tmp_path / kind
    if kind == "elm":
        elm.save(place, t5_1_1)
    else:
        writers["hf"](place, t5_1_1, shards=3 if kind == "shards" else 1)
    counted = {}

    class Counting(io.FileIO):
        """An open file that counts which of its bytes are read."""

        def read(self, size=-1):
            start, content = self.tell(), super().read(size)
            seen = counted.setdefault(self.name, np.zeros(os.path.getsize(self.name), int))
            np.add.at(seen, slice(start, start + len(content)), 1)
            return content

    monkeypatch.setattr(tensors, "open_file", lambda file: Counting(str(file)))
    mesh = meshes.make_mesh(jax.devices()[:4], data=1, fsdp=2, tensor=2)
    found = load_model(place, dtype=dtype, sharding=mesh)
    assert all(len(leaf.sharding.device_set) == 4 for leaf in jax.tree.leaves(found.params))
    assert len(counted) == (3 if kind == "shards" else 1)
    assert all((seen == 1).all() for seen in counted.values())


def test_a_model_in_another_type_may_keep_the_fingerprint_of_what_is_stored(t5_1_1, everywhere):
    for place in everywhere.iterdir():
        found = load_base(place, dtype="bfloat16", as_stored=True)
        assert found.fingerprint == t5_1_1.fingerprint
        assert {leaf.dtype.name for leaf in jax.tree.leaves(found.params)} == {"bfloat16"}
        assert paths.flatten(found.params).keys() == paths.flatten(t5_1_1.params).keys()
        for path, leaf in paths.flatten(found.params).items():
            wanted = np.asarray(paths.flatten(t5_1_1.params)[path]).astype(leaf.dtype)
            np.testing.assert_array_equal(leaf, wanted)
        assert load.find_stored_dtype(place) == "float32"
