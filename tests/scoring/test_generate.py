"""Generation: what is written is the likeliest token again and again, whatever stands beside a row."""

import jax
import numpy as np
import pytest

from elm_jax.models import expert_layers as ex
from elm_jax.models.sizes import find_config
from elm_jax.models.t5 import T5, init_params
from elm_jax.scoring import decoding
from elm_jax.training.step import stack

RNG = np.random.default_rng(3)
EOS, LENGTH = 1, 7
PROMPTS = RNG.integers(3, 48, (6, 9)).astype(np.int32)
PROMPTS[1, 5:] = PROMPTS[3, 2:] = PROMPTS[4, 7:] = 0
SMALL = {"vocab_size": 48, "emb_dim": 16, "num_heads": 2, "head_dim": 8, "mlp_dim": 24}
# T5 1.0's way and 1.1's.
SHAPES = {
    "T5 1.0": {"mlp_activations": ("relu",), "logits_via_embedding": True},
    "T5 1.1": {},
}


def network(**changes):
    """A network whose every parameter is drawn anew, so that answers differ by prompt and some end."""
    config = find_config("tiny", **SMALL, num_encoder_layers=1, num_decoder_layers=1, **changes)
    shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), config))
    rng = np.random.default_rng(11)
    return config, jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def told():
    return network(**SHAPES["T5 1.0"])


@pytest.fixture(scope="module")
def trees(told):
    made = [ex.init_expert("bottleneck", jax.random.key(seed), told[1], {"width": 4}) for seed in range(3)]
    return [jax.tree.map(lambda leaf, by=1 + seed: leaf * by, tree) for seed, tree in enumerate(made)]


def write(told, prompts, *beside, length=LENGTH, eos=EOS):
    config, params = told
    return np.asarray(
        decoding.compiled_decoder(config, length, "cpu")(params, np.asarray(prompts), np.int32(eos), *beside)
    )


def eos_of(answers):
    """A token that some answers hold, so that as an end-of-sequence it ends some and not others."""
    counts = {token: int((answers == token).any(axis=1).sum()) for token in np.unique(answers[:, :-1])}
    return int(max((token for token in counts if counts[token] < len(answers)), key=counts.__getitem__))


def test_every_token_is_the_likeliest_after_those_before_it(told):
    config, params = told
    answers = write(told, PROMPTS, eos=-5)  # nothing ends an answer
    whole = jax.jit(lambda answers: T5(config).apply({"params": params}, PROMPTS, answers))
    logits = whole(answers[:, None])[:, 0]
    assert len({tuple(row) for row in answers.tolist()}) > 3
    np.testing.assert_array_equal(answers, np.asarray(logits).argmax(axis=-1))


def test_after_the_end_there_is_padding_and_before_it_nothing_changes(told):
    free = write(told, PROMPTS, eos=-5)
    eos = eos_of(free)
    ended = write(told, PROMPTS, eos=eos)
    lasts = []
    for row, whole in zip(ended.tolist(), free.tolist(), strict=True):
        last = whole.index(eos) + 1 if eos in whole else LENGTH
        assert row == whole[:last] + [0] * (LENGTH - last)
        lasts.append(last)
    assert min(lasts) < LENGTH == max(lasts)


def test_decoding_stops_with_the_last_row(told, monkeypatch):
    """Steps are counted as the loop runs, not where it is traced."""
    config, params = told
    first = int(write(told, PROMPTS[:1], eos=-5)[0, 1])
    steps = []
    step = T5.decode_step

    def counted(self, *arguments):
        jax.debug.callback(lambda: steps.append(1))
        return step(self, *arguments)

    monkeypatch.setattr(T5, "decode_step", counted)
    found = np.asarray(decoding.decode_greedy(config, params, PROMPTS[:1], 6, first))
    jax.effects_barrier()
    assert len(steps) == np.count_nonzero(found[0]) <= 2


def test_other_rows_their_order_and_padding_change_no_answer(told):
    together = write(told, PROMPTS)
    for number in range(len(PROMPTS)):
        assert write(told, PROMPTS[number : number + 1]).tolist() == together[number : number + 1].tolist()
    np.testing.assert_array_equal(write(told, PROMPTS[::-1])[::-1], together)
    np.testing.assert_array_equal(write(told, np.pad(PROMPTS, ((0, 0), (0, 6)))), together)


def test_a_longer_limit_only_adds_tokens(told):
    np.testing.assert_array_equal(write(told, PROMPTS, length=20)[:, :LENGTH], write(told, PROMPTS))


def test_rows_of_several_experts_are_each_as_their_expert_alone(told, trees):
    index = np.array([2, 0, 1, 1, 2, 0], np.int32)
    mixed = write(told, PROMPTS, stack(trees), index)
    alone = [write(told, PROMPTS, tree) for tree in trees]  # not stacked
    for row, expert in enumerate(index):
        np.testing.assert_array_equal(mixed[row], alone[expert][row])
    assert any((alone[0] != other).any() for other in alone[1:])


def test_other_weights_of_the_same_shape_compile_nothing(told, trees):
    run = decoding.compiled_decoder(told[0], LENGTH, "cpu")
    write(told, PROMPTS, trees[0])
    before = run._cache_size()
    write(told, PROMPTS, trees[1])
    write((told[0], jax.tree.map(lambda leaf: leaf + 0.1, told[1])), PROMPTS, trees[2])
    assert run._cache_size() == before


def test_weights_that_hold_nan_are_told_and_spoil_no_other_row(told, trees):
    broken = jax.tree.map(lambda leaf: leaf * np.nan, trees[1])
    found = write(told, PROMPTS, stack([trees[0], broken, broken]), np.array([0, 1, 0, 0, 0, 0], np.int32))
    assert found[1].tolist() == [decoding.NAN_TOKEN] + [0] * (LENGTH - 1)
    np.testing.assert_array_equal(np.delete(found, 1, 0), np.delete(write(told, PROMPTS, trees[0]), 1, 0))


@pytest.mark.parity
@pytest.mark.parametrize("shape", SHAPES)
def test_answers_are_those_of_transformers_token_for_token(shape, tmp_path):
    torch = pytest.importorskip("torch", reason="the parity extra is not installed")
    transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")
    from elm_jax.weights import base_model, huggingface

    told = network(**SHAPES[shape])
    free = write(told, PROMPTS, length=20, eos=-5)
    eos = eos_of(free)
    huggingface.save(tmp_path, base_model.make_base(*told))
    model = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    prompts = torch.tensor(PROMPTS, dtype=torch.long)
    how = {"do_sample": False, "num_beams": 1, "pad_token_id": 0, "decoder_start_token_id": 0}
    with torch.inference_mode():
        wanted = model.generate(
            input_ids=prompts, attention_mask=(prompts > 0).long(), max_new_tokens=20, eos_token_id=eos, **how
        )[:, 1:].numpy()
    found = write(told, PROMPTS, length=20, eos=eos)
    np.testing.assert_array_equal(found, np.pad(wanted, ((0, 0), (0, 20 - wanted.shape[1]))))
    assert len({tuple(row) for row in found.tolist()}) > 3
    assert (found == eos).any()
