"""Plans of evaluations: every way to score that a recipe has, and what embeds and searches for it."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax

from elm_jax.aot.compiler import Progress, compile_programs
from elm_jax.aot.slices import Slice
from elm_jax.evaluation.expert_stacks import MAX_MEMORY_SHARE, MAX_STACKED_EXPERTS
from elm_jax.experts.keys import KEYS_PER_EXPERT
from elm_jax.models import shapes
from elm_jax.planning import work as works
from elm_jax.planning.records import ProgramPlan, SlicePlan, mesh_sizes, program_plan
from elm_jax.planning.work import EmbeddingWork, GenerationWork, ScoringWork, SearchWork, Work
from elm_jax.planning.workload import ScoringLoad
from elm_jax.routing.embedding import ON_ACCELERATOR
from elm_jax.scoring import buckets

ROW_STEP = 8  # prompts are padded to multiples of it


def plan_evaluation(
    load: ScoringLoad, of: Slice, mesh: Mapping[str, int] | None, progress: Progress | None
) -> SlicePlan:
    """Returns the plan of an evaluation, in which every host scores its share on its own devices."""
    local = of.devices // of.hosts
    base = sum(leaf.size * leaf.dtype.itemsize for leaf in _leaves(shapes.base_shapes(load.network)))
    # As `room.spread` lays it out: whole where it takes less than half of a device.
    asked = mesh or {"data" if 2 * base <= of.kind.memory_limit else "fsdp": local}
    sizes = mesh_sizes(replace(of, devices=local, slices=1), asked)
    held = _stack_size(load, of)
    found: list[ProgramPlan] = []
    for work in _scoring_works(load, held, local):
        told = works.to_json(work)
        compiled = compile_programs(of, sizes, works.BUILD, told, None, progress)
        devices = local if isinstance(work, ScoringWork) else 1  # engines embed on one
        found += [program_plan(each, work, of, devices) for each in compiled]
    first = found[0].compiled
    tokens = _rows_at_once(load, local, load.prompt, load.nodes) * (load.prompt + load.nodes)
    count = math.ceil(load.rows * load.scorers * (load.prompt + load.nodes) / tokens)
    refused = [each.compiled.reason for each in found if each.compiled.reason]
    hours = None
    if first.seconds is not None and not refused:
        hours = count * first.seconds / of.hosts / 3600
    return SlicePlan(
        what="evaluation",
        slice=of.name,
        devices=of.devices,
        mesh=sizes,
        programs=tuple(found),
        fits=not refused,
        reason=refused[0] if refused else None,
        experts_at_once=held,
        batch={"rows": tokens // (load.prompt + load.nodes), "prompt": load.prompt, "nodes": load.nodes},
        batch_tokens=tokens,
        filled=None,
        memory_filled=None,
        batches=count,
        hours=hours,
        device_hours=None if hours is None else hours * of.devices,
        assumed=load.assumed,
    )


def _scoring_works(load: ScoringLoad, held: int, local: int) -> list[Work]:
    """Returns what an evaluation compiles: rows of mean length first, which stand for all of them."""
    told: Mapping[str, Any] = {"network": load.network, "kind": load.kind, "options": load.options}
    lengths = load.lengths
    longest = buckets.BucketShape(
        _up(lengths.prompt, ROW_STEP), _up(lengths.answer, 4), _up(lengths.answer, 4)
    )
    mean = buckets.BucketShape(_up(load.prompt, ROW_STEP), _up(load.nodes, 4), _up(load.nodes, 4))
    found: list[Work] = []
    for way in load.ways:
        experts = load.experts if way == "gate" else held + 1  # and the one that changes nothing
        for name, shape in (("", mean), (" longest rows", longest)):
            rows = _rows_at_once(load, local, shape.prompt, shape.nodes)
            name = f"score {way}{name}"
            found.append(ScoringWork(name, way=way, shape=shape, rows=rows, experts=experts, **told))
    if load.generates:
        rows = _rows_at_once(load, local, longest.prompt, lengths.answer)
        found.append(
            GenerationWork(
                "generate",
                way=load.ways[0],
                rows=rows,
                prompt=longest.prompt,
                length=lengths.answer,
                experts=held + 1,
                **told,
            )
        )
    keys = load.experts * KEYS_PER_EXPERT
    found += [
        EmbeddingWork(
            "embed T5",
            load.network,
            64,
            buckets.smallest_bucket(longest.prompt, buckets.BUCKET_LENGTHS, what="prompt"),
        ),
        EmbeddingWork("embed MiniLM", None, ON_ACCELERATOR // 256, 256),
        SearchWork("search", load.queries, keys, load.network.emb_dim),
    ]
    return found


def _stack_size(load: ScoringLoad, of: Slice) -> int:
    """Returns how many experts are held to score with, float32, as `stacks` holds them."""
    if load.kind == "full":
        return 1
    expert = shapes.expert_shapes(load.network, load.kind, load.options)
    one = sum(leaf.size * 4 for leaf in _leaves(expert))
    return max(
        1, min(MAX_STACKED_EXPERTS, load.experts, int(MAX_MEMORY_SHARE * of.kind.memory_limit) // one - 1)
    )


def _rows_at_once(load: ScoringLoad, local: int, prompt: int, nodes: int) -> int:
    return max(1, load.batch_tokens // (prompt + nodes)) * local


def _up(number: int, step: int) -> int:
    return -(-number // step) * step


def _leaves(tree: Any) -> list[Any]:
    return jax.tree.leaves(tree)
