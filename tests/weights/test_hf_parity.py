"""Against transformers: its models give the same logits here, and ours the same there."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from ml_dtypes import bfloat16

from elm_jax.errors import UserError
from elm_jax.models.t5 import T5
from elm_jax.weights import huggingface
from elm_jax.weights.load import load_base, load_model

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore"),  # transformers' and torch's own
]
torch = pytest.importorskip("torch", reason="torch is not installed; `pip install elm_jax[parity]` brings it")
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed, nor is elm_jax[parity]"
)

SHAPE = {
    "vocab_size": 40,
    "d_model": 16,
    "d_kv": 5,
    "d_ff": 24,
    "num_layers": 1,
    "num_decoder_layers": 2,
    "num_heads": 2,
    "relative_attention_num_buckets": 8,
    "decoder_start_token_id": 0,
}
FAMILIES = {
    "1.0": ("T5", {}),
    "1.1": ("T5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "mT5": ("MT5", {}),
    "mT5 that says it scales": ("MT5", {"scale_decoder_outputs": True}),  # which its network does not
    "1.0 gelu": ("T5", {"feed_forward_proj": "gelu_new"}),
    "UL2": ("T5", {"feed_forward_proj": "gated-silu", "tie_word_embeddings": False}),
    "silu": ("T5", {"feed_forward_proj": "silu"}),
    "ByT5": ("T5", {"feed_forward_proj": "gated-gelu", "num_layers": 3, "num_decoder_layers": 1}),
    "umT5": ("UMT5", {"num_layers": 3}),
    "Pile-T5": ("UMT5", {"num_layers": 2, "eos_token_id": 2, "relative_attention_max_distance": 12}),
}
RNG = np.random.default_rng(0)
PROMPTS = RNG.integers(3, 40, (3, 7)).astype(np.int32)
PROMPTS[1, 4:] = 0
ANSWERS = RNG.integers(3, 40, (3, 5)).astype(np.int32)


def random_model(family, *, untied):
    """Returns a model of transformers' with weights large enough for every logit to matter."""
    kind, changes = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SHAPE, **changes})
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
        if untied:
            model.lm_head.weight = torch.nn.Parameter(torch.randn(40, 16))
    return model


def theirs(model):
    arguments = {"input_ids": PROMPTS, "attention_mask": PROMPTS > 0, "labels": ANSWERS.astype(np.int64)}
    with torch.no_grad():
        return model(**{name: torch.tensor(value) for name, value in arguments.items()}).logits.numpy()


def ours(base):
    network = jax.jit(lambda params: T5(base.config).apply({"params": params}, PROMPTS, ANSWERS[:, None]))
    return np.asarray(network(base.params))[:, 0]


@pytest.mark.parametrize("untied", [False, True], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers_and_go_back_to_it(family, untied, tmp_path):
    model = random_model(family, untied=untied)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="8KB" if untied else "5GB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists() == untied
    found = load_model(tmp_path / "theirs")
    wanted = theirs(model)
    assert np.abs(ours(found) - wanted).max() < 1e-5 * max(1, np.abs(wanted).max())

    like = json.loads((tmp_path / "theirs" / "config.json").read_text())
    for told in (like, None):
        place = tmp_path / f"ours like {bool(told)}"
        huggingface.save(place, found, like=told)
        back = transformers.AutoModelForSeq2SeqLM.from_pretrained(place).eval()
        assert told is None or type(back) is type(model)
        assert np.abs(theirs(back) - wanted).max() < 1e-5 * max(1, np.abs(wanted).max())


@pytest.mark.parametrize("untied", [False, True], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_configuration_that_fits_what_is_written_comes_out_as_it_went_in(family, untied, tmp_path):
    random_model(family, untied=untied).save_pretrained(tmp_path / "in")
    content = (tmp_path / "in" / "config.json").read_bytes()
    huggingface.save(tmp_path / "out", load_model(tmp_path / "in"), like=json.loads(content))
    # A scaled head of its own is written scaled, which the configuration of a T5 has to say.
    is_scaled_head = untied and json.loads(content).get("scale_decoder_outputs") and "mT5" not in family
    assert ((tmp_path / "out" / "config.json").read_bytes() == content) is not bool(is_scaled_head)


def test_every_layer_of_umt5_has_its_own_positions(tmp_path):
    model = random_model("umT5", untied=True)
    model.save_pretrained(tmp_path)
    base = load_model(tmp_path)
    wanted = ours(base)
    for stack, layers in (("encoder", 3), ("decoder", 2)):
        for layer in range(layers):
            changed = jax.tree.map(np.array, dict(base.params))
            changed[stack]["layers"]["relpos_bias"]["rel_embedding"][layer, 0, 1] += 3
            moved = np.abs(ours(replace(base, params=changed)) - wanted).max()
            assert moved > 1e-3, (stack, layer)


def test_a_head_that_transformers_4_did_not_scale_is_not_scaled(tmp_path):
    """Pile-T5 is published with `tie_word_embeddings` false; transformers 5 forces it to true, and scales."""
    model = random_model("Pile-T5", untied=True)
    model.save_pretrained(tmp_path)
    scaled = ours(load_model(tmp_path))
    told = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(told | {"tie_word_embeddings": False}))
    np.testing.assert_allclose(ours(load_model(tmp_path)), scaled * 4, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("age", ["zip", "before zip", "shards"])
def test_a_bin_goes_through_the_weights_only_loader(tmp_path, age):
    model = random_model("1.1", untied=True)
    model.save_pretrained(tmp_path)
    wanted = load_base(tmp_path).fingerprint
    (tmp_path / "model.safetensors").unlink()
    state = dict(model.state_dict())
    if age == "shards":
        names = sorted(state)
        placed = {name: f"pytorch_model-{number % 2}.bin" for number, name in enumerate(names)}
        for file in set(placed.values()):
            torch.save({name: state[name] for name in names if placed[name] == file}, tmp_path / file)
        index = str({"weight_map": placed}).replace("'", '"')
        (tmp_path / "pytorch_model.bin.index.json").write_text(index)
    else:
        torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=age == "zip")
    assert load_base(tmp_path).fingerprint == wanted


def test_a_bin_of_bfloat16_keeps_its_bits(tmp_path):
    model = random_model("1.1", untied=True).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    wanted = load_base(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    found = load_base(tmp_path)
    assert found.fingerprint == wanted.fingerprint
    assert found.params["token_embedder"]["embedding"].dtype == bfloat16


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([1, 2], "tensors by name"),
        ({"shared.weight": 3}, "'shared.weight' as int"),
        ({"model": {"shared.weight": torch.ones(2)}}, "'model' as dict"),
    ],
)
def test_a_bin_of_something_else_is_one_sentence(tmp_path, content, told):
    random_model("1.1", untied=True).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=told):
        load_base(tmp_path)
