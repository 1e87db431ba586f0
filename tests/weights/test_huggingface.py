"""Hugging Face's checkpoints: the names, the head and its scale, shards, and what is no such checkpoint."""

import json
import math
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from flax.serialization import msgpack_serialize
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from elm_jax.errors import UserError
from elm_jax.weights import hf_names, huggingface
from elm_jax.weights.load import load_base

QUERY = "encoder.block.1.layer.0.SelfAttention.q.weight"
NORM = "encoder.block.2.layer.0.layer_norm.weight"
FIELDS = ["d_model", "num_layers", "d_kv", "feed_forward_proj", "tie_word_embeddings", "dropout_rate"]
SCALAR = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)


@pytest.mark.parametrize("how", [{}, {"shards": 3}, {"weights": "flax"}], ids=["whole", "shards", "flax"])
def test_every_way_to_keep_weights_gives_the_same_bytes_and_shape(model, writers, same, tmp_path, how):
    found = load_base(writers["hf"](tmp_path, model, **how))
    assert found.config == model.config
    assert found.fingerprint == model.fingerprint
    assert same(found.params, model.params)


def test_every_projection_is_known_both_ways(t5_1_1, writers):
    modules = [name.removesuffix(".weight") for name in writers["hf_arrays"](t5_1_1)]
    found = {module: place for module in modules if (place := hf_names.parse_projection(module))}
    # Two encoder layers of four projections and three, three decoder layers of twice four and three.
    assert len(found) == 2 * (4 + 3) + 3 * (2 * 4 + 3)
    assert all(hf_names.module_name(*place) == module for module, place in found.items())


@pytest.mark.parametrize(
    ("told", "tied", "scaled"),
    [
        # transformers 4: the one field says both.
        ({"tie_word_embeddings": True}, True, True),
        ({}, True, True),
        # transformers 5: always tied, the truth is in the other field.
        ({"tie_word_embeddings": True, "scale_decoder_outputs": True}, True, True),
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, True, False),
        ({"tie_word_embeddings": False, "scale_decoder_outputs": False}, True, False),
        # mT5's logits are never scaled.
        ({"model_type": "mt5", "tie_word_embeddings": True}, True, False),
        ({"model_type": "mt5", "scale_decoder_outputs": True}, True, False),
    ],
)
def test_without_a_head_the_configuration_tells_the_scale(make_base, writers, tmp_path, told, tied, scaled):
    config = replace(small(), logits_via_embedding=True)
    place = writers["hf"](tmp_path, make_base(config))
    written = json.loads((place / "config.json").read_text())
    del written["tie_word_embeddings"]
    (place / "config.json").write_text(json.dumps(written | told))
    found = load_base(place).config
    assert (found.logits_via_embedding, found.scale_decoder_outputs) == (tied, scaled)


@pytest.mark.parametrize(
    ("told", "factor"),
    [
        ({"tie_word_embeddings": False}, 1),
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, 1),
        ({"model_type": "mt5", "tie_word_embeddings": True}, 1),
        # transformers divides by sqrt(d_model) = sqrt(8) before a head of its own, too.
        ({"tie_word_embeddings": True, "scale_decoder_outputs": True}, 1 / math.sqrt(8)),
        ({"tie_word_embeddings": True}, 1 / math.sqrt(8)),
    ],
)
def test_a_head_in_the_file_is_the_head_whatever_the_configuration_says(
    t5_1_1, writers, tmp_path, told, factor
):
    found = load_base(writers["hf"](tmp_path, t5_1_1, **told))
    assert not found.config.logits_via_embedding
    head = t5_1_1.params["decoder"]["logits_dense"]["kernel"]
    np.testing.assert_array_equal(
        found.params["decoder"]["logits_dense"]["kernel"], head * np.float32(factor)
    )


@pytest.mark.parametrize("weights", ["safetensors", "flax"])
def test_a_scaled_head_that_repeats_the_embeddings_is_tied(make_base, writers, same, tmp_path, weights):
    tied = make_base(replace(small(), logits_via_embedding=True))
    place = writers["hf"](tmp_path, tied, weights=weights)
    if weights == "flax":
        tree = {"lm_head": {"kernel": tied.params["token_embedder"]["embedding"].T.copy()}}
        arrays = writers["hf_arrays"](tied, flax=True)
        for name, value in arrays.items():
            *parents, last = name.split(".")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = value
        (place / "flax_model.msgpack").write_bytes(msgpack_serialize(tree))
    else:
        arrays = writers["hf_arrays"](tied)
        save_file(arrays | {"lm_head.weight": arrays["shared.weight"]}, place / "model.safetensors")
    found = load_base(place)
    assert found.config == tied.config
    assert same(found.params, tied.params)


def test_copies_of_the_embeddings_and_a_table_nobody_reads_are_passed_over(model, writers, same, tmp_path):
    arrays = writers["hf_arrays"](model)
    embedding = arrays.pop("shared.weight")
    arrays |= {f"{stack}.embed_tokens.weight": embedding for stack in ("encoder", "decoder")}
    unread = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    arrays[unread] = np.ones((32, 2), np.float32)
    found = load_base(writers["hf"](tmp_path, model, arrays=arrays))
    assert same(found.params, model.params)


def test_float16_becomes_float32_and_bfloat16_stays(t5_1_1, make_base, writers, tmp_path):
    arrays = {name: value.astype(np.float16) for name, value in writers["hf_arrays"](t5_1_1).items()}
    found = load_base(writers["hf"](tmp_path / "half", t5_1_1, arrays=arrays))
    assert found.config.dtype == "float32"
    table = found.params["token_embedder"]["embedding"]
    assert table.dtype == np.float32
    np.testing.assert_array_equal(table, arrays["shared.weight"].astype(np.float32))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda arrays: arrays.pop(QUERY), rf"'{QUERY}' of shape \(10, 8\) in"),
        (lambda arrays: arrays.pop("shared.weight"), r"Expected 'shared\.weight' of shape \(24, 8\)"),
        (lambda arrays: arrays.pop("lm_head.weight"), r"Expected 'lm_head\.weight' of shape \(24, 8\)"),
        (
            lambda arrays: arrays.update({QUERY: np.ones((8, 10), np.float32)}),
            rf"'{QUERY}' in .* as \(10, 8\), got \(8, 10\)",
        ),
        (lambda arrays: arrays.update({QUERY: np.ones(80, np.float32)}), r"got \(80,\)"),
        (lambda arrays: arrays.update({QUERY: np.ones((10, 8), int)}), "got int64"),
        (
            lambda arrays: arrays.update(
                {"encoder.block.2.layer.0.layer_norm.weight": np.ones(8, np.float32)}
            ),
            r"got 'encoder\.block\.2\.layer\.0\.layer_norm\.weight'",
        ),
    ],
)
def test_a_tensor_that_is_wrong_is_named_as_its_file_names_it(t5_1_1, writers, tmp_path, change, told):
    arrays = writers["hf_arrays"](t5_1_1)
    change(arrays)
    with pytest.raises(UserError, match=told) as error:
        load_base(writers["hf"](tmp_path, t5_1_1, arrays=arrays))
    assert "model.safetensors" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"model_type": "bert"},
            r"config\.json' to describe a model of type t5, mt5, umt5, got 'bert'",
        ),
        ({"model_type": None}, "got None"),
        ({"model_type": "longt5"}, "got 'longt5'.*LongT5 attends to a window"),
        ({"model_type": "switch_transformers"}, "got 'switch_transformers'.*Switch Transformers route"),
        ({"feed_forward_proj": "gated-tanh"}, "feed_forward_proj of relu, gelu_new, .*'gated-tanh'"),
        ({"d_model": "8"}, "d_model in .* got '8'"),
        ({"num_layers": 0}, "num_layers in .* got 0"),
        ({"num_layers": 10**6}, "at most 1024 layers .* got 1000000 and 3"),
        ({"d_model": 10**9}, "d_model in .* got 1000000000"),
        ({"num_layers": 3}, r"Expected 'encoder\.block\.2\."),
        ({"num_layers": 1}, r"got 'encoder\.block\.1\."),
        ({"d_kv": 6}, r"as \(12, 8\), got"),
        ({"vocab_size": 25}, r"'(lm_head|shared)\.weight' in .* as \(25, 8\), got \(24, 8\)"),
        ({"relative_attention_num_buckets": 2}, "at least 4 buckets"),
        ({"relative_attention_max_distance": 16}, "half of them below the largest distance"),
    ],
)
def test_a_configuration_that_does_not_fit_is_one_sentence(t5_1_1, writers, tmp_path, changes, told):
    with pytest.raises(UserError, match=told):
        load_base(writers["hf"](tmp_path, t5_1_1, **changes))


@pytest.mark.parametrize("name", ["vocab_size", "d_model", "num_heads", "num_layers", "d_kv", "d_ff"])
def test_a_size_that_is_not_told_is_named(t5_1_1, writers, tmp_path, name):
    place = writers["hf"](tmp_path, t5_1_1)
    told = json.loads((place / "config.json").read_text())
    del told[name]
    (place / "config.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match=f"Expected '{name}' in"):
        load_base(place)


@given(
    content=st.dictionaries(
        st.sampled_from(FIELDS),
        SCALAR | st.lists(SCALAR, max_size=2),
    )
    | SCALAR
)
@settings(max_examples=25, deadline=None)
def test_any_other_configuration_is_read_or_one_sentence(hub_copy, content):
    told = json.loads((hub_copy / "before.json").read_text())
    changed = told | content if isinstance(content, dict) else content
    (hub_copy / "config.json").write_text(json.dumps(changed))
    with suppress(UserError):
        huggingface.open_checkpoint(hub_copy)


@pytest.fixture(scope="module")
def hub_copy(t5_1_1, writers, tmp_path_factory):
    place = writers["hf"](tmp_path_factory.mktemp("hub"), t5_1_1)
    (place / "before.json").write_text((place / "config.json").read_text())
    return place


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_truncated_weights_are_named(t5_1_1, writers, tmp_path, keep):
    place = writers["hf"](tmp_path, t5_1_1)
    file = place / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"model\.safetensors'"):
        load_base(place)


def test_a_missing_shard_is_named(t5_1_1, writers, tmp_path):
    place = writers["hf"](tmp_path, t5_1_1, shards=3)
    (place / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match=r"the shard 'model-00002-of-00003\.safetensors'"):
        load_base(place)


def test_a_tensor_that_its_index_promises_is_named_with_its_shard(t5_1_1, writers, tmp_path):
    place = writers["hf"](tmp_path, t5_1_1, shards=3)
    shard = place / "model-00002-of-00003.safetensors"
    arrays = load_file(shard)
    name = sorted(arrays)[0]
    del arrays[name]
    save_file(arrays, shard)
    with pytest.raises(UserError, match=rf"Expected '{name}' in .*model-00002-of-00003\.safetensors'"):
        load_base(place)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": "../b"}}', '{"weight_map": {"a": 1}}'],
)
def test_an_index_that_is_none_is_one_sentence(t5_1_1, writers, tmp_path, content):
    place = writers["hf"](tmp_path, t5_1_1, shards=2)
    (place / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UserError, match=r"model\.safetensors\.index\.json"):
        load_base(place)


@pytest.mark.parametrize("content", ["", "[]", "{", "\udcff"])
def test_a_configuration_that_is_no_object_is_one_sentence(t5_1_1, writers, tmp_path, content):
    place = writers["hf"](tmp_path, t5_1_1)
    (place / "config.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"config\.json'"):
        load_base(place)


def test_weights_without_their_configuration_are_told_of(t5_1_1, writers, tmp_path):
    place = writers["hf"](tmp_path, t5_1_1)
    (place / "config.json").unlink()
    with pytest.raises(UserError, match=r"Expected config\.json .* got none"):
        load_base(place)


def test_what_is_written_is_what_was_read(model, writers, same, tmp_path):
    place = writers["hf"](tmp_path / "theirs", model)
    huggingface.save(tmp_path / "ours", load_base(place))
    found, wanted = load_file(tmp_path / "ours" / "model.safetensors"), writers["hf_arrays"](model)
    assert same(found, wanted)
    told = json.loads((tmp_path / "ours" / "config.json").read_text())
    before = json.loads((place / "config.json").read_text())
    assert {name: told[name] for name in before} == before
    assert told["scale_decoder_outputs"] == model.config.logits_via_embedding


def test_a_tied_head_without_scale_is_written_as_transformers_5_does(make_base, tmp_path):
    config = replace(small(), logits_via_embedding=True, scale_decoder_outputs=False)
    base = make_base(config)
    huggingface.save(tmp_path, base)
    assert load_base(tmp_path).config == config
    told = json.loads((tmp_path / "config.json").read_text())
    assert (told["tie_word_embeddings"], told["scale_decoder_outputs"]) == (True, False)


def test_large_weights_are_written_in_shards_with_their_index(t5_1_1, same, tmp_path):
    huggingface.save(tmp_path, t5_1_1, shard=5000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert [file.name for file in shards] == sorted(set(index["weight_map"].values()))
    assert shards[-1].name.endswith(f"-of-{len(shards):05}.safetensors")
    assert (
        sum(value.nbytes for file in shards for value in load_file(file).values())
        == index["metadata"]["total_size"]
    )
    assert all(name in load_file(tmp_path / file) for name, file in index["weight_map"].items())
    assert same(load_base(tmp_path).params, t5_1_1.params)


def small():
    from elm_jax.models.sizes import find_config

    return find_config(
        "tiny", vocab_size=24, emb_dim=8, num_heads=2, head_dim=5, mlp_dim=14, dropout_rate=0.1
    )
