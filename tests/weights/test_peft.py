"""PEFT's adapters come in with their factor and go out without one; PEFT agrees."""

import json
import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from elm_jax.errors import UserError
from elm_jax.models import expert_layers as ex
from elm_jax.models import paths
from elm_jax.models.t5 import T5
from elm_jax.weights import peft

RNG = np.random.default_rng(0)
Q = "base_model.model.decoder.block.{}.layer.1.EncDecAttention.q"
PATH = "decoder/layers/encoder_decoder_attention/query"
WO = "base_model.model.encoder.block.{}.layer.1.DenseReluDense.wo"


def write(where, arrays, **told):
    """Writes an adapter as PEFT does; `told` is its configuration."""
    save_file(arrays, where / "adapter_model.safetensors", {"format": "pt"})
    if told.get("peft_type", "LORA") == "LORA":
        told = {"peft_type": "LORA", "lora_alpha": 6, "r": 2} | told
    (where / "adapter_config.json").write_text(json.dumps(told))
    return where


def pair(layer, rank=2, inputs=8, outputs=10, module=Q):
    """Returns the two matrices of one module's LoRA."""
    return {
        f"{module.format(layer)}.lora_A.weight": RNG.normal(size=(rank, inputs)).astype(np.float32),
        f"{module.format(layer)}.lora_B.weight": RNG.normal(size=(outputs, rank)).astype(np.float32),
    }


@pytest.mark.parametrize(
    ("told", "factor"),
    [
        ({}, 6 / 2),
        ({"lora_alpha": 2}, 1),
        ({"use_rslora": True}, 6 / math.sqrt(2)),
        ({"alpha_pattern": {"q": 10}}, 10 / 2),
        ({"alpha_pattern": {"block.1.layer.1.EncDecAttention.q": 10, "v": 3}}, 10 / 2),
        ({"alpha_pattern": {"k": 10}}, 6 / 2),
    ],
)
def test_the_factor_is_multiplied_into_lora_b(t5_1_1, tmp_path, told, factor):
    arrays = {name: value for layer in range(3) for name, value in pair(layer).items()}
    kind, tree = peft.load(write(tmp_path, arrays, **told), t5_1_1.config)
    flat = paths.flatten(tree)
    assert (kind, set(flat)) == ("lora", {f"{PATH}/lora_a", f"{PATH}/lora_b"})
    np.testing.assert_array_equal(flat[f"{PATH}/lora_a"][1], arrays[f"{Q.format(1)}.lora_A.weight"].T)
    wanted = arrays[f"{Q.format(1)}.lora_B.weight"].T * np.float32(factor)
    np.testing.assert_array_equal(flat[f"{PATH}/lora_b"][1], wanted)


def test_a_layer_left_alone_gets_zeros_and_a_smaller_rank_is_filled_with_them(t5_1_1, tmp_path):
    arrays = {**pair(0, rank=3), **pair(2, rank=1)}
    flat = paths.flatten(peft.load(write(tmp_path, arrays), t5_1_1.config)[1])
    a, b = flat[f"{PATH}/lora_a"], flat[f"{PATH}/lora_b"]
    assert (a.shape, b.shape) == ((3, 8, 3), (3, 3, 10))
    assert not np.any(a[1])
    assert not np.any(b[1])
    wanted = arrays[f"{Q.format(2)}.lora_B.weight"] @ arrays[f"{Q.format(2)}.lora_A.weight"] * 6
    np.testing.assert_allclose((a[2] @ b[2]).T, wanted, rtol=1e-5)


def test_ia3_scales_outputs_or_inner_activations_and_ones_elsewhere(t5_1_1, tmp_path):
    arrays = {
        f"{Q.format(1)}.ia3_l": RNG.normal(size=(10, 1)).astype(np.float32),
        f"{WO.format(0)}.ia3_l": RNG.normal(size=(1, 14)).astype(np.float32),
    }
    kind, tree = peft.load(write(tmp_path, arrays, peft_type="IA3"), t5_1_1.config)
    flat = paths.flatten(tree)
    assert (kind, set(flat)) == ("ia3", {f"{PATH}/ia3_out", "encoder/layers/mlp/wo/ia3_in"})
    np.testing.assert_array_equal(flat[f"{PATH}/ia3_out"][1], arrays[f"{Q.format(1)}.ia3_l"][:, 0])
    np.testing.assert_array_equal(flat[f"{PATH}/ia3_out"][[0, 2]], 1)
    np.testing.assert_array_equal(flat["encoder/layers/mlp/wo/ia3_in"][0], arrays[f"{WO.format(0)}.ia3_l"][0])


@pytest.mark.parametrize("kind", ["lora", "dora", "vera", "ia3", "prompt"])
def test_what_is_written_is_read_back_to_the_bit(t5_1_1, same, tmp_path, kind):
    tree = drawn(kind, t5_1_1.params)
    peft.save(tmp_path, kind, tree)
    assert peft.load(tmp_path, t5_1_1.config)[0] == kind
    assert same(peft.load(tmp_path, t5_1_1.config)[1], tree)


def test_projections_of_different_rank_are_told_apart(t5_1_1, same, tmp_path):
    tree = {**drawn("lora", t5_1_1.params, rank=2)}
    wide = drawn("lora", t5_1_1.params, rank=5)
    tree["encoder"] = wide["encoder"]
    peft.save(tmp_path, "lora", tree)
    told = json.loads((tmp_path / "adapter_config.json").read_text())
    assert told["r"] == told["lora_alpha"] == 5
    assert set(told["rank_pattern"].values()) == {2}
    assert same(peft.load(tmp_path, t5_1_1.config)[1], tree)


def test_an_expert_of_another_kind_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"kind lora or dora or ia3 or vera or prompt .*'bottleneck'"):
        peft.save(tmp_path, "bottleneck", {})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda arrays: arrays.pop(f"{Q.format(1)}.lora_B.weight"),
            "lora_B for .*lora_A.weight'",
        ),
        (
            lambda arrays: arrays.update(pair(3)),
            "got layer 3 of 'decoder/layers/encoder_decoder_attention/q",
        ),
        (lambda arrays: arrays.update(pair(1, inputs=9)), r"as \(2, 8\) .* got \(2, 9\)"),
        (lambda arrays: arrays.update(pair(1, outputs=9)), r"as \(10, 2\) .* got \(9, 2\)"),
        (
            lambda arrays: arrays.update(
                {"base_model.model.lm_head.lora_A.weight": np.ones((2, 8), np.float32)}
            ),
            r"LORA expert .* got 'base_model\.model\.lm_head\.lora_A\.weight'",
        ),
        (
            lambda arrays: arrays.update({f"{Q.format(1)}.lora_magnitude_vector": np.ones(10, np.float32)}),
            "LORA expert .*lora_magnitude_vector'",
        ),
        (
            lambda arrays: arrays.update({f"{Q.format(1)}.ia3_l": np.ones((10, 1), np.float32)}),
            "LORA expert .*ia3_l'",
        ),
        (lambda arrays: arrays.clear(), "got no tensors"),
        (
            lambda arrays: arrays.update({name: value.astype(np.int8) for name, value in arrays.items()}),
            r"lora_A\.weight' .* as floating-point numbers, got int8",
        ),
    ],
)
def test_an_adapter_that_is_no_such_expert_names_file_and_tensor(t5_1_1, tmp_path, change, told):
    arrays = {name: value for layer in range(3) for name, value in pair(layer).items()}
    change(arrays)
    with pytest.raises(UserError, match=told) as error:
        peft.load(write(tmp_path, arrays), t5_1_1.config)
    assert "adapter_model.safetensors" in str(error.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "Expected JSON"),
        ("[]", "of type LORA or IA3 or VERA or PROMPT_TUNING .* got None"),
        ('{"peft_type": "PREFIX_TUNING"}', "got 'PREFIX_TUNING'"),
        ('{"peft_type": "PROMPT_TUNING"}', "prompt_embeddings alone"),
        ('{"peft_type": "VERA", "save_projection": false}', "save_projection=True"),
        ('{"peft_type": ["LORA"]}', "LORA or IA3"),
        ('{"peft_type": "LORA", "use_dora": true}', "lora_magnitude_vector in every layer .* in layer 0"),
        ('{"peft_type": "LORA", "lora_alpha": "8"}', "numbers as lora_alpha"),
        ('{"peft_type": "LORA", "alpha_pattern": {"q": null}}', "numbers as lora_alpha"),
        ('{"peft_type": "LORA", "alpha_pattern": [3]}', "numbers as lora_alpha"),
        (
            '{"peft_type": "LORA", "alpha_pattern": {"(": 3}}',
            r"alpha_pattern .* got '\('",
        ),
    ],
)
def test_a_configuration_that_is_none_is_one_sentence(t5_1_1, tmp_path, content, told):
    write(tmp_path, pair(0))
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(UserError, match=told):
        peft.load(tmp_path, t5_1_1.config)


@given(share=st.floats(0, 1, exclude_max=True))
@settings(max_examples=20, deadline=None)
def test_an_adapter_cut_anywhere_is_one_sentence(adapter, t5_1_1, share):
    whole = (adapter / "whole").read_bytes()
    (adapter / "adapter_model.safetensors").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match="safetensors"):
        peft.load(adapter, t5_1_1.config)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    place = write(tmp_path_factory.mktemp("adapter"), pair(0))
    (place / "whole").write_bytes((place / "adapter_model.safetensors").read_bytes())
    return place


def test_missing_files_are_named(t5_1_1, tmp_path):
    with pytest.raises(UserError, match=r"Expected adapter_config\.json"):
        peft.load(tmp_path, t5_1_1.config)
    write(tmp_path, pair(0))
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"Expected adapter_model\.safetensors"):
        peft.load(tmp_path, t5_1_1.config)


def drawn(kind, base, **options):
    """Returns an expert that changes every logit."""
    tree = ex.init_expert(kind, jax.random.key(0), base, options)
    return jax.tree.map(
        lambda leaf: np.asarray(leaf + 0.3 * RNG.normal(size=leaf.shape), np.float32), dict(tree)
    )


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("adapts", "how"),
    [
        ("Lora", {"r": 3, "lora_alpha": 7, "target_modules": ["q", "k", "v", "o", "wi_0", "wi_1", "wo"]}),
        (
            "Lora",
            {
                "r": 2,
                "lora_alpha": 4,
                "use_rslora": True,
                "target_modules": ["q", "wo"],
                "rank_pattern": {"wo": 5, "decoder.block.1.layer.0.SelfAttention.q": 1},
                "alpha_pattern": {"wo": 3},
                "layers_to_transform": [1],
            },
        ),
        (
            "Lora",
            {
                "r": 3,
                "lora_alpha": 7,
                "use_rslora": True,
                "use_dora": True,
                "target_modules": ["q", "k", "v", "o", "wi_0", "wi_1", "wo"],
                "rank_pattern": {"wo": 5},
            },
        ),
        ("IA3", {"target_modules": ["k", "v", "wo"], "feedforward_modules": ["wo"]}),
        ("Vera", {"r": 5, "target_modules": ["q", "v", "wo"], "projection_prng_key": 3}),
        ("Vera", {"r": 5, "target_modules": ["wi_0"], "layers_to_transform": [1]}),
        ("PromptTuning", {"task_type": "SEQ_2_SEQ_LM", "num_virtual_tokens": 4}),
    ],
    ids=["lora", "patterns", "dora", "ia3", "vera", "vera of a layer", "prompt"],
)
def test_peft_gives_the_same_logits_there_and_back(t5_1_1, tmp_path, adapts, how):
    torch = pytest.importorskip("torch", reason="torch is not installed; elm_jax[parity] brings it")
    theirs = pytest.importorskip("peft", reason="peft is not installed; elm_jax[parity] brings it")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from elm_jax.weights import huggingface

    huggingface.save(tmp_path / "base", t5_1_1)
    prompts = RNG.integers(2, 24, (2, 6)).astype(np.int32)
    answers = RNG.integers(2, 24, (2, 4)).astype(np.int32)

    def fresh():
        return transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "base").eval()

    def logits(model):
        given = {"input_ids": torch.tensor(prompts), "labels": torch.tensor(answers.astype(np.int64))}
        with torch.no_grad():
            return model.eval()(**given).logits.numpy()

    torch.manual_seed(0)
    trained = theirs.get_peft_model(fresh(), getattr(theirs, f"{adapts}Config")(**how))
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if any(part in name for part in ("lora_", "ia3_", "vera_lambda", "prompt_encoder")):
                parameter.copy_(torch.randn(parameter.shape) * 0.5)
    trained.save_pretrained(tmp_path / "theirs")
    wanted = logits(trained)
    assert np.abs(wanted - logits(fresh())).max() > 0.01

    kind, tree = peft.load(tmp_path / "theirs", t5_1_1.config)
    network = jax.jit(
        lambda tree: T5(t5_1_1.config).apply({"params": t5_1_1.params}, prompts, answers[:, None], tree)
    )
    np.testing.assert_allclose(np.asarray(network(tree))[:, 0], wanted, atol=1e-4)

    peft.save(tmp_path / "ours", kind, tree)
    back = theirs.PeftModel.from_pretrained(fresh(), tmp_path / "ours")
    np.testing.assert_allclose(logits(back), wanted, atol=1e-4)
    assert load_file(tmp_path / "ours" / "adapter_model.safetensors")
