"""Training that begins from an expert which is there, in every slot that one comes into."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from elm_jax.errors import UserError
from elm_jax.models import expert_layers as ex
from elm_jax.training import jobs as job_records
from elm_jax.training import trainer
from elm_jax.training.checkpoints import CheckpointDirectory
from elm_jax.training.jobs import FrozenExpert
from tests.training_configs import make_job, make_plan

PLAN = make_plan(kind="lora", options={"rank": 2}, max_experts=1, save_every=2)


def begin(base, number, **values):
    """A job that goes on from an expert of its own."""
    rng = np.random.default_rng(number)
    tree = ex.init_expert("lora", jax.random.key(number), base, {"rank": 2})
    tree = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), tree)
    rows = [rng.integers(3, 48, 5) for _ in range(4)]
    job = make_job(f"{number}/x", rows, rows, kind="lora", options={"rank": 2}, batch_size=4, **values)
    return replace(job, start=FrozenExpert(f"sum {number}", lambda: tree)), tree


def test_without_a_learning_rate_each_expert_stays_where_it_began(config, base):
    jobs, trees = zip(*(begin(base, number, steps=2, rate=0.0) for number in range(3)), strict=True)
    for found, tree in zip(trainer.train_group(config, base, jobs, PLAN), trees, strict=True):
        assert jax.tree.all(jax.tree.map(np.array_equal, found, tree))


def test_a_step_moves_from_the_start_and_a_resumed_run_does_not_begin_there_again(config, base, tmp_path):
    job, tree = begin(base, 0, steps=5, rate=1e-2)
    whole = trainer.train_group(config, base, [job], PLAN)[0]
    apart = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), whole, tree)
    assert 1e-3 < max(jax.tree.leaves(apart)) <= 0.051
    found, kept = {}, {"checkpoints": CheckpointDirectory(tmp_path)}

    def collect(job, params):
        found[job.id] = params

    try:
        trainer.train(config, base, [job], PLAN, collect, should_stop=lambda batch: batch == 3, **kept)
    except trainer.TrainingStopped:
        trainer.train(config, base, [job], PLAN, collect, **kept)
    assert jax.tree.all(jax.tree.map(np.array_equal, found[job.id], whole))


def test_a_run_from_another_start_is_another_run(base):
    job, _ = begin(base, 0, steps=5, rate=1e-2)
    other = replace(job, start=FrozenExpert("another sum", dict))
    assert job_records.resume_identity(job) != job_records.resume_identity(other)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_start_that_is_not_finite_is_refused(config, base, value):
    job, tree = begin(base, 0, steps=1)
    jax.tree.leaves(tree)[0].flat[0] = value
    with pytest.raises(UserError, match="finite parameters of the expert that '0/x' begins with"):
        trainer.train_group(config, base, [job], PLAN)
