"""The index of a run: what keys are embedded with, that the run remembers it, and that nothing else is."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from elm_jax import cli, load_embedder, names
from elm_jax.data import task_rows, task_selection
from elm_jax.errors import UserError
from elm_jax.experts import files, key_texts
from elm_jax.experts.library import Library
from elm_jax.launch import recipes
from elm_jax.models.t5 import T5
from elm_jax.pipelines import pipeline
from elm_jax.pipelines.pipeline import PipelineConfig
from elm_jax.records import Expert, ExpertSpec
from elm_jax.routing import index as runs
from elm_jax.routing import route
from elm_jax.session import opening, settings
from elm_jax.session.workspace import Run, Workspace
from elm_jax.tasks import data_source
from elm_jax.telemetry.progress import Stages
from elm_jax.tokenizers import sentencepiece
from elm_jax.weights import base_model, elm
from elm_jax.weights.base_model import Base

BASE = "0123456789abcdef"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    texts = ["A film was good .", "Is a cat larger than a dog ?"] * 4
    return sentencepiece.train(texts, tmp_path_factory.mktemp("tokenizer") / "m.model", 64, kind="word")


@pytest.fixture
def run(config, base, tokenizer, tmp_path):
    workspace = Workspace.open(tmp_path / "run", create=True)
    library = Library.open(workspace.library, create=True)
    for task in task_selection.select_tasks(["mini_sentiment_film", "mini_size_animal"]):
        spec = ExpertSpec(task.id, "bottleneck", BASE, ("scale",), (task.dataset,), 1)
        library.add(Expert(spec, {"scale": np.ones(3, np.float32)}))
    made = Base(config, base, BASE)
    return Run(
        workspace,
        made,
        tokenizer,
        data_source.Source(limit=12),
        data_source.Lengths(prompt=24, answer=8),
        Stages(),
    )


@pytest.fixture(scope="module")
def encoder(write_encoder, tmp_path_factory):
    place = tmp_path_factory.mktemp("encoder")
    write_encoder(place)
    return place


def library_of(run):
    return Library.open(run.workspace.library)


def test_a_run_embeds_with_its_base_unless_told_otherwise(run, config):
    written = runs.index(run, size=3)
    assert sorted(written) == sorted(library_of(run).ids())
    keys = library_of(run).load_keys(written[0])
    assert keys.embedder == f"t5-encoder-mean/{BASE}"
    assert keys.vectors.shape == (3, config.emb_dim)
    assert runs.index(run, size=3) == []
    assert not (run.workspace.root / runs.EMBEDDER_FILE).exists()


def test_an_expert_that_joins_embeds_its_own_texts_and_no_other(run, monkeypatch):
    runs.index(run, size=3)
    library = library_of(run)
    before = {
        expert: (library.root / swapped(expert) / files.KEYS_FILE).read_bytes() for expert in library.ids()
    }
    task = task_selection.select_tasks(["mini_opposite_word"])[0]
    library.add(
        Expert(
            ExpertSpec(task.id, "bottleneck", BASE, ("scale",), (task.dataset,), 1),
            {"scale": np.ones(3, np.float32)},
        )
    )
    embedded = []
    embed = runs.embed_keys

    def counted(embedder, texts, text_format):
        embedded.extend(texts)
        return embed(embedder, texts, text_format)

    monkeypatch.setattr(runs, "embed_keys", counted)
    assert runs.index(run, size=3) == [task.id]
    assert tuple(embedded) == library.load_keys(task.id).texts
    assert len(embedded) == 3
    assert {
        expert: (library.root / swapped(expert) / files.KEYS_FILE).read_bytes() for expert in before
    } == before


def swapped(expert):
    return "/".join(map(names.directory_name, names.split_id(expert)))


def test_an_expert_on_a_dataset_has_keys_of_each_of_its_prompts(run):
    library = library_of(run)
    tasks = task_selection.select_tasks(["mini_sentiment_film"])
    recipe = {"tasks": [task.id for task in tasks]}
    spec = ExpertSpec("mini_sentiment_film/all", "bottleneck", BASE, ("scale",), ("d",), 1, recipe)
    library.add(Expert(spec, {"scale": np.ones(3, np.float32)}))
    runs.index(run, size=4, experts=[spec.id])
    wanted = [
        example.input
        for task in tasks
        for example in key_texts.sample_examples(
            task_rows.load_examples(task, run.source), 2, run.source.seed
        )
    ]
    assert list(library.load_keys(spec.id).texts) == wanted


def test_keys_pooled_over_padding_meet_queries_that_are_not_with_that_switch_alone(run, config, base):
    first = library_of(run).ids()[0]
    (plain,) = runs.index(run, size=1, experts=[first]) and [library_of(run).load_keys(first)]
    runs.index(run, size=1, rebuild=True, padded=True)
    found = library_of(run).load_keys(first)
    assert found.texts == plain.texts
    tokens = np.zeros((1, 256), np.int32)
    ids = task_rows.tokenize_texts(found.texts, run.tokenizer, 256)[0]
    tokens[0, : len(ids)] = ids
    hidden = T5(config).apply({"params": base}, tokens, method="encode")
    np.testing.assert_allclose(found.vectors[0], np.asarray(hidden)[0].sum(0) / 256, rtol=1e-4, atol=1e-5)
    task = task_selection.select_tasks(["mini_size_suitcase"])[:1]
    with pytest.raises(UserError, match=r" 't5-encoder-mean/.*padding included', got 't5-encoder-mean/"):
        route.route(run, task, queries=4)
    (selection,) = route.route(run, task, options={"faithful": ["padded_keys"]}, queries=4)
    assert sum(selection.votes.values()) == 4


def test_a_sentence_encoder_is_remembered_for_later_keys_and_queries(run, encoder):
    library = library_of(run)
    first, *others = library.ids()
    assert runs.index(run, size=3, experts=[first], embedder=str(encoder)) == [first]
    assert runs.index(run, size=3) == others
    names = {library.load_keys(expert).embedder for expert in library.ids()}
    assert len(names) == 1
    assert names.pop().startswith("bert-mean/")
    assert library.load_keys(first).vectors.shape == (3, 8)
    (selection,) = route.route(run, task_selection.select_tasks(["mini_size_suitcase"])[:1], queries=4)
    assert sum(selection.votes.values()) == 4


def test_a_directory_is_remembered_from_wherever_it_was_named(run, encoder, monkeypatch):
    monkeypatch.chdir(encoder.parent)
    runs.index(run, size=2, embedder=encoder.name)
    monkeypatch.chdir("/")
    assert runs.load_embedder_settings(run.workspace) == runs.EmbedderSettings(str(encoder.resolve()))
    assert runs.load_run_embedder(run, runs.load_embedder_settings(run.workspace))(["the dog"]).shape == (
        1,
        8,
    )


def test_keys_of_another_embedder_are_refused_until_all_are_embedded_anew(run, encoder):
    runs.index(run, size=2)
    with pytest.raises(UserError, match=r"'bert-mean/\w+'.*got keys of 't5-encoder-mean/"):
        runs.index(run, size=2, embedder=str(encoder))
    assert runs.load_embedder_settings(run.workspace) == runs.BASE_EMBEDDER
    written = runs.index(run, size=2, embedder=str(encoder), rebuild=True)
    assert sorted(written) == sorted(library_of(run).ids())
    with pytest.raises(UserError, match="'t5', got keys of"):
        runs.index(run, size=2, embedder="t5")
    assert runs.index(run, size=2, embedder="t5", rebuild=True) == written
    assert runs.load_embedder_settings(run.workspace) == runs.BASE_EMBEDDER


def test_keys_say_in_which_type_a_base_embedded_them(run):
    runs.index(run, size=2)
    task = task_selection.select_tasks(["mini_size_suitcase"])[:1]
    config = replace(run.base.config, dtype="bfloat16")
    params = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), dict(run.base.params))
    narrow = replace(run, base=Base(config, params, run.base.fingerprint), dtype="bfloat16")
    with pytest.raises(UserError, match=r"/bfloat16.\. Fix: .*--dtype"):
        route.route(narrow, task, queries=2)
    with pytest.raises(UserError, match="type with --dtype"):
        runs.index(narrow, size=2)
    written = runs.index(narrow, size=2, rebuild=True)
    assert library_of(run).load_keys(written[0]).embedder == f"t5-encoder-mean/{BASE}/bfloat16"
    (selection,) = route.route(narrow, task, queries=2)
    assert selection.embedder == f"t5-encoder-mean/{BASE}/bfloat16"
    assert route.load_selections(run.workspace, "roe_top1") == [selection]
    with pytest.raises(UserError, match="Expected a run whose base is held in bfloat16, got one in float32"):
        runs.index(run, dtype="bfloat16")


def test_the_type_of_a_sentence_encoder_is_remembered(run, encoder):
    expert, *others = library_of(run).ids()
    runs.index(run, size=2, experts=[expert], embedder=str(encoder), dtype="bfloat16")
    wanted = load_embedder(encoder, dtype="bfloat16")
    keys = library_of(run).load_keys(expert)
    assert keys.embedder == wanted.name
    assert wanted.name.endswith("/bfloat16")
    np.testing.assert_array_equal(keys.vectors, wanted(keys.texts))
    assert runs.index(run, size=2, embedder=str(encoder)) == others
    with pytest.raises(UserError, match="--rebuild"):
        runs.index(run, size=2, dtype="float32")


def test_a_field_of_a_sentence_encoder_that_was_looked_at_is_ignored_from_then_on(
    run, write_encoder, tmp_path
):
    files_of = ("config.json", "modules.json", "sentence_bert_config.json", "1_Pooling/config.json")
    for number, name in enumerate(files_of):
        place = tmp_path / str(number)
        write_encoder(place)
        wanted = load_embedder(place).name
        told = json.loads((place / name).read_text())
        told = [step | {"novelty": 1} for step in told] if isinstance(told, list) else told | {"novelty": 1}
        (place / name).write_text(json.dumps(told))
        with pytest.raises(UserError, match="pass --ignore novelty to `elm index --embedder`"):
            runs.index(run, size=2, embedder=str(place), rebuild=True)
        runs.index(run, size=2, embedder=str(place), ignore=["novelty"], rebuild=True)
        (selection,) = route.route(run, task_selection.select_tasks(["mini_size_suitcase"])[:1], queries=2)
        assert selection.embedder == wanted
    with pytest.raises(UserError, match="Fix: name it with --embedder"):
        runs.index(run, size=2, embedder="t5", ignore=["novelty"])


def test_an_embedder_that_is_not_there_stops_a_run_before_it_trains(tmp_path, encoder):
    with pytest.raises(UserError, match=r"'./absent'"):
        pipeline.run_pipeline(["mini-train"], ["mini-unseen"], tmp_path, PipelineConfig(embedder="./absent"))
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_names_the_embedder(tmp_path):
    bindings = ["EMBEDDER = './absent'", f"MODEL_DIR = '{tmp_path}'"]
    bound = recipes.bind(pipeline.run_pipeline, ["gin/recipes/dream_to_story_cloze.gin"], bindings)
    with pytest.raises(UserError, match=r"'./absent'"):
        bound()


def test_the_command_line_names_it_too(run, encoder, config, base, capsys):
    elm.save(run.workspace.base, base_model.make_base(config, base))
    sentencepiece.train(
        ["A film was good ."] * 4, run.workspace.base / opening.VOCABULARY_FILE, 64, kind="word"
    )
    settings.save_run_settings(run.workspace, None, run.source, run.lengths)
    asked = ["index", "--run", str(run.workspace.root), "--size", "2", "--embedder", str(encoder)]
    file = encoder / "1_Pooling" / "config.json"
    content = file.read_text()
    file.write_text(json.dumps(json.loads(content) | {"novelty": 1}))
    cli.app([*asked, "--dtype", "bfloat16", "--ignore", "novelty"], standalone_mode=False)
    assert capsys.readouterr().out.splitlines() == list(library_of(run).ids())
    assert runs.load_embedder_settings(run.workspace) == runs.EmbedderSettings(
        str(encoder.resolve()), "bfloat16", ("novelty",)
    )
    asked = ["route", "mini_size_suitcase", "--run", str(run.workspace.root), "--queries", "2", "--json"]
    cli.app(asked, standalone_mode=False)
    assert all(one["embedder"].endswith("/bfloat16") for one in json.loads(capsys.readouterr().out))
    file.write_text(content)
