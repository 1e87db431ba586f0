"""Stacks: experts of every kind and shape take part, each once, in whatever company."""

import numpy as np

from elm_jax.engine import evaluate as engine
from elm_jax.models import experts as ex
from elm_jax.runs import data
from elm_jax.runs.stacks import BASE, home, stacks

from .conftest import BOTTLENECK, LORA, TRAINED

KINDS = dict(zip(TRAINED, [BOTTLENECK, ("bottleneck", {"width": 6}), LORA, ("full", {})], strict=True))


def rows_of(run, unseen):
    spec = unseen[0]
    return data.rows(data.examples(spec, run.source), run.pieces, run.lengths, task=spec.id)


def scored(run, rows, stack, name):
    pairs = np.stack([np.arange(len(rows)), np.full(len(rows), stack.places[name])], axis=1)
    found = engine.score_rows(
        run.base.config, stack.params, rows, stack.experts, pairs, stacked=stack.stacked
    )
    return np.stack(found)


def test_experts_of_several_kinds_and_sizes_score_as_each_does_alone(make_run, unseen):
    run = make_run(KINDS, keyed=False)
    rows = rows_of(run, unseen)
    found = {}
    for stack in stacks(run, [BASE, *TRAINED], at_once=64):
        found |= {name: scored(run, rows, stack, name) for name in stack.places}
    assert set(found) == {BASE, *TRAINED}
    for name, (kind, _) in KINDS.items():
        tree = home(run.workspace, name).expert(name).params
        params, owned = ex.place(kind, run.base.params, tree)
        alone = engine.score_rows(run.base.config, params, rows, owned, stacked=False)
        np.testing.assert_allclose(found[name], np.stack(alone), rtol=1e-4, atol=1e-4)
    alone = engine.score_rows(run.base.config, run.base.params, rows)
    np.testing.assert_allclose(found[BASE], np.stack(alone), rtol=1e-4, atol=1e-4)
    assert len({found[name].tobytes() for name in found}) == len(found)


def test_stacks_of_one_shape_are_of_one_size_and_hold_each_expert_once(make_run):
    run = make_run(keyed=False)
    held = list(stacks(run, [*TRAINED, BASE], at_once=2))
    assert [list(stack.places) for stack in held] == [list(TRAINED[:2]), list(TRAINED[2:]), [BASE]]
    sizes = [stack.experts["encoder"]["encoder_norm"]["scale"].shape[0] for stack in held]
    assert sizes == [2, 2, 2]


def test_the_base_alone_wants_no_expert(make_run):
    run = make_run(keyed=False)
    (stack,) = stacks(run, [BASE], at_once=64)
    assert stack.places == {BASE: 0}
    assert stack.experts is None
