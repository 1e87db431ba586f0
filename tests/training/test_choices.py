"""T-Few's loss: experts train on all choices of their rows, packed in any way, as on each row alone."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from elm_jax.data import task_selection
from elm_jax.errors import UserError
from elm_jax.experts.library import Library
from elm_jax.models import expert_layers as ex
from elm_jax.models.t5 import T5
from elm_jax.tasks.data_source import Lengths
from elm_jax.training import batches, expert_configs, job_loading, jobs, step, train
from elm_jax.training.batches import Shape
from elm_jax.training.config import LossConfig
from tests.training_configs import make_job, train_config

RNG = np.random.default_rng(8)
LOSS = LossConfig(unlikely_loss=0.7, mc_loss=1.3, length_norm=0.5)


def tokens(*lengths):
    return [RNG.integers(3, 48, length).astype(np.int32) for length in lengths]


def job(name, prompts, targets, wrong):
    made = make_job(name, tokens(*prompts), tokens(*targets), batch_size=len(prompts), steps=1)
    return replace(made, wrong=[tokens(*lengths) for lengths in wrong])


JOBS = [
    job("a/b", (4, 6, 3), (2, 1, 3), ((1, 4), (2,), (1, 1, 2))),
    job("c/d", (5, 2), (2, 2), ((3,), (2, 2))),
]


@pytest.fixture(scope="module")
def owned(base):
    made = [ex.init_expert("bottleneck", jax.random.key(seed), base, {"width": 4}) for seed in (1, 2)]
    return jax.tree.map(np.asarray, step.stack([jax.tree.map(lambda leaf: leaf * 3, tree) for tree in made]))


def pack(shape, of=JOBS):
    measured = [batches.measure(each) for each in of]
    pending = [batches.step_examples(each, slot, 0) for slot, each in enumerate(measured)]
    batch = batches.pack(pending, shape, slots=2)
    assert len(batch.examples) == 5
    return batches.assemble(batch, dict(enumerate(of)), slots_of_part=2)


def losses(config, base, owned, shape):
    sums = step.zero_accumulator(owned)
    return np.asarray(step.accumulate(config, "bottleneck", LOSS)(owned, base, pack(shape), sums).loss)


SHAPES = {
    "a segment a row": Shape(6, 8, 16, 1, 1, 4),
    "packed": Shape(2, 16, 24, 4, 1, 4),
    "folded": Shape(4, 8, 32, 2, 2, 5),
}


@pytest.mark.parity
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_packed_choices_have_the_loss_that_torch_gives_row_by_row(config, base, owned, shape):
    torch = pytest.importorskip("torch", reason="the parity extra brings torch, and is not installed")
    network = jax.jit(lambda *rows: T5(config).apply({"params": base}, *rows))

    def of_job(slot, one):
        right, wrong, chosen = [], [], []
        for row in range(len(one.prompts)):
            answers = [one.targets[row], *one.wrong[row]]
            prompt, padded = np.zeros((1, 8), np.int32), np.zeros((1, 4, 4), np.int32)
            prompt[0, : len(one.prompts[row])] = one.prompts[row]
            for number, answer in enumerate(answers):
                padded[0, number, : len(answer)] = answer
            expert = jax.tree.map(lambda leaf: leaf[slot], owned)
            logits = torch.tensor(np.asarray(network(prompt, padded, expert))[0])
            logp = torch.nn.functional.log_softmax(logits, dim=-1)
            each = [
                logp[number, range(len(answer)), answer.tolist()] for number, answer in enumerate(answers)
            ]
            right += each[:1]
            wrong += each[1:]
            by_length = torch.stack([own.sum() / len(own) ** LOSS.length_norm for own in each])
            chosen.append(torch.nn.functional.cross_entropy(by_length[None], torch.tensor([0])))
        unlikely = -torch.log(1 - torch.cat(wrong).exp() + 0.01).mean()
        mean = torch.stack(chosen).mean()
        return float(-torch.cat(right).mean() + LOSS.unlikely_loss * unlikely + LOSS.mc_loss * mean)

    wanted = [of_job(slot, one) for slot, one in enumerate(JOBS)]
    np.testing.assert_allclose(losses(config, base, owned, shape), wanted, rtol=1e-5)


def test_however_choices_are_packed_the_loss_and_gradient_are_the_same(config, base, owned):
    run = step.accumulate(config, "bottleneck", LOSS)
    first, *others = (
        run(owned, base, pack(shape), step.zero_accumulator(owned)) for shape in SHAPES.values()
    )
    for other in others:
        np.testing.assert_allclose(other.loss, first.loss, rtol=1e-5)
        jax.tree.map(
            lambda one, two: np.testing.assert_allclose(one, two, atol=1e-5), other.gradient, first.gradient
        )


def test_validation_looks_at_the_right_choice_alone(config, base, owned):
    run, nothing = step.evaluate(config, "bottleneck"), np.zeros(2, np.float32)
    plain = pack(Shape(2, 16, 24, 4), [replace(one, wrong=None) for one in JOBS])
    found = run(owned, base, pack(SHAPES["packed"]), nothing)
    np.testing.assert_allclose(found, run(owned, base, plain, nothing), rtol=1e-5)


def test_other_wrong_choices_are_another_job():
    one = JOBS[0]
    other = replace(one, wrong=[list(reversed(row)) for row in one.wrong])
    assert jobs.resume_identity(replace(one, wrong=[list(row) for row in one.wrong])) == jobs.resume_identity(
        one
    )
    assert len({str(jobs.resume_identity(each)) for each in (one, other, replace(one, wrong=None))}) == 3


def test_a_shape_has_room_for_the_row_of_most_choices():
    assert batches.choose_shape([batches.measure(one) for one in JOBS], 64, slots=2).choices == 4


def load(run, tasks, **values):
    specs = task_selection.select_tasks(tasks)
    config = train_config(steps=1, batch_size=2, **values)
    (expert,) = expert_configs.resolve_experts(specs, config, Lengths(24, 5))
    return job_loading.load_job(run, expert)


@pytest.fixture(scope="module")
def run(make_run):
    return make_run(experts=("mini_size_animal/than a dog",), keyed=False, rows=6)


def test_rows_bring_their_wrong_choices_where_the_loss_reads_them(run):
    task = ["mini_sentiment_film/good or bad film"]
    found = load(run, task, mc_loss=1.0)
    assert load(run, task).wrong is None
    rights = {tuple(target.tolist()) for target in found.targets}
    assert len(rights) == 2
    for target, wrong in zip(found.targets, found.wrong, strict=True):
        assert {tuple(choice.tolist()) for choice in wrong} == rights - {tuple(target.tolist())}


TASK = """
datasets:
  own:
    jsonl: {{train: {file}, validation: {file}}}
    evaluate: validation
    prompts:
      say it:
        jinja: "{{{{text}}}} ||| {{{{text}}}}"
"""


def test_rows_without_choices_are_refused(run, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "film"}\n' * 3)
    (tmp_path / "own.yaml").write_text(TASK.format(file=tmp_path / "rows.jsonl"))
    assert len(load(run, [str(tmp_path / "own.yaml")]).targets) == 3
    with pytest.raises(UserError, match=r"'own/say it', for T-Few's loss"):
        load(run, [str(tmp_path / "own.yaml")], unlikely_loss=1.0)


def test_a_soft_prompt_trains_on_choices_into_the_library(run):
    task = "mini_sentiment_film/good or bad film"
    config = train_config(steps=2, batch_size=2, kind="prompt", options={"tokens": 3}, mc_loss=1.0)
    config = replace(config, batch=replace(config.batch, max_experts=1, max_tokens=256))
    assert train.train(run, [task], replace(config, seed=1), lengths=Lengths(24, 5)) == [task]
    spec = Library.open(run.workspace.library).spec(task)
    assert (spec.kind, spec.recipe["mc_loss"]) == ("prompt", 1.0)
