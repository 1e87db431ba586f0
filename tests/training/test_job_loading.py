"""Jobs are loaded with the rows that a configuration asks for, and told from experts of other settings."""

from dataclasses import replace

import pytest

from elm_jax.errors import UserError
from elm_jax.experts.library import Library
from elm_jax.session.workspace import Run
from elm_jax.tasks import user_tasks
from elm_jax.training import expert_configs, job_loading
from elm_jax.training.train import train
from tests.training_configs import train_config

ROWS = [{"q": "a dog", "answers": ["yes", "no dog"]}, {"q": "a cat", "answers": "no"}]
CONFIG = train_config(steps=1, batch_size=2, rate=1e-3, kind="bottleneck", options={"width": 2})


@pytest.fixture(scope="module")
def run(make_run):
    return make_run(experts=(), keyed=False)


@pytest.fixture
def spec():
    made = user_tasks.define_task("asked", rows=lambda split: ROWS, prompts={"p": "{{q}} ||| {{answers}}"})
    return made[0]


def load(run: Run, spec, config):
    (expert,) = expert_configs.resolve_experts([spec], config, run.lengths)
    return job_loading.load_job(run, expert)


def test_of_accepted_answers_the_first_is_trained_on_or_each_in_a_row_of_its_own(run, spec):
    first, each = (load(run, spec, replace(CONFIG, answers=answers)) for answers in ("first", "each"))
    encode = run.tokenizer.encode
    dog, cat = ([*encode(text), 1] for text in ("a dog", "a cat"))
    yes, none, no_dog = ([*encode(text), 1] for text in ("yes", "no", "no dog"))
    assert [row.tolist() for row in first.prompts] == [dog, cat]
    assert [row.tolist() for row in first.targets] == [yes, none]
    assert [row.tolist() for row in each.prompts] == [dog, cat, dog]
    assert [row.tolist() for row in each.targets] == [yes, none, no_dog]
    assert (first.recipe.get("answers"), each.recipe["answers"]) == (None, "each")
    with pytest.raises(UserError, match="ANSWERS"):
        load(run, spec, replace(CONFIG, answers="all"))


@pytest.mark.parametrize(("before", "now"), [("first", "each"), ("each", "first")])
def test_an_expert_that_was_trained_on_other_answers_is_another(run, spec, before, now):
    train(run, [spec], replace(CONFIG, answers=before))
    library = Library.open(run.workspace.library)
    try:
        job = load(run, spec, replace(CONFIG, answers=before))
        assert job_loading.list_trained(library, [job], run.base) == [spec.id]
        with pytest.raises(UserError, match="answers"):
            train(run, [spec], replace(CONFIG, answers=now))
    finally:
        library.remove(spec.id)
