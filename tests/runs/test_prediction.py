"""Predictions: how a workload is laid out on a slice, and what follows for time and bytes."""

from dataclasses import replace

import pytest

from elm_jax.models.sizes import size
from elm_jax.runs import outlook, plan, prediction, room
from elm_jax.runs.courses import Budget
from elm_jax.runs.rates import Rates
from elm_jax.runs.slices import slice_of
from elm_jax.runs.workload import Evaluation, Expert, Training

NETWORK = size("base", dtype="bfloat16")
EXPERT = Expert(
    "a/b",
    rows=1000,
    steps=500,
    batch_size=8,
    longest_prompt=256,
    longest_answer=128,
    prompt=154.0,
    answer=19.0,
)
LOAD = Training(tuple(replace(EXPERT, id=f"a/{number}") for number in range(16)), NETWORK, Budget(), None, ())
SCORING = Evaluation(2, 1000, 10, 11, NETWORK, 8192, 256, 128, 154.0, 19.0)


def trained(load, name, mesh=None, **options):
    return prediction.trained(load, slice_of(name), mesh, **options)


def test_experts_lie_apart_and_full_ones_are_split_as_training_has_them():
    assert trained(LOAD, "8xh100").mesh == {"expert": 8, "data": 1, "fsdp": 1, "tensor": 1}
    full = replace(LOAD, budget=Budget(kind="full", optimizer="adafactor"))
    assert trained(full, "8xh100").mesh == {"expert": 1, "data": 1, "fsdp": 8, "tensor": 1}


def test_a_mesh_that_is_asked_for_is_taken_and_the_rest_is_data():
    asked = replace(LOAD, mesh={"expert": 2})
    assert trained(asked, "v4-16").mesh == {"expert": 2, "data": 4, "fsdp": 1, "tensor": 1}
    assert trained(asked, "v4-16", {"fsdp": -1}).mesh["fsdp"] == 8


def test_as_many_experts_and_tokens_as_room_has_for():
    """What `elm train` would choose on a device of that memory, of which JAX takes three quarters."""
    found = trained(LOAD, "h100")
    work = plan.Work(NETWORK, prompt=256, answer=128)
    places, tokens = room.fit(work, int(0.75 * 80e9), most_places=16)
    assert found.places == places == 16
    assert tokens - 400 < found.tokens <= tokens


def test_there_are_no_fewer_batches_than_steps_one_after_another():
    """16 experts of 500 steps on 8 parts of one place each: two after one another, whatever the batches."""
    one = replace(LOAD, budget=Budget(places=8))
    found = trained(one, "8xh100")
    assert (found.places, found.batches) == (8, 1000)
    # Six rows of a device hold the step of its expert: eight examples of 154 + 19, where 93 % is filled.
    assert found.tokens / 8 == 6 * (256 + 37)


def test_batches_are_as_many_as_real_tokens_fill():
    found = trained(LOAD, "h100")
    real = 16 * 500 * 8 * (154 + 19)
    assert found.batches == pytest.approx(real / (found.filled * found.tokens), abs=1)
    assert found.filled == pytest.approx(0.93)


def test_devices_without_an_expert_fill_no_rows():
    """One expert on four parts: three of them have nothing to do."""
    alone = replace(LOAD, experts=LOAD.experts[:1])
    on_one, on_four = trained(alone, "v4-8", {"data": 4}), trained(alone, "v4-8")
    assert on_four.filled <= 0.93 / 4
    assert on_four.batches >= on_one.batches


def test_time_is_batches_times_what_one_takes_and_devices_are_paid_for_all_of_it():
    found = trained(LOAD, "v4-8")
    assert found.each is not None
    assert found.seconds == found.batches * found.each.together
    assert found.device_hours == 4 * found.seconds / 3600


def test_a_device_of_other_rates_takes_other_times():
    fast = Rates(flops=1e15, memory=1e13, ring=1e12, host=4)
    slow = replace(fast, flops=1e14)
    times = [trained(LOAD, "v4-8", rates=rates).each for rates in (fast, slow)]
    assert times[0] is not None
    assert times[1] is not None
    assert times[1].compute == pytest.approx(10 * times[0].compute)


def test_a_checkpoint_has_all_experts_with_moments_and_gradients():
    found = trained(replace(LOAD, budget=Budget(save_every=100)), "v4-8", disk=2e9)
    assert found.need is not None
    assert found.checkpoint == 4 * (found.need.state + found.need.gradients)
    assert found.saves == found.batches // 100
    assert found.writing == found.checkpoint / 2e9


def test_where_not_one_expert_fits_the_base_is_split_no_further_than_it_must():
    large = replace(LOAD, network=size("xxl", dtype="bfloat16"))
    found = trained(large, "v5e-16")
    assert found.given
    assert found.mesh["fsdp"] > 1
    assert found.cost is not None
    assert found.cost.sent
    assert not trained(LOAD, "v5e-16").given


def test_what_does_not_fit_at_all_has_no_times():
    large = replace(LOAD, network=size("xxl", dtype="float32"))
    found = trained(large, "v5e-1")
    assert (found.fits, found.cost) == ("no", None)
    tables = outlook.tables(large, [found])
    cells = dict(tables[1].rows)
    assert cells["fits"] == "no"
    assert "time" not in cells
    assert outlook.values(large, [found])["predictions"][0]["seconds"] is None


def test_an_evaluation_is_shared_out_over_all_devices():
    one, eight = (prediction.scored(SCORING, slice_of(name)) for name in ("h100", "8xh100"))
    assert one.batches == eight.batches
    assert eight.seconds - eight.reading == pytest.approx((one.seconds - one.reading) / 8)
    assert eight.reading == one.reading  # a process reads experts once for all devices of its host


def test_an_evaluation_computes_its_real_tokens_and_some_padding():
    """11 scorers of 1,000 rows of 154 + 19 tokens, nine tenths of what is computed; 47 rows are a batch."""
    found = prediction.scored(SCORING, slice_of("h100"))
    assert found.batches == pytest.approx(11 * 1000 / 0.9 / 47)


def test_no_more_experts_are_held_than_a_quarter_of_memory_has_room_for():
    many = replace(SCORING, experts=296, scorers=297, network=size("xl", dtype="bfloat16"))
    found = prediction.scored(many, slice_of("v5e-1"))
    own = 25_618_432 * 4
    assert found.held == int(0.25 * 16e9) // own - 1
    assert found.need.experts == (found.held + 1) * own
    assert found.read == 296 * own
