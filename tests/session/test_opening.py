"""A run opens with a base of any format, its tokenizer and the settings that it remembers."""

import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest

from elm_jax.data import prepare, task_rows, task_selection
from elm_jax.errors import UserError
from elm_jax.evaluation import results_cache
from elm_jax.experts.convert import convert
from elm_jax.experts.library import Library
from elm_jax.models.sizes import find_config
from elm_jax.models.t5 import init_params
from elm_jax.records import Expert, ExpertSpec
from elm_jax.session import opening, settings
from elm_jax.session.workspace import Workspace
from elm_jax.tasks import datasets
from elm_jax.tasks.data_source import Source
from elm_jax.tokenizers import huggingface as hf_tokenizer
from elm_jax.tokenizers import sentencepiece
from elm_jax.training import expert_configs
from elm_jax.training.job_loading import load_job
from elm_jax.weights import base_model, elm, huggingface
from tests.training_configs import train_config

TEXTS = ["the dog ran to the gate because it had heard the car of its owner"]


@pytest.fixture(scope="module")
def model():
    config = find_config("tiny", vocab_size=160, num_encoder_layers=1, num_decoder_layers=1)
    return base_model.make_base(config, init_params(jax.random.key(0), config))


@pytest.fixture
def published(model, tmp_path):
    """A directory laid out as the hub's, with T5's tokenizer: its sentinels are not among the pieces."""
    huggingface.save(tmp_path / "hub", model)
    sentencepiece.train(TEXTS, tmp_path / "hub" / opening.HUB_VOCABULARY_FILE, 40, extra_ids=0)
    return tmp_path / "hub"


def test_a_run_remembers_a_hub_model_and_its_tokenizer(model, published, tmp_path):
    run = opening.open_run(tmp_path / "run", initial_checkpoint=published)
    assert run.base.fingerprint == model.fingerprint
    tokenizer = sentencepiece.load(published / opening.HUB_VOCABULARY_FILE, extra_ids=0)
    assert (run.tokenizer.size, run.tokenizer.extra_ids) == (tokenizer.size + 100, 100)
    again = opening.open_run(tmp_path / "run")
    assert again.base.fingerprint == model.fingerprint
    assert (
        again.tokenizer.fingerprint
        == run.tokenizer.fingerprint
        == opening.load_data_settings(tmp_path / "run").tokenizer.fingerprint
    )


def test_a_model_that_has_sentinels_gets_no_more(published, tmp_path):
    # A model's bytes followed by those of sentinels are a model that has sentinels.
    file = tmp_path / "with.model"
    file.write_bytes(
        (published / opening.HUB_VOCABULARY_FILE).read_bytes() + sentencepiece._serialize_sentinels(4)
    )
    assert opening.load_tokenizer(published, file).extra_ids == 0
    assert opening.load_tokenizer(published, file).size == opening.load_tokenizer(published).size - 100 + 4


def test_a_base_without_a_tokenizer_needs_one_that_is_named(model, published, tmp_path):
    elm.save(tmp_path / "bare", model)
    with pytest.raises(UserError, match=r"vocabulary\.model, tokenizer\.json or spiece\.model"):
        opening.open_run(tmp_path / "run", initial_checkpoint=tmp_path / "bare")
    source = Source(vocabulary=published / opening.HUB_VOCABULARY_FILE)
    run = opening.open_run(tmp_path / "run", initial_checkpoint=tmp_path / "bare", source=source)
    assert run.tokenizer.fingerprint == opening.open_run(tmp_path / "run").tokenizer.fingerprint
    assert run.tokenizer.extra_ids == 100


def test_a_run_remembers_the_task_files_of_a_source(published, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "_user_datasets", {})
    run = opening.open_run(tmp_path / "run", initial_checkpoint=published)
    file = tmp_path / "own.yaml"
    file.write_text(
        """
datasets:
  pets:
    jsonl: {validation: pets.jsonl}
    split: validation
    prompts: {say: {metric: exact_match, jinja: "{{text}} ||| dog"}}
"""
    )
    opening.open_run(run.workspace.root, source=Source(tasks=[file]))
    assert opening.open_run(run.workspace.root).source.tasks == [str(file)]


def test_an_unknown_model_name_is_an_error_with_the_nearest_name(tmp_path):
    with pytest.raises(UserError, match="t5-xl-lm-adapt"):
        opening.open_run(tmp_path / "run", initial_checkpoint="t5-xl-lm-adpat")


def test_paths_inside_a_run_are_relative_so_that_it_can_be_moved(published, tmp_path):
    first = tmp_path / "run"
    shutil.copytree(published, first / "hub")
    source = Source(prepared=first / "prepared", data_dir=tmp_path)
    opening.open_run(first, initial_checkpoint=first / "hub", source=source)
    note = json.loads((first / settings.SETTINGS_FILE).read_text())
    assert (note["base"], note["source"]["prepared"]) == ("hub", "prepared")
    assert note["source"]["data_dir"] == str(tmp_path)
    shutil.move(first, tmp_path / "moved")
    moved = opening.open_run(tmp_path / "moved")
    assert moved.source.prepared == str(tmp_path / "moved" / "prepared")
    assert moved.source.data_dir == str(tmp_path)


def test_paths_stay_relative_if_a_task_file_is_added_later(published, tmp_path):
    run = tmp_path / "run"
    opening.open_run(run, initial_checkpoint=published, source=Source(prepared=run / "prepared"))
    file = tmp_path / "own.yaml"
    file.write_text(
        'datasets: {own: {jsonl: rows.jsonl, prompts: {p: {jinja: "{{a}} ||| b"}}}}'  # no row is read
    )
    opening.open_run(run, task_files=[file])
    note = json.loads((run / settings.SETTINGS_FILE).read_text())
    assert note["source"]["prepared"] == "prepared"
    assert note["source"]["tasks"] == [str(file)]


def _last_tokens(run):
    """Returns the last token of every prompt and of every target, of one task of a run."""
    (spec,) = task_selection.select_tasks(["mini_size_animal/than a dog"])
    made = task_rows.tokenize_task(task_rows.load_examples(spec, run.source), run.tokenizer, run.lengths)
    return [{row[-1].item() for row in of} for of in (made.inputs, made.targets)]


@pytest.mark.parametrize(("name", "ends"), [("T0_3B", False), ("t5-small", True), ("mine", True)])
def test_prompts_end_with_end_of_sequence_unless_the_base_is_a_t0(published, tmp_path, name, ends):
    place = published.rename(tmp_path / name)
    opening.open_run(tmp_path / "run", initial_checkpoint=place, source=Source(limit=3))
    run = opening.open_run(tmp_path / "run", overrides={"limit": 3})  # which has it from run.json
    prompts, targets = _last_tokens(run)
    assert (sentencepiece.EOS in prompts) is ends
    assert targets == {sentencepiece.EOS}


def test_input_eos_of_a_source_overrides_the_bases_name(published, tmp_path):
    place = published.rename(tmp_path / "T0_3B")
    for input_eos, ends in ((True, True), (None, False)):
        source = Source(limit=3, input_eos=input_eos)
        run = opening.open_run(tmp_path / "run", initial_checkpoint=place, source=source)
        assert (sentencepiece.EOS in _last_tokens(run)[0]) is ends


def test_prepared_rows_are_stale_if_input_eos_changes(published, tmp_path):
    for input_eos in (True, False):
        source = Source(limit=3, input_eos=input_eos, prepared=tmp_path / "rows")
        opening.open_run(tmp_path / "run", initial_checkpoint=published, source=source)
        read = opening.load_data_settings(tmp_path / "run")
        asked = {
            "tasks": ["mini_size_animal/than a dog"],
            "tokenizer": read.tokenizer,
            "lengths": read.lengths,
        }
        first, again = (prepare.prepare_tasks(source=source, **asked)[0].made for _ in range(2))
        assert (first, again) == (True, False)


def test_a_tokenizer_json_alone_is_read_and_so_is_its_copy_in_our_format(published, tmp_path):
    whole = hf_tokenizer.load(published).backend.tokenizer.to_str()
    expected = opening.open_run(tmp_path / "tokenizer", initial_checkpoint=published).tokenizer
    (published / opening.HUB_VOCABULARY_FILE).unlink()
    (published / "tokenizer.json").write_text(whole)
    run = opening.open_run(tmp_path / "run", initial_checkpoint=published)
    assert run.tokenizer.fingerprint == expected.fingerprint
    convert(published, tmp_path / "ours", "elm")
    again = opening.open_run(tmp_path / "again", initial_checkpoint=tmp_path / "ours")
    assert (again.tokenizer.fingerprint, again.base.fingerprint) == (
        expected.fingerprint,
        run.base.fingerprint,
    )
    bare = opening.open_run(
        tmp_path / "named",
        initial_checkpoint=_without_tokenizer(published, tmp_path / "bare"),
        source=Source(vocabulary=published / "tokenizer.json"),
    )
    assert bare.tokenizer.fingerprint == expected.fingerprint
    assert opening.load_data_settings(tmp_path / "named").tokenizer.fingerprint == expected.fingerprint


def _without_tokenizer(place, bare):
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(place / name, bare / name)
    return bare


@pytest.mark.parametrize("form", ["hub", "ours"])
def test_a_tokenizer_with_more_ids_than_embeddings_is_refused(model, published, tmp_path, form):
    place = published
    if form == "ours":
        place = tmp_path / "ours"
        elm.save(place, model)
        sentencepiece.train(TEXTS, place / opening.VOCABULARY_FILE, 40, extra_ids=0)
    ids = opening.load_tokenizer(place).size
    for count in (ids, ids - 1):
        config = replace(model.config, vocab_size=count)
        small = base_model.make_base(config, init_params(jax.random.key(0), config))
        (huggingface if form == "hub" else elm).save(place, small)
        if count == ids:
            opening.open_run(tmp_path / "fits", initial_checkpoint=place)
    with pytest.raises(UserError, match=rf"at most {ids - 1} ids.* got one of {ids}"):
        opening.open_run(tmp_path / "run", initial_checkpoint=place)


def test_byt5_needs_no_tokenizer_file(tmp_path):
    config = find_config("tiny", vocab_size=384, num_encoder_layers=1, num_decoder_layers=1)
    huggingface.save(tmp_path / "byt5", base_model.make_base(config, init_params(jax.random.key(0), config)))
    (tmp_path / "byt5" / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    convert(tmp_path / "byt5", tmp_path / "ours", "elm")
    for place in ("byt5", "ours"):
        run = opening.open_run(
            tmp_path / f"run of {place}", initial_checkpoint=tmp_path / place, source=Source(limit=3)
        )
        assert run.tokenizer.size == 384
        (spec,) = task_selection.select_tasks(["mini_size_animal/than a dog"])
        rows = task_rows.tokenize_task(task_rows.load_examples(spec, run.source), run.tokenizer, run.lengths)
        text = rows.texts[0].encode()[: run.lengths.prompt - 1]
        assert list(rows.inputs[0]) == [*(byte + 3 for byte in text), sentencepiece.EOS]


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_transformers_reads_the_tokenizer_of_a_base_that_was_pretrained_here(model, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    elm.save(tmp_path / "ours", model)
    tokenizer = sentencepiece.train(
        TEXTS, tmp_path / "ours" / opening.VOCABULARY_FILE, 40, extra_ids=opening.EXTRA_IDS
    )
    convert(tmp_path / "ours", tmp_path / "hf", "hf")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert len(theirs) == tokenizer.size
    for text in (*TEXTS, "a dog", "car of gate"):
        assert theirs(text).input_ids == [*tokenizer.encode(text), tokenizer.eos]
    assert theirs.convert_tokens_to_ids("<extra_id_0>") == tokenizer.size - 1


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_a_base_in_another_dtype_keeps_its_fingerprint(published, tmp_path, stored):
    convert(published, tmp_path / "base", "elm", dtype=stored)
    expected = opening.open_run(tmp_path / "plain", initial_checkpoint=tmp_path / "base")
    assert (expected.dtype, expected.base.config.dtype) == (None, stored)
    for dtype in ("float32", "bfloat16"):
        place = tmp_path / dtype
        run = opening.open_run(place, initial_checkpoint=tmp_path / "base", dtype=dtype)
        for found in (run, opening.open_run(place), opening.open_run(tmp_path / "plain", dtype=dtype)):
            assert found.base.fingerprint == expected.base.fingerprint
            assert found.base.config == replace(expected.base.config, dtype=dtype)
            assert {leaf.dtype.name for leaf in jax.tree.leaves(found.base.params)} == {dtype}
            assert found.dtype == (None if dtype == stored else dtype)
            jax.tree.map(
                lambda ours, theirs: np.testing.assert_array_equal(ours, theirs.astype(ours.dtype)),
                dict(found.base.params),
                dict(expected.base.params),
            )
    assert opening.open_run(tmp_path / "plain").dtype is None
    with pytest.raises(UserError, match="float32 or bfloat16"):
        opening.open_run(tmp_path / "plain", dtype="float16")


def test_the_dtype_is_part_of_cache_keys_and_recipes(published, tmp_path):
    run = opening.open_run(tmp_path / "run", initial_checkpoint=published)
    narrow = opening.open_run(tmp_path / "run", dtype="bfloat16")
    assert results_cache.reading_settings(narrow) == results_cache.reading_settings(run) | {
        "dtype": "bfloat16"
    }
    specs = task_selection.select_tasks(["mini_size_animal/than a dog"])
    (expert,) = expert_configs.resolve_experts(specs, train_config(steps=2))
    recipes = [load_job(each, expert).recipe for each in (run, narrow)]
    assert recipes[1] == recipes[0] | {"dtype": "bfloat16"}


def test_overrides_hold_only_while_a_run_is_open(published, tmp_path):
    opening.open_run(tmp_path / "run", initial_checkpoint=published, overrides={"limit": 3, "seed": 7})
    run = opening.open_run(tmp_path / "run", overrides={"truncate": 9, "limit": None})
    assert (run.source.truncate, run.source.limit, run.source.seed) == (9, None, 42)
    assert opening.open_run(tmp_path / "run").source.truncate == Source().truncate
    with pytest.raises(UserError, match=r"'limits'.*'limit'"):
        opening.open_run(tmp_path / "run", overrides={"limits": 3})


def test_a_read_only_workspace_opens_as_the_run_would_be_and_is_not_written(published, tmp_path):
    named = {"initial_checkpoint": published, "data_dir": tmp_path, "source": Source(limit=3, seed=7)}
    asked = {**named, "dtype": "bfloat16", "overrides": {"truncate": 9}}
    dry = opening.open_run(Workspace.at(tmp_path / "run", read_only=True), **asked)
    assert not (tmp_path / "run").exists()
    run = opening.open_run(tmp_path / "run", **asked)
    for name in ("source", "lengths", "dtype"):
        assert getattr(dry, name) == getattr(run, name)
    assert (dry.base.fingerprint, dry.tokenizer.fingerprint) == (
        run.base.fingerprint,
        run.tokenizer.fingerprint,
    )
    again = opening.open_run(Workspace.at(tmp_path / "run", read_only=True), overrides={"truncate": 9})
    assert again.source == opening.open_run(tmp_path / "run", overrides={"truncate": 9}).source
    made = settings.make_run_settings(published, Source(data_dir=tmp_path), None, "bfloat16")
    settings.save_run_settings(run.workspace, published, Source(data_dir=tmp_path), None, "bfloat16")
    assert json.loads(json.dumps({**made, "format": 1})) == settings.load_run_settings(run.workspace)


def test_the_experts_of_a_run_are_a_mapping(published, tmp_path):
    run = opening.open_run(tmp_path / "run", initial_checkpoint=published)
    assert (len(run.library), list(run.library), "a/b" in run.library) == (0, [], False)
    tree = {"encoder": {"encoder_norm": {"scale": np.ones(4, np.float32)}}}
    spec = ExpertSpec("a/b", "full", run.base.fingerprint, ("encoder/encoder_norm/scale",), ("a",), 1)
    Library.open(run.workspace.library, create=True).add(Expert(spec, tree))
    assert (list(run.library), run.library["a/b"].spec.steps) == (["a/b"], 1)


def test_the_repr_of_a_run_is_one_short_line(published, tmp_path):
    run = opening.open_run(tmp_path / "run", initial_checkpoint=published)
    assert repr(run) == f"Run({str(tmp_path / 'run')!r}, base={run.base.fingerprint!r}, dtype=None)"
