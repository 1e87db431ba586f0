"""Files of BERT, RoBERTa and MPNet: what is read and refused, and that transformers computes the same."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from elm_jax.errors import UserError
from elm_jax.models import bert_encoder, paths
from elm_jax.weights import bert

TOLD = {
    "model_type": "bert",
    "vocab_size": 14,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 20,
}


def read(tensors, **changes):
    told = {**TOLD, **changes}
    config = bert.parse_network(told, dtype="float32", where="there")
    return config, paths.unflatten(bert.convert_params(config, tensors, told["model_type"], where="there"))


@pytest.fixture(scope="module")
def tensors(write_encoder, tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("bert"))


def test_projections_are_turned_and_queries_keys_and_values_stand_side_by_side(tensors):
    _, params = read(tensors)
    kernel = params["layers"]["attention"]["qkv"]["kernel"]
    assert kernel.shape == (2, 8, 24)
    own = "encoder.layer.1.attention.self"
    np.testing.assert_array_equal(kernel[1, :, :8], tensors[f"{own}.query.weight"].T)
    np.testing.assert_array_equal(kernel[1, :, 16:], tensors[f"{own}.value.weight"].T)
    np.testing.assert_array_equal(params["layers"]["mlp"]["wo"]["kernel"][0].shape, (12, 8))


def test_the_one_token_type_in_use_is_added_to_the_positions(tensors):
    _, params = read(tensors)
    wanted = tensors["embeddings.position_embeddings.weight"]
    wanted = wanted + tensors["embeddings.token_type_embeddings.weight"][0]
    np.testing.assert_array_equal(params["embedder"]["position"], wanted)


def test_a_head_s_prefix_and_what_else_a_file_holds_change_nothing(tensors):
    _, plain = read(tensors)
    longer = {f"bert.{name}": value for name, value in tensors.items()}
    _, prefixed = read(longer | {"cls.predictions.bias": np.zeros(14, np.float32)})
    jax.tree.map(np.testing.assert_array_equal, plain, prefixed)


def test_half_precision_is_widened(tensors):
    _, params = read({name: value.astype(np.float16) for name, value in tensors.items()})
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}


def test_a_tensor_that_is_missing_or_of_another_shape_is_named(tensors):
    name = "encoder.layer.1.output.dense.weight"
    with pytest.raises(UserError, match=rf"'{name}' of shape \(8, 12\) in 'there'"):
        read({other: value for other, value in tensors.items() if other != name})
    with pytest.raises(UserError, match=rf"'{name}' in 'there' as \(8, 12\), got \(12, 8\)"):
        read(tensors | {name: tensors[name].T})
    with pytest.raises(UserError, match=rf"'{name}' in 'there' as floating-point numbers, got int8"):
        read(tensors | {name: tensors[name].astype(np.int8)})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": None}, "'hidden_size' in 'there', got None"),
        ({"num_hidden_layers": True}, "'num_hidden_layers'"),
        ({"vocab_size": -3}, "got -3"),
        ({"num_attention_heads": 3}, "its 3 heads divide, got 8"),
        ({"hidden_act": "silu"}, "gelu, gelu_new, relu in 'there', got 'silu'"),
        (
            {"position_embedding_type": "relative_key"},
            "got 'relative_key'",
        ),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(tensors, changes, said):
    with pytest.raises(UserError, match=said):
        read(tensors, **changes)


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["bert", "roberta", "mpnet"])
def test_transformers_computes_the_same_states(kind, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is in the parity extra")
    transformers = pytest.importorskip("transformers", reason="transformers is in the parity extra")
    names = {"bert": "Bert", "roberta": "Roberta", "mpnet": "MPNet"}
    sizes = {"vocab_size": 99, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3}
    sizes |= {"intermediate_size": 48, "max_position_embeddings": 400, "pad_token_id": 1}
    config = getattr(transformers, f"{names[kind]}Config")(**sizes)
    torch.manual_seed(0)
    model = getattr(transformers, f"{names[kind]}Model")(config).eval()
    for value in model.parameters():  # biases and norms begin as zeros and ones, which hide mistakes
        value.data.add_(0.05 * torch.randn(value.shape))
    model.save_pretrained(tmp_path)
    told = json.loads(Path(tmp_path / "config.json").read_text())
    held = {name: value.numpy() for name, value in model.state_dict().items()}
    made, params = read(held, **told)

    rng = np.random.default_rng(0)
    tokens = rng.integers(4, 99, (3, 300)).astype(np.int32)
    lengths = np.array([300, 17, 130], np.int32)
    seen = np.arange(300)[None] < lengths[:, None]
    tokens[~seen] = 1
    with torch.no_grad():
        wanted = model(torch.tensor(tokens).long(), torch.tensor(seen).long()).last_hidden_state.numpy()
    found = jax.jit(lambda *batch: bert_encoder.encode(made, *batch))(params, tokens, lengths)
    assert np.abs(np.asarray(found) - wanted)[seen].max() < 2e-5
