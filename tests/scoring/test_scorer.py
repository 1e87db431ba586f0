"""Evaluation: a row's scores are its own, whatever it is batched with, padded to or surrounded by."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elm_jax.models import expert_layers as ex
from elm_jax.models import meshes, paths, sharding
from elm_jax.models.t5 import T5
from elm_jax.scoring import buckets, generator, likelihood, scorer
from elm_jax.scoring.buckets import PromptWithChoices
from elm_jax.training.step import stack

RNG = np.random.default_rng(4)


def row(prompt: int, *answers: int) -> PromptWithChoices:
    """A row of random tokens with these lengths."""
    return PromptWithChoices(RNG.integers(3, 48, prompt), [RNG.integers(3, 48, length) for length in answers])


# One choice and 79, answers of one token and of four, prompts at and between the lengths of the shapes.
ROWS = [row(3, 1), row(8, 2), row(14, 3, 4, 1), row(5, *[1, 2] * 39, 2), row(13, 4, 4, 4), row(7, 2)]
EXPERTS = 3
SHAPES = [buckets.BucketShape(8, 84, 120), buckets.BucketShape(16, 12, 16)]


@pytest.fixture(scope="module")
def trees(base):
    """Experts that change every score, and leave logits of the size that a real network has."""

    def change(path, value, seed):
        noise = np.random.default_rng(seed).normal(0, 0.2, value.shape).astype(np.float32)
        return value * 8 if "_adapter/" in path else value + noise

    def grown(seed):
        flat = paths.flatten(ex.init_expert("bottleneck", jax.random.key(seed), base, {"width": 4}))
        return paths.unflatten({path: change(path, value, seed) for path, value in flat.items()})

    return [grown(seed) for seed in range(EXPERTS)]


@pytest.fixture(scope="module")
def alone(config, base, trees):
    """The scores [expert][row][choice] of every choice alone: no batch, no stack, no other choice."""

    @jax.jit
    def network(expert, prompt, answer):
        return jax.nn.log_softmax(T5(config).apply({"params": base}, prompt, answer, expert))

    def score(expert, prompt, answer):
        prompt = np.pad(prompt, (0, 14 - len(prompt)))[None].astype(np.int32)
        padded = np.pad(answer, (0, 4 - len(answer)))[None, None].astype(np.int32)
        logp = np.asarray(network(expert, prompt, padded))[0, 0]
        return logp[np.arange(len(answer)), answer].sum()

    return [
        [[score(tree, each.prompt, answer) for answer in each.answers] for each in ROWS] for tree in trees
    ]


def assert_scores(found, wanted):
    assert [len(scores) for scores in found] == [len(scores) for scores in wanted]
    np.testing.assert_allclose(np.concatenate(found), np.concatenate(wanted), atol=1e-5, rtol=1e-6)


@settings(max_examples=12, deadline=None)
@given(
    pairs=st.lists(
        st.tuples(st.integers(0, len(ROWS) - 1), st.integers(0, EXPERTS - 1)),
        min_size=1,
        max_size=10,
        unique=True,
    ),
    batch_tokens=st.sampled_from([1, 64]),
)
def test_order_batch_size_and_the_mix_of_experts_change_no_score(
    config, base, trees, alone, pairs, batch_tokens
):
    found = scorer.score_rows(
        config, base, ROWS, stack(trees), np.array(pairs), batch_tokens=batch_tokens, shapes=SHAPES
    )
    assert_scores(found, [alone[expert][each] for each, expert in pairs])


def test_padding_of_prompts_and_tries_changes_no_score(config, base, trees, alone):
    wide = [buckets.BucketShape(prompt=23, nodes=90, edges=200)]
    mix = np.array([(position, position % EXPERTS) for position in range(len(ROWS))])
    found = scorer.score_rows(config, base, ROWS, stack(trees), mix, shapes=wide, batch_tokens=400)
    assert_scores(found, [alone[expert][position] for position, expert in mix.tolist()])


def test_choices_that_only_fill_never_come_back(config, base, trees):
    found = scorer.score_rows(config, base, ROWS, stack(trees), shapes=SHAPES)
    assert [len(scores) for scores in found] == [1, 1, 3, 79, 3, 1]
    assert np.isfinite(np.concatenate(found)).all()


def test_rows_that_none_of_the_given_shapes_holds_are_scored_in_shapes_of_their_own(config, base):
    shared = [PromptWithChoices(ROWS[2].prompt, each.answers) for each in (ROWS[2], ROWS[3], ROWS[4])]
    given = [buckets.BucketShape(16, 12, 16)]
    assert not any(buckets.shape_fits(given[0], item) for item in buckets.group_by_prompt(shared))
    assert_scores(
        scorer.score_rows(config, base, shared, shapes=given), scorer.score_rows(config, base, shared)
    )


def test_rows_with_one_prompt_are_encoded_once_and_score_as_each_alone(config, base, monkeypatch):
    shared = [PromptWithChoices(ROWS[2].prompt, each.answers) for each in (ROWS[2], ROWS[4], ROWS[2])]
    assert len(buckets.group_by_prompt(shared)) == 1
    (alone,) = scorer.score_rows(config, base, [shared[1]])
    first, second, again = scorer.score_rows(config, base, shared)
    np.testing.assert_allclose(second, alone, atol=1e-5)
    np.testing.assert_array_equal(first, again)


def test_without_experts_the_base_scores(config, base):
    zero = stack(
        [ex.make_neutral_expert(ex.init_expert("bottleneck", jax.random.key(0), base, {"width": 4}), base)]
        * EXPERTS
    )
    few = [ROWS[2], ROWS[4]]
    bare = scorer.score_rows(config, base, few)
    assert_scores(scorer.score_rows(config, base, few, zero), bare)


def test_other_experts_of_the_same_shape_compile_nothing(config, base, trees):
    rows = [ROWS[0], ROWS[1]]
    first = scorer.score_rows(config, base, rows, stack(trees))
    compiled = likelihood.compiled_scorer(config, "cpu")._cache_size()
    second = scorer.score_rows(config, base, rows, stack(trees[::-1]))
    assert likelihood.compiled_scorer(config, "cpu")._cache_size() == compiled
    assert np.abs(np.concatenate(first) - np.concatenate(second)).min() > 1e-3


def test_progress_counts_rows_without_what_fills_the_batches(config, base, trees):
    told = []
    scorer.score_rows(
        config,
        base,
        ROWS,
        stack(trees),
        shapes=SHAPES,
        batch_tokens=64,
        progress=lambda done, of: told.append((done, of)),
    )
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (len(ROWS), len(ROWS))
    assert {of for _, of in told} == {len(ROWS)}


def test_a_batch_is_begun_before_the_scores_of_the_one_before_it_are_fetched(
    config, base, trees, monkeypatch
):
    order, compiled, collect = [], likelihood.compiled_scorer, scorer._collect

    def begun(*given):
        order.append("begun")
        return compiled(config, "cpu")(*given)

    monkeypatch.setattr(likelihood, "compiled_scorer", lambda *_: begun)
    monkeypatch.setattr(scorer, "_collect", lambda *given: order.append("fetched") or collect(*given))
    scorer.score_rows(config, base, ROWS, stack(trees), shapes=SHAPES, batch_tokens=64)
    batches = order.count("begun")
    assert batches > 2
    assert order == ["begun", *["begun", "fetched"] * (batches - 1), "fetched"]


def test_no_rows_have_no_scores(config, base):
    assert scorer.score_rows(config, base, []) == []


def test_a_choice_is_greedy_where_generation_begins_with_it(config, base, trees):
    length, eos = 3, 1
    prompts = [each.prompt for each in ROWS]
    written = generator.generate_rows(
        config, base, prompts, generator.AnswerLimit(length, eos), stack(trees[:1])
    )

    def other(token):
        return 3 if token != 3 else 4

    rows, wanted = [], []
    for prompt, tokens in zip(prompts, np.array(written).tolist(), strict=True):
        real = tokens[: tokens.index(eos) + 1] if eos in tokens else tokens
        rows.append(
            PromptWithChoices(
                prompt, [real, real[:1], [*real[:-1], other(real[-1])], [other(real[0]), *real[1:]]]
            )
        )
        wanted.append([True, True, False, False])
    found = scorer.score_rows_and_greedy(config, base, rows, stack(trees[:1]))
    assert [rated.greedy.tolist() for rated in found] == wanted


def test_each_device_of_a_mesh_scores_as_many_tokens_at_once_as_one_alone(config, base, monkeypatch):
    sizes = []

    def noted(config, platform):
        run = compiled(config, platform)

        def told(params, batch, *rest):
            sizes.append(len(batch.prompts))
            return run(params, batch, *rest)

        return told

    compiled = likelihood.compiled_scorer
    monkeypatch.setattr(likelihood, "compiled_scorer", noted)
    rows = [row(8, 1) for _ in range(16)]
    shapes = buckets.choose_shapes(buckets.group_by_prompt(rows), compile_tokens=1.0)
    on = meshes.make_mesh(data=8)
    tokens = 2 * sum(shapes[0][:2])  # of two rows
    for params in (base, jax.device_put(base, sharding.param_shardings(on, base))):
        scorer.score_rows(config, params, rows, batch_tokens=tokens, shapes=shapes, compile_tokens=0.0)
    assert sizes == [2] * 8 + [16]
