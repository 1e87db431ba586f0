"""Throughput: speeds over the last seconds, worked out by hand."""

import math

import jax
import jax.numpy as jnp
import pytest

from elm_jax.models.flops import FlopsPerToken
from elm_jax.telemetry import throughput
from elm_jax.telemetry.events import Event, Failure, StepMetrics
from elm_jax.telemetry.throughput import CompileTimer, ThroughputMeter

COST = FlopsPerToken(prompt=10.0, answer=20.0, formula="by hand")


def event(number, *losses, **changes):
    """A batch of 60 real prompt tokens and 20 of answers in 100, and of one step of every expert."""
    metrics = tuple(
        StepMetrics(f"a/{at}", number, 9, loss, 0.1) for at, loss in enumerate(losses or (1.0, 3.0))
    )
    fields = {"batch": number, "steps_done": 2 * number, "steps": 100, "metrics": metrics}
    fields |= {"prompt_tokens": 60, "answer_tokens": 20, "padded_tokens": 100, "waiting": 0}
    return Event(**fields | changes)


@pytest.fixture
def read(clock):
    """Reads events that come at given seconds; returns the last now."""

    def read(made, *at, events=None):
        for number, clock.now in enumerate(at, start=1):
            now = made.measure(event(number))
        return now

    return read


def test_nothing_is_known_of_speed_after_the_first_batch(clock, read):
    now = read(ThroughputMeter(COST, 1e3, clock), 50.0)
    assert (now.loss, now.fill_ratio) == (2.0, 0.8)
    assert {now.tokens_per_second, now.flops_per_second, now.mfu, now.seconds_left} == {None}


def test_speeds_are_those_of_the_batches_after_the_first(clock, read):
    now = read(ThroughputMeter(COST, 4e3, clock), 50.0, 51.0, 52.0)
    assert now.tokens_per_second == 80
    assert now.flops_per_second == 60 * 10 + 20 * 20
    assert now.mfu == 0.25
    assert now.seconds_left == 94 / 2


def test_speeds_forget_what_is_older_than_the_window(clock, read):
    # A slow batch of 100 s, then four of 10 s: the last 30 s had three of them.
    now = read(ThroughputMeter(COST, None, clock), 0.0, 100.0, 110.0, 120.0, 130.0)
    assert now.tokens_per_second == 3 * 80 / 30


def test_a_batch_that_is_longer_than_the_window_is_measured_alone(clock, read):
    assert read(ThroughputMeter(COST, None, clock), 0.0, 100.0, 140.0).tokens_per_second == 80 / 40


def test_the_seconds_of_a_compilation_are_taken_out(clock):
    compiled = CompileTimer()
    made = ThroughputMeter(COST, None, clock, compiled)
    made.measure(event(1))
    clock.now, compiled.seconds = 10.0, 8.0
    now = made.measure(event(2))
    assert (now.tokens_per_second, now.compile_seconds) == (40, 8.0)


def test_utilisation_is_unknown_without_a_peak_and_flops_without_a_cost(clock, read):
    assert read(ThroughputMeter(COST, None, clock), 0.0, 1.0).mfu is None
    now = read(ThroughputMeter(None, 1e3, clock), 0.0, 1.0)
    assert (now.flops_per_second, now.mfu) == (None, None)


def test_an_expert_that_did_not_move_has_the_metrics_of_before(clock):
    made = ThroughputMeter(clock=clock)
    first = event(1, 1.0, 3.0)
    made.measure(first)
    moved = StepMetrics("a/1", 2, 9, 5.0, 0.1)
    now = made.measure(event(2, metrics=(moved,)))
    assert now.training == (first.metrics[0], moved)
    assert now.loss == 3.0
    assert made.measure(event(3, metrics=())).loss == 3.0


def test_an_expert_that_ends_has_a_last_part_in_the_mean(clock):
    made = ThroughputMeter(clock=clock)
    made.measure(event(1, 1.0, 3.0))
    ended = made.measure(event(2, 1.0, 3.0, finished=("a/0",)))
    assert ([each.expert for each in ended.training], ended.loss) == (["a/1"], 2.0)
    assert made.measure(event(3, metrics=())).loss == 3.0


def test_a_loss_that_is_not_finite_is_no_part_of_the_mean(clock):
    made = ThroughputMeter(clock=clock)
    assert made.measure(event(1, math.nan, 2.0, 4.0)).loss == 3.0
    assert made.measure(event(2, math.nan, math.inf, -math.inf)).loss is None


def test_experts_that_end_are_counted(clock):
    made = ThroughputMeter(clock=clock)
    made.measure(event(1, finished=("a/0",), failed=(Failure("a/1", 1, (4,)),)))
    now = made.measure(event(2, finished=("a/2", "a/3")))
    assert (now.finished, now.failed) == (3, 1)


def test_a_run_that_goes_on_has_the_speed_of_its_own_steps(clock):
    made = ThroughputMeter(clock=clock)
    for number in (40, 41):
        clock.now = float(number)
        now = made.measure(event(number))
    assert now.seconds_left == 18 / 2


def test_xlas_compilations_are_counted_while_it_is_asked_for():
    with throughput.time_compilations() as counted:
        jax.jit(lambda x: x * 3 + 1)(jnp.zeros(7))
    seconds = counted.seconds
    assert seconds > 0
    jax.jit(lambda x: x * 5 + 1)(jnp.zeros(7))
    assert counted.seconds == seconds
