"""Typical mistakes on the command line: each is one sentence, with what mends it, and nothing is printed."""

import re
import shlex

import pytest

from elm_jax import cli
from elm_jax.experts.library import Library

MENDS = r"Fix: \S|Did you mean \S"
"""What every sentence has; where more of it is known, it is named beside the command."""
MISTAKES = [
    # Words that are not there
    ("trian", "`elm train`"),
    ("experts lst", "`elm experts list`"),
    ("train --stepps 4", "write --steps"),
    ("tasks show", "`elm tasks show dream/baseline`"),
    ("train reviews --steps many", "`elm train reviews.yaml"),
    ("train reviews --steps", "`elm train reviews.yaml"),
    ("merge a/b --rows 0", "`elm merge "),
    ("completion tcsh", "'bash'"),
    # The run and its base
    ("train dream --run nowhere", "`elm init DIR --base PATH`"),
    ("evaluate mini-unseen --run nowhere", "`elm init DIR --base PATH`"),
    ("experts list --run nowhere", "`elm init DIR --base PATH`"),
    ("init new", "`elm init new --base hf:google/flan-t5-base`"),
    ("init new --base ./nowhere", "name the directory of a checkpoint"),
    ("init new --base flan-t5-bas", "'flan-t5-base'"),
    ("init new --tokenizer spiece.model", "--base"),
    ("index --run {run} --tokenizer spiece.model", "name the base too"),
    ("train dream --run empty", "`elm init empty --base PATH`"),
    # Tasks and their data
    ("train --run {run}", "`elm tasks list`"),
    ("train mini_size_animl --run {run}", "'mini_size_animal'"),
    ("train missing.yaml --run {run}", "correct the path"),
    ("train broken.yaml --run {run}", "correct the line"),
    ("tasks list --group unsen", "'unseen'"),
    ("tasks check dreem", "'dream'"),
    ("tasks preview dream/baseline --data-dir nowhere", "elm prompts fetch"),
    ("evaluate mini-unsen --run {run}", "'mini-unseen'"),
    ("evaluate mini_size_animal --run {run} --method base --groups trian", "'train'"),
    ("prompts list dreem --templates-dir nowhere", "elm prompts fetch"),
    # What experts are, and how they are trained
    ("train mini_size_thing --run {run} --kind lorra", "lora"),
    ("train mini_size_thing --run {run} --as expert", "'experts'"),
    ("train mini_size_thing --run {run} --steps 0", MENDS),
    ("train mini_size_thing --run {run} --rate -1", MENDS),
    ("train mini_size_thing --run {run} --track wandbb", "'wandb'"),
    ("train mini_size_thing --run {run} --dtype float8", "name one of them"),
    # Recipes
    ("run", "elm run --gin_file="),
    ("train --gin_file=gin/recipes/prompt_exprt.gin", "gin/recipes/prompt_expert.gin"),
    ("train --gin.TRAIN_STEPS=5", "--gin_file"),
    ("train --gin_file=gin/recipes/prompt_expert.gin --steps 5", "--gin.TRAIN_STEPS="),
    ("train --gin_file=gin/recipes/prompt_expert.gin --gin.TRIAN_STEPS=5", "'TRAIN_STEPS'"),
    ("train --config missing.yaml", "give the path"),
    ("evaluate --gin_file=gin/runs/evaluate.gin", "--gin.NAME=VALUE"),
    # Routing, merging, evaluation
    ("route mini_sentiment_hotel --run {run}", "elm index"),
    ("route mini_sentiment_hotel --run {run} --router roee", "'roe'"),
    ("route mini_sentiment_hotel --run {run} --option k", "k=10"),
    ("evaluate mini_sentiment_hotel --run {run} --method roee", "'roe'"),
    ("evaluate mini_sentiment_hotel --run {run} --method roe+tiess", "'ties'"),
    ("evaluate mini_sentiment_hotel --run {run} --method base --by summ", "'sum'"),
    ("evaluate mini_size_animal --run {run} --method base --limit 0", MENDS),
    ("merge {first} mini_size_animal/none --run {run}", MENDS),
    ("merge {first} {second} --run {run} --method averag", "'average'"),
    ("merge {first} {second} --run {run} --weights a,b", "give --weights"),
    # Experts and weights
    ("experts show mini_size_animal/none --run {run}", MENDS),
    ("experts remove mini_size_animal/none --run {run}", MENDS),
    ("experts add nowhere --run {run}", "correct the path"),
    ("experts export {first} {run} --run {run}", "another"),
    ("convert nowhere/model out --to elm", MENDS),
    ("convert {run}/base out --to hff", MENDS),
    # Reports and plans
    ("report --run {run}", "elm evaluate"),
    ("report a b c", "--run"),
    ("plan gin/recipes/all_prompt_experts.gin --slice v99-8", MENDS),
    ("plan gin/recipes/none.gin --slice v5e-4", MENDS),
]


@pytest.fixture(scope="module")
def run(make_run):
    return make_run(keyed=False)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty directory to stand in, with a run that is no run and a file of tasks that is none."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.yaml").write_text("datasets:\n  mine: [")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_are_forty_mistakes_or_more():
    assert len(MISTAKES) >= 40


@pytest.mark.parametrize(("command", "mends"), MISTAKES, ids=[command for command, _ in MISTAKES])
def test_a_mistake_is_one_sentence_with_what_mends_it(run, place, capsys, command, mends):
    first, second, *_ = Library(run).ids()
    words = [word.format(run=run.workspace.root, first=first, second=second) for word in shlex.split(command)]
    with pytest.raises(SystemExit) as stop:
        cli.main([*words, "-q"])
    said = capsys.readouterr()
    assert stop.value.code == 2
    assert said.out == ""
    (sentence,) = said.err.splitlines()
    assert sentence.startswith("elm: ")
    assert re.search(MENDS, sentence)
    assert mends == MENDS or (mends in sentence and mends not in command)
