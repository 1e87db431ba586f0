"""Converting: whole or not at all, the same bits there and back, and one sentence for what cannot be."""

import json
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from elm_jax import cli, storage
from elm_jax.errors import UserError
from elm_jax.experts.convert import convert
from elm_jax.experts.library import Library
from elm_jax.models import expert_layers as ex
from elm_jax.models import paths
from elm_jax.models.sizes import find_config
from elm_jax.session import opening as runs_base
from elm_jax.tokenizers import sentencepiece
from elm_jax.weights import base_model, elm, huggingface, load, peft, t5x_write

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def model():
    config = find_config(
        "tiny", vocab_size=24, emb_dim=8, num_heads=2, head_dim=5, mlp_dim=14, dropout_rate=0.1
    )
    flat = {
        path: RNG.normal(size=shape).astype(np.float32)
        for path, shape in base_model.param_shapes(config).items()
    }
    return base_model.make_base(config, paths.unflatten(flat))


@pytest.fixture
def source(model, tmp_path):
    elm.save(tmp_path / "source", model)
    return tmp_path / "source"


def expert(kind, model):
    tree = ex.init_expert(kind, jax.random.key(0), model.params)
    return jax.tree.map(lambda leaf: np.asarray(leaf + RNG.normal(size=leaf.shape), np.float32), dict(tree))


def same(found, wanted):
    found, wanted = paths.flatten(found), paths.flatten(wanted)
    return {path: value.tobytes() for path, value in found.items()} == {
        path: value.tobytes() for path, value in wanted.items()
    }


@pytest.mark.parametrize("there", ["hf", "t5x", "elm"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_there_and_back_every_bit_is_the_same(model, source, tmp_path, there, dtype):
    made = convert(source, tmp_path / "there", there, dtype=dtype)
    back = convert(tmp_path / "there", tmp_path / "back", "elm")
    assert made.fingerprint == back.fingerprint
    assert made.parameters == sum(leaf.size for leaf in jax.tree.leaves(model.params))
    found = load.load_base(tmp_path / "back")
    assert found.config.dtype == dtype
    wanted = jax.tree.map(lambda leaf: leaf.astype(base_model.DTYPES[dtype]), dict(model.params))
    assert same(found.params, wanted)


def test_a_directory_that_holds_anything_is_left_alone(source, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="/there'"):
        convert(source, tmp_path / "there", "hf")
    assert [file.name for file in (tmp_path / "there").iterdir()] == ["mine.txt"]


def test_an_empty_directory_is_filled(source, tmp_path):
    (tmp_path / "there").mkdir()
    convert(source, tmp_path / "there", "hf")
    assert (tmp_path / "there" / "model.safetensors").exists()


@pytest.mark.parametrize("to", ["hf", "t5x", "elm"])
def test_a_conversion_cut_short_leaves_nothing(source, tmp_path, monkeypatch, to):
    def full_disk(*_, **__):
        raise UserError("the disk is full")

    monkeypatch.setattr(storage, "write_json", full_disk)
    monkeypatch.setattr(storage, "write_bytes", full_disk)
    monkeypatch.setattr(t5x_write, "_write", full_disk)
    with pytest.raises(UserError, match="the disk is full"):
        convert(source, tmp_path / "there", to)
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_a_vocabulary_of_our_own_comes_along_as_the_format_has_it(source, tmp_path):
    (source / runs_base.VOCABULARY_FILE).write_bytes(b"pieces")
    convert(source, tmp_path / "hf", "hf")
    assert (tmp_path / "hf" / "spiece.model").read_bytes() == b"pieces"
    told = json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text())
    assert told == {"tokenizer_class": "T5Tokenizer", "extra_ids": runs_base.EXTRA_IDS}
    convert(source, tmp_path / "again", "elm")
    assert (tmp_path / "again" / runs_base.VOCABULARY_FILE).read_bytes() == b"pieces"


def test_what_lies_beside_foreign_weights_comes_out_as_it_went_in(source, tmp_path):
    convert(source, tmp_path / "hf", "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    config |= {"eos_token_id": 2, "pad_token_id": 1, "task_specific_params": {"a": [1]}, "num_beams": 4}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    wanted = {name: f'{{"{name}": 3}}'.encode() for name in huggingface.OTHER_FILES}
    for name, content in wanted.items():
        (tmp_path / "hf" / name).write_bytes(content)
    convert(tmp_path / "hf", tmp_path / "elm", "elm")
    convert(tmp_path / "elm", tmp_path / "again", "elm")
    convert(tmp_path / "again", tmp_path / "back", "hf")
    convert(tmp_path / "hf", tmp_path / "narrow", "hf", dtype="bfloat16")
    for place in ("back", "narrow"):
        assert {name: (tmp_path / place / name).read_bytes() for name in wanted} == wanted
        told = json.loads((tmp_path / place / "config.json").read_text())
        dtype = {"dtype": "bfloat16", "torch_dtype": "bfloat16"} if place == "narrow" else {}
        assert told == config | dtype


def test_a_field_that_was_looked_at_is_ignored(source, tmp_path, capsys):
    convert(source, tmp_path / "hf", "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config | {"house_style": 3}))
    arguments = ["convert", str(tmp_path / "hf"), str(tmp_path / "elm"), "--to", "elm"]
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert "got 'house_style' = 3" in capsys.readouterr().err
    cli.app([*arguments, "--ignore", "house_style"], standalone_mode=False)
    assert load.load_base(tmp_path / "elm").fingerprint == load.load_base(source).fingerprint


@pytest.fixture
def unknown(source, tmp_path):
    """A model whose configuration has a field that no table has."""
    convert(source, tmp_path / "unknown", "hf")
    file = tmp_path / "unknown" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"house_style": 3}))
    (tmp_path / "unknown" / "generation_config.json").write_text('{"house_style": 3, "num_beams": 2}')
    sentencepiece.train(["a dog ran"] * 4, tmp_path / "unknown" / "spiece.model", 16, extra_ids=0)
    (tmp_path / "unknown" / "tokenizer_config.json").write_text('{"extra_ids": 2}')
    return tmp_path / "unknown"


def test_the_command_that_a_run_names_makes_a_base_of_a_model_with_an_unknown_field(
    source, unknown, tmp_path, monkeypatch
):
    with pytest.raises(UserError, match="house_style") as refused:
        runs_base.open_run(tmp_path / "run", initial_checkpoint=unknown)
    command = re.search("`elm (.+?)`", str(refused.value)).group(1)
    monkeypatch.chdir(tmp_path)
    arguments = [{"MODEL": str(unknown)}.get(word, word) for word in command.split()]
    cli.app(arguments, standalone_mode=False)
    run = runs_base.open_run(tmp_path / "run", initial_checkpoint=tmp_path / "NEW")
    assert run.base.fingerprint == load.load_base(source).fingerprint


@pytest.mark.parametrize("to", ["hf", "elm"])
def test_a_model_is_written_without_what_was_ignored(unknown, tmp_path, to):
    convert(unknown, tmp_path / "new", to, ignore=["house_style"])
    convert(tmp_path / "new", tmp_path / "again", "hf")
    read = convert(tmp_path / "again", tmp_path / "back", "elm")
    assert read.fingerprint == load.load_base(unknown, ignore=["house_style"]).fingerprint
    assert json.loads((tmp_path / "again" / "generation_config.json").read_text()) == {"num_beams": 2}


def test_a_field_of_an_expert_s_base_is_ignored_too(model, unknown, tmp_path):
    peft.save(tmp_path / "adapter", "lora", expert("lora", model))
    home = tmp_path / "library" / "dream" / "no"
    with pytest.raises(UserError, match="house_style"):
        convert(tmp_path / "adapter", home, "elm", base=unknown)
    convert(tmp_path / "adapter", home, "elm", base=unknown, ignore=["house_style"])
    convert(home, tmp_path / "whole", "hf", base=unknown, ignore=["house_style"])
    assert "house_style" not in json.loads((tmp_path / "whole" / "config.json").read_text())


@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_an_adapter_becomes_an_expert_of_a_library_and_an_adapter_again(model, source, tmp_path, kind):
    tree = expert(kind, model)
    peft.save(tmp_path / "adapter", kind, tree)
    home = tmp_path / "library" / "cosmos_qa" / "no%20prompt"
    made = convert(tmp_path / "adapter", home, "elm", base=source)
    assert (made.what, made.fingerprint) == (f"expert of kind {kind}", model.fingerprint)
    library = Library.open(tmp_path / "library")
    assert library.ids() == ("cosmos_qa/no prompt",)
    assert library.verify(base=model.fingerprint) == []
    found = library.load_expert("cosmos_qa/no prompt", base=model.fingerprint)
    assert (found.spec.kind, found.spec.datasets) == (kind, ("cosmos_qa",))
    assert same(found.params, tree)

    convert(home, tmp_path / "again", "peft")
    for name in (peft.CONFIG, peft.WEIGHTS):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "adapter" / name).read_bytes()


def test_an_expert_that_t5x_trained_is_imported(model, source, tmp_path):
    tree = expert("bottleneck", model)
    whole = {**paths.unstack_layers(paths.flatten(model.params)), **paths.unstack_layers(paths.flatten(tree))}
    t5x_write._write(
        storage.writable_directory(tmp_path / "trained").resolve(),
        {"target": paths.unflatten(whole), "state": {"step": np.int32(30)}},
    )
    (tmp_path / "trained" / "checkpoint_0").rename(tmp_path / "trained" / "checkpoint_30")
    home = tmp_path / "library" / "dream" / "baseline"
    convert(tmp_path / "trained" / "checkpoint_30", home, "elm", base=source, kind="bottleneck")
    found = Library.open(tmp_path / "library").load_expert("dream/baseline", base=model.fingerprint)
    assert (found.spec.kind, found.spec.steps) == ("bottleneck", 30)
    assert same(found.params, tree)


def test_what_an_expert_lacks_is_one_sentence(model, source, tmp_path):
    peft.save(tmp_path / "adapter", "lora", expert("lora", model))
    home = tmp_path / "library" / "dream" / "baseline"
    with pytest.raises(UserError, match="--base"):
        convert(tmp_path / "adapter", home, "elm")
    with pytest.raises(UserError, match="No format of an expert named 'hf'"):
        convert(tmp_path / "adapter", home, "hf", base=source)
    with pytest.raises(UserError, match="'a%20b'"):
        convert(tmp_path / "adapter", home.parent / "a b", "elm", base=source)
    assert not (tmp_path / "library").exists()


def test_the_command_says_what_it_wrote(model, source, tmp_path, capsys):
    cli.app(["convert", str(source), str(tmp_path / "hf"), "--to", "hf", "--json"], standalone_mode=False)
    told = json.loads(capsys.readouterr().out)
    assert (told["what"], told["format"], told["fingerprint"]) == ("model", "hf", model.fingerprint)
    cli.app(["convert", str(source), str(tmp_path / "t5x"), "--to", "t5x"], standalone_mode=False)
    assert f"Fingerprint of the model: {model.fingerprint}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--to", "tx5"], "No format of a model named 'tx5' in elm convert (3 known). Did you mean 't5x'?"),
        (["--to", "hf", "--dtype", "float16"], "float32 or bfloat16"),
    ],
)
def test_a_mistake_is_one_sentence(source, tmp_path, capsys, arguments, told):
    with pytest.raises(SystemExit) as stop:
        cli.main(["convert", str(source), str(tmp_path / "there"), *arguments])
    said = capsys.readouterr()
    assert (stop.value.code, said.out) == (2, "")
    assert told in said.err
    assert not (tmp_path / "there").exists()


def test_a_broken_source_leaves_nothing(source, tmp_path):
    arrays = load_file(source / elm.PARAMS_FILE)
    del arrays["decoder/decoder_norm/scale"]
    save_file(arrays, source / elm.PARAMS_FILE)
    with pytest.raises(UserError, match=r"'decoder/decoder_norm/scale' .*params\.safetensors'"):
        convert(source, tmp_path / "there", "hf")
    assert not (tmp_path / "there").exists()
