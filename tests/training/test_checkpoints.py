"""Checkpoints: the newest whole one comes back, a damaged or foreign one never does."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elm_jax.errors import UserError
from elm_jax.training.checkpoints import CheckpointStore

RUN = {"network": "n", "plan": "p", "jobs": [{"id": "a", "rate": 0.001}]}
NUMBERS = np.random.default_rng(5).normal(size=(3, 700)).astype(np.float32)


def state(step: int):
    """A state that says which step it is of in every leaf."""
    return {"w": {"kernel": jnp.asarray(NUMBERS + step)}, "count": jnp.full(3, step, jnp.int32)}


def latest(directory, identity=RUN):
    """The newest whole step with its state, or 0; what was noted with it must be of that step."""
    with CheckpointStore(directory, identity) as store:
        found = store.position()
        if found is None:
            return 0, state(0)
        step, noted = found
        assert noted == {"at": step}
        return step, store.restore(step, state(0))


def save(directory, *steps):
    with CheckpointStore(directory, RUN) as store:
        for step in steps:
            store.save(step, state(step), {"at": step})


def assert_step(found, step):
    assert found[0] == step
    assert jax.tree.all(jax.tree.map(np.array_equal, found[1], state(step)))


def test_without_a_directory_nothing_is_kept():
    with CheckpointStore(None, RUN) as store:
        store.save(3, state(3), {})
        assert store.position() is None


def test_the_newest_step_comes_back_bit_for_bit_and_two_are_kept(tmp_path):
    assert_step(latest(tmp_path / "run"), 0)
    save(tmp_path / "run", 5, 10, 15)
    found = latest(tmp_path / "run")
    assert_step(found, 15)
    assert found[1]["count"].dtype == np.int32
    assert {each.name for each in (tmp_path / "run").iterdir()} == {"10", "15", "identity.json"}


def test_what_is_saved_is_the_state_of_that_moment_though_training_goes_on_in_its_place(tmp_path):
    onward = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    now = state(5)
    with CheckpointStore(tmp_path, RUN) as store:
        store.save(5, now, {"at": 5})
        for _ in range(20):
            now = onward(now)
    assert_step(latest(tmp_path), 5)


def delete(file):
    file.unlink()


def halve(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file):
    file.write_bytes(b"")


def largest(step):
    return max((file for file in step.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


@pytest.mark.parametrize(
    ("which", "damage"),
    [(largest, halve), ("state/manifest.ocdbt", delete), ("state/_METADATA", empty), ("files.json", halve)],
    ids=["largest", "manifest", "metadata", "list"],
)
def test_a_half_written_step_is_passed_over_for_the_one_before_and_saved_again(tmp_path, which, damage):
    save(tmp_path, 5, 10)
    damage(which(tmp_path / "10") if callable(which) else tmp_path / "10" / which)
    assert_step(latest(tmp_path), 5)
    save(tmp_path, 10)
    assert_step(latest(tmp_path), 10)
    assert (tmp_path / "5").is_dir()


def test_with_every_step_half_written_the_run_starts_anew(tmp_path):
    save(tmp_path, 5, 10)
    delete(largest(tmp_path / "5"))
    halve(largest(tmp_path / "10"))
    assert_step(latest(tmp_path), 0)
    save(tmp_path, 5)
    assert_step(latest(tmp_path), 5)


def test_a_save_cut_short_before_its_end_is_never_read_and_is_cleared_away(tmp_path):
    save(tmp_path, 5, 10)
    (tmp_path / "10").rename(tmp_path / "10.orbax-checkpoint-tmp")
    assert_step(latest(tmp_path), 5)
    save(tmp_path, 10)
    assert_step(latest(tmp_path), 10)
    assert not (tmp_path / "10.orbax-checkpoint-tmp").exists()


def test_a_step_with_a_bit_turned_is_passed_over_for_the_one_before_and_that_is_told(tmp_path, caplog):
    save(tmp_path, 5, 10)
    file = largest(tmp_path / "10")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert_step(latest(tmp_path), 5)
    assert f"The checkpoint at {tmp_path / '10'} is damaged, and deleted." in caplog.messages


def test_a_state_of_another_form_is_an_error_that_names_the_step(tmp_path):
    save(tmp_path, 5)
    with CheckpointStore(tmp_path, RUN) as store:
        other = {"w": {"kernel": jnp.zeros((3, 700)), "bias": jnp.zeros(3)}}
        with pytest.raises(UserError, match=r"5'"):
            store.restore(5, other)


def test_of_what_may_differ_each_time_the_first_note_holds(tmp_path):
    with CheckpointStore(tmp_path, RUN | {"_queue": ["a", "b"]}) as store:
        assert store.identity["_queue"] == ["a", "b"]
    with CheckpointStore(tmp_path, RUN | {"_queue": ["b"]}) as store:
        assert store.identity["_queue"] == ["a", "b"]


def test_a_save_that_fails_is_told_in_a_sentence_and_the_one_before_is_left(tmp_path):
    """The system refuses files beyond a size, as it does all of them where a disk is full."""
    script = f"""
import resource, signal, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
import jax.numpy as jnp, numpy as np
from elm_jax.training.checkpoints import CheckpointStore
from elm_jax.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
small, large = (np.random.default_rng(0).normal(size=size) for size in (10, 2_000_000))
try:
    with CheckpointStore({str(tmp_path)!r}, {{"run": "a"}}) as store:
        store.save(5, {{"w": jnp.asarray(small)}}, {{"at": 5}})
        store._manager.wait_until_finished()
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
        store.save(10, {{"w": jnp.asarray(large)}}, {{"at": 10}})
except UserError as error:
    print(error)
with CheckpointStore({str(tmp_path)!r}, {{"run": "a"}}) as store:
    print(store.position())
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    sentence, left = told.stdout.strip().splitlines()
    assert str(tmp_path) in sentence
    assert "File too large" in sentence
    assert left == "(5, {'at': 5})"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"plan": "q"}, "in its plan[.]"),
        ({"jobs": [{"id": "a", "rate": 0.002}]}, "in its jobs[.]"),
        ({"network": "m", "plan": "q"}, "in its network and plan[.]"),
    ],
)
def test_the_checkpoints_of_another_run_are_refused_naming_what_differs(tmp_path, change, told):
    save(tmp_path, 5)
    with pytest.raises(UserError, match=told):
        latest(tmp_path, RUN | change)
    assert_step(latest(tmp_path), 5)


def test_a_directory_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        CheckpointStore(tmp_path / "file" / "run", RUN)
