"""Checkpoints: the newest whole one comes back, a damaged or foreign one never does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elm_jax.engine.checkpoints import Store
from elm_jax.errors import UserError

RUN = {"network": "n", "plan": "p", "jobs": [{"id": "a", "rate": 0.001}]}
NUMBERS = np.random.default_rng(5).normal(size=(3, 700)).astype(np.float32)


def state(step: int):
    """A state that says which step it is of in every leaf."""
    return {"w": {"kernel": jnp.asarray(NUMBERS + step)}, "count": jnp.full(3, step, jnp.int32)}


def latest(directory, identity=RUN):
    store = Store(directory, identity)
    try:
        return store.latest(state(0))
    finally:
        store.close()


def save(directory, *steps):
    store = Store(directory, RUN)
    for step in steps:
        store.save(step, state(step))
    store.close()


def assert_step(found, step):
    assert found[0] == step
    assert jax.tree.all(jax.tree.map(np.array_equal, found[1], state(step)))


def test_without_a_directory_nothing_is_kept():
    store = Store(None, RUN)
    store.save(3, state(3))
    assert_step(store.latest(state(0)), 0)
    store.close()


def test_the_newest_step_comes_back_bit_for_bit_and_two_are_kept(tmp_path):
    assert_step(latest(tmp_path / "run"), 0)
    save(tmp_path / "run", 5, 10, 15)
    found = latest(tmp_path / "run")
    assert_step(found, 15)
    assert found[1]["count"].dtype == np.int32
    assert {each.name for each in (tmp_path / "run").iterdir()} == {"10", "15", "identity.json"}


def test_what_is_saved_is_the_state_of_that_moment_though_training_goes_on_in_its_place(tmp_path):
    onward = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    store = Store(tmp_path, RUN)
    now = state(5)
    store.save(5, now)
    for _ in range(20):
        now = onward(now)
    store.close()
    assert_step(latest(tmp_path), 5)


def delete(file):
    file.unlink()


def halve(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file):
    file.write_bytes(b"")


def largest(step):
    return max((file for file in step.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


@pytest.mark.parametrize("damage", [delete, halve, empty])
@pytest.mark.parametrize(
    "which",
    [largest, *("default/" + name for name in ("manifest.ocdbt", "_METADATA")), "files.json"],
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


def test_a_step_damaged_at_its_full_size_is_refused_and_the_one_before_is_left(tmp_path):
    save(tmp_path, 5, 10)
    file = tmp_path / "10" / "default" / "_METADATA"
    file.write_bytes(b"?" * file.stat().st_size)
    with pytest.raises(UserError, match=r"10'.* damaged .* Delete it to go on from the one before"):
        latest(tmp_path)
    for inside in sorted((tmp_path / "10").rglob("*"), reverse=True):
        inside.rmdir() if inside.is_dir() else inside.unlink()
    (tmp_path / "10").rmdir()
    assert_step(latest(tmp_path), 5)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"plan": "q"}, "what differs is its plan"),
        ({"jobs": [{"id": "a", "rate": 0.002}]}, "what differs is its jobs"),
        ({"network": "m", "plan": "q"}, "what differs is its network and its plan"),
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
        Store(tmp_path / "file" / "run", RUN)
