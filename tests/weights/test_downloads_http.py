"""The hub over HTTP: its own client fetches bases, adapters and experts from a server of the tests."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from elm_jax.experts import files
from elm_jax.models import expert_layers as ex
from elm_jax.models import paths
from elm_jax.records import Expert, ExpertSpec
from elm_jax.weights import embedders, huggingface, load, peft


def lora(base, seed):
    tree = ex.init_expert("lora", jax.random.key(seed), base.params)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: np.asarray(leaf + rng.normal(size=leaf.shape), np.float32), dict(tree))


def test_a_base_of_a_revision_is_fetched_once_and_read_from_the_cache(hub, elm, make_base, t5_1_1, tmp_path):
    other = make_base(t5_1_1.config, seed=5)
    huggingface.save(tmp_path / "old", t5_1_1)
    huggingface.save(tmp_path / "new", other)
    (tmp_path / "new" / "pytorch_model.bin").write_bytes(b"never fetched")
    old = hub.push("me/t5", tmp_path / "old", "v1")
    hub.push("me/t5", tmp_path / "new")
    for name, wanted in (("hf:me/t5@v1", t5_1_1), ("hf:me/t5", other), (f"hf:me/t5@{old}", t5_1_1)):
        place = tmp_path / name.replace("/", " ")
        told = json.loads(elm("convert", name, place, "--to", "elm", "--json"))
        assert told["fingerprint"] == wanted.fingerprint == load.load_base(place).fingerprint
    contents = [what for what in hub.fetched if what[2].endswith(".safetensors")]
    assert len(contents) == len(set(contents)) == 2
    assert not [what for what in hub.fetched if what[2].endswith(".bin")]
    elm("convert", "hf:me/t5@v1", tmp_path / "again", "--to", "elm", offline=True)
    assert load.load_base(tmp_path / "again").fingerprint == t5_1_1.fingerprint


def test_a_base_by_its_address_is_read_from_safetensors_alone(hub, elm, t5_1_1, writers, tmp_path):
    hub.push("me/flax", writers["hf"](tmp_path / "flax", t5_1_1, weights="flax"))
    said = " ".join(elm("convert", "hf:me/flax", tmp_path / "new", "--to", "elm", fails=True).split())
    assert "its repository has none of model*.safetensors*)" in said
    assert not [what for what in hub.fetched if what[2].endswith(".msgpack")]
    elm("convert", "me/flax", tmp_path / "new", "--to", "elm")
    assert load.load_base(tmp_path / "new").fingerprint == t5_1_1.fingerprint


def test_adapters_and_experts_are_fetched_too(hub, elm, t5_1_1, same, tmp_path):
    huggingface.save(tmp_path / "base", t5_1_1)
    trees = {"adapter": lora(t5_1_1, 1), "expert": lora(t5_1_1, 2)}
    peft.save(tmp_path / "adapter", "lora", trees["adapter"])
    spec = ExpertSpec(
        "dream/baseline", "lora", t5_1_1.fingerprint, tuple(paths.flatten(trees["expert"])), ("dream",), 3
    )
    (tmp_path / "expert").mkdir()
    files.write(files.epath.Path(tmp_path / "expert"), Expert(spec, trees["expert"]), None)
    commits = {what: hub.push(f"me/{what}", tmp_path / what) for what in trees}
    home = tmp_path / "library" / "dream" / "no"
    elm("convert", "hf:me/adapter", home, "--to", "elm", "--base", tmp_path / "base")
    description = files.read_description(files.epath.Path(home))
    assert same(paths.unflatten(files.read_params(files.epath.Path(home), description)), trees["adapter"])
    assert description.spec.recipe == {"made elsewhere": f"hf:me/adapter@{commits['adapter']}"}
    elm("convert", "hf:me/expert@main", tmp_path / "out", "--to", "peft")
    assert same(peft.load(tmp_path / "out", t5_1_1.config)[1], trees["expert"])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("hf:me/nothing", "Expected the model 'me/nothing'"),
        ("hf:me/t5@v9", "got none"),
        ("hf:t5", "Expected a repository of the hub as hf:owner/name"),
        ("hf:me/t5@", "Expected a repository of the hub as hf:owner/name"),
    ],
)
def test_what_the_hub_does_not_have_is_one_sentence(hub, elm, t5_1_1, tmp_path, name, told):
    huggingface.save(tmp_path / "base", t5_1_1)
    hub.push("me/t5", tmp_path / "base")
    said = elm("convert", name, tmp_path / "out", "--to", "elm", fails=True)
    assert told in " ".join(said.split())
    assert not (tmp_path / "out").exists()


def test_a_sentence_encoder_of_a_revision_is_fetched_too(hub, elm, write_encoder, tmp_path):
    for seed, revision in ((1, "v1"), (2, "main")):
        write_encoder(tmp_path / revision, seed=seed)
        hub.push("me/encoder", tmp_path / revision, revision)
    code = "import sys; from elm_jax.weights import embedders as e; "
    code += "print(e.load_encoder(e.find_encoder(sys.argv[1])).fingerprint)"
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}"}
    environment |= {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0", "JAX_PLATFORMS": "cpu"}
    for name, revision in (("hf:me/encoder@v1", "v1"), ("hf:me/encoder", "main")):
        command = [sys.executable, "-c", code, name]
        told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert told.stdout.strip() == embedders.load_encoder(tmp_path / revision).fingerprint
