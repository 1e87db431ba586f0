"""Stages: they end as done, and show nothing where progress is hidden."""

import io

import pytest
from rich.console import Console

from elm_jax.telemetry import progress
from elm_jax.telemetry.progress import Stages


@pytest.fixture
def console():
    return Console(file=io.StringIO(), force_terminal=True, width=100, record=True)


def test_a_stage_that_ends_stands_as_done(console):
    with Stages(console).stage("read", 3):
        pass  # and told of nothing
    assert "3/3" in console.export_text()


def test_a_stage_that_fails_does_not_stand_as_done(console):
    with pytest.raises(ValueError, match="broken"), Stages(console).stage("read", 3):
        raise ValueError("broken")
    assert "3/3" not in console.export_text()


def test_hidden_progress_shows_nothing_and_times_are_kept(capsys):
    with progress.hidden():
        stages = Stages()
    with stages.stage("read", 1):
        pass
    assert capsys.readouterr().err == ""
    assert "read" in stages.seconds
    with Stages().stage("read", 1):
        pass
    assert "read" in capsys.readouterr().err
