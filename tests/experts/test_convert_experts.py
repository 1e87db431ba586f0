"""Experts out again: into PEFT, the adapters library and whole models, each scored the same there."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from elm_jax import cli, score_choices
from elm_jax.errors import UserError
from elm_jax.experts import compatibility
from elm_jax.experts.convert import convert
from elm_jax.experts.library import Library
from elm_jax.merging import merger
from elm_jax.merging.plan import plan_merge
from elm_jax.models import expert_layers as ex
from elm_jax.models import paths
from elm_jax.models.sizes import find_config
from elm_jax.records import Expert, ExpertSpec
from elm_jax.t5x import checkpoints
from elm_jax.weights import base_model, elm, fold, load, t5x, t5x_experts, t5x_write

RNG = np.random.default_rng(0)
PROMPTS = RNG.integers(2, 24, (3, 6)).astype(np.int32)
CHOICES = RNG.integers(2, 24, (3, 2, 4)).astype(np.int32)
CHOICES[0, 1, 2:] = 0
KINDS = {
    "lora": {"rank": 3, "projections": ("query", "value", "wo", "wi_0")},
    "dora": {"rank": 3, "projections": ("query", "wo")},
    "vera": {"rank": 3, "projections": ("query", "wo", "wi_0")},
    "ia3": {"projections": ("key", "value", "wo", "query")},
    "prompt": {"tokens": 3},
    "full": {},
    "bottleneck": {"width": 3},
}


@pytest.fixture(scope="module")
def model():
    config = find_config(
        "tiny", vocab_size=24, emb_dim=8, num_heads=2, head_dim=5, mlp_dim=14, dropout_rate=0.1
    )
    flat = {path: RNG.normal(0, 0.4, shape) for path, shape in base_model.param_shapes(config).items()}
    flat = {path: value.astype(np.float32) for path, value in flat.items()}
    return base_model.make_base(config, paths.unflatten(flat))


def expert(kind, model, name):
    tree = ex.init_expert(kind, jax.random.key(0), model.params, KINDS[kind])
    moved = jax.tree.map(lambda leaf: leaf + 0.2 * RNG.normal(size=leaf.shape), dict(tree))
    tree = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), moved)
    spec = ExpertSpec(name, kind, model.fingerprint, tuple(paths.flatten(tree)), (name.split("/")[0],), 5)
    return Expert(spec, tree)


@pytest.fixture
def library(model, tmp_path):
    """Where a base and experts lie: two of every kind, and a merge of two LoRAs by their products."""
    elm.save(tmp_path / "base", model)
    made = Library.open(tmp_path / "library", create=True)
    for kind in KINDS:
        for number in (1, 2):
            made.add(expert(kind, model, f"{kind}/{number}"))
    pair = [made.load_expert(f"lora/{number}") for number in (1, 2)]
    described = [(one.spec, compatibility.shapes_by_path(one.params)) for one in pair]
    made.add(merger.merge(plan_merge("concatenate", described, id="lora/merged"), pair))
    return tmp_path


def ours(model, where, name):
    tree = Library.open(where / "library").load_expert(name)
    return score_choices(model, PROMPTS, CHOICES, tree)


def torch_scores(model):
    """Summed log-probabilities of the choices' tokens, by a model of transformers'."""
    import torch

    found = np.zeros(CHOICES.shape[:2], np.float32)
    for choice in range(CHOICES.shape[1]):
        labels = torch.tensor(CHOICES[:, choice].astype(np.int64))
        with torch.no_grad():
            logits = model(input_ids=torch.tensor(PROMPTS), labels=labels).logits
        tokens = torch.log_softmax(logits, -1).gather(-1, labels[..., None])[..., 0]
        found[:, choice] = (tokens * (labels != 0)).sum(-1).numpy()
    return found


parity = pytest.mark.parity
quiet = pytest.mark.filterwarnings("ignore")


@parity
@quiet
@pytest.mark.parametrize("name", ["lora/1", "ia3/1", "lora/merged"])
def test_peft_scores_an_adapter_as_we_do(model, library, name):
    theirs = pytest.importorskip("peft", reason="peft is not installed; elm_jax[parity] brings it")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    convert(library / "base", library / "hf", "hf")
    convert(library / "library" / name, library / "adapter", "peft")
    base = transformers.AutoModelForSeq2SeqLM.from_pretrained(library / "hf").eval()
    plain = torch_scores(base)
    found = torch_scores(theirs.PeftModel.from_pretrained(base, library / "adapter").eval())
    assert np.abs(found - plain).max() > 0.05
    np.testing.assert_allclose(found, ours(model, library, name), atol=2e-5)


@parity
@quiet
@pytest.mark.parametrize("name", ["lora/1", "ia3/1", "full/1", "lora/merged"])
def test_transformers_scores_a_whole_model_as_we_do_the_expert(model, library, name):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    convert(library / "library" / name, library / "hf", "hf", base=library / "base")
    whole = transformers.AutoModelForSeq2SeqLM.from_pretrained(library / "hf").eval()
    wanted = ours(model, library, name)
    assert np.abs(wanted - score_choices(model, PROMPTS, CHOICES)).max() > 0.05
    np.testing.assert_allclose(torch_scores(whole), wanted, atol=2e-5)


@pytest.mark.parametrize("name", ["lora/2", "dora/2", "vera/2", "ia3/2", "full/2", "lora/merged"])
def test_a_base_with_an_expert_folded_in_scores_as_the_two_beside_each_other(model, library, name):
    made = convert(library / "library" / name, library / "hf", "hf", base=library / "base")
    whole = load.load_base(library / "hf")
    assert (made.what, made.fingerprint) == ("model", whole.fingerprint)
    np.testing.assert_allclose(
        score_choices(whole, PROMPTS, CHOICES), ours(model, library, name), rtol=1e-5, atol=1e-5
    )


def test_a_folded_bfloat16_base_is_float32_unless_asked(model, library):
    convert(library / "base", library / "narrow", "elm", dtype="bfloat16")
    narrow = load.load_base(library / "narrow")
    made = expert("lora", narrow, "narrow/1")
    Library.open(library / "library").add(made)
    source = library / "library" / "narrow" / "1"
    for dtype in (None, "bfloat16"):
        convert(source, library / f"hf {dtype}", "hf", base=library / "narrow", dtype=dtype)
        kinds = {leaf.dtype.name for leaf in jax.tree.leaves(load.load_base(library / f"hf {dtype}").params)}
        assert kinds == {dtype or "float32"}
    flat = paths.flatten(load.load_base(library / "hf None").params)
    query = "encoder/layers/attention/query"
    own = paths.flatten(made.params)
    wanted = paths.flatten(narrow.params)[f"{query}/kernel"].astype(np.float32)
    wanted = wanted + own[f"{query}/lora_a"] @ own[f"{query}/lora_b"]
    np.testing.assert_array_equal(flat[f"{query}/kernel"], wanted)
    np.testing.assert_array_equal(
        flat["encoder/layers/attention/key/kernel"],
        np.asarray(paths.flatten(narrow.params)["encoder/layers/attention/key/kernel"], np.float32),
    )


def test_a_soft_prompt_is_not_folded(library):
    with pytest.raises(UserError, match=r"'prompt'.*is a layer of its own\. Fix: write it with --to peft"):
        convert(library / "library" / "prompt" / "1", library / "hf", "hf", base=library / "base")


def test_a_bottleneck_is_not_folded(model, library):
    source = library / "library" / "bottleneck" / "1"
    with pytest.raises(UserError, match=r"is a layer of its own\. Fix: write it with --to adapters"):
        convert(source, library / "hf", "hf", base=library / "base")
    assert not (library / "hf").exists()
    normed = {"decoder": {"decoder_norm": {"scale": np.full(8, 2, np.float32)}}}
    found = fold.fold_expert(model, "bottleneck", normed)
    assert (np.asarray(found.params["decoder"]["decoder_norm"]["scale"]) == 2).all()


ADAPTERS = """
import sys
import adapters, numpy as np, torch, transformers
home, out = sys.argv[1:]
model = transformers.T5ForConditionalGeneration.from_pretrained(f"{home}/base")
adapters.init(model)
name = model.load_adapter(home, use_safetensors=True)
model.set_active_adapters(name)
model.eval()
given = np.load(f"{out}/given.npz")
with torch.no_grad():
    rows = [
        model(input_ids=torch.tensor(given["prompts"]), labels=torch.tensor(choice)).logits.numpy()
        for choice in np.moveaxis(given["choices"], 1, 0).astype(np.int64)
    ]
np.save(f"{out}/logits.npy", np.stack(rows, 1))
"""


@parity
@pytest.mark.parametrize("width", [1, 3, 4])
def test_the_adapters_library_scores_a_bottleneck_as_we_do(model, library, width):
    """Its releases want older transformers than we do: ADAPTERS_PYTHON names a Python that has it."""
    python = os.environ.get("ADAPTERS_PYTHON") or (sys.executable if find_spec("adapters") else None)
    if python is None:
        pytest.skip("the adapters library is not installed, nor is ADAPTERS_PYTHON set")
    tree = ex.init_expert("bottleneck", jax.random.key(0), model.params, {"width": width})
    tree = jax.tree.map(lambda leaf: np.asarray(leaf + 0.3 * RNG.normal(size=leaf.shape), np.float32), tree)
    spec = ExpertSpec("own/1", "bottleneck", model.fingerprint, tuple(paths.flatten(tree)), ("own",), 5)
    Library.open(library / "library").add(Expert(spec, tree))
    convert(library / "library" / "own" / "1", library / "out", "adapters", base=library / "base")
    np.savez(library / "given.npz", prompts=PROMPTS, choices=CHOICES)
    subprocess.run(
        [python, "-c", ADAPTERS, str(library / "out"), str(library)], check=True, capture_output=True
    )
    logits = np.load(library / "logits.npy").astype(np.float64)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    found = np.take_along_axis(logits, CHOICES[..., None].astype(int), -1)[..., 0]
    found = (found * (CHOICES != 0)).sum(-1)
    wanted = ours(model, library, "own/1")
    assert np.abs(wanted - score_choices(model, PROMPTS, CHOICES)).max() > 0.05
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_a_bottleneck_has_the_names_and_shapes_of_the_adapters_library(model, library):
    convert(library / "library" / "bottleneck" / "1", library / "out", "adapters", base=library / "base")
    arrays = load_file(library / "out" / "adapter.safetensors")
    wanted = {}
    for block in ("encoder.block.{}.layer.0", "encoder.block.{}.layer.1", "decoder.block.{}.layer.0"):
        wanted |= dict.fromkeys((block.format(0), block.format(1)))
    wanted |= dict.fromkeys(("decoder.block.0.layer.2", "decoder.block.1.layer.2"))
    shapes = {"adapter_down.0.weight": (3, 8), "adapter_down.0.bias": (3,)}
    shapes |= {"adapter_up.weight": (8, 3), "adapter_up.bias": (8,)}
    named = {f"{block}.adapters.elm.{leaf}": shape for block in wanted for leaf, shape in shapes.items()}
    assert {name: array.shape for name, array in arrays.items()} == named
    told = json.loads((library / "out" / "adapter_config.json").read_text())
    assert told["config"]["non_linearity"] == "gelu_new"
    assert 8 // told["config"]["reduction_factor"] == 3
    normed = load.load_base(library / "out" / "base")
    tree = Library.open(library / "library").load_expert("bottleneck/1").params
    own = paths.flatten(tree)["encoder/encoder_norm/scale"]
    np.testing.assert_array_equal(normed.params["encoder"]["encoder_norm"]["scale"], own)


@pytest.mark.parametrize("name", ["lora/1", "ia3/1", "full/1", "bottleneck/1", "lora/merged"])
def test_the_network_for_t5x_scores_what_is_written_for_it_as_we_do(model, library, name):
    convert(library / "library" / name, library / "t5x", "t5x", base=library / "base")
    place = library / "t5x" / "checkpoint_0"
    network = checkpoints.make_module(place)
    assert network.kind == name.split("/")[0]
    params = paths.unflatten({path: tensor.read() for path, tensor in t5x.list_parameters(place).items()})
    found = np.zeros(CHOICES.shape[:2], np.float32)
    for choice in range(CHOICES.shape[1]):
        targets = CHOICES[:, choice]
        logits = network.apply({"params": params}, PROMPTS, targets, targets, enable_dropout=False)
        tokens = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), targets[..., None], -1)[..., 0]
        found[:, choice] = (tokens * (targets != 0)).sum(-1)
    np.testing.assert_allclose(found, ours(model, library, name), atol=1e-4)


def test_ranks_that_differ_are_evened_for_t5x_and_compute_the_same(model, tmp_path):
    one, two = (paths.flatten(expert("lora", model, f"a/{n}").params) for n in (1, 2))
    wider = {
        path: np.concatenate([one[path], two[path]], -1 if path.endswith("a") else -2)
        if "/query/" in path
        else one[path]
        for path in one
    }
    t5x_write.save(tmp_path, model, paths.unflatten(wider))
    network = checkpoints.make_module(tmp_path / "checkpoint_0")
    assert network.options["rank"] == 6
    tree = t5x_experts.load_t5x_expert(tmp_path, model, "lora")
    scores = [score_choices(model, PROMPTS, CHOICES, each) for each in (tree, paths.unflatten(wider))]
    np.testing.assert_allclose(*scores, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "to", "told"),
    [
        ("full/1", "peft", "kind .*lora.* for PEFT, got 'full'"),
        ("lora/1", "adapters", "of kind 'bottleneck' for the adapters library, got 'lora'"),
        ("lora/1", "npz", "No format of an expert named 'npz'"),
        ("lora/1", "hf", r"Expected the base that the expert at .* was trained on, got none.*--base"),
    ],
)
def test_a_format_that_has_no_place_for_an_expert_is_refused(library, name, to, told):
    with pytest.raises(UserError, match=told):
        convert(library / "library" / name, library / "out", to)
    assert not (library / "out").exists()


@pytest.mark.parametrize("exists", [True, False])
def test_what_is_no_expert_is_not_written_as_one(tmp_path, exists):
    with pytest.raises(UserError, match="only experts are written as peft"):
        convert(tmp_path if exists else tmp_path / "none", tmp_path / "out", "peft")


def test_another_base_is_refused(model, library):
    other = jax.tree.map(lambda leaf: leaf + 1, dict(model.params))
    elm.save(library / "other", base_model.make_base(model.config, other))
    with pytest.raises(UserError, match=f"Expected the base {model.fingerprint} that the expert"):
        convert(library / "library" / "lora" / "1", library / "out", "hf", base=library / "other")


def test_the_command_folds_an_expert_in(library, capsys):
    source = str(library / "library" / "lora" / "1")
    arguments = ["convert", source, str(library / "out"), "--to", "hf", "--base", str(library / "base")]
    cli.app(arguments, standalone_mode=False)
    assert "model of" in capsys.readouterr().out
