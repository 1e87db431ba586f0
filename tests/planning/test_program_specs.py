"""Work: what goes to the compiler's process as JSON comes back as it was, and makes programs."""

import json

import jax
import pytest

from elm_jax.models import meshes
from elm_jax.models.sizes import find_config
from elm_jax.planning import program_specs as specs
from elm_jax.planning.program_specs import (
    EmbeddingProgramSpec,
    GenerationProgramSpec,
    ScoringProgramSpec,
    SearchProgramSpec,
    TrainingProgramSpec,
)
from elm_jax.scoring import buckets
from elm_jax.training.batches import Shape
from elm_jax.training.programs import Layout
from tests.training_configs import make_plan

TINY = find_config("tiny", vocab_size=48, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=24)
LORA = {"rank": 2, "projections": ["query", "value"]}
SHAPE = buckets.BucketShape(16, 8, 8)
WORKS = [
    TrainingProgramSpec(TINY, make_plan(kind="lora", options=LORA), Layout(4, 2, 2), Shape(4, 16, 8, 2)),
    ScoringProgramSpec("score", TINY, "stack", SHAPE, 4, "bottleneck", {"width": 2}, 3),
    ScoringProgramSpec("score", TINY, "full", SHAPE, 4, "full"),
    ScoringProgramSpec("score", TINY, "gate", SHAPE, 4, "lora", LORA, 3),
    GenerationProgramSpec("write", TINY, "stack", 4, 16, 8, experts=3),
    EmbeddingProgramSpec("embed", TINY, 4, 16),
    EmbeddingProgramSpec("embed", None, 4, 16, "bfloat16"),
    SearchProgramSpec("search", 4, 40, 16),
]


@pytest.mark.parametrize("work", WORKS, ids=lambda work: f"{work.type} {getattr(work, 'way', '')}")
def test_work_that_goes_through_json_makes_the_programs_of_the_work(work):
    told = json.loads(json.dumps(specs.to_json(work)))
    assert specs.to_json(specs.from_json(told)) == specs.to_json(work)
    sizes = {"expert": 2} if isinstance(work, TrainingProgramSpec) else {"data": 2}
    found = specs.build(jax.devices(), sizes, told)
    wanted = work.programs(meshes.make_mesh(jax.devices()[:2], **({"data": 1} | sizes)))
    assert [program.name for program in found] == [program.name for program in wanted]
    for one, same in zip(found, wanted, strict=True):
        assert one.arguments == same.arguments
        assert one.lower().as_text() == same.lower().as_text()


def test_a_stack_has_its_experts_and_a_full_expert_stands_in_the_bases_place():
    stack, full = specs.expert_shapes_of(WORKS[1]), specs.expert_shapes_of(WORKS[2])
    assert {leaf.shape[0] for leaf in jax.tree.leaves(stack)} == {3}
    assert full is None
