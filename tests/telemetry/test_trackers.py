"""Trackers: what TensorBoard and Weights & Biases have, read back from their own files."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from etils import epath

import elm_jax
from elm_jax.errors import UserError
from elm_jax.telemetry import trackers, training_view
from elm_jax.telemetry.events import Event, Failure, StepMetrics, Validation
from elm_jax.telemetry.progress import Stages
from elm_jax.telemetry.throughput import Throughput
from elm_jax.telemetry.trackers import MetricPoint

THROUGHPUT = Throughput(loss=0.5, tokens_per_second=80.0, fill_ratio=0.75, mfu=None)
A, B = "data/which one? a. b/c", "data/another"


def event(number, *experts, **changes):
    metrics = tuple(StepMetrics(name, number, 20, 1 / number, 0.25) for name in experts or (A,))
    return Event(number, number, 20, metrics, 60, 20, 100, 0, **changes)


@contextmanager
def track_training(name, where, settings, **options):
    with trackers.open_tracker(name, where, settings) as write:
        yield trackers.track_training(write, **options)


@pytest.fixture
def where(tmp_path):
    return epath.Path(tmp_path)


def test_an_expert_has_its_loss_and_rate_and_all_have_totals_without_what_is_unknown():
    total = {"loss": 0.5, "tokens_per_second": 80.0, "real": 0.75}
    expected = [MetricPoint(A, 10, {"loss": 0.1, "rate": 0.25}), MetricPoint(trackers.TOTAL, 10, total)]
    assert trackers.metric_points(event(10), THROUGHPUT) == expected
    assert trackers.metric_points(event(9), THROUGHPUT) == []


def test_a_validation_is_a_point_at_any_step():
    validations = (Validation(A, 3, 0.125, 0.5), Validation(B, 3, 0.25))
    expected = [
        MetricPoint(A, 3, {"validation": 0.125, "accuracy": 0.5}),
        MetricPoint(B, 3, {"validation": 0.25}),
    ]
    assert trackers.metric_points(event(3, validations=validations), THROUGHPUT) == expected


def test_an_unknown_tracker_is_named_with_the_nearest(where):
    with (
        pytest.raises(UserError, match="'tensorboard'"),
        trackers.open_tracker("tensorbored", where, {}),
    ):
        pass


@pytest.mark.parametrize(
    ("name", "package"), [("tensorboard", "tensorboard.compat.proto"), ("wandb", "wandb")]
)
def test_a_package_that_is_not_there_is_named_with_the_command_that_brings_it(
    where, monkeypatch, name, package
):
    monkeypatch.setitem(sys.modules, package, None)
    with (
        pytest.raises(UserError, match=r"pip install 'tensorboard.*' 'wandb"),
        trackers.open_tracker(name, where, {}),
    ):
        pass


@pytest.fixture
def own_tracker():
    """A tracker that is registered from outside the package, and the points that it was given."""
    seen = {"points": [], "closed": 0}

    @elm_jax.register_tracker("mine")
    class Mine:
        def __init__(self, directory, settings):
            seen.update(directory=directory, title=settings["title"])

        def add(self, batch, points):
            seen["points"] += [(batch, point.series, point.values["loss"]) for point in points]

        def end(self, series):
            pass

        def close(self):
            seen["closed"] += 1

    yield seen
    trackers.TRACKERS.pop("mine")


def test_a_tracker_of_ones_own_takes_the_metrics_of_a_training(where, own_tracker):
    with training_view.training(Stages(), "train", logs=where, trackers=("mine",)) as on_event:
        on_event(event(10))
    assert own_tracker["points"] == [(10, A, 0.1), (10, "total", 0.1)]
    assert (own_tracker["directory"], own_tracker["title"]) == (where / "mine", "train")
    assert own_tracker["closed"] == 1


def test_a_tracker_of_ones_own_is_among_those_that_an_unknown_name_is_told(where, own_tracker):
    with pytest.raises(UserError, match="'mine'"), trackers.open_tracker("mines", where, {}):
        pass


def test_a_name_is_registered_once():
    with pytest.raises(UserError, match="'wandb'"):
        elm_jax.register_tracker("wandb")(lambda directory, settings: None)


@pytest.fixture
def board(where):
    """Returns run -> (tag, step, value)s of TensorBoard's files below a directory."""
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed: pip install 'elm_jax[track]'")
    from tensorboard.compat.proto import event_pb2
    from tensorboard.compat.tensorflow_stub import pywrap_tensorflow

    def board():
        found = {}
        for file in sorted(Path(where).rglob("events.out.tfevents.*")):
            reader = pywrap_tensorflow.PyRecordReader_New(str(file))
            values = found.setdefault(str(file.parent.relative_to(Path(where) / "tensorboard")), [])
            first = True
            while True:
                try:
                    reader.GetNext()
                except Exception:  # the reader's own, at the end of a file
                    break
                read = event_pb2.Event.FromString(reader.record())
                assert (read.file_version == "brain.Event:2") == first
                first = False
                values += [(value.tag, read.step, value.simple_value) for value in read.summary.value]
        return found

    return board


def test_tensorboard_has_a_run_for_every_expert_over_its_own_steps(where, board):
    with track_training("tensorboard", where, {}, every=2) as track:
        for number in range(1, 5):
            track(event(number, A, B, validations=(Validation(B, 3, 0.125),) * (number == 3)), THROUGHPUT)
    assert board() == {
        "data/which%20one%3F%20a.%20b%2Fc": [
            *[("loss", 2, 0.5), ("rate", 2, 0.25)],
            *[("loss", 4, 0.25), ("rate", 4, 0.25)],
        ],
        "data/another": [
            *[("loss", 2, 0.5), ("rate", 2, 0.25), ("validation", 3, 0.125)],
            *[("loss", 4, 0.25), ("rate", 4, 0.25)],
        ],
        "total": [
            *[("loss", 2, 0.5), ("tokens_per_second", 2, 80.0), ("real", 2, 0.75)],
            *[("loss", 4, 0.5), ("tokens_per_second", 4, 80.0), ("real", 4, 0.75)],
        ],
    }


def test_tensorboards_points_are_there_before_training_ends(where, board):
    with track_training("tensorboard", where, {}) as track:
        track(event(10), THROUGHPUT)
        assert len(board()) == 2


def test_a_tensorboard_run_that_goes_on_adds_to_what_was_there(where, board):
    for number in (10, 20):
        with track_training("tensorboard", where, {}) as track:
            track(event(number), THROUGHPUT)
    assert [step for tag, step, _ in board()["total"] if tag == "loss"] == [10, 20]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system does not list open files")
def test_the_file_of_an_expert_that_ended_is_closed(where, board):
    def opened():
        files = [Path(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
        return {file.resolve().parent.name for file in files if "tfevents" in file.resolve().name}

    with track_training("tensorboard", where, {}) as track:
        track(event(10, "a/b", "a/c", "a/d"), THROUGHPUT)
        assert opened() == {"b", "c", "d", "total"}
        track(event(11, finished=("a/b",), failed=(Failure("a/c", 11, (0,)),)), THROUGHPUT)
        assert opened() == {"d", "total"}
    assert opened() == set()


def test_tensorboard_is_written_without_tensorflow_and_torch(where):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed: pip install 'elm_jax[track]'")
    program = (
        "import sys; from etils import epath; from elm_jax.telemetry import trackers\n"
        "board = trackers.TensorBoard(epath.Path(sys.argv[1]), {})\n"
        "board.add(1, [trackers.MetricPoint('a/b', 1, {'loss': 0.5})])\n"
        "board.close()\n"
        "print(sorted({'tensorflow', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(where)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_wandb_has_one_run_over_the_batches_that_goes_on(where, monkeypatch):
    pytest.importorskip("wandb", reason="W&B is not installed: pip install 'elm_jax[track]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    for number in (10, 20):
        with track_training("wandb", where, {"title": "train"}) as track:
            track(event(number), THROUGHPUT)
    logs = sorted((where / "wandb").glob("offline-run-*/*.wandb"))
    assert len(logs) == 2
    assert len({log.name for log in logs}) == 1  # W&B's id of the run
    series = []
    for log in logs:
        # W&B's own reader of its files, a process of its own.
        told = subprocess.run(
            [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)],
            capture_output=True,
            text=True,
            check=True,
        )
        lines = [json.loads(line) for line in told.stdout.splitlines()]
        (history,) = [line["history"]["item"] for line in lines if line["type"] == "history"]
        series.append({name: value for name, value in history.items() if not name.startswith("_")})
    always = {f"rate/{A}": 0.25, "loss/total": 0.5, "tokens_per_second/total": 80, "real/total": 0.75}
    assert series == [
        {"round": 10, f"loss/{A}": 0.1, **always},
        {"round": 20, f"loss/{A}": 0.05, **always},
    ]
