"""Plans of evaluations: the programs that score, generate, embed and search."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax

from elm_jax.aot.compiler import Progress, compile_programs
from elm_jax.aot.slices import Slice
from elm_jax.evaluation.expert_stacks import MAX_MEMORY_SHARE, MAX_STACKED_EXPERTS
from elm_jax.experts.key_texts import KEYS_PER_EXPERT
from elm_jax.models import shapes
from elm_jax.planning import program_specs as specs
from elm_jax.planning.program_specs import (
    EmbeddingProgramSpec,
    GenerationProgramSpec,
    ProgramSpec,
    ScoringProgramSpec,
    SearchProgramSpec,
)
from elm_jax.planning.records import ProgramPlan, SlicePlan, make_program_plan, resolve_mesh_sizes
from elm_jax.planning.workloads import ScoringWorkload
from elm_jax.routing.embedding import ACCELERATOR_BATCH_TOKENS
from elm_jax.scoring import buckets

PROMPT_LENGTH_MULTIPLE = 8  # prompts are padded to multiples of it


def plan_evaluation(
    load: ScoringWorkload, target: Slice, mesh: Mapping[str, int] | None, progress: Progress | None
) -> SlicePlan:
    """Returns the plan of an evaluation, in which every host scores its share on its own devices."""
    local = target.devices // target.hosts
    base = sum(leaf.size * leaf.dtype.itemsize for leaf in _leaves(shapes.base_shapes(load.network)))
    # As `session.devices` places it: on every device if it takes less than half of its memory.
    requested = mesh or {"data" if 2 * base <= target.kind.memory_limit else "fsdp": local}
    sizes = resolve_mesh_sizes(replace(target, devices=local, slices=1), requested)
    loaded = _max_stacked_experts(load, target)
    found: list[ProgramPlan] = []
    for spec in _list_programs(load, loaded, local):
        value = specs.to_json(spec)
        compiled = compile_programs(target, sizes, specs.BUILD_FUNCTION, value, None, progress)
        devices = local if isinstance(spec, ScoringProgramSpec) else 1  # embedding runs on one device
        found += [make_program_plan(each, spec, target, devices) for each in compiled]
    first = found[0].compiled
    tokens = _max_batch_rows(load, local, load.prompt, load.nodes) * (load.prompt + load.nodes)
    count = math.ceil(load.rows * load.scorers * (load.prompt + load.nodes) / tokens)
    refused = [each.compiled.reason for each in found if each.compiled.reason]
    hours = None
    if first.seconds is not None and not refused:
        hours = count * first.seconds / target.hosts / 3600
    return SlicePlan(
        what="evaluation",
        slice=target.name,
        devices=target.devices,
        mesh=sizes,
        programs=tuple(found),
        reason=refused[0] if refused else None,
        experts_at_once=loaded,
        batch={"rows": tokens // (load.prompt + load.nodes), "prompt": load.prompt, "nodes": load.nodes},
        batch_tokens=tokens,
        batches=count,
        hours=hours,
        assumed=load.assumed,
    )


def _list_programs(load: ScoringWorkload, loaded: int, local: int) -> list[ProgramSpec]:
    """Returns the programs of an evaluation; the first, for rows of mean length, represents all rows."""
    shared: Mapping[str, Any] = {"network": load.network, "kind": load.kind, "options": load.options}
    lengths = load.lengths
    longest = buckets.BucketShape(
        _round_up(lengths.prompt, PROMPT_LENGTH_MULTIPLE),
        _round_up(lengths.answer, 4),
        _round_up(lengths.answer, 4),
    )
    mean = buckets.BucketShape(
        _round_up(load.prompt, PROMPT_LENGTH_MULTIPLE), _round_up(load.nodes, 4), _round_up(load.nodes, 4)
    )
    found: list[ProgramSpec] = []
    for mode in load.modes:
        experts = load.experts if mode == "gate" else loaded + 1  # and the neutral one
        for name, shape in (("", mean), (" longest rows", longest)):
            rows = _max_batch_rows(load, local, shape.prompt, shape.nodes)
            name = f"score {mode}{name}"
            found.append(
                ScoringProgramSpec(name, mode=mode, shape=shape, rows=rows, experts=experts, **shared)
            )
    if load.generates:
        rows = _max_batch_rows(load, local, longest.prompt, lengths.answer)
        found.append(
            GenerationProgramSpec(
                "generate",
                mode=load.modes[0],
                rows=rows,
                prompt=longest.prompt,
                length=lengths.answer,
                experts=loaded + 1,
                **shared,
            )
        )
    keys = load.experts * KEYS_PER_EXPERT
    found += [
        EmbeddingProgramSpec(
            "embed T5",
            load.network,
            64,
            buckets.smallest_bucket(longest.prompt, buckets.BUCKET_LENGTHS, what="prompt"),
        ),
        EmbeddingProgramSpec("embed MiniLM", None, ACCELERATOR_BATCH_TOKENS // 256, 256),
        SearchProgramSpec("search", load.queries, keys, load.network.emb_dim),
    ]
    return found


def _max_stacked_experts(load: ScoringWorkload, target: Slice) -> int:
    """Returns how many experts are loaded for scoring, in float32, as in `evaluation.expert_stacks`."""
    if load.kind == "full":
        return 1
    expert = shapes.expert_shapes(load.network, load.kind, load.options)
    one = sum(leaf.size * 4 for leaf in _leaves(expert))
    return max(
        1, min(MAX_STACKED_EXPERTS, load.experts, int(MAX_MEMORY_SHARE * target.kind.memory_limit) // one - 1)
    )


def _max_batch_rows(load: ScoringWorkload, local: int, prompt: int, nodes: int) -> int:
    return max(1, load.batch_tokens // (prompt + nodes)) * local


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step


def _leaves(tree: Any) -> list[Any]:
    return jax.tree.leaves(tree)
