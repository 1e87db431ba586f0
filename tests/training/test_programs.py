"""Programs: the engines call them with the very shapes, types and shardings that they tell."""

import gc
import itertools

import jax
import numpy as np
import pytest

from elm_jax.aot.program import Program
from elm_jax.models import expert_layers as ex
from elm_jax.models import meshes, shapes, sharding
from elm_jax.records import Params
from elm_jax.routing import embedding
from elm_jax.scoring import generator, scorer
from elm_jax.scoring.buckets import PromptWithChoices
from elm_jax.training import batches, step, trainer
from elm_jax.training.batches import Shape
from elm_jax.training.group import Group
from elm_jax.training.jobs import ValidationRows
from elm_jax.training.programs import group_programs, layout_for
from tests.training_configs import make_job, make_plan

RNG = np.random.default_rng(1)


def tokens(*lengths):
    return [RNG.integers(3, 48, length).astype(np.int32) for length in lengths]


def job(name, seed):
    prompts, targets = tokens(5, 9, 7, 6), tokens(3, 2, 4, 3)
    validation = ValidationRows(prompts[:2], targets[:2])
    return make_job(name, prompts, targets, steps=2, seed=seed, batch_size=2, validation=validation)


@pytest.fixture
def called(monkeypatch):
    """Every program that runs, with what it was called with."""
    seen = []
    run = Program.__call__

    def noted(self, *arguments):
        seen.append((self, arguments))
        return run(self, *arguments)

    monkeypatch.setattr(Program, "__call__", noted)
    return seen


def told(leaf):
    return leaf.shape, np.dtype(leaf.dtype)


def assert_as_told(called):
    for program, arguments in called:
        wanted, found = jax.tree.leaves(program.arguments), jax.tree.leaves(arguments)
        assert jax.tree.structure(program.arguments) == jax.tree.structure(arguments), program.name
        assert list(map(told, found)) == list(map(told, wanted)), program.name
        for one, same in zip(found, wanted, strict=True):
            # Numbers of the host go where the program wants them.
            if isinstance(one, jax.Array) and same.sharding is not None and one.sharding.device_set != {None}:
                assert one.sharding.is_equivalent_to(same.sharding, one.ndim), program.name


MESH = {"expert": 2, "data": 2, "fsdp": 2}
# Each of kind, mesh and steps with each other, and at night all three crossed.
PAIRS = [("bottleneck", None, True), ("full", MESH, True), ("bottleneck", MESH, False), ("full", None, False)]
CROSSED = [*itertools.product(("bottleneck", "full"), (None, MESH), (True, False))]
OTHERS = [pytest.param(*case, marks=pytest.mark.nightly) for case in CROSSED if case not in PAIRS]


@pytest.mark.parametrize(("kind", "sizes", "whole"), [*PAIRS, *OTHERS], ids=str)
def test_training_runs_its_programs_as_they_tell(one_layer, called, kind, sizes, whole, monkeypatch):
    monkeypatch.setattr(batches, "holds_steps", lambda *_: whole)
    base = step_base(one_layer)
    mesh = meshes.make_mesh(**sizes) if sizes else None
    plan = make_plan(kind=kind, max_experts=2, batch_tokens=64, validate_every=1, keep="best")
    jobs = [job(f"a/{number}", number) for number in range(3)]
    trainer.train(one_layer, base, jobs, plan, lambda *_: None, mesh=mesh)
    ran = {program.name for program, _ in called}
    alone = kind == "full" and sizes is None  # then the group is one expert
    wanted = {"init", "evaluate", "put_slot", "take_slot"}
    wanted |= {"train_step"} if whole else {"zero", "accumulate", "update"}
    assert ran >= (wanted if alone else wanted | {"init_one"})
    assert_as_told(called)


def step_base(config) -> Params:
    return jax.tree.map(
        lambda leaf: RNG.normal(0, 0.1, leaf.shape).astype(leaf.dtype), dict(shapes.base_shapes(config))
    )


@pytest.mark.parametrize("sizes", [None, {"data": 8}, {"fsdp": 4, "data": 2}], ids=str)
def test_scoring_and_generation_run_their_programs_as_they_tell(one_layer, called, sizes):
    base = step_base(one_layer)
    experts = step.stack(
        [ex.init_expert("bottleneck", jax.random.key(seed), base, {"width": 4}) for seed in range(2)]
    )
    if sizes:
        on = meshes.make_mesh(**sizes)
        base = jax.device_put(base, sharding.param_shardings(on, base))
        experts = jax.device_put(experts, sharding.param_shardings(on, experts, experts=True))
    rows = [PromptWithChoices(prompt, tokens(2, 3)) for prompt in tokens(5, 9, 4)]
    scorer.score_rows(one_layer, base, rows, experts)
    scorer.score_rows(one_layer, base, rows)
    generator.generate_rows(
        one_layer, base, [row.prompt for row in rows], generator.AnswerLimit(4, 1), experts
    )
    assert {program.name for program, _ in called} == {"score", "generate"}
    assert_as_told(called)


def test_embedding_runs_its_program_as_it_tells(one_layer, called):
    base = jax.device_put(step_base(one_layer))
    embedding.embed_rows(one_layer, base, tokens(5, 20, 7), batch_size=4)
    assert {program.name for program, _ in called} == {"embed"}
    assert_as_told(called)


def test_a_group_of_full_experts_keeps_no_base_on_the_devices(one_layer):
    base, mesh = step_base(one_layer), meshes.make_mesh(fsdp=8, data=1)
    before = jax.live_arrays()  # held, so that no new one has the id of one that is gone
    layout = layout_for("full", 1, mesh)
    group = Group(one_layer, base, make_plan(kind="full"), layout, Shape(8, 16, 8, 1), mesh)
    state = jax.block_until_ready(group.init([0]))
    gc.collect()
    kept = {id(leaf) for leaf in jax.tree.leaves(state)}
    shapes_of_base = {leaf.shape for leaf in jax.tree.leaves(base) if leaf.ndim > 1}
    new = [leaf for leaf in jax.live_arrays() if id(leaf) not in kept | set(map(id, before))]
    # What lies on one device alone is a part of the state that somebody looked at.
    on_mesh = [leaf for leaf in new if len(leaf.sharding.device_set) == mesh.size]
    assert group.base is None
    assert not [leaf for leaf in on_mesh if leaf.shape in shapes_of_base]


@pytest.mark.parametrize("sizes", [(2, 2, 1, 2), (2, 1, 2, 2), (4, 1, 1, 2)], ids=str)
def test_a_batch_compiles_where_both_experts_and_the_vocabulary_are_split(one_layer, sizes):
    """It once ended the process, over a gather from logits that `tensor` splits."""
    mesh = meshes.make_mesh(**dict(zip(meshes.AXES, sizes, strict=True)))
    layout = layout_for("bottleneck", 4, mesh)
    programs = group_programs(one_layer, make_plan(), layout, Shape(8, 16, 8, 2), mesh=mesh)
    assert programs.accumulate.lower().compile()
