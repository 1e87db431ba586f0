"""The view of training: what a terminal shows, what a log says, and that one process of several does both."""

import io
import math

import pytest
from etils import epath
from rich.console import Console

from elm_jax.errors import UserError
from elm_jax.models.flops import FlopsPerToken
from elm_jax.telemetry import jsonl_log, training_view
from elm_jax.telemetry.events import Event, Failure, StepMetrics, Validation
from elm_jax.telemetry.progress import Stages
from elm_jax.telemetry.throughput import ThroughputMeter

COST = FlopsPerToken(prompt=1e9, answer=2e9, formula="4 N + 6 n")


def event(number, experts=3, **changes):
    """A batch of 900 + 100 real tokens in 1,250, and of one step of every expert."""
    metrics = tuple(
        StepMetrics(f"data_{at}/which [one]?", number, 50, at + 1.0, 1e-4) for at in range(experts)
    )
    told = {"batch": number, "steps_done": number * experts, "steps": 1000, "metrics": metrics}
    told |= {"prompt_tokens": 900, "answer_tokens": 100, "padded_tokens": 1250, "waiting": 4}
    return Event(**told | changes)


@pytest.fixture
def view(clock):
    """Shows events, one a second, on a terminal of a width; returns the text of the last frame."""

    def view(*events, width=100, height=40, cost=COST, peak=None):
        console = Console(width=width, height=height, force_terminal=True, file=io.StringIO(), record=True)
        shown = training_view.LiveView(console, "train 7 experts", cost, clock)
        on_event = training_view.event_handler(ThroughputMeter(cost, peak, clock), shown)
        for told in events:
            clock.now += 1.0
            on_event(told)
        console.export_text()
        console.print(shown)
        return console.export_text()

    return view


@pytest.fixture
def said(clock):
    """Returns what a log says of (second, event)."""

    def said(*events, **options):
        text = io.StringIO()
        with training_view.training(
            Stages(Console(file=text, width=60)), "train", clock=clock, **options
        ) as on_event:
            for clock.now, told in events:
                on_event(told)
        return text.getvalue().splitlines()

    return said


def test_before_the_first_batch_it_says_that_it_compiles(view):
    assert "train 7 experts  0:00:00  preparing and compiling the first step" in view()


def test_totals_are_steps_times_loss_speed_padding_and_utilisation(view):
    # 1,000 tokens a second, 1.1e12 FLOP/s; 991 of 1,000 steps are left, 3 of them a second.
    text = view(event(1), event(2), event(3), peak=4.4e12)
    assert "9/1,000 steps" in text
    assert "0:00:03" in text
    assert "0:05:30 left" in text
    assert "loss 2.000, 80% real, 1,000 tokens/s, 1.1 TFLOP/s (4 N + 6 n), 25.0% of peak FLOP/s" in text
    assert "3 training, 4 waiting, 0 finished\n" in text


def test_utilisation_without_a_peak_is_unknown(view):
    assert "1.1 TFLOP/s (4 N + 6 n), utilisation unknown" in view(event(1), event(2))


def test_every_expert_in_training_has_a_row_with_its_own_steps(view):
    rows = [line.split() for line in view(event(2)).splitlines() if line.startswith("data_")]
    assert rows == [
        ["data_" + str(at) + "/which", "[one]?", "2/50", f"{at + 1}.000", "1.0e-04"] for at in range(3)
    ]


def test_more_experts_than_there_is_room_for_are_counted(view):
    tall, short = view(event(1, experts=15)), view(event(1, experts=15), height=12)
    assert tall.count("which") == 12
    assert "and 3 more" in tall
    assert short.count("which") == 4
    assert "and 11 more" in short


@pytest.mark.parametrize("width", [60, 100])
def test_no_line_is_wider_than_the_terminal(view, width):
    name = "a_dataset_of_some_length/with a prompt that is as long as those of PromptSource are at times"
    metrics = (StepMetrics(name, 1000, 10_000, 1.5, 1e-4),)
    validations = (Validation(name, 1000, 1.25, 0.5),)
    text = view(event(1), event(2, metrics=metrics, validations=validations), width=width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    for shown in ("a_dataset", "1,000/10,000", "1.500", "1.0e-04", "1.250 50.0%"):
        assert shown in text


def test_who_ended_is_counted_and_has_no_row(view):
    failed = Failure("data_1/which [one]?", 2, (5,))
    text = view(event(1), event(2, finished=("data_0/which [one]?",), failed=(failed,)))
    assert "1 training, 4 waiting, 1 finished, 1 failed" in text
    assert [line[:6] for line in text.splitlines() if line.startswith("data_")] == ["data_2"]


def test_when_all_have_ended_no_table_is_left(view):
    names = tuple(f"data_{at}/which [one]?" for at in range(3))
    last = view(event(1), event(2, finished=names)).splitlines()[-1]
    assert last == "0 training, 4 waiting, 3 finished"


def test_the_last_validation_stands_beside_its_expert(view):
    validations = (Validation("data_1/which [one]?", 1, 0.125, 0.75),)
    lines = view(event(1, validations=validations), event(2)).splitlines()
    assert [line.split()[5:] for line in lines if line.startswith("data_")] == [
        [],
        ["0.125", "75.0%"],
        [],
    ]


def test_a_terminal_keeps_the_words_on_an_expert_that_failed(clock):
    screen = io.StringIO()
    stages = Stages(Console(width=100, height=30, force_terminal=True, file=screen))
    with training_view.training(stages, "train", clock=clock) as on_event:
        on_event(event(1, failed=(Failure("data_1/which [one]?", 1, tuple(range(10))),)))
    told = (
        "data_1/which [one]?: stopped at step 1, no longer finite, on rows 0, 1, 2, 3, 4, 5, 6, 7 and 2 more"
    )
    assert told in " ".join(screen.getvalue().split())
    assert "2 training, 4 waiting, 0 finished, 1 failed" in screen.getvalue()


def test_results_printed_meanwhile_go_to_standard_output(clock, capsys):
    stages = Stages(Console(width=100, force_terminal=True, file=io.StringIO()))
    with training_view.training(stages, "train", clock=clock):
        print("a result")
    assert capsys.readouterr() == ("a result\n", "")


def test_a_log_has_a_line_every_ten_seconds(said):
    lines = said(*((float(second), event(second)) for second in range(1, 26)), cost=COST, peak=4.4e12)
    assert lines[0] == (
        "train: 30/1,000 steps, loss 2.000, 80% real, 1,000 tokens/s, 1.1 TFLOP/s (4 N + 6 n), 25.0% of peak "
        "FLOP/s, 0:05:23 left, 3 training, 4 waiting, 0 finished"
    )
    assert [line.split(",")[0] for line in lines] == ["train: 30/1", "train: 60/1", lines[-1]]
    assert lines[-1].startswith("train: done in ")


def test_a_log_has_a_line_for_each_that_ends_and_each_validation(said):
    lines = said(
        (1.0, event(1, validations=(Validation("data_0/which [one]?", 1, 0.125, 0.75, best=True),))),
        (2.0, event(2, finished=("data_0/which [one]?",))),
        (3.0, event(3, failed=(Failure("data_1/which [one]?", 3, (5, 6)),))),
    )
    assert lines[:-1] == [
        "data_0/which [one]?: step 1, validation loss 0.125, accuracy 75.0%, the best so far",
        "data_0/which [one]?: finished after 2 steps, loss 1.000",
        "data_1/which [one]?: stopped at step 3, no longer finite, on rows 5, 6",
    ]


def test_a_loss_that_no_expert_has_is_unknown(said):
    metrics = (StepMetrics("a/b", 1, 50, math.nan, 1e-4),)
    (line, _) = said((20.0, event(1, metrics=metrics)))
    assert "loss unknown" in line


def test_the_journal_is_kept_where_logs_are(said, tmp_path):
    said((1.0, event(10)), (2.0, event(20)), logs=epath.Path(tmp_path), cost=COST, peak=4.4e12)
    start, *steps = jsonl_log.read_journal(tmp_path / "training.jsonl")
    assert (start["formula"], start["peak_flops_per_second"]) == ("4 N + 6 n", 4.4e12)
    assert [(step["step"], step["mfu"]) for step in steps] == [(10, None)] * 3 + [(20, 0.25)] * 3


def test_trackers_without_a_place_for_logs_are_refused(said):
    with pytest.raises(UserError, match="tensorboard"):
        said(trackers=("tensorboard",))


def test_a_process_that_does_not_show_says_and_writes_nothing(said, tmp_path):
    assert said((20.0, event(1)), logs=epath.Path(tmp_path), shows=False) == []
    assert list(tmp_path.iterdir()) == []


def test_the_seconds_of_the_stage_are_kept(clock):
    stages = Stages(Console(file=io.StringIO()))
    with training_view.training(stages, "train", clock=clock):
        pass
    assert list(stages.seconds) == ["train"]
