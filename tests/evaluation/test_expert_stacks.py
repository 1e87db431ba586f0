"""Stacks: experts of every kind and shape take part, each once, in whatever company."""

import numpy as np
import pytest

from elm_jax.data import task_rows
from elm_jax.evaluation import expert_stacks as module
from elm_jax.evaluation.expert_stacks import load_stacks
from elm_jax.experts.lookup import BASE_SCORER, find_library
from elm_jax.merging.merge import merge
from elm_jax.models import expert_layers as ex
from elm_jax.scoring import scorer as engine
from tests.run_fixtures import BOTTLENECK, LORA, TRAINED

KINDS = dict(zip(TRAINED, [BOTTLENECK, ("bottleneck", {"width": 6}), LORA, ("full", {})], strict=True))


PROMPT = ("prompt", {"tokens": 3})
OTHERS = dict(zip(TRAINED, [PROMPT, PROMPT, ("dora", {"rank": 2}), ("vera", {"rank": 4})], strict=True))


def rows_of(run, unseen):
    spec = unseen[0]
    return task_rows.build_scoring_rows(
        task_rows.load_examples(spec, run.source), run.tokenizer, run.lengths, task=spec.id
    )


def scored(run, rows, stack, name):
    pairs = np.stack([np.arange(len(rows)), np.full(len(rows), stack.slots[name])], axis=1)
    found = engine.score_rows(
        run.base.config, stack.params, rows, stack.experts, pairs, stacked=stack.stacked
    )
    return np.stack(found)


@pytest.mark.parametrize("kinds", [KINDS, OTHERS], ids=["kinds", "others"])
def test_experts_of_several_kinds_and_sizes_score_as_each_does_alone(make_run, unseen, kinds):
    run = make_run(kinds, keyed=False)
    rows = rows_of(run, unseen)
    found = {}
    for stack in load_stacks(run, [BASE_SCORER, *TRAINED], max_experts=64):
        found |= {name: scored(run, rows, stack, name) for name in stack.slots}
    assert set(found) == {BASE_SCORER, *TRAINED}
    for name, (kind, _) in kinds.items():
        tree = find_library(run.workspace, name).load_expert(name).params
        params, owned = ex.split_base_and_expert(kind, run.base.params, tree)
        alone = engine.score_rows(run.base.config, params, rows, owned, stacked=False)
        np.testing.assert_allclose(found[name], np.stack(alone), rtol=1e-4, atol=1e-4)
    alone = engine.score_rows(run.base.config, run.base.params, rows)
    np.testing.assert_allclose(found[BASE_SCORER], np.stack(alone), rtol=1e-4, atol=1e-4)
    assert len({found[name].tobytes() for name in found}) == len(found)


def test_stacks_of_one_shape_are_of_one_size_and_hold_each_expert_once(make_run):
    run = make_run(keyed=False)
    held = list(load_stacks(run, [*TRAINED, BASE_SCORER], max_experts=3))
    assert [list(stack.slots) for stack in held] == [[BASE_SCORER, *TRAINED[:3]], [TRAINED[3]]]
    sizes = [stack.experts["encoder"]["encoder_norm"]["scale"].shape[0] for stack in held]
    assert sizes == [4, 4]  # three experts and the base


def test_where_memory_has_no_room_experts_come_one_at_a_time_and_score_the_same(
    make_run, unseen, monkeypatch
):
    run = make_run(keyed=False)
    rows = rows_of(run, unseen)
    every = [BASE_SCORER, *TRAINED]
    (whole,) = load_stacks(run, every, max_experts=64)
    together = {name: scored(run, rows, whole, name) for name in every}
    monkeypatch.setattr(module, "MAX_MEMORY_SHARE", 0.0)
    apart, held = {}, []
    for stack in load_stacks(run, every, max_experts=64):
        held.append(list(stack.slots))
        apart |= {name: scored(run, rows, stack, name) for name in stack.slots}
    assert held == [[BASE_SCORER, TRAINED[0]], *([name] for name in TRAINED[1:])]
    for name in every:
        np.testing.assert_allclose(apart[name], together[name], rtol=1e-5, atol=1e-5)


def test_an_expert_that_was_made_of_others_stands_beside_the_trained(make_run, unseen):
    run = make_run(keyed=False)
    rows = rows_of(run, unseen)
    merged = merge(run, TRAINED[:2], id="merged/two").spec.id
    (stack,) = load_stacks(run, [TRAINED[0], merged], max_experts=64)
    for name in (TRAINED[0], merged):
        tree = find_library(run.workspace, name).load_expert(name).params
        alone = engine.score_rows(run.base.config, run.base.params, rows, tree, stacked=False)
        np.testing.assert_allclose(scored(run, rows, stack, name), np.stack(alone), rtol=1e-4, atol=1e-4)


def test_the_base_alone_wants_no_expert(make_run):
    run = make_run(keyed=False)
    (stack,) = load_stacks(run, [BASE_SCORER], max_experts=64)
    assert stack.slots == {BASE_SCORER: 0}
    assert stack.experts is None
