"""Checkpoints in a bucket: the newest whole one comes back, and a damaged or half-copied one never does."""

import subprocess
import sys

import numpy as np
import pytest

from elm_jax.training.checkpoints import FILES, CheckpointStore
from tests.s3_server import objects
from tests.training.test_checkpoints import RUN, assert_step, latest, save, state


def test_the_newest_step_comes_back_bit_for_bit_and_two_are_kept(bucket):
    assert_step(latest(bucket / "run"), 0)
    save(bucket / "run", 5, 10, 15)
    found = latest(bucket / "run")
    assert_step(found, 15)
    assert found[1]["count"].dtype == np.int32
    assert {name.partition("/")[0] for name in objects(bucket / "run")} == {"10", "15", "identity.json"}


@pytest.mark.parametrize("damage", ["halve", "delete", "delete the list"])
def test_a_damaged_step_is_passed_over_for_the_one_before_and_saved_again(bucket, damage):
    save(bucket, 5, 10)
    files = [bucket / "10" / name for name in objects(bucket / "10")]
    largest = max(files, key=lambda file: file.stat().length)
    if damage == "halve":
        largest.write_bytes(largest.read_bytes()[: largest.stat().length // 2])
    else:
        (largest if damage == "delete" else bucket / "10" / FILES).unlink()
    assert_step(latest(bucket), 5)
    save(bucket, 10)
    assert_step(latest(bucket), 10)


def test_a_process_killed_while_it_copies_a_step_leaves_the_one_before(bucket):
    save(bucket, 5)
    script = """
import os, sys
from elm_jax import storage
from elm_jax.training import checkpoints
from tests.training.test_checkpoints import save
copy, copied = storage.copy_file, []
def dying(source, target):
    if len(copied) == 3:
        os.kill(os.getpid(), 9)
    copied.append(target)
    copy(source, target)
storage.copy_file = dying
save(sys.argv[1], 10)
"""
    killed = subprocess.run([sys.executable, "-c", script, str(bucket)], capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    assert len(objects(bucket / "10")) == 3
    assert_step(latest(bucket), 5)
    save(bucket, 10)
    assert_step(latest(bucket), 10)


def test_a_store_that_was_opened_goes_on_saving(bucket):
    save(bucket, 5)
    with CheckpointStore(bucket, RUN) as store:
        assert store.position() == (5, {"at": 5})
        store.save(10, state(10), {"at": 10})
    assert_step(latest(bucket), 10)
