"""Sentence encoders: read from a directory or the hub's cache, and what is said where a part is missing."""

import json

import huggingface_hub
import jax
import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import load_file, save_file

from elm_jax.errors import UserError
from elm_jax.models.sizes import T5Config
from elm_jax.weights import embedders


@pytest.fixture
def place(write_encoder, tmp_path):
    write_encoder(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache of the hub, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def cached(cache, write_encoder, repository="sentence-transformers--tiny"):
    home = cache / f"models--{repository}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("0" * 40)
    write_encoder(home / "snapshots" / ("0" * 40))
    return home / "snapshots" / ("0" * 40)


def test_a_directory_is_read_whole(place):
    found = embedders.load_encoder(place)
    assert (found.kind, found.pooling, found.normalized, found.max_length) == ("bert", "mean", True, 9)
    assert found.projections == ()
    assert found.params["embedder"]["token"].shape == (14, 8)


def test_the_fingerprint_stands_for_whatever_changes_a_vector(place, write_encoder, tmp_path):
    first = embedders.load_encoder(place).fingerprint
    write_encoder(tmp_path / "same")
    assert embedders.load_encoder(tmp_path / "same").fingerprint == first
    for name, changes in {
        "weights": {"seed": 1},
        "pooling": {"pooling": "cls_token"},
        "length": {"normalized": False},
        "cut": {"length": 8},
    }.items():
        write_encoder(tmp_path / name, **changes)
        assert embedders.load_encoder(tmp_path / name).fingerprint != first
    assert embedders.load_encoder(place, dtype="bfloat16").fingerprint != first
    config = place / "tokenizer_config.json"
    config.write_text(json.dumps({"do_lower_case": False}))
    assert embedders.load_encoder(place).fingerprint != first


def test_a_plain_checkpoint_is_read_when_its_pooling_is_told(place):
    (place / "modules.json").unlink()
    found = embedders.load_encoder(place, pooling="pooler")
    assert (found.pooling, found.activations, found.normalized) == ("cls", ("tanh",), False)
    kernel = load_file(place / "model.safetensors")["pooler.dense.weight"].T
    np.testing.assert_array_equal(found.projections[0]["kernel"], kernel)
    with pytest.raises(UserError, match="mean, cls, max"):
        embedders.load_encoder(place)


def test_weights_in_shards_are_the_same_weights(place):
    whole = embedders.load_encoder(place)
    tensors = load_file(place / "model.safetensors")
    (place / "model.safetensors").unlink()
    placed = {name: f"model-{len(name) % 2}.safetensors" for name in tensors}
    for shard in set(placed.values()):
        save_file({name: value for name, value in tensors.items() if placed[name] == shard}, place / shard)
    (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    assert embedders.load_encoder(place).fingerprint == whole.fingerprint
    (place / "model-1.safetensors").unlink()
    with pytest.raises(UserError, match=r"the shard 'model-1\.safetensors' .*index\.json' names, got none"):
        embedders.load_encoder(place)


def test_a_projection_is_read_from_its_own_directory(place):
    modules = json.loads((place / "modules.json").read_text())
    modules.insert(
        2, {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    )
    (place / "modules.json").write_text(json.dumps(modules))
    (place / "2_Dense").mkdir()
    told = {"in_features": 8, "out_features": 3, "bias": False}
    told["activation_function"] = "torch.nn.modules.linear.Identity"
    (place / "2_Dense" / "config.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match=r"model\.safetensors or .*2_Dense'"):
        embedders.load_encoder(place)
    weight = np.arange(24, dtype=np.float32).reshape(3, 8)
    save_file({"linear.weight": weight}, place / "2_Dense" / "model.safetensors")
    found = embedders.load_encoder(place)
    assert found.activations == ("identity",)
    assert found.projections[0].keys() == {"kernel"}
    np.testing.assert_array_equal(found.projections[0]["kernel"], weight.T)


def test_the_encoder_of_a_t5_is_read_without_its_decoder(place):
    told = {"model_type": "t5", "vocab_size": 14, "d_model": 8, "num_heads": 2, "num_layers": 2, "d_kv": 4}
    (place / "config.json").write_text(json.dumps({**told, "d_ff": 12, "feed_forward_proj": "relu"}))
    rng = np.random.default_rng(0)
    shapes = {"shared.weight": (14, 8), "encoder.final_layer_norm.weight": (8,)}
    shapes["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (32, 2)
    for layer in range(2):
        at = f"encoder.block.{layer}.layer"
        shapes |= {f"{at}.0.SelfAttention.{letter}.weight": (8, 8) for letter in "qkvo"}
        shapes |= {f"{at}.{norm}.layer_norm.weight": (8,) for norm in (0, 1)}
        shapes |= {f"{at}.1.DenseReluDense.wi.weight": (12, 8), f"{at}.1.DenseReluDense.wo.weight": (8, 12)}
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(tensors, place / "model.safetensors")
    found = embedders.load_encoder(place)
    assert isinstance(found.network, T5Config)
    assert sorted(found.params) == ["encoder", "token_embedder"]
    wi = found.params["encoder"]["layers"]["mlp"]["wi"]["kernel"]
    np.testing.assert_array_equal(wi[1], tensors["encoder.block.1.layer.1.DenseReluDense.wi.weight"].T)
    # Some files have the table under a copy's name alone.
    tensors["encoder.embed_tokens.weight"] = tensors.pop("shared.weight")
    save_file(tensors, place / "model.safetensors")
    assert embedders.load_encoder(place).fingerprint == found.fingerprint


def test_a_model_of_another_type_is_refused(place):
    (place / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(
        UserError, match=r"model of type bert, roberta, xlm-roberta, mpnet, t5, mt5, umt5 .*'gpt2'"
    ):
        embedders.load_encoder(place)


def test_a_file_cut_short_is_named(place):
    content = (place / "model.safetensors").read_bytes()
    (place / "model.safetensors").write_bytes(content[:-9])
    with pytest.raises(UserError, match=r"model.safetensors'"):
        embedders.load_encoder(place)


def test_parameters_are_float32_or_as_asked(place):
    leaves = jax.tree.leaves(embedders.load_encoder(place, dtype="bfloat16").params)
    assert {leaf.dtype.name for leaf in leaves} == {"bfloat16"}
    with pytest.raises(UserError, match="float16"):
        embedders.load_encoder(place, dtype="float16")


def test_a_path_is_a_directory_and_a_name_is_in_the_cache(place, cache, write_encoder):
    home = cached(cache, write_encoder)
    assert embedders.find_encoder(place) == embedders.find_encoder(str(place))
    assert str(embedders.find_encoder(place)) == str(place)
    assert (
        str(embedders.find_encoder("tiny"))
        == str(embedders.find_encoder("sentence-transformers/tiny"))
        == str(home)
    )


@pytest.mark.parametrize("name", ["./absent", "/absent/there", "~/absent", "a/b/c", ""])
def test_a_path_that_is_not_there_is_no_name(name, cache):
    with pytest.raises(UserError, match="got no directory"):
        embedders.find_encoder(name)


def test_offline_it_says_which_files_of_which_repository_go_where(cache):
    with pytest.raises(UserError) as caught:
        embedders.find_encoder("all-MiniLM-L6-v3")
    said = str(caught.value)
    for part in (
        "'sentence-transformers/all-MiniLM-L6-v3'",
        f"the cache at {str(cache)!r}",
        "modules.json, config.json, model.safetensors, tokenizer.json",
        "Did you mean 'all-MiniLM-L6-v2'",
        "hf download sentence-transformers/all-MiniLM-L6-v3 --local-dir DIR",
        "https://huggingface.co/sentence-transformers/all-MiniLM-L6-v3 into DIR",
    ):
        assert part in said


def test_a_cache_that_has_a_part_is_told_the_rest(cache, write_encoder):
    home = cached(cache, write_encoder)
    (home / "1_Pooling" / "config.json").unlink()
    with pytest.raises(UserError, match=r"Expected 1_Pooling/config.json of"):
        embedders.find_encoder("tiny")
    (home / "modules.json").unlink()
    (home / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"Expected modules.json, tokenizer.json of"):
        embedders.find_encoder("tiny")
    with pytest.raises(UserError, match=r"Expected tokenizer.json of"):
        embedders.find_encoder("tiny", pooling="cls")


def test_what_the_cache_lacks_is_fetched(cache, write_encoder, monkeypatch):
    home = cached(cache, write_encoder)
    pooling = (home / "1_Pooling" / "config.json").read_text()
    (home / "1_Pooling" / "config.json").unlink()
    asked = []

    def download(repository, *, revision, allow_patterns, local_files_only):
        asked.append((repository, allow_patterns))
        if not local_files_only:
            (home / "1_Pooling" / "config.json").write_text(pooling)
        return str(home)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert str(embedders.find_encoder("tiny")) == str(home)
    assert [repository for repository, _ in asked] == ["sentence-transformers/tiny"] * 2
    assert "model*.safetensors*" in asked[1][1]
    assert not any("bin" in pattern for pattern in asked[1][1])


def test_weights_of_another_format_are_fetched_only_where_weights_are_missing(
    cache, write_encoder, monkeypatch
):
    home = cached(cache, write_encoder)
    (home / "tokenizer.json").unlink()
    asked = []

    def download(repository, *, revision, allow_patterns, local_files_only):
        asked.append(allow_patterns)
        return str(home)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(UserError, match=r"Expected tokenizer\.json of .* \(its repository has no more\)"):
        embedders.find_encoder("tiny")
    assert len(asked) == 2
    (home / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"Expected tokenizer.json, model.safetensors of"):
        embedders.find_encoder("tiny")
    assert "pytorch_model.bin" in asked[-1]
