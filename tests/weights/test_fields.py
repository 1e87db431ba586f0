"""Fields of foreign configurations: all that the libraries write are in a table, and any other is refused."""

import json
from dataclasses import fields
from importlib import import_module

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elm_jax.errors import UserError
from elm_jax.models.t5 import T5
from elm_jax.weights import hf_fields, huggingface, peft, peft_fields, step_fields
from elm_jax.weights.fields import FieldTable
from elm_jax.weights.load import load_model

TABLE = FieldTable(
    format="a thing",
    used=frozenset({"size"}),
    unused=frozenset({"author"}),
    neutral={"twist": (False, 0), "extra": ()},
    remedies={"twist": "untwist it"},
)
VALUES = st.recursive(
    st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(), lambda inner: st.lists(inner)
)


@given(value=VALUES | st.none(), name=st.text(min_size=1))
def test_a_field_that_no_table_has_is_refused_unless_it_is_null_or_ignored(value, name):
    told = {"size": value, "author": value, name: value}
    if name in TABLE.known:
        return
    TABLE.require_known_fields(told, where="there", ignore=[name])
    if value is None:
        TABLE.require_known_fields(told, where="there")
        return
    with pytest.raises(UserError) as error:
        TABLE.require_known_fields(told, where="there")
    assert repr(name) in str(error.value)
    assert "--ignore" in str(error.value)


@given(value=VALUES)
def test_a_field_that_changes_the_function_has_its_neutral_value_or_is_refused(value):
    if type(value) in (bool, int) and not value:
        TABLE.require_known_fields({"twist": value}, where="there")
        return
    with pytest.raises(UserError, match=r"'twist' in 'there' to be False or 0, got (.|\n)* Fix: untwist it"):
        TABLE.require_known_fields({"twist": value}, where="there")
    with pytest.raises(UserError, match="'extra' in 'there' to be absent"):
        TABLE.require_known_fields({"extra": value}, where="there")


def library(name):
    return pytest.importorskip(name, reason=f"{name} is not installed; elm_jax[parity] brings it")


CONFIGS = {
    **dict.fromkeys(("T5Config", "MT5Config", "UMT5Config"), hf_fields.T5_FIELDS),
    **dict.fromkeys(
        ("BertConfig", "RobertaConfig", "XLMRobertaConfig", "MPNetConfig"), hf_fields.BERT_FIELDS
    ),
}


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CONFIGS)
def test_every_field_that_transformers_writes_is_in_the_table(name):
    config = getattr(library("transformers"), name)
    table = CONFIGS[name]
    written = config().to_dict()
    attributes = {each for each in vars(config()) if not each.startswith("_")}
    assert not (written.keys() | {each.name for each in fields(config)} | attributes) - table.known
    table.require_known_fields(written, where="there")


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["LORA", "IA3", "VERA", "PROMPT_TUNING"])
def test_every_field_that_peft_writes_is_in_the_table(kind):
    names = {"LORA": "LoraConfig", "IA3": "IA3Config", "VERA": "VeraConfig"}
    config = names.get(kind, "PromptTuningConfig")
    written = getattr(library("peft"), config)()
    assert not {each.name for each in fields(written)} - peft_fields.FIELDS_BY_TYPE[kind].known
    told = {**written.to_dict(), "peft_type": kind}
    peft_fields.FIELDS_BY_TYPE[kind].require_known_fields(told, where="there")


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("module", "name", "table"),
    [
        ("base.modules", "Transformer", step_fields.NETWORK_FIELDS),
        ("sentence_transformer.modules", "Pooling", step_fields.POOLING_FIELDS),
        ("base.modules", "Dense", step_fields.DENSE_FIELDS),
        ("base.modules", "Normalize", step_fields.NORMALIZE_FIELDS),
    ],
)
def test_every_field_that_sentence_transformers_writes_is_in_the_table(module, name, table):
    library("sentence_transformers")
    step = getattr(import_module(f"sentence_transformers.{module}"), name)
    assert not set(step.config_keys) - table.known


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_every_field_of_a_whole_sentence_encoder_is_in_the_tables(tmp_path):
    theirs = library("sentence_transformers")
    steps = import_module("sentence_transformers.sentence_transformer.modules")
    base = import_module("sentence_transformers.base.modules")
    torch = library("torch")

    class Network(torch.nn.Module):
        """A step that writes nothing: the network's own files are held above."""

        def forward(self, features):
            return features

        def save(self, *_, **__):
            pass

    model = theirs.SentenceTransformer(modules=[Network(), steps.Pooling(8), base.Normalize()], device="cpu")
    model.save(str(tmp_path), create_model_card=False)
    told = json.loads((tmp_path / "config_sentence_transformers.json").read_text())
    step_fields.MODEL_FIELDS.require_known_fields(told, where="there")
    for step in json.loads((tmp_path / "modules.json").read_text()):
        step_fields.MODULES_FIELDS.require_known_fields(step, where="there")


def small_t5(transformers, torch, **changes):
    """A T5 of transformers' whose logits every weight moves."""
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=40,
        d_model=16,
        d_kv=5,
        d_ff=24,
        num_layers=1,
        num_decoder_layers=2,
        **{"num_heads": 2, "relative_attention_num_buckets": 8, "decoder_start_token_id": 0, **changes},
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
    return model


RNG = np.random.default_rng(0)
PROMPTS = RNG.integers(3, 40, (3, 7)).astype(np.int32)
ANSWERS = RNG.integers(3, 40, (3, 5)).astype(np.int32)


def theirs_on(torch, model):
    with torch.no_grad():
        labels = torch.tensor(ANSWERS.astype(np.int64))
        return model.eval()(input_ids=torch.tensor(PROMPTS), labels=labels).logits.numpy()


def ours_on(base, expert=None):
    network = jax.jit(
        lambda params, tree: T5(base.config).apply({"params": params}, PROMPTS, ANSWERS[:, None], tree)
    )
    return np.asarray(network(base.params, expert))[:, 0]


# How PEFT may begin a LoRA; True where the base stays as it was.
STARTS = {
    True: True,
    False: True,
    "gaussian": True,
    "orthogonal": True,
    "mica": True,
    "eva": True,
    "pissa": False,
    "pissa_niter_4": False,
    "olora": False,
}


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("start", STARTS, ids=str)
def test_a_lora_of_every_start_is_converted_exactly_or_refused(start, tmp_path):
    torch, transformers, theirs = library("torch"), library("transformers"), library("peft")
    small_t5(transformers, torch).save_pretrained(tmp_path / "base")

    def fresh():
        return transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "base")

    how = {"r": 2, "lora_alpha": 6, "target_modules": ["q", "v", "wo"], "init_lora_weights": start}
    torch.manual_seed(1)
    trained = theirs.get_peft_model(fresh(), theirs.LoraConfig(**how))
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn(parameter.shape) * 0.3)
    trained.save_pretrained(tmp_path / "adapter")
    base = load_model(tmp_path / "base")
    if not STARTS[start]:
        with pytest.raises(UserError, match=f"'init_lora_weights' in .*, got {start!r}"):
            peft.load(tmp_path / "adapter", base.config)
        return
    _, tree = peft.load(tmp_path / "adapter", base.config)
    wanted = theirs_on(torch, theirs.PeftModel.from_pretrained(fresh(), tmp_path / "adapter"))
    assert np.abs(wanted - theirs_on(torch, fresh())).max() > 0.1
    np.testing.assert_allclose(ours_on(base, tree), wanted, atol=2e-5)


@pytest.mark.parametrize(
    "told",
    [
        {"init_lora_weights": "loftq"},  # these three want data, or another library, to be made here
        {"init_lora_weights": "corda"},
        {"init_lora_weights": "lora_ga"},
        {"init_lora_weights": "of_next_year"},
        {"alora_invocation_tokens": [3, 4]},
        {"lora_bias": True},
        {"use_qalora": True},
        {"layer_replication": [[0, 2]]},
        {"trainable_token_indices": [3]},
        {"kasa_config": {}},
        {"rotate_everything": 0},
    ],
    ids=lambda told: "-".join(map(str, told)),
)
def test_an_adapter_that_says_more_is_refused_by_the_field_s_name(t5_1_1, tmp_path, told):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2} | told))
    (name,) = told
    with pytest.raises(UserError, match=f"'{name}'"):
        peft.load(tmp_path, t5_1_1.config)
    with pytest.raises(UserError, match="adapter_model"):  # it went on
        peft.load(tmp_path, t5_1_1.config, ignore=[name])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("decoder_start_token_id", 5),
        ("pruned_heads", {"0": [1]}),
        ("tie_encoder_decoder", True),
        ("quantization_config", {"bits": 8}),
        ("dense_act_fn", "silu"),
        ("is_gated_act", False),
        ("attention_sinks", 4),
    ],
)
def test_a_model_that_says_more_is_refused_by_the_field_s_name(t5_1_1, writers, tmp_path, name, value):
    place = writers["hf"](tmp_path, t5_1_1, **{name: value})
    with pytest.raises(UserError, match=f"'{name}'"):
        load_model(place)
    if name not in ("dense_act_fn", "is_gated_act"):
        assert load_model(place, ignore=[name]).fingerprint == t5_1_1.fingerprint


def test_a_start_token_beside_the_configuration_is_refused_too(t5_1_1, writers, tmp_path):
    place = writers["hf"](tmp_path, t5_1_1)
    (place / "generation_config.json").write_text(json.dumps({"decoder_start_token_id": 5}))
    with pytest.raises(UserError, match=r"'decoder_start_token_id' in .*generation_config\.json"):
        load_model(place)


@pytest.mark.parametrize("copy", ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"])
def test_two_tables_of_embeddings_are_one_or_refused(t5_1_1, writers, tmp_path, copy):
    arrays = writers["hf_arrays"](t5_1_1)
    arrays[copy] = arrays["shared.weight"]
    same = load_model(writers["hf"](tmp_path / "same", t5_1_1, arrays=arrays))
    assert same.fingerprint == t5_1_1.fingerprint
    arrays[copy] = arrays["shared.weight"] + np.float32(1e-3)
    with pytest.raises(UserError, match=rf"'{copy}' .* to equal 'shared\.weight', got other values"):
        load_model(writers["hf"](tmp_path / "other", t5_1_1, arrays=arrays))


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "module._orig_mod.", "_fsdp_wrapped_module."])
def test_what_training_wrapped_a_model_in_is_taken_off(t5_1_1, writers, tmp_path, wrapper):
    arrays = {f"{wrapper}{name}": value for name, value in writers["hf_arrays"](t5_1_1).items()}
    place = writers["hf"](tmp_path, t5_1_1, arrays=arrays)
    assert load_model(place).fingerprint == t5_1_1.fingerprint
    arrays |= writers["hf_arrays"](t5_1_1)
    with pytest.raises(UserError, match="Expected one tensor for"):
        load_model(writers["hf"](tmp_path / "twice", t5_1_1, arrays=arrays))


@pytest.mark.parametrize("prefix", ["model.", "base_model.model.", "transformer.module."])
def test_a_module_that_holds_the_model_is_named(t5_1_1, writers, tmp_path, prefix):
    arrays = {f"{prefix}{name}": value for name, value in writers["hf_arrays"](t5_1_1).items()}
    place = writers["hf"](tmp_path, t5_1_1, arrays=arrays)
    with pytest.raises(UserError, match=rf"got '{prefix}encoder\.final_layer_norm\.weight'"):
        load_model(place)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_what_transformers_saves_of_a_wrapped_model_is_read(tmp_path):
    torch, transformers = library("torch"), library("transformers")
    from safetensors.torch import save_file

    model = small_t5(transformers, torch)
    model.save_pretrained(tmp_path)
    wanted = load_model(tmp_path).fingerprint
    wrapped = torch.nn.DataParallel(model)
    state = {name: value.clone() for name, value in wrapped.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    assert load_model(tmp_path).fingerprint == wanted


@pytest.mark.parametrize(
    "ids",
    [{"eos_token_id": 2, "pad_token_id": 1, "bos_token_id": 0}, {"eos_token_id": [1, 7], "num_beams": 4}],
    ids=["ids", "generation"],
)
def test_a_configuration_comes_out_as_it_went_in(t5_1_1, writers, tmp_path, ids):
    place = writers["hf"](tmp_path / "in", t5_1_1, **ids)
    like = json.loads((place / "config.json").read_text())
    huggingface.save(tmp_path / "out", load_model(place), like=like)
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {name: told[name] for name in ids} == ids
    assert like.items() <= (told | {"tie_word_embeddings": like["tie_word_embeddings"]}).items()


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["T5", "MT5", "UMT5"])
def test_transformers_reads_the_fields_that_came_out(family, tmp_path):
    transformers = library("transformers")
    config = getattr(transformers, f"{family}Config")(
        vocab_size=40, d_model=16, d_kv=5, d_ff=24, num_layers=1, num_heads=2, eos_token_id=2, pad_token_id=1
    )
    getattr(transformers, f"{family}ForConditionalGeneration")(config).save_pretrained(tmp_path / "in")
    like = json.loads((tmp_path / "in" / "config.json").read_text())
    huggingface.save(tmp_path / "out", load_model(tmp_path / "in"), like=like)
    before, after = (
        transformers.AutoConfig.from_pretrained(tmp_path / name).to_dict() for name in ("in", "out")
    )
    unequal = {name for name in before if before[name] != after.get(name)}
    assert unequal <= {"_name_or_path", "decoder_start_token_id"}
    assert after.get("decoder_start_token_id") in (0, before.get("decoder_start_token_id"))
