"""Training: a group is its experts, and a run that was killed is the run that was not."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elm_jax.engine import train
from elm_jax.engine.train import Job, Plan
from elm_jax.errors import UserError
from elm_jax.models import experts as ex
from elm_jax.models import paths

PLAN = Plan("bottleneck", batch_size=4, options={"width": 4}, z_loss=0.01, label_smoothing=0.1, save_every=4)
FULL = Plan("full", batch_size=4, optimizer="adafactor", schedule="constant", warmup=3)


def job(name: str, rows: int, longest: int, **fields) -> Job:
    """A job of random rows, the first of which has the full length."""
    rng = np.random.default_rng(len(name) + rows)
    lengths = [longest, *rng.integers(2, longest + 1, rows - 1)]
    prompts = [rng.integers(3, 48, length) for length in lengths]
    targets = [rng.integers(3, 48, max(1, length // 2)) for length in lengths]
    return Job(name, prompts, targets, **fields)


# Different rows, lengths, rates, seeds and ends; one has fewer rows than a batch.
JOBS = [
    job("a", 7, 8, steps=20, rate=1e-3, seed=5),
    job("b", 3, 6, steps=13, rate=5e-4, seed=6),
    job("c", 9, 8, steps=20, rate=2e-4, seed=2**31 - 1),
]


@pytest.fixture(scope="module")
def together(config, base):
    return train.train_group(config, base, JOBS, PLAN)


def flat(experts):
    return [paths.flatten(expert) for expert in experts]


def assert_close(found, wanted):
    for one, other in zip(flat(found), flat(wanted), strict=True):
        assert one.keys() == other.keys()
        for path in one:
            np.testing.assert_allclose(one[path], other[path], atol=1e-5, rtol=0, err_msg=path)


def distance(one, other):
    """The largest difference between two experts' parameters."""
    one, other = flat([one, other])
    return max(np.abs(one[path] - other[path]).max() for path in one)


def assert_same_bytes(found, wanted):
    for one, other in zip(flat(found), flat(wanted), strict=True):
        assert {path: value.tobytes() for path, value in one.items()} == {
            path: value.tobytes() for path, value in other.items()
        }


def test_experts_trained_in_one_group_equal_each_trained_alone(config, base, together):
    alone = [train.train_group(config, base, [each], PLAN)[0] for each in JOBS]
    assert_close(together, alone)


def test_dropout_of_an_expert_in_a_group_is_that_of_the_expert_alone(config, base, together):
    dropping = replace(config, dropout_rate=0.2)
    jobs = [JOBS[0], job("d", 6, 4, steps=9, rate=1e-3, seed=1), JOBS[2]]
    assert len({max(map(len, each.prompts)) for each in jobs}) > 1
    found = train.train_group(dropping, base, jobs, PLAN)
    alone = [train.train_group(dropping, base, [each], PLAN)[0] for each in jobs]
    assert_close(found, alone)
    assert distance(found[0], together[0]) > 1e-3


def test_full_experts_in_one_group_equal_each_alone_and_move_every_parameter(config, base):
    jobs, before = [JOBS[0], JOBS[2]], paths.flatten(base)
    found = train.train_group(config, base, jobs, FULL)
    assert_close(found, [train.train_group(config, base, [each], FULL)[0] for each in jobs])
    for expert in flat(found):
        assert expert.keys() == before.keys()
        assert [path for path in expert if np.array_equal(expert[path], before[path])] == []


def test_an_expert_that_has_ended_stays_while_its_neighbours_go_on(config, base, together):
    stopped = train.train_group(config, base, [replace(each, steps=13) for each in JOBS], PLAN)
    assert_same_bytes([together[1]], [stopped[1]])
    assert distance(together[0], stopped[0]) > 1e-3


def test_exactly_the_owned_parameters_move_and_all_of_them(base, together):
    stacks = {
        "encoder": ("attention_adapter", "mlp_adapter", "pre_attention_layer_norm", "pre_mlp_layer_norm"),
        "decoder": (
            "self_attention_adapter",
            "mlp_adapter",
            "pre_self_attention_layer_norm",
            "pre_cross_attention_layer_norm",
            "pre_mlp_layer_norm",
        ),
    }
    adapter = ("down/bias", "down/kernel", "up/bias", "up/kernel")
    owned = {f"{stack}/{stack}_norm/scale" for stack in stacks}
    for stack, blocks in stacks.items():
        for block in blocks:
            parts = ("scale",) if block.endswith("norm") else adapter
            owned |= {f"{stack}/layers/{block}/{part}" for part in parts}
    for each, expert in zip(JOBS, flat(together), strict=True):
        fresh = paths.flatten(ex.init("bottleneck", jax.random.key(each.seed), base, **PLAN.options))
        assert set(expert) == set(fresh) == owned
        still = [path for path in expert if np.abs(expert[path] - fresh[path]).max() < each.rate]
        assert still == []


@pytest.mark.parametrize(("jobs", "plan"), [(JOBS, PLAN), (JOBS[:1], FULL)], ids=["bottleneck", "full"])
def test_the_base_is_bit_for_bit_as_it_was(config, base, jobs, plan):
    before = jax.tree.map(np.array, base)
    train.train_group(config, base, jobs, plan)
    assert jax.tree.all(jax.tree.map(np.array_equal, base, before))


def test_results_are_in_the_order_of_the_jobs(config, base, together):
    order = [2, 0, 1]
    found = train.train_group(config, base, [JOBS[at] for at in order], PLAN)
    assert_close(found, [together[at] for at in order])


def test_progress_comes_every_ten_steps_and_at_the_end(config, base):
    told = []
    jobs = [replace(each, steps=13) for each in JOBS]
    train.train_group(config, base, jobs, PLAN, progress=lambda done, loss: told.append((done, loss)))
    assert [done for done, _ in told] == [10, 13]
    assert all(0 < loss < 10 for _, loss in told)


def test_one_step_of_adam_moves_by_the_rate_of_the_first_step(config, base):
    (found,) = train.train_group(config, base, [replace(JOBS[0], steps=1, rate=0.25)], PLAN)
    assert distance(found, ex.init("bottleneck", jax.random.key(5), base, width=4)) == pytest.approx(
        0.25, rel=1e-3
    )


def test_with_an_epoch_a_step_the_order_of_rows_is_nothing_and_their_pairing_all(config, base):
    rows = job("rows", 4, 8, steps=20, rate=1e-3)

    def trained(prompts, targets):
        made = replace(
            rows, prompts=[rows.prompts[at] for at in prompts], targets=[rows.targets[at] for at in targets]
        )
        return train.train_group(config, base, [made], PLAN)[0]

    ordered = trained([0, 1, 2, 3], [0, 1, 2, 3])
    assert_close([trained([2, 0, 3, 1], [2, 0, 3, 1])], [ordered])
    assert distance(trained([2, 0, 3, 1], [0, 1, 2, 3]), ordered) > 1e-3


def test_no_steps_give_the_fresh_expert(config, base):
    (found,) = train.train_group(config, base, [replace(JOBS[0], steps=0)], PLAN)
    assert_close([found], [ex.init("bottleneck", jax.random.key(5), base, width=4)])


class Killed(Exception):
    """Stands for what ends a run from outside."""


def killed(config, base, jobs, plan, directory, at):
    """Trains until `at` steps are done and then no more."""

    def progress(done, loss):
        if done == at:
            raise Killed

    with pytest.raises(Killed):
        train.train_group(config, base, jobs, plan, checkpoint_dir=directory, progress=progress)


@pytest.mark.parametrize(("at", "saved"), [(10, ["4", "8"]), (20, ["12", "16"])])
def test_a_killed_run_called_again_ends_with_the_same_bytes(config, base, together, tmp_path, at, saved):
    killed(config, base, JOBS, PLAN, tmp_path, at)
    assert sorted(each.name for each in tmp_path.iterdir() if each.is_dir()) == sorted(saved)
    told = []
    found = train.train_group(
        config, base, JOBS, PLAN, checkpoint_dir=tmp_path, progress=lambda done, loss: told.append(done)
    )
    assert_same_bytes(found, together)
    assert told == ([10, 20] if at == 10 else [20])


def test_a_run_killed_before_its_first_save_and_one_killed_twice_end_with_the_same_bytes(
    config, base, together, tmp_path
):
    early, twice = tmp_path / "early", tmp_path / "twice"
    late = replace(PLAN, save_every=15)
    killed(config, base, JOBS, late, early, 10)
    assert_same_bytes(train.train_group(config, base, JOBS, late, checkpoint_dir=early), together)
    killed(config, base, JOBS, PLAN, twice, 10)
    killed(config, base, JOBS, PLAN, twice, 20)
    assert_same_bytes(train.train_group(config, base, JOBS, PLAN, checkpoint_dir=twice), together)


def test_a_half_written_checkpoint_costs_steps_and_changes_no_byte(config, base, together, tmp_path):
    killed(config, base, JOBS, PLAN, tmp_path, 20)
    files = [file for file in (tmp_path / "16").rglob("*") if file.is_file()]
    largest = max(files, key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-40])
    assert_same_bytes(train.train_group(config, base, JOBS, PLAN, checkpoint_dir=tmp_path), together)


def test_the_checkpoints_of_another_run_are_refused_naming_what_differs(config, base, tmp_path):
    killed(config, base, JOBS, PLAN, tmp_path, 10)

    def refused(told, *, config=config, base=base, jobs=JOBS, plan=PLAN):
        with pytest.raises(UserError, match=f"belong to another run: what differs is its {told}[.]"):
            train.train_group(config, base, jobs, plan, checkpoint_dir=tmp_path)

    refused("plan", plan=replace(PLAN, warmup=1))
    refused("network", config=replace(config, dropout_rate=0.1))
    refused("base", base=jax.tree.map(lambda leaf: leaf * 1.001, base))
    refused("jobs", jobs=JOBS[::-1])
    refused("jobs", jobs=[*JOBS[:2], replace(JOBS[2], rate=3e-4)])
    refused("jobs", jobs=[*JOBS[:2], replace(JOBS[2], prompts=[*JOBS[2].prompts[:-1], np.array([3, 4])])])
    refused("plan and its jobs", plan=replace(PLAN, batch_size=5), jobs=JOBS[:2])


def test_a_job_without_rows_is_refused(config, base):
    empty = Job("boolq/yes", [], [], steps=5, rate=1e-3)
    with pytest.raises(UserError, match="Rows to train 'boolq/yes' on are wanted, but it has none"):
        train.train_group(config, base, [JOBS[0], empty], PLAN)


def test_a_job_with_prompts_that_lack_a_target_is_refused(config, base):
    short = replace(JOBS[0], targets=JOBS[0].targets[:-1])
    with pytest.raises(UserError, match="A target for every prompt of 'a' is wanted, but 6 came for 7"):
        train.train_group(config, base, [short], PLAN)


ROWS, SEEDS = st.integers(1, 12), st.integers(0, 2**32 - 1)


@settings(deadline=None)
@given(ROWS, SEEDS, st.integers(0, 5))
def test_every_epoch_visits_every_row_once(rows, seed, epoch):
    found = train.row_order(rows, seed, epoch * rows, rows)
    assert sorted(found.tolist()) == list(range(rows))


@settings(deadline=None)
@given(ROWS, SEEDS, st.integers(0, 30), st.lists(st.integers(1, 15), min_size=1, max_size=6))
def test_the_order_does_not_depend_on_where_it_is_taken_up(rows, seed, start, pieces):
    whole = train.row_order(rows, seed, start, sum(pieces))
    parts = []
    for count in pieces:
        parts += train.row_order(rows, seed, start, count).tolist()
        start += count
    assert parts == whole.tolist()


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {
        tuple(train.row_order(30, seed, epoch * 30, 30).tolist()) for seed in range(3) for epoch in range(3)
    }
    assert len(orders) == 9
