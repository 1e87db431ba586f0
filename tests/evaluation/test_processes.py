"""Processes that evaluate: one that is killed and started again, and two that share the work."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.run_fixtures import BOTTLENECK, TRAINED
from tests.xla_flags import xla_flags

EXPERTS = (*TRAINED, *(f"mini_taxonomy_kind/{number}" for number in range(12)))
ASKED = (
    "mini-unseen",
    "--oracle",
    "--method",
    "one=fixed:expert=mini_taxonomy_kind/3",
    "--method",
    "uniform",
)


@pytest.fixture(scope="module")
def source(make_run):
    """A run with experts enough for several groups of scores, of which nothing is scored."""
    return make_run(BOTTLENECK, experts=EXPERTS, rows=None, keyed=False).workspace.root


@pytest.fixture
def copied(source, tmp_path):
    """Copies the run, as often as wanted."""

    def copy(name):
        return shutil.copytree(source, tmp_path / name)

    return copy


def start(root, *flags):
    command = [sys.executable, "-m", "elm_jax.cli", "evaluate", *ASKED, "--run", str(root), *flags]
    # Evaluation imports no TensorFlow: here it would fail to.
    own = {"PYTHONPATH": str(Path(__file__).parents[1] / "without_tensorflow")}
    own |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags(1)}
    compiled = {"JAX_COMPILATION_CACHE_DIR": str(root.parent.parent / "compiled")}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **own, **compiled},
    )


def ended(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out, err


def files(root):
    return {file.relative_to(root): file.read_bytes() for file in (root / "scores").rglob("*.jsonl")}


def told(root):
    report = json.loads((root / "report" / "report.json").read_text())
    return {part: report[part] for part in ("rows", "means", "comparisons", "matrix", "examples")}


@pytest.mark.nightly
def test_an_evaluation_that_is_killed_goes_on_and_ends_with_the_same_bytes(copied):
    whole, torn = copied("whole"), copied("torn")
    ended(start(whole))
    wanted = files(whole)
    before: dict = {}
    for _ in range(2):
        process = start(torn)
        deadline = time.monotonic() + 240
        # As soon as it has written something more it is killed.
        while len(files(torn)) <= len(before) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
        process.communicate()
        now = {path: (torn / path).stat().st_mtime_ns for path in files(torn)}
        assert all(now[path] == at for path, at in before.items())
        before = now
    assert 0 < len(before) < len(wanted)
    ended(start(torn))
    assert files(torn) == wanted
    assert all((torn / path).stat().st_mtime_ns == at for path, at in before.items())
    assert told(torn) == told(whole)


def test_two_processes_score_what_one_does(copied):
    one, two = copied("one"), copied("two")
    ended(start(one))
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    flags = ["--multiprocess", "--coordinator_address", f"localhost:{port}", "--process_count", "2"]
    processes = [start(two, *flags, "--process_index", str(index)) for index in range(2)]
    (first, _), (second, _) = map(ended, processes)
    assert "Report:" in first
    assert "Report:" not in second
    assert files(two).keys() == files(one).keys()
    for path, content in files(one).items():
        # Other batches, so other roundings.
        lines = [
            [json.loads(line) for line in each.decode().splitlines()] for each in (content, files(two)[path])
        ]
        for row, other in zip(*lines, strict=True):
            scores = row.pop("scores", []), other.pop("scores", [])
            np.testing.assert_allclose(*scores, rtol=1e-4, atol=1e-4)
            assert row == other
    assert told(two)["rows"] == told(one)["rows"]
