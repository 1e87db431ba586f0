"""A base is named on the command line: `elm init`, and --base with every verb that opens a run."""

import json

import jax
import pytest

from elm_jax import cli
from elm_jax.models.sizes import find_config
from elm_jax.models.t5 import init_params
from elm_jax.session import opening, settings
from elm_jax.session.workspace import Workspace
from elm_jax.tokenizers import sentencepiece
from elm_jax.weights import base_model, huggingface

TEXTS = ["the dog ran to the gate because it had heard the car of its owner"]
TASK = """\
datasets:
  mine:
    jsonl: rows.jsonl
    prompts:
      good: {jinja: "{{text}} ||| {{answer_choices[label]}}", answer_choices: "no ||| yes"}
"""


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Two bases of the hub's form with a tokenizer of 40 pieces, the second without it."""
    home = tmp_path_factory.mktemp("bases")
    size = {"num_encoder_layers": 1, "num_decoder_layers": 1, "emb_dim": 16, "mlp_dim": 16}
    config = find_config("tiny", vocab_size=160, **size)
    for seed in (0, 1):
        model = base_model.make_base(config, init_params(jax.random.key(seed), config))
        huggingface.save(home / str(seed), model)
    sentencepiece.train(TEXTS, home / "0" / opening.HUB_VOCABULARY_FILE, 40, extra_ids=0)
    return home


def run_elm(*words):
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in words])
    return stop.value.code


def error_of(capsys, *words):
    assert run_elm(*words) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    return sentence


def test_a_run_is_made_of_a_base_and_remembers_what_was_given(bases, tmp_path, capsys):
    flags = ["--tokenizer", bases / "0" / opening.HUB_VOCABULARY_FILE, "--max-prompt", 9, "--data-dir", "."]
    assert run_elm("init", tmp_path / "run", "--base", bases / "1", *flags, "--json", "-q") == 0
    told = json.loads(capsys.readouterr().out)
    run = opening.open_run(tmp_path / "run")
    assert told["base"] == run.base.fingerprint
    assert told["tokenizer"] == run.tokenizer.size
    assert run.lengths.prompt == 9
    assert run.source.data_dir is not None


def test_a_base_without_a_tokenizer_is_refused_with_the_flag_that_names_one(bases, tmp_path, capsys):
    assert "--tokenizer" in error_of(capsys, "init", tmp_path / "run", "--base", bases / "1")
    assert not (tmp_path / "run").exists()


def test_no_base_is_answered_with_the_command(tmp_path, capsys):
    assert f"elm init {tmp_path} --base" in error_of(capsys, "init", tmp_path)


def test_a_verb_makes_the_run_of_its_base_and_accepts_no_other(bases, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"text": "the dog", "label": 1}\n' * 4)
    (tmp_path / "mine.yaml").write_text(TASK)
    prepare = ["prepare", "mine.yaml", "--run", "run", "--json", "-q"]
    assert run_elm(*prepare, "--base", bases / "0") == 0
    assert json.loads(capsys.readouterr().out)[0]["task"] == "mine/good"
    before = settings.load_run_settings(Workspace.at("run"))
    train = ["train", "mine.yaml", "--run", "run", "--dry-run", "--json", "-q"]
    assert run_elm(*train, "--base", bases / "0", "--data-dir", ".") == 0
    assert json.loads(capsys.readouterr().out)["Experts"][0]["expert"] == "mine/good"
    assert settings.load_run_settings(Workspace.at("run")) == before
    assert "leave out --base" in error_of(capsys, *train, "--base", bases / "1")


def test_rows_are_shown_as_tokens_of_a_base_without_a_run(bases, tmp_path, capsys):
    task = "mini_size_animal/than a dog"
    assert run_elm("tasks", "preview", task, "--base", bases / "0", "--rows", 1) == 0
    assert "tokens: input" in capsys.readouterr().out
