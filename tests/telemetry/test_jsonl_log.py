"""The journal: strict JSON, a line for what is worth one, whole after whatever was killed."""

import json
import math
from datetime import UTC, datetime

import pytest
from etils import epath

from elm_jax.errors import UserError
from elm_jax.telemetry import jsonl_log
from elm_jax.telemetry.events import Event, Failure, StepMetrics, Validation
from elm_jax.telemetry.jsonl_log import Journal
from elm_jax.telemetry.throughput import Throughput

THROUGHPUT = Throughput(loss=1.5, tokens_per_second=80.0, mfu=None)
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def event(step, *experts, loss=1.5, **changes):
    metrics = tuple(StepMetrics(name, step, 25, loss, 0.01) for name in experts or ("a/b",))
    return Event(step, step, 25, metrics, 60, 20, 100, 0, **changes)


@pytest.fixture
def where(tmp_path):
    return epath.Path(tmp_path) / "logs" / "training.jsonl"


def test_a_line_comes_every_ten_steps_of_an_expert_and_with_its_last():
    lines = [step for step in range(1, 26) for _ in jsonl_log.journal_records(event(step), THROUGHPUT)]
    assert lines == [10, 20, 25]


def test_a_line_has_the_experts_step_and_the_speed_of_all(where):
    with jsonl_log.open_journal(where, {"title": "train"}):
        pass
    journal = Journal(where, now=lambda: NOON)
    journal(event(10), THROUGHPUT)
    journal.close()
    time = "2026-01-02T12:00:00.000+00:00"
    step = {"step": 10, "steps": 25, "loss": 1.5, "rate": 0.01}
    step |= {"tokens": 80, "tokens_per_second": 80.0, "mfu": None}
    run, line = jsonl_log.read_journal(where)
    assert (run["kind"], run["title"]) == ("run", "train")
    assert line == {"time": time, "kind": "step", "round": 10, "expert": "a/b", **step}


def test_what_ends_and_what_is_validated_has_a_line_at_any_step():
    failure = Failure("a/c", 3, (7, 8))
    told = event(
        3,
        *("a/b", "a/c"),
        finished=("a/b",),
        failed=(failure,),
        validations=(Validation("a/b", 3, 0.5, 0.75, best=True),),
    )
    validation, finished, failed = jsonl_log.journal_records(told, THROUGHPUT)
    assert (validation["kind"], validation["loss"], validation["best"]) == ("validation", 0.5, True)
    assert (finished["kind"], finished["expert"], finished["step"]) == ("finished", "a/b", 3)
    assert (failed["kind"], failed["expert"], failed["rows"]) == ("failed", "a/c", (7, 8))


def test_a_loss_that_is_not_finite_is_null_and_says_so(where):
    with jsonl_log.open_journal(where, {}) as open_journal:
        open_journal(event(10, loss=math.nan), THROUGHPUT)
    assert "NaN" not in where.read_text()
    record = jsonl_log.read_journal(where)[1]
    assert (record["loss"], record["finite"]) == (None, False)


def test_a_line_is_there_as_soon_as_it_was_written(where):
    open_journal = Journal(where)
    open_journal(event(10), THROUGHPUT)
    assert len(jsonl_log.read_journal(where)) == 1
    open_journal.close()


def test_steps_that_a_run_repeats_are_in_the_file_twice_and_read_once(where):
    for losses in ((3.0, 2.0), (1.0,)):
        with jsonl_log.open_journal(where, {"title": str(len(losses))}) as open_journal:
            for number, loss in enumerate(losses):
                open_journal(event(10 * (number + 1), loss=loss), THROUGHPUT)
    assert len(where.read_text().splitlines()) == 5
    found = [(record.get("step"), record.get("loss")) for record in jsonl_log.read_journal(where)]
    assert found == [(None, None), (20, 2.0), (None, None), (10, 1.0)]


def test_half_a_line_of_a_killed_process_is_read_as_unfinished_and_then_cut_off(where):
    with jsonl_log.open_journal(where, {"title": "first"}):
        pass
    where.write_bytes(where.read_bytes() + b'{"kind": "st')
    assert jsonl_log.read_journal(where)[-1] == {"kind": "unfinished", "text": '{"kind": "st'}
    with jsonl_log.open_journal(where, {"title": "second"}):
        pass
    assert [record["title"] for record in jsonl_log.read_journal(where)] == ["first", "second"]


def test_a_broken_line_within_is_named(where):
    where.parent.mkdir()
    where.write_text('{"kind": "run"}\noops\n{"kind": "run"}\n')
    with pytest.raises(UserError, match="line 2"):
        jsonl_log.read_journal(where)


def test_no_journal_is_a_clear_error(where):
    with pytest.raises(UserError, match=r"training\.jsonl"):
        jsonl_log.read_journal(where)


def test_names_come_back_as_they_were(where):
    name = "C1 or C2? premise, so/because…\u2028 "
    with jsonl_log.open_journal(where, {}) as open_journal:
        open_journal(event(10, name), THROUGHPUT)
    assert jsonl_log.read_journal(where)[1]["expert"] == name


def test_a_file_that_cannot_grow_is_rewritten_now_and_then_and_at_the_end(where):
    seconds = [0.0]
    for _ in range(2):
        open_journal = Journal(where, rewrite=True, clock=lambda: seconds[0])
        before = where.read_bytes() if where.exists() else None
        open_journal(event(10), THROUGHPUT)
        assert before == (where.read_bytes() if where.exists() else None)
        seconds[0] += jsonl_log.REWRITE_EVERY
        open_journal(event(20), THROUGHPUT)
        lines = where.read_text().splitlines()
        assert json.loads(lines[-1])["step"] == 20
        open_journal(event(25), THROUGHPUT)
        open_journal.close()
    assert len(where.read_text().splitlines()) == 6


@pytest.fixture
def full_disk():
    """No file may grow beyond 4 MiB."""
    resource = pytest.importorskip("resource", reason="the system has no limit to the size of a file")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**22, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_is_a_clear_error_and_leaves_what_was_written(where, full_disk):
    open_journal = Journal(where)
    open_journal.write([{"kind": "run"}])
    with pytest.raises(UserError, match=r"training\.jsonl"):
        open_journal.write([{"kind": "run", "title": "x" * 2**23}])
    open_journal.close()
    assert [record["kind"] for record in jsonl_log.read_journal(where)] == ["run", "unfinished"]


def test_a_place_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(UserError, match="cannot be written"):
        Journal(epath.Path(tmp_path) / "logs" / "training.jsonl")
