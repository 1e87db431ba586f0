"""Generation by the batch: every answer is what its prompt and expert give alone, and is written once."""

import jax
import numpy as np
import pytest

from elm_jax.errors import UserError
from elm_jax.models import expert_layers as ex
from elm_jax.models import meshes, sharding
from elm_jax.models.t5 import init_params
from elm_jax.scoring import decoding as written
from elm_jax.scoring import generator
from elm_jax.training.step import stack

RNG = np.random.default_rng(5)
PROMPTS = [RNG.integers(3, 48, length).tolist() for length in (3, 14, 8, 5, 16)]
PROMPTS.append(list(PROMPTS[1]))  # the same again
LENGTH, EOS, EXPERTS, ROOM = 6, 1, 3, 16


@pytest.fixture(scope="module")
def base(config):
    shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), config))
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def trees(base):
    made = [ex.init_expert("bottleneck", jax.random.key(seed), base, {"width": 4}) for seed in range(EXPERTS)]
    return [jax.tree.map(lambda leaf, by=1 + seed: leaf * by, tree) for seed, tree in enumerate(made)]


@pytest.fixture(scope="module")
def alone(config, base, trees):
    """The answers [expert][prompt], each written in a batch of its own."""
    run = written.compiled_decoder(config, LENGTH, "cpu")

    def answer(prompt, tree):
        laid = np.pad(prompt, (0, ROOM - len(prompt)))[None].astype(np.int32)
        return np.asarray(run(base, laid, np.int32(EOS), tree))[0].tolist()

    return [[answer(prompt, tree) for prompt in PROMPTS] for tree in trees]


def test_a_mesh_changes_no_answer(config, base, trees, alone):
    on = meshes.make_mesh(data=4, fsdp=2)
    params = jax.device_put(base, sharding.param_shardings(on, base))
    every = np.array([(prompt, expert) for expert in range(EXPERTS) for prompt in range(len(PROMPTS))])
    found = generator.generate_rows(
        config,
        params,
        PROMPTS,
        generator.AnswerLimit(LENGTH, EOS),
        stack(trees),
        every,
        batch_tokens=200,
        lengths=[8, ROOM],
    )
    assert [row.tolist() for row in found] == [alone[expert][prompt] for prompt, expert in every]


@pytest.mark.parametrize("batch_tokens", [1, 200])
def test_order_batches_and_the_mix_of_experts_change_no_answer(config, base, trees, alone, batch_tokens):
    every = [(prompt, expert) for expert in range(EXPERTS) for prompt in range(len(PROMPTS))]
    mix = np.array(every)[np.random.default_rng(0).permutation(len(every))]
    found = generator.generate_rows(
        config,
        base,
        PROMPTS,
        generator.AnswerLimit(LENGTH, EOS),
        stack(trees),
        mix,
        batch_tokens=batch_tokens,
        lengths=[8, ROOM],
    )
    assert [answer.tolist() for answer in found] == [alone[expert][prompt] for prompt, expert in mix.tolist()]
    assert len({tuple(answer.tolist()) for answer in found}) > EXPERTS


def test_a_prompt_and_expert_that_come_again_are_answered_once(config, base, trees, monkeypatch):
    rows = []
    run = written.compiled_decoder(config, LENGTH, "cpu")

    def counted(params, prompts, *beside):
        rows.extend(map(tuple, prompts.tolist()))
        return run(params, prompts, *beside)

    monkeypatch.setattr(written, "compiled_decoder", lambda *key: counted)
    told = []
    pairs = np.array([(1, 0), (5, 0), (1, 0), (4, 1)])
    found = generator.generate_rows(
        config,
        base,
        PROMPTS,
        generator.AnswerLimit(LENGTH, EOS),
        stack(trees),
        pairs,
        batch_tokens=1,
        lengths=[ROOM],
        progress=lambda done, of: told.append((done, of)),
    )
    assert len(rows) == 2
    assert found[0].tolist() == found[1].tolist() == found[2].tolist()
    assert told == [(3, 4), (4, 4)]


def test_without_experts_the_base_writes(config, base):
    zero = stack(
        [ex.make_neutral_expert(ex.init_expert("bottleneck", jax.random.key(0), base, {"width": 4}), base)]
        * EXPERTS
    )
    how = {"batch_tokens": 1, "lengths": [8, ROOM]}
    bare = generator.generate_rows(config, base, PROMPTS, generator.AnswerLimit(LENGTH, EOS), **how)
    found = generator.generate_rows(config, base, PROMPTS, generator.AnswerLimit(LENGTH, EOS), zero, **how)
    assert [answer.tolist() for answer in found] == [answer.tolist() for answer in bare]


def test_few_lengths_hold_all_prompts_and_equal_ones_count_once(base):
    prompts = [[5] * 3] * 500 + [[5] * 9, [6] * 40]
    lengths = generator.choose_prompt_lengths(base, prompts)
    assert lengths[-1] == 40
    assert len(lengths) <= 3
    assert generator.choose_prompt_lengths(base, []) == []
    # What a further shape saves grows with how often it is used.
    assert generator.choose_prompt_lengths(base, prompts, experts_per_prompt=1e9) == [8, 16, 40]


def test_no_prompts_have_no_answers(config, base):
    assert generator.generate_rows(config, base, [], generator.AnswerLimit(LENGTH, EOS)) == []


@pytest.mark.parametrize(
    ("prompts", "length", "said"),
    [([[5], []], 4, "got 0 in prompt 1"), ([[5] * 2049], 4, "got 2049"), ([[5]], 0, "a length of 0")],
)
def test_what_cannot_be_answered_is_refused(config, base, prompts, length, said):
    with pytest.raises(UserError, match=said):
        generator.generate_rows(config, base, prompts, generator.AnswerLimit(length, EOS))
