"""T5X's checkpoints: both formats, scanned or not, with their shape inferred; and half of one is refused."""

import json
import shutil
from contextlib import suppress
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax.serialization import msgpack_restore, msgpack_serialize
from hypothesis import given, settings
from hypothesis import strategies as st

from elm_jax import score_choices
from elm_jax.errors import UserError
from elm_jax.models import paths
from elm_jax.models.t5 import T5
from elm_jax.weights import base_model, huggingface, t5x_write
from elm_jax.weights.load import load_base, load_model
from tests.shared_data import DATA

T5X_DATA = DATA / "t5x_checkpoints"
LAYOUTS = [
    ("orbax", {}, {}),
    ("orbax", {"scanned": True}, {}),
    ("orbax", {}, {"ocdbt": False}),
    ("legacy", {}, {}),
    ("legacy", {"scanned": True}, {}),
]
QUERY = "encoder/layers_0/attention/query/kernel"
WI = "decoder/layers_1/mlp/wi_1/kernel"
ANYTHING = st.none() | st.integers(-9, 9) | st.text(max_size=3)


@pytest.mark.shared_data
def test_logits_and_scores_are_those_that_t5x_computed():
    found = load_model(T5X_DATA / "tiny" / "orbax" / "checkpoint_0")
    assert load_model(T5X_DATA / "tiny" / "legacy").fingerprint == found.fingerprint
    told = json.loads((T5X_DATA / "tiny" / "config.json").read_text())
    told["mlp_activations"] = tuple(told["mlp_activations"])
    assert {name: vars(found.config).get(name, told[name]) for name in told} == told
    expected = np.load(T5X_DATA / "tiny" / "expected.npz")
    prompts, targets = expected["encoder_input_tokens"], expected["decoder_target_tokens"]
    network = jax.jit(lambda params: T5(found.config).apply({"params": params}, prompts, targets[:, None]))
    logits = np.asarray(network(found.params))[:, 0]
    real = targets > 0
    np.testing.assert_allclose(logits[real], expected["logits"][real], atol=1e-4)
    scores = score_choices(found, prompts, targets[:, None])
    np.testing.assert_allclose(scores[:, 0], expected["scores"], atol=1e-4)


@pytest.mark.parametrize(("kept", "tree", "how"), LAYOUTS)
def test_every_layout_gives_the_same_bytes_and_the_shape_it_has(
    model, writers, same, tmp_path, kept, tree, how
):
    place = writers[kept](tmp_path, writers["tree"](model.params, **tree), **how)
    found = load_base(place)
    assert found.config == model.config
    assert found.fingerprint == model.fingerprint
    assert same(found.params, model.params)


def test_a_directory_of_several_stands_for_the_latest(t5_1_1, writers, make_base, tmp_path):
    later = make_base(t5_1_1.config, seed=1)
    writers["legacy"](tmp_path, writers["tree"](t5_1_1.params), step=9)
    writers["legacy"](tmp_path, writers["tree"](later.params), step=10)
    assert load_base(tmp_path).fingerprint == later.fingerprint
    assert load_base(tmp_path / "checkpoint_9" / "checkpoint").fingerprint == t5_1_1.fingerprint


def test_a_bfloat16_checkpoint_stays_one(t5_1_1, writers, make_base, tmp_path):
    narrow = make_base(t5_1_1.config, dtype=base_model.DTYPES["bfloat16"])
    writers["orbax"](tmp_path, writers["tree"](narrow.params))
    found = load_base(tmp_path)
    assert found.fingerprint == narrow.fingerprint
    assert found.config.dtype == "bfloat16"


def test_tables_of_positions_that_differ_by_layer_stay_with_their_layers(t5_1_1, writers, tmp_path):
    tree = writers["tree"](t5_1_1.params, scanned=True)
    tables = tree["decoder"]["decoder"]["relpos_bias"]["rel_embedding"]  # [H, L, K], as T5X scans
    tables[0, 1, 2] += 1
    found = load_base(writers["legacy"](tmp_path, tree))
    assert found.config == replace(t5_1_1.config, relpos_per_layer=True)
    own = found.params["decoder"]["layers"]["relpos_bias"]["rel_embedding"]
    np.testing.assert_array_equal(own, np.moveaxis(tables, 1, 0))
    with pytest.raises(UserError, match="convert to elm"):
        t5x_write.save(tmp_path / "t5x", found)
    huggingface.save(tmp_path / "hf", found)
    back = load_base(tmp_path / "hf")
    assert back.config == found.config
    # umT5's logits are scaled in transformers, and the head comes and goes with the factor.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-7), back.params, found.params)


WRONG = [
    (lambda flat: flat.pop(WI), f"Expected 'target/{WI}' of shape"),
    (
        lambda flat: flat.update({WI: np.ones((14, 8), np.float32)}),
        r"layers_1\.mlp\.wi_1\.kernel' in .* as \(8, 14\), got \(14, 8\)",
    ),
    (lambda flat: flat.pop(QUERY), f"Expected 'target/{QUERY}' of two axes"),
    (lambda flat: flat.pop("token_embedder/embedding"), "'target/token_embedder/embedding' of two axes"),
    (lambda flat: flat.update({"vision/kernel": np.ones((4, 4), np.float32)}), r"vision\.kernel'"),
    (lambda flat: flat.update({QUERY: np.ones((8, 11), np.float32)}), "the 2 heads .* got 11"),
    (lambda flat: flat.update({QUERY: np.ones((8, 10), np.int32)}), "got int32"),
    (
        lambda flat: [flat.pop(name) for name in [*flat] if "decoder" in name],
        "num_decoder_layers in .* got 0",
    ),
]


@pytest.mark.parametrize(
    ("kept", "change", "told"),
    [("legacy", *wrong) for wrong in WRONG] + [("orbax", *wrong) for wrong in WRONG[:2]],
)
def test_a_checkpoint_that_is_no_whole_t5_names_file_and_tensor(
    t5_1_1, writers, tmp_path, kept, change, told
):
    flat = paths.flatten(writers["tree"](t5_1_1.params))
    change(flat)
    place = writers[kept](tmp_path, paths.unflatten(flat))
    with pytest.raises(UserError, match=told) as error:
        load_base(place)
    assert "checkpoint_7" in str(error.value)


def files_below(place, pattern):
    return sorted(file for file in place.rglob(pattern) if file.is_file())


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("how", ["removed", "cut"])
@pytest.mark.parametrize(
    ("kept", "pattern"),
    [
        ("orbax", "manifest.ocdbt"),
        ("orbax", "d/*"),
        ("legacy", "checkpoint"),
        ("legacy", "target.encoder.layers_0.mlp.wo.kernel/1.1"),
        ("legacy", "target.encoder.layers_0.mlp.wo.kernel/.zarray"),
    ],
)
def test_a_half_written_checkpoint_is_one_sentence_that_names_it(
    t5_1_1, writers, tmp_path, kept, pattern, how
):
    place = writers[kept](tmp_path, writers["tree"](t5_1_1.params))
    for file in files_below(place, pattern):
        file.unlink() if how == "removed" else cut(file)
    with pytest.raises(UserError, match="checkpoint_7"):
        load_base(place)


def test_a_missing_chunk_of_zarr_is_not_taken_for_zeros(t5_1_1, writers, tmp_path):
    place = writers["legacy"](tmp_path, writers["tree"](t5_1_1.params))
    (place / "target.encoder.layers_0.mlp.wo.kernel" / "0.1").unlink()
    told = r"whole array 'target\.encoder\.layers_0\.mlp\.wo\.kernel'"
    with pytest.raises(UserError, match=told):
        load_base(place)


def test_a_missing_array_is_named(t5_1_1, writers, tmp_path):
    place = writers["legacy"](tmp_path, writers["tree"](t5_1_1.params))
    shutil.rmtree(place / "target.decoder.logits_dense.kernel")
    with pytest.raises(UserError, match=r"array 'target\.decoder\.logits_dense\.kernel'"):
        load_base(place)


def test_an_array_of_another_shape_than_its_index_says_is_named(t5_1_1, writers, tmp_path):
    place = writers["legacy"](tmp_path, writers["tree"](t5_1_1.params))
    tree = msgpack_restore((place / "checkpoint").read_bytes())
    tree["optimizer"]["target"]["decoder"]["logits_dense"]["kernel"]["metadata"]["shape"] = [8, 25]
    (place / "checkpoint").write_bytes(msgpack_serialize(tree))
    with pytest.raises(UserError, match=r"as \(8, 25\), .* got \(8, 24\)"):
        load_base(place)


@pytest.mark.parametrize("folder", ["/etc/zarr", "../outside", "", ".hidden"])
def test_an_index_that_leads_elsewhere_is_refused(t5_1_1, writers, tmp_path, folder):
    place = writers["legacy"](tmp_path, writers["tree"](t5_1_1.params))
    tree = msgpack_restore((place / "checkpoint").read_bytes())
    tree["optimizer"]["target"]["decoder"]["logits_dense"]["kernel"]["kvstore"]["path"] = folder
    (place / "checkpoint").write_bytes(msgpack_serialize(tree))
    with pytest.raises(UserError, match="shape of 'target/decoder/logits_dense/kernel'"):
        load_base(place)


@given(kernel=st.recursive(ANYTHING, lambda inner: st.lists(inner, max_size=3), max_leaves=5))
@settings(max_examples=20, deadline=None)
def test_any_index_is_read_or_one_sentence(tmp_path_factory, kernel):
    place = tmp_path_factory.mktemp("index") / "checkpoint_1"
    place.mkdir()
    (place / "checkpoint").write_bytes(msgpack_serialize({"optimizer": {"target": {"a": kernel}}}))
    with suppress(UserError):
        load_base(place)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("checkpoint_7.orbax-checkpoint-tmp-123", "whose writer was stopped"),
        ("checkpoint_7.tmp-1700000000", "whose writer was stopped"),
        ("checkpoint_7", "half written, or half copied"),
    ],
)
def test_what_a_stopped_writer_left_is_refused(tmp_path, name, told):
    (tmp_path / name / "state").mkdir(parents=True)
    for where in (tmp_path, tmp_path / name):
        with pytest.raises(UserError, match=told):
            load_base(where)


def test_a_tensorflow_checkpoint_is_told_of(tmp_path):
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-1000"')
    with pytest.raises(UserError, match=r"TensorFlow checkpoint.*convert_tf_checkpoint\.py"):
        load_base(tmp_path)


def test_what_is_written_is_read_back_to_the_bit_with_a_fresh_optimizer(model, same, tmp_path):
    import orbax.checkpoint as ocp

    t5x_write.save(tmp_path, model)
    found = load_base(tmp_path)
    assert found.config == model.config
    assert same(found.params, model.params)
    state = ocp.PyTreeCheckpointer().restore(tmp_path / "checkpoint_0" / "state")
    assert state["state"]["step"] == 0
    target = paths.flatten(state["target"])
    states = paths.flatten(state["state"]["param_states"])
    assert {path.rpartition("/")[0] for path in states} == set(target)
    assert not any(np.any(value) for value in states.values())


def test_adafactor_keeps_rows_and_columns_of_matrices_with_128_of_both():
    shapes = {name: value.shape for name, value in t5x_write._init_adafactor_state((128, 300)).items()}
    assert shapes == {"m": (1,), "v": (1,), "v_row": (128,), "v_col": (300,)}
    shapes = {name: value.shape for name, value in t5x_write._init_adafactor_state((300, 128)).items()}
    assert shapes == {"m": (1,), "v": (1,), "v_row": (128,), "v_col": (300,)}
    shapes = {name: value.shape for name, value in t5x_write._init_adafactor_state((127, 300)).items()}
    assert shapes == {"m": (1,), "v": (127, 300), "v_row": (1,), "v_col": (1,)}


def test_a_tied_head_without_scale_is_written_apart_for_t5x_would_scale_it(make_base, tmp_path):
    tied = replace(t5x_config(), logits_via_embedding=True, scale_decoder_outputs=False)
    base = make_base(tied)
    t5x_write.save(tmp_path, base)
    found = load_base(tmp_path)
    assert not found.config.logits_via_embedding
    embedding, head = base.params["token_embedder"]["embedding"], found.params["decoder"]["logits_dense"]
    np.testing.assert_array_equal(head["kernel"], embedding.T)


def t5x_config():
    from elm_jax.models.sizes import find_config

    return find_config("tiny", vocab_size=24, emb_dim=8, num_heads=2, head_dim=5, mlp_dim=14)
