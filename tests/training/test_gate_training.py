"""Gates trained beside frozen experts: what moves and what does not, and that a group is its members."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from elm_jax.errors import UserError
from elm_jax.models import expert_layers as ex
from elm_jax.models import meshes, paths
from elm_jax.models.t5 import T5
from elm_jax.training import jobs as job_records
from elm_jax.training import trainer
from elm_jax.training.checkpoints import CheckpointDirectory
from elm_jax.training.jobs import FrozenExpert
from elm_jax.training.loss import token_losses
from tests.training_configs import change_plan, make_job, make_plan

OPTIONS = {"rank": 2, "projections": ("query", "value", "wo")}
PLAN = make_plan(kind="gates", options=OPTIONS, save_every=3)


def draw_lora(base, seed):
    """A LoRA expert that changes every logit."""
    rng = np.random.default_rng(seed)
    tree = ex.init_expert("lora", jax.random.key(seed), base, OPTIONS)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), tree)


@pytest.fixture(scope="module")
def loras(one_layer, small):
    return [draw_lora(small, seed) for seed in range(3)]


@pytest.fixture(scope="module")
def small(one_layer):
    from elm_jax.models.t5 import init_params

    return init_params(jax.random.key(0), one_layer)


@pytest.fixture(scope="module")
def jobs(loras):
    def job(number, rows, steps):
        rng = np.random.default_rng(number)
        prompts = [rng.integers(3, 48, length) for length in rng.integers(2, 9, rows)]
        targets = [rng.integers(3, 48, 2 + length % 3) for length in range(rows)]
        made = make_job(
            f"{number}/gates", prompts, targets, kind="gates", options=OPTIONS, steps=steps, batch_size=4,
            rate=5e-2, schedule="constant", seed=number,
        )  # fmt: skip
        return replace(made, frozen=FrozenExpert(f"checksum {number}", lambda: loras[number]))

    return [job(0, 7, 8), job(1, 3, 5), job(2, 9, 8)]


@pytest.fixture(scope="module")
def together(one_layer, small, jobs):
    return trainer.train_group(one_layer, small, jobs, PLAN)


def assert_close(found, wanted, tolerance=1e-5):
    for one, other in zip(found, wanted, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance, rtol=0), one, other)


def test_there_is_a_gate_for_every_projection_of_the_expert_and_each_of_them_moves(loras, together):
    owners = {path.rpartition("/")[0] for path in paths.flatten(loras[0])}
    for gates in map(paths.flatten, together):
        assert {path.removesuffix("/input_gate") for path in gates} == owners
        assert all(np.abs(gate).max(axis=-1).min() > 1e-3 for gate in gates.values())


def test_experts_and_base_are_bit_for_bit_as_they_were(one_layer, small, jobs, loras):
    before = jax.tree.map(lambda leaf: np.asarray(leaf).tobytes(), (small, loras))
    run = trainer._Run(one_layer, small, jobs[:2], PLAN, lambda job, params: None, None, None)
    with trainer.CheckpointStore(None, {"_queue": [job.id for job in jobs[:2]]}) as store:
        run.open(store)
        for _ in range(3):
            run.train_batch()
    assert jax.tree.map(lambda leaf: np.asarray(leaf).tobytes(), (small, loras)) == before
    held = [jax.tree.map(lambda leaf, at=at: np.asarray(leaf[at]), run.group.frozen.experts) for at in (0, 1)]
    assert jax.tree.map(lambda leaf: leaf.tobytes(), held) == before[1][:2]


def test_gates_trained_in_one_group_equal_each_trained_alone(one_layer, small, jobs, together):
    alone = [trainer.train_group(one_layer, small, [job], PLAN)[0] for job in jobs]
    assert_close(alone, together)


def test_gates_that_take_the_place_of_finished_ones_have_their_own_expert(one_layer, small, jobs, together):
    assert_close(trainer.train_group(one_layer, small, jobs, change_plan(PLAN, max_experts=1)), together)


def test_gates_trained_on_a_mesh_equal_those_of_one_device(one_layer, small, jobs, together):
    mesh = meshes.make_mesh(jax.devices()[:4], expert=2, data=2)
    assert_close(trainer.train_group(one_layer, small, jobs, PLAN, mesh=mesh), together)


def test_training_that_was_killed_and_resumed_is_the_training_that_was_not(
    one_layer, small, jobs, together, tmp_path
):
    checkpoints, plan = CheckpointDirectory(tmp_path), change_plan(PLAN, max_experts=2)
    collected = {}

    def collect(job, params):
        collected[job.id] = params

    kept = {"checkpoints": checkpoints, "should_stop": lambda batch: batch == 6}
    with pytest.raises(trainer.TrainingStopped):
        trainer.train(one_layer, small, jobs, plan, collect, **kept)
    trainer.train(one_layer, small, jobs, plan, collect, checkpoints=checkpoints)
    whole = trainer.train_group(one_layer, small, jobs, plan)
    for job, gates in zip(jobs, whole, strict=True):
        assert jax.tree.all(jax.tree.map(np.array_equal, collected[job.id], gates))


def test_one_step_is_that_of_the_formula(one_layer, small, jobs, loras):
    """y = x W + σ(x·g) x A B, by plain autodiff of the network over one row at a time."""
    job = replace(jobs[1], config=replace(jobs[1].config, schedule=replace(jobs[1].config.schedule, steps=1)))
    found = paths.flatten(trainer.train_group(one_layer, small, [job], PLAN)[0])
    rows = job_records.rows_of_step(job, 0)
    tokens = sum(len(job.targets[row]) for row in rows)

    def loss(gates):
        tree = paths.unflatten({**paths.flatten(loras[1]), **gates})
        total = 0.0
        for row in rows:
            prompt, target = (np.asarray(each[row], np.int32)[None] for each in (job.prompts, job.targets))
            logits = T5(one_layer).apply({"params": small}, prompt, target[:, None], tree)[:, 0]
            total = total + token_losses(logits, target).sum() / tokens
        return total

    zeros = {path: jnp.zeros_like(gate) for path, gate in found.items()}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(5e-2))
    updates, _ = optimizer.update(jax.grad(loss)(zeros), optimizer.init(zeros))
    for path, gate in found.items():
        np.testing.assert_allclose(gate, updates[path], atol=2e-4, err_msg=path)


def test_a_kind_of_expert_must_be_trained_as_one(one_layer, small, jobs):
    with pytest.raises(UserError, match="got 'gates' for '0/gates'"):
        trainer.train_group(one_layer, small, [replace(jobs[0], frozen=None)], PLAN)
