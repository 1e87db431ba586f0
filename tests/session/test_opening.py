"""Bases of a run: those of other formats serve as ours do, with the vocabulary that belongs to them."""

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
from elm_jax.models.sizes import size
from elm_jax.models.t5 import init_params
from elm_jax.session import opening, settings
from elm_jax.tasks import datasets
from elm_jax.tasks.data_source import Source
from elm_jax.tokenizers import huggingface as hf_tokenizer
from elm_jax.tokenizers import sentencepiece
from elm_jax.training import config as courses
from elm_jax.training.entries import entry_of
from elm_jax.weights import base as bases
from elm_jax.weights import elm, huggingface

TEXTS = ["the dog ran to the gate because it had heard the car of its owner"]


@pytest.fixture(scope="module")
def model():
    config = size("tiny", vocab_size=160, num_encoder_layers=1, num_decoder_layers=1)
    return bases.of(config, init_params(jax.random.key(0), config))


@pytest.fixture
def published(model, tmp_path):
    """A directory as the hub has them, with T5's vocabulary: its sentinels are not among the pieces."""
    huggingface.save(tmp_path / "hub", model)
    sentencepiece.train(TEXTS, tmp_path / "hub" / opening.PUBLISHED, 40, extra_ids=0)
    return tmp_path / "hub"


def test_a_published_model_and_its_vocabulary_are_a_base_and_the_workspace_remembers_them(
    model, published, tmp_path
):
    run = opening.open_run(tmp_path / "run", initial_checkpoint=published)
    assert run.base.fingerprint == model.fingerprint
    pieces = sentencepiece.load(published / opening.PUBLISHED, extra_ids=0)
    assert (run.pieces.size, run.pieces.extra_ids) == (pieces.size + 100, 100)
    again = opening.open_run(tmp_path / "run")
    assert again.base.fingerprint == model.fingerprint
    assert (
        again.pieces.fingerprint
        == run.pieces.fingerprint
        == opening.reading(tmp_path / "run").pieces.fingerprint
    )


def test_a_vocabulary_with_sentinels_among_its_pieces_gets_no_more(published, tmp_path):
    # A model's own bytes with the sentinels behind are a model that has them.
    file = tmp_path / "with.model"
    file.write_bytes((published / opening.PUBLISHED).read_bytes() + sentencepiece._sentinels(4))
    assert opening.pieces_of(published, file).extra_ids == 0
    assert opening.pieces_of(published, file).size == opening.pieces_of(published).size - 100 + 4


def test_a_vocabulary_elsewhere_is_named_and_one_that_is_missing_is_said_to_be(model, published, tmp_path):
    elm.save(tmp_path / "bare", model)
    with pytest.raises(UserError, match=r"as vocabulary\.model, tokenizer\.json or spiece\.model, got none"):
        opening.open_run(tmp_path / "run", initial_checkpoint=tmp_path / "bare")
    source = Source(vocabulary=published / opening.PUBLISHED)
    run = opening.open_run(tmp_path / "run", initial_checkpoint=tmp_path / "bare", source=source)
    assert run.pieces.fingerprint == opening.open_run(tmp_path / "run").pieces.fingerprint
    assert run.pieces.extra_ids == 100


def test_tasks_that_come_with_a_source_are_remembered_by_a_run_that_is_there(
    published, tmp_path, monkeypatch
):
    monkeypatch.setattr(datasets, "_added", {})
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


def test_a_name_that_no_model_has_is_answered_with_the_nearest(tmp_path):
    with pytest.raises(UserError, match="t5-xl-lm-adapt"):
        opening.open_run(tmp_path / "run", initial_checkpoint="t5-xl-lm-adpat")


def test_what_lies_in_a_run_is_found_in_its_copy(published, tmp_path):
    first = tmp_path / "run"
    shutil.copytree(published, first / "hub")
    source = Source(prepared=first / "prepared", data_dir=tmp_path)
    opening.open_run(first, initial_checkpoint=first / "hub", source=source)
    note = json.loads((first / settings.REMEMBERED).read_text())
    assert (note["base"], note["source"]["prepared"]) == ("hub", "prepared")
    assert note["source"]["data_dir"] == str(tmp_path)
    shutil.move(first, tmp_path / "moved")
    moved = opening.open_run(tmp_path / "moved")
    assert moved.source.prepared == str(tmp_path / "moved" / "prepared")
    assert moved.source.data_dir == str(tmp_path)


def test_a_file_of_tasks_that_comes_later_leaves_the_places_relative(published, tmp_path):
    run = tmp_path / "run"
    opening.open_run(run, initial_checkpoint=published, source=Source(prepared=run / "prepared"))
    file = tmp_path / "own.yaml"
    file.write_text(
        'datasets: {own: {jsonl: rows.jsonl, prompts: {p: {jinja: "{{a}} ||| b"}}}}'  # no row is read
    )
    opening.open_run(run, task_files=[file])
    note = json.loads((run / settings.REMEMBERED).read_text())
    assert note["source"]["prepared"] == "prepared"
    assert note["source"]["tasks"] == [str(file)]


def _last_tokens(run):
    """Returns the last token of every prompt and of every target, of one task of a run."""
    (spec,) = task_selection.choose(["mini_size_animal/than a dog"])
    made = task_rows.prepare(task_rows.examples(spec, run.source), run.pieces, run.lengths)
    return [{row[-1].item() for row in of} for of in (made.inputs, made.targets)]


@pytest.mark.parametrize(("name", "ends"), [("T0_3B", False), ("t5-small", True), ("mine", True)])
def test_prompts_end_with_end_of_sequence_unless_the_base_is_a_t0(published, tmp_path, name, ends):
    place = published.rename(tmp_path / name)
    opening.open_run(tmp_path / "run", initial_checkpoint=place, source=Source(limit=3))
    run = opening.open_run(tmp_path / "run", limit=3)  # which has it from run.json
    prompts, targets = _last_tokens(run)
    assert (sentencepiece.EOS in prompts) is ends
    assert targets == {sentencepiece.EOS}


def test_a_source_says_otherwise_than_the_bases_name(published, tmp_path):
    place = published.rename(tmp_path / "T0_3B")
    for told, ends in ((True, True), (None, False)):
        source = Source(limit=3, input_eos=told)
        run = opening.open_run(tmp_path / "run", initial_checkpoint=place, source=source)
        assert (sentencepiece.EOS in _last_tokens(run)[0]) is ends


def test_rows_that_were_prepared_with_ends_are_stale_without(published, tmp_path):
    for told in (True, False):
        source = Source(limit=3, input_eos=told, prepared=tmp_path / "rows")
        opening.open_run(tmp_path / "run", initial_checkpoint=published, source=source)
        read = opening.reading(tmp_path / "run")
        asked = {"tasks": ["mini_size_animal/than a dog"], "pieces": read.pieces, "lengths": read.lengths}
        first, again = (prepare.prepare(source=source, **asked)[0].made for _ in range(2))
        assert (first, again) == (True, False)


def test_a_tokenizer_json_alone_makes_a_base_and_so_does_its_copy_in_our_format(published, tmp_path):
    whole = hf_tokenizer.load(published).codec.tokenizer.to_str()
    wanted = opening.open_run(tmp_path / "pieces", initial_checkpoint=published).pieces
    (published / opening.PUBLISHED).unlink()
    (published / "tokenizer.json").write_text(whole)
    run = opening.open_run(tmp_path / "run", initial_checkpoint=published)
    assert run.pieces.fingerprint == wanted.fingerprint
    convert(published, tmp_path / "ours", "elm")
    again = opening.open_run(tmp_path / "again", initial_checkpoint=tmp_path / "ours")
    assert (again.pieces.fingerprint, again.base.fingerprint) == (wanted.fingerprint, run.base.fingerprint)
    bare = opening.open_run(
        tmp_path / "named",
        initial_checkpoint=_without_tokenizer(published, tmp_path / "bare"),
        source=Source(vocabulary=published / "tokenizer.json"),
    )
    assert bare.pieces.fingerprint == wanted.fingerprint
    assert opening.reading(tmp_path / "named").pieces.fingerprint == wanted.fingerprint


def _without_tokenizer(place, bare):
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(place / name, bare / name)
    return bare


@pytest.mark.parametrize("form", ["hub", "ours"])
def test_a_tokenizer_that_gives_ids_beyond_the_embeddings_is_refused_when_a_run_is_opened(
    model, published, tmp_path, form
):
    place = published
    if form == "ours":
        place = tmp_path / "ours"
        elm.save(place, model)
        sentencepiece.train(TEXTS, place / opening.VOCABULARY, 40, extra_ids=0)
    ids = opening.pieces_of(place).size
    for count in (ids, ids - 1):
        config = replace(model.config, vocab_size=count)
        small = bases.of(config, init_params(jax.random.key(0), config))
        (huggingface if form == "hub" else elm).save(place, small)
        if count == ids:
            opening.open_run(tmp_path / "fits", initial_checkpoint=place)
    with pytest.raises(UserError, match=rf"at most {ids - 1} ids.* got one of {ids}"):
        opening.open_run(tmp_path / "run", initial_checkpoint=place)


def test_byt5_is_a_base_without_a_model_file(tmp_path):
    config = size("tiny", vocab_size=384, num_encoder_layers=1, num_decoder_layers=1)
    huggingface.save(tmp_path / "byt5", bases.of(config, init_params(jax.random.key(0), config)))
    (tmp_path / "byt5" / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    convert(tmp_path / "byt5", tmp_path / "ours", "elm")
    for place in ("byt5", "ours"):
        run = opening.open_run(
            tmp_path / f"run of {place}", initial_checkpoint=tmp_path / place, source=Source(limit=3)
        )
        assert run.pieces.size == 384
        (spec,) = task_selection.choose(["mini_size_animal/than a dog"])
        rows = task_rows.prepare(task_rows.examples(spec, run.source), run.pieces, run.lengths)
        text = rows.texts[0].encode()[: run.lengths.prompt - 1]
        assert list(rows.inputs[0]) == [*(byte + 3 for byte in text), sentencepiece.EOS]


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_transformers_reads_the_vocabulary_of_a_base_that_was_trained_here(model, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    elm.save(tmp_path / "ours", model)
    pieces = sentencepiece.train(
        TEXTS, tmp_path / "ours" / opening.VOCABULARY, 40, extra_ids=opening.SENTINELS
    )
    convert(tmp_path / "ours", tmp_path / "hf", "hf")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert len(theirs) == pieces.size
    for text in (*TEXTS, "a dog", "car of gate"):
        assert theirs(text).input_ids == [*pieces.encode(text), pieces.eos]
    assert theirs.convert_tokens_to_ids("<extra_id_0>") == pieces.size - 1


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_a_base_is_held_in_the_type_that_is_asked_for_and_stays_the_base_that_it_is(
    published, tmp_path, stored
):
    convert(published, tmp_path / "base", "elm", dtype=stored)
    wanted = opening.open_run(tmp_path / "plain", initial_checkpoint=tmp_path / "base")
    assert (wanted.dtype, wanted.base.config.dtype) == (None, stored)
    for dtype in ("float32", "bfloat16"):
        place = tmp_path / dtype
        run = opening.open_run(place, initial_checkpoint=tmp_path / "base", dtype=dtype)
        for found in (run, opening.open_run(place), opening.open_run(tmp_path / "plain", dtype=dtype)):
            assert found.base.fingerprint == wanted.base.fingerprint
            assert found.base.config == replace(wanted.base.config, dtype=dtype)
            assert {leaf.dtype.name for leaf in jax.tree.leaves(found.base.params)} == {dtype}
            assert found.dtype == (None if dtype == stored else dtype)
            jax.tree.map(
                lambda ours, theirs: np.testing.assert_array_equal(ours, theirs.astype(ours.dtype)),
                dict(found.base.params),
                dict(wanted.base.params),
            )
    assert opening.open_run(tmp_path / "plain").dtype is None
    with pytest.raises(UserError, match="float32 or bfloat16"):
        opening.open_run(tmp_path / "plain", dtype="float16")


def test_what_a_type_changes_is_stamped(published, tmp_path):
    run = opening.open_run(tmp_path / "run", initial_checkpoint=published)
    narrow = opening.open_run(tmp_path / "run", dtype="bfloat16")
    assert results_cache.read_as(narrow) == results_cache.read_as(run) | {"dtype": "bfloat16"}
    (course,) = courses.courses(
        task_selection.choose(["mini_size_animal/than a dog"]), courses.Budget(steps=2)
    )
    recipes = [entry_of(each, course, courses.Budget(steps=2), 0).recipe for each in (run, narrow)]
    assert recipes[1] == recipes[0] | {"dtype": "bfloat16"}
