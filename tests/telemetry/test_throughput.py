"""The meter: rates over the last seconds, worked out by hand."""

import math

import jax
import jax.numpy as jnp
import pytest

from elm_jax.models.flops import FlopsPerToken
from elm_jax.telemetry import throughput
from elm_jax.telemetry.events import Event, Failure, Standing
from elm_jax.telemetry.throughput import Compilations, Meter

COST = FlopsPerToken(prompt=10.0, answer=20.0, formula="by hand")


def event(number, *losses, **changes):
    """A round of 60 real prompt tokens and 20 of answers in 100, and of one step of every expert."""
    standings = tuple(
        Standing(f"a/{at}", number, 9, loss, 0.1) for at, loss in enumerate(losses or (1.0, 3.0))
    )
    told = {"round": number, "steps_done": 2 * number, "steps": 100, "standings": standings}
    told |= {"prompt_tokens": 60, "answer_tokens": 20, "padded_tokens": 100, "waiting": 0}
    return Event(**told | changes)


@pytest.fixture
def read(clock):
    """Reads events that come at given seconds; returns the last reading."""

    def read(made, *at, events=None):
        for number, clock.now in enumerate(at, start=1):
            reading = made.read(event(number))
        return reading

    return read


def test_nothing_is_known_of_speed_after_the_first_round(clock, read):
    reading = read(Meter(COST, 1e3, clock), 50.0)
    assert (reading.loss, reading.real) == (2.0, 0.8)
    assert {reading.tokens_per_second, reading.flops_per_second, reading.mfu, reading.left} == {None}


def test_rates_are_those_of_the_rounds_after_the_first(clock, read):
    reading = read(Meter(COST, 4e3, clock), 50.0, 51.0, 52.0)
    assert reading.tokens_per_second == 80
    assert reading.flops_per_second == 60 * 10 + 20 * 20
    assert reading.mfu == 0.25
    assert reading.left == 94 / 2


def test_rates_forget_what_is_older_than_the_window(clock, read):
    # A slow round of 100 s, then four of 10 s: the last 30 s had three of them.
    reading = read(Meter(COST, None, clock), 0.0, 100.0, 110.0, 120.0, 130.0)
    assert reading.tokens_per_second == 3 * 80 / 30


def test_a_round_that_is_longer_than_the_window_is_measured_alone(clock, read):
    assert read(Meter(COST, None, clock), 0.0, 100.0, 140.0).tokens_per_second == 80 / 40


def test_the_seconds_of_a_compilation_are_taken_out(clock):
    compiled = Compilations()
    made = Meter(COST, None, clock, compiled)
    made.read(event(1))
    clock.now, compiled.seconds = 10.0, 8.0
    reading = made.read(event(2))
    assert (reading.tokens_per_second, reading.compiling) == (40, 8.0)


def test_utilisation_is_unknown_without_a_peak_and_flops_without_a_cost(clock, read):
    assert read(Meter(COST, None, clock), 0.0, 1.0).mfu is None
    reading = read(Meter(None, 1e3, clock), 0.0, 1.0)
    assert (reading.flops_per_second, reading.mfu) == (None, None)


def test_an_expert_that_did_not_move_stands_where_it_stood(clock):
    made = Meter(clock=clock)
    first = event(1, 1.0, 3.0)
    made.read(first)
    moved = Standing("a/1", 2, 9, 5.0, 0.1)
    reading = made.read(event(2, standings=(moved,)))
    assert reading.training == (first.standings[0], moved)
    assert reading.loss == 3.0
    assert made.read(event(3, standings=())).loss == 3.0


def test_an_expert_that_ends_has_a_last_part_in_the_mean(clock):
    made = Meter(clock=clock)
    made.read(event(1, 1.0, 3.0))
    ended = made.read(event(2, 1.0, 3.0, finished=("a/0",)))
    assert ([standing.expert for standing in ended.training], ended.loss) == (["a/1"], 2.0)
    assert made.read(event(3, standings=())).loss == 3.0


def test_a_loss_that_is_not_finite_is_no_part_of_the_mean(clock):
    made = Meter(clock=clock)
    assert made.read(event(1, math.nan, 2.0, 4.0)).loss == 3.0
    assert made.read(event(2, math.nan, math.inf, -math.inf)).loss is None


def test_experts_that_end_are_counted(clock):
    made = Meter(clock=clock)
    made.read(event(1, finished=("a/0",), failed=(Failure("a/1", 1, (4,)),)))
    reading = made.read(event(2, finished=("a/2", "a/3")))
    assert (reading.finished, reading.failed) == (3, 1)


def test_a_run_that_goes_on_has_the_speed_of_its_own_steps(clock):
    made = Meter(clock=clock)
    for number in (40, 41):
        clock.now = float(number)
        reading = made.read(event(number))
    assert reading.left == 18 / 2


def test_xlas_compilations_are_counted_while_it_is_asked_for():
    with throughput.compilations() as counted:
        jax.jit(lambda x: x * 3 + 1)(jnp.zeros(7))
    seconds = counted.seconds
    assert seconds > 0
    jax.jit(lambda x: x * 5 + 1)(jnp.zeros(7))
    assert counted.seconds == seconds
