"""Training: a group is its experts, and a run that was killed is the run that was not."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elm_jax.errors import UserError
from elm_jax.models import expert_layers as ex
from elm_jax.models import meshes, paths
from elm_jax.models.t5 import T5
from elm_jax.scoring.buckets import PromptWithChoices
from elm_jax.scoring.scorer import score_rows
from elm_jax.training import batches, step, trainer
from elm_jax.training import config as configs
from elm_jax.training.checkpoints import CheckpointDirectory
from elm_jax.training.group import Group
from elm_jax.training.jobs import TrainingJob, ValidationRows, row_order
from elm_jax.training.loss import token_losses
from tests.training_configs import change_plan, make_job, make_plan, with_config

PLAN = make_plan(options={"width": 4}, z_loss=0.01, label_smoothing=0.1, save_every=4)
FULL = make_plan(kind="full", optimizer="adafactor")
CONSTANT = {"schedule": "constant", "warmup": 3}


UNREAD = 2
"""A token of no row."""


def job(name: str, rows: int, longest: int, **fields) -> TrainingJob:
    """A job of random rows, the first of which has the full length."""
    rng = np.random.default_rng(len(name) + rows)
    lengths = [longest, *rng.integers(2, longest + 1, rows - 1)]
    prompts = [rng.integers(3, 48, length) for length in lengths]
    targets = [rng.integers(3, 48, max(1, length // 2)) for length in lengths]
    return make_job(name, prompts, targets, **{"batch_size": 4, **fields})


# Different rows, lengths, rates, seeds and ends; one has fewer rows than a batch.
JOBS = [
    job("a", 7, 8, steps=20, rate=1e-3, seed=5),
    job("b", 3, 6, steps=13, rate=5e-4, seed=6),
    job("c", 9, 8, steps=20, rate=2e-4, seed=2**31 - 1),
]


@pytest.fixture(scope="module")
def together(config, base):
    return trainer.train_group(config, base, JOBS, PLAN)


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


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("prompt", {"tokens": 2}),
        ("dora", {"rank": 2}),
        pytest.param("vera", {"rank": 4}, marks=pytest.mark.nightly),
    ],
)
def test_experts_of_other_kinds_train_in_a_group_as_alone(config, base, kind, options):
    plan = make_plan(kind=kind, options=options)
    some = [job("a", 7, 8, steps=3, rate=1e-2, seed=5), job("c", 5, 6, steps=2, rate=2e-2)]
    alone = [trainer.train_group(config, base, [each], plan)[0] for each in some]
    assert_close(trainer.train_group(config, base, some, plan), alone)


def test_the_first_step_of_lora_is_its_factor_times_the_rate(config, base):
    one = job("a", 7, 8, steps=1, rate=1e-3)
    for options, factor in (({}, 1), ({"alpha": 6}, 6 / 4), ({"alpha": 6, "rslora": True}, 6 / 2)):
        plan = make_plan(kind="lora", options={"rank": 4, **options})
        (found,) = trainer.train_group(config, base, [one], plan)
        moved = [leaf for path, leaf in paths.flatten(found).items() if path.endswith("lora_b")]
        # Adam's first direction is the sign of the gradient.
        assert max(np.abs(leaf).max() for leaf in moved) == pytest.approx(factor * 1e-3, rel=1e-3)


def test_experts_trained_in_one_group_equal_each_trained_alone(config, base, together):
    alone = [trainer.train_group(config, base, [each], PLAN)[0] for each in JOBS]
    assert_close(together, alone)


def test_dropout_of_an_expert_in_a_group_is_that_of_the_expert_alone(config, base, together):
    dropping = replace(config, dropout_rate=0.2)
    jobs = [JOBS[0], job("d", 6, 4, steps=9, rate=1e-3, seed=1), JOBS[2]]
    assert len({max(map(len, each.prompts)) for each in jobs}) > 1
    found = trainer.train_group(dropping, base, jobs, PLAN)
    alone = [trainer.train_group(dropping, base, [each], PLAN)[0] for each in jobs]
    assert_close(found, alone)
    assert distance(found[0], together[0]) > 1e-3


def test_full_experts_in_one_group_equal_each_alone_and_move_every_parameter(config, base):
    jobs = [with_config(each, **CONSTANT) for each in (JOBS[0], JOBS[2])]
    before = paths.flatten(base)
    found = trainer.train_group(config, base, jobs, FULL)
    assert_close(found, [trainer.train_group(config, base, [each], FULL)[0] for each in jobs])
    for expert in flat(found):
        assert expert.keys() == before.keys()
        assert [path for path in expert if np.array_equal(expert[path], before[path])] == []


def test_steps_that_are_one_batch_need_no_sums_and_give_the_same_experts(config, base, monkeypatch):
    jobs = [with_config(JOBS[0], batch_size=1)]  # a batch has room for any row
    whole = trainer.train_group(config, base, jobs, PLAN)
    with monkeypatch.context() as patched:
        patched.setattr(Group, "accumulate", None)
        assert_same_bytes(trainer.train_group(config, base, jobs, PLAN), whole)
    monkeypatch.setattr(batches, "holds_steps", lambda *_: False)
    assert_close(trainer.train_group(config, base, jobs, PLAN), whole)


def test_an_expert_that_has_ended_stays_while_its_neighbours_go_on(config, base, together):
    stopped = trainer.train_group(config, base, [with_config(each, steps=13) for each in JOBS], PLAN)
    assert_close([together[1]], [stopped[1]])
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
        fresh = paths.flatten(
            ex.init_expert("bottleneck", jax.random.key(each.seed), base, PLAN.config.expert.options)
        )
        assert set(expert) == set(fresh) == owned
        still = [
            path for path in expert if np.abs(expert[path] - fresh[path]).max() < each.config.schedule.peak
        ]
        assert still == []


@pytest.mark.parametrize(("jobs", "plan"), [(JOBS, PLAN), (JOBS[:1], FULL)], ids=["bottleneck", "full"])
def test_the_base_is_bit_for_bit_as_it_was(config, base, jobs, plan):
    before = jax.tree.map(np.array, base)
    trainer.train_group(config, base, jobs, plan)
    assert jax.tree.all(jax.tree.map(np.array_equal, base, before))


def test_results_are_in_the_order_of_the_jobs(config, base, together):
    order = [2, 0, 1]
    found = trainer.train_group(config, base, [JOBS[at] for at in order], PLAN)
    assert_close(found, [together[at] for at in order])


def test_every_batch_has_an_event_with_the_step_loss_and_learning_rate_of_every_expert_in_it(config, base):
    told = []
    trainer.train_group(config, base, JOBS, PLAN, on_event=told.append)
    assert [event.batch for event in told] == list(range(1, len(told) + 1))
    for each in JOBS:
        steps = [own.step for event in told for own in event.metrics if own.expert == each.id]
        assert steps == [*range(1, each.steps + 1)]
    first = {own.expert: own.learning_rate for event in told for own in event.metrics if own.step == 1}
    assert first == pytest.approx({"a": 1e-3, "b": 5e-4, "c": 2e-4})
    assert all(0 < own.loss < 10 for event in told for own in event.metrics)
    assert (told[-1].steps_done, told[-1].steps) == (53, 53)
    ended = [name for event in told for name in event.finished]
    assert ended[0] == "b"
    assert sorted(ended) == ["a", "b", "c"]


def test_one_step_of_adam_moves_by_the_rate_of_the_first_step(config, base):
    (found,) = trainer.train_group(config, base, [with_config(JOBS[0], steps=1, rate=0.25)], PLAN)
    assert distance(
        found, ex.init_expert("bottleneck", jax.random.key(5), base, {"width": 4})
    ) == pytest.approx(0.25, rel=1e-3)


def test_with_an_epoch_a_step_the_order_of_rows_is_nothing_and_their_pairing_all(config, base):
    rows = job("rows", 4, 8, steps=20, rate=1e-3)

    def trained(prompts, targets):
        made = replace(
            rows, prompts=[rows.prompts[at] for at in prompts], targets=[rows.targets[at] for at in targets]
        )
        return trainer.train_group(config, base, [made], PLAN)[0]

    ordered = trained([0, 1, 2, 3], [0, 1, 2, 3])
    assert_close([trained([2, 0, 3, 1], [2, 0, 3, 1])], [ordered])
    assert distance(trained([2, 0, 3, 1], [0, 1, 2, 3]), ordered) > 1e-3


class Killed(Exception):
    """Stands for what ends a run from outside."""


def trained(library, config, base, jobs, plan, directory, identity=None, **options):
    """Trains into a library, and returns what it holds in the order of the jobs."""

    def done(job, params):
        again = library.setdefault(job.id, params)
        assert_same_bytes([params], [again])

    checkpoints = CheckpointDirectory(directory, identity or {})
    trainer.train(config, base, jobs, plan, done, checkpoints=checkpoints, **options)
    return [library[job.id] for job in jobs]


def killed(library, config, base, jobs, plan, directory, at):
    """Trains until the event of a batch, and no further."""

    def on_event(event):
        if event.batch == at:
            raise Killed

    with pytest.raises(Killed):
        trained(library, config, base, jobs, plan, directory, on_event=on_event)


@pytest.mark.parametrize(("at", "saved"), [(10, ["4", "8"]), (19, ["12", "16"])])
def test_a_killed_run_called_again_ends_with_the_same_bytes(config, base, together, tmp_path, at, saved):
    library, batches = {}, []
    killed(library, config, base, JOBS, PLAN, tmp_path, at)
    (own,) = tmp_path.iterdir()
    assert sorted(each.name for each in own.iterdir() if each.is_dir()) == sorted(saved)
    found = trained(
        library, config, base, JOBS, PLAN, tmp_path, on_event=lambda event: batches.append(event.batch)
    )
    assert_same_bytes(found, together)
    assert batches == list(range(int(saved[1]) + 1, batches[-1] + 1))


def test_a_run_killed_before_its_first_save_and_one_killed_twice_end_with_the_same_bytes(
    config, base, together, tmp_path
):
    early, twice, library = tmp_path / "early", tmp_path / "twice", {}
    late = change_plan(PLAN, save_every=15)
    killed({}, config, base, JOBS, late, early, 10)
    assert_same_bytes(trained({}, config, base, JOBS, late, early), together)
    killed(library, config, base, JOBS, PLAN, twice, 10)
    killed(library, config, base, JOBS, PLAN, twice, 19)
    assert_same_bytes(trained(library, config, base, JOBS, PLAN, twice), together)


def test_a_half_written_checkpoint_costs_steps_and_changes_no_byte(config, base, together, tmp_path):
    library = {}
    killed(library, config, base, JOBS, PLAN, tmp_path, 19)
    files = [file for file in tmp_path.glob("*/16/**/*") if file.is_file()]
    largest = max(files, key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-40])
    assert_same_bytes(trained(library, config, base, JOBS, PLAN, tmp_path), together)


def test_another_run_begins_anew_beside_the_checkpoints_of_the_first_and_names_what_differs(
    config, base, tmp_path, caplog
):
    killed({}, config, base, JOBS, PLAN, tmp_path, 10)
    (first,) = tmp_path.iterdir()

    def told(*, config=config, jobs=JOBS, plan=PLAN, **more):
        caplog.clear()
        batches = []

        def on_event(event):
            batches.append(event.batch)
            raise Killed

        with pytest.raises(Killed):
            trained({}, config, base, jobs, plan, tmp_path, on_event=on_event, **more)
        assert batches == [1]
        (said,) = [message for message in caplog.messages if str(first) in message]
        return said

    assert "another plan:" in told(plan=change_plan(PLAN, z_loss=0.02))
    assert "another network:" in told(config=replace(config, dropout_rate=0.1))
    assert "another base:" in told(identity={"base": "b"})
    assert "another set of experts:" in told(jobs=JOBS[::-1])
    assert "rate (0.0002, now 0.0003):" in told(jobs=[*JOBS[:2], with_config(JOBS[2], rate=3e-4)])
    other_rows = replace(JOBS[2], prompts=[*JOBS[2].prompts[:-1], np.array([3, 4])])
    assert "another rows:" in told(jobs=[*JOBS[:2], other_rows])
    assert "set of experts and plan:" in told(plan=change_plan(PLAN, z_loss=0.02), jobs=JOBS[:2])
    batches = []
    trained({}, config, base, JOBS, PLAN, tmp_path, on_event=lambda event: batches.append(event.batch))
    assert batches[0] == 9  # the first goes on where it was


def test_to_restart_deletes_the_checkpoints_of_these_experts_and_no_others(config, base, tmp_path):
    killed({}, config, base, JOBS, PLAN, tmp_path, 10)
    killed({}, config, base, JOBS[:1], PLAN, tmp_path, 10)
    killed({}, config, base, [replace(JOBS[0], id="other")], PLAN, tmp_path, 10)
    batches = []
    plan = replace(PLAN, config=configs.replace_fields(PLAN.config, {"restart": True}))
    trained({}, config, base, JOBS, plan, tmp_path, on_event=lambda event: batches.append(event.batch))
    assert batches[0] == 1
    kept = {json.loads(file.read_text())["run"]["jobs"][0]["id"] for file in tmp_path.glob("*/identity.json")}
    assert len(list(tmp_path.iterdir())) == 2
    assert kept == {JOBS[0].id, "other"}


def test_a_directory_of_the_first_version_whose_name_is_another_is_gone_on_from(config, base, tmp_path):
    killed({}, config, base, JOBS, PLAN, tmp_path, 10)
    (own,) = tmp_path.iterdir()
    own.rename(tmp_path / "0123456789abcdef")
    batches = []
    trained({}, config, base, JOBS, PLAN, tmp_path, on_event=lambda event: batches.append(event.batch))
    assert batches[0] == 9
    assert [each.name for each in tmp_path.iterdir()] == ["0123456789abcdef"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', '{"format": 1, "run": {"jobs": [3]}}'])
def test_a_damaged_identity_is_put_aside_and_the_run_begins_anew(config, base, tmp_path, caplog, content):
    killed({}, config, base, JOBS, PLAN, tmp_path, 10)
    (own,) = tmp_path.iterdir()
    (own / "identity.json").write_text(content)
    batches = []
    trained({}, config, base, JOBS, PLAN, tmp_path, on_event=lambda event: batches.append(event.batch))
    assert batches[0] == 1
    assert sorted(each.name for each in tmp_path.iterdir()) == [own.name, f"{own.name}.damaged-1"]
    assert any(f"{own.name}.damaged-1" in message for message in caplog.messages)


def test_a_second_process_that_trains_the_same_is_refused(config, base, tmp_path):
    def on_event(event):
        with pytest.raises(UserError, match=r"elm train \(process"):
            trained({}, config, base, JOBS, PLAN, tmp_path)
        raise Killed

    with pytest.raises(Killed):
        trained({}, config, base, JOBS, PLAN, tmp_path, on_event=on_event)


# Ends, lengths, batch sizes, rates and schedules of their own; more of them than slots.
MIXED = [
    job("m", 9, 8, steps=50, rate=1e-3, seed=1),
    job("nn", 20, 6, steps=7, rate=5e-4, seed=2, batch_size=1),
    job("ooo", 5, 8, steps=12, rate=2e-3, seed=3, batch_size=7, schedule="constant", warmup=4),
    job("pppp", 30, 3, steps=1, rate=1e-3, seed=4),
    job("qqqqq", 8, 8, steps=20, rate=1e-3, seed=5, batch_size=3, warmup=2),
]
FEW = change_plan(
    PLAN, max_experts=2, batch_tokens=40
)  # some three rows of the longest: a step takes several batches


@pytest.fixture(scope="module")
def mixed(config, base):
    dropping = replace(config, dropout_rate=0.1)
    told = []
    return dropping, trainer.train_group(dropping, base, MIXED, FEW, on_event=told.append), told


def test_experts_that_come_and_go_with_batches_of_any_size_equal_each_alone(base, mixed):
    dropping, found, _ = mixed
    alone = [trainer.train_group(dropping, base, [each], PLAN)[0] for each in MIXED]
    assert_close(found, alone)


def test_a_waiting_expert_takes_the_slot_of_the_next_that_is_done(mixed):
    _, _, told = mixed
    assert max(len(event.metrics) for event in told) <= FEW.max_experts
    ended = [name for event in told for name in event.finished]
    assert [event.waiting for event in told][:2] == [3, 3]
    assert told[-1].waiting == 0
    assert sorted(ended) == sorted(each.id for each in MIXED)
    assert told[-1].steps_done == told[-1].steps == sum(each.steps for each in MIXED)
    assert all(event.prompt_tokens + event.answer_tokens <= event.padded_tokens for event in told)


def test_a_slot_that_is_used_again_compiles_nothing(config, base, mixed):
    dropping, _, _ = mixed
    programs = step.accumulate(dropping, "bottleneck", PLAN.config.loss, platform="cpu")
    before = programs._cache_size(), step.put_slot._cache_size(), step.take_slot._cache_size()
    trainer.train_group(dropping, base, MIXED, FEW)
    assert (programs._cache_size(), step.put_slot._cache_size(), step.take_slot._cache_size()) == before


@pytest.mark.parametrize("at", [17])
def test_a_run_with_slots_used_again_that_is_killed_ends_with_the_same_bytes(base, mixed, tmp_path, at):
    dropping, found, _ = mixed
    library = {}
    killed(library, dropping, base, MIXED, FEW, tmp_path, at)
    assert_same_bytes(trained(library, dropping, base, MIXED, FEW, tmp_path), found)


def test_what_was_finished_before_the_run_began_is_not_trained_again(config, base, tmp_path):
    library = {}

    def on_event(event):
        if "b" in event.finished:
            raise Killed

    with pytest.raises(Killed):
        trained(library, config, base, JOBS, PLAN, tmp_path, on_event=on_event)
    assert "b" in library
    trained(library, config, base, JOBS, PLAN, tmp_path, finished=["b"])  # the run began with b
    other = {"b": library["b"]}
    trainer.train(
        config, base, JOBS, PLAN, lambda job, params: other.update({job.id: params}), finished=["b"]
    )
    assert other["b"] is library["b"]
    assert_close([other["a"], other["c"]], [library["a"], library["c"]])


def test_a_run_asked_to_stop_saves_and_the_next_goes_on(config, base, together, tmp_path):
    library = {}
    with pytest.raises(trainer.TrainingStopped, match="batch 7"):
        trained(library, config, base, JOBS, PLAN, tmp_path, should_stop=lambda batch: batch == 7)
    assert "7" in {each.name for each in tmp_path.glob("*/*")}
    assert_same_bytes(trained(library, config, base, JOBS, PLAN, tmp_path), together)


def test_an_expert_whose_loss_is_not_finite_stops_and_is_named_and_the_others_go_on(config, base, together):
    # A token that no other expert reads, in a row that is not in the first step.
    wild = job("wild", 6, 8, steps=20, seed=9)
    wild.prompts[int(row_order(6, 9, 4, 2)[0])][0] = UNREAD
    embedding = np.array(base["token_embedder"]["embedding"])
    embedding[UNREAD] = np.inf
    base = {**base, "token_embedder": {"embedding": embedding}}
    library, told = {}, []
    ended = trainer.train(
        config,
        base,
        [JOBS[0], wild, *JOBS[1:]],
        PLAN,
        lambda job, params: library.update({job.id: params}),
        on_event=told.append,
    )
    assert set(library) == {"a", "b", "c"}
    assert_close([library[each.id] for each in JOBS], together)
    (failure,) = ended.failed
    assert failure.expert == "wild"
    broken = [each.step for event in told for each in event.metrics if not np.isfinite(each.loss)]
    assert failure.step == broken[0] > 1
    assert list(failure.rows) == row_order(6, 9, (failure.step - 1) * 4, 4).tolist()
    assert [each for event in told for each in event.failed] == [failure]
    message = trainer.failure_message(failure)
    assert "'wild'" in message
    assert f"step {failure.step}" in message
    assert str(failure.rows[0]) in message
    with pytest.raises(UserError, match="'wild'"):
        trainer.train_group(config, base, [wild], PLAN)


def with_validation(each: TrainingJob, rows: int = 5) -> TrainingJob:
    rng = np.random.default_rng(rows)
    prompts = [rng.integers(3, 48, 6) for _ in range(rows)]
    choices = [[rng.integers(3, 48, length) for length in (1, 2, 2)] for _ in range(rows)]
    labels = rng.integers(0, 3, rows).tolist()
    targets = [own[label] for own, label in zip(choices, labels, strict=True)]
    return replace(each, validation=ValidationRows(prompts, targets, choices, labels))


def test_validation_tells_loss_and_accuracy_at_its_steps_and_changes_no_expert(config, base, together):
    told = []
    plan = change_plan(PLAN, validate_every=6)
    found = trainer.train_group(
        config, base, [with_validation(JOBS[0]), *JOBS[1:]], plan, on_event=told.append
    )
    assert_same_bytes(found, together)
    validations = [each for event in told for each in event.validations]
    assert [(each.expert, each.step) for each in validations] == [("a", at) for at in (6, 12, 18, 20)]
    held = with_validation(JOBS[0]).validation
    network = T5(config)
    loss = 0.0
    for prompt, target in zip(held.prompts, held.targets, strict=True):
        logits = network.apply({"params": base}, prompt[None], target[None, None], found[0])[:, 0]
        loss += float(token_losses(logits, target[None]).sum())
    assert validations[-1].loss == pytest.approx(loss / sum(map(len, held.targets)), abs=1e-4)
    rows = [PromptWithChoices(prompt, own) for prompt, own in zip(held.prompts, held.choices, strict=True)]
    stacked = jax.tree.map(lambda leaf: leaf[None], found[0])
    scores = score_rows(config, base, rows, stacked)
    right = [int(np.argmax(own)) == label for own, label in zip(scores, held.labels, strict=True)]
    assert validations[-1].accuracy == pytest.approx(np.mean(right))


def test_the_best_step_is_saved_if_the_config_says_so(config, base):
    fast = with_validation(with_config(JOBS[0], rate=0.3))
    fast = replace(fast, validation=replace(fast.validation, choices=None, labels=None))
    told = []
    plan = change_plan(PLAN, validate_every=1, keep="best")
    (found,) = trainer.train_group(config, base, [fast], plan, on_event=told.append)
    losses = [each.loss for event in told for each in event.validations]
    best = int(np.argmin(losses))
    assert best < len(losses) - 1
    marked = [at for at, each in enumerate(v for event in told for v in event.validations) if each.best]
    assert marked[-1] == best
    again = trainer.train_group(config, base, [fast], change_plan(plan, keep="last"))
    assert distance(found, again[0]) > 1e-3


@pytest.mark.parametrize("sizes", [{"expert": 2, "data": 2}, {"expert": 1, "fsdp": 4}])
def test_on_a_mesh_experts_become_what_they_become_on_one_device(config, base, together, sizes):
    on = meshes.make_mesh(jax.devices()[:4], **sizes)
    assert_close(
        trainer.train_group(config, base, JOBS, change_plan(PLAN, batch_tokens=48), mesh=on), together
    )


def test_a_run_goes_on_on_other_devices(config, base, together, tmp_path):
    library, plan = {}, change_plan(PLAN, max_experts=4)
    one = meshes.make_mesh(jax.devices()[:2], expert=2, data=1)
    killed(library, config, base, JOBS, plan, tmp_path, 10)
    with pytest.raises(UserError, match=r"3 experts .* an expert axis of 2"):
        trained(library, config, base, JOBS, plan, tmp_path, mesh=one)
    rows = meshes.make_mesh(jax.devices()[:4], expert=1, data=4)
    assert_close(trained(library, config, base, JOBS, plan, tmp_path, mesh=rows), together)


def test_a_job_without_rows_is_refused(config, base):
    empty = make_job("boolq/yes", [], [], steps=5)
    with pytest.raises(UserError, match="'boolq/yes'"):
        trainer.train_group(config, base, [JOBS[0], empty], PLAN)


def test_a_job_with_prompts_that_lack_a_target_is_refused(config, base):
    short = replace(JOBS[0], targets=JOBS[0].targets[:-1])
    with pytest.raises(UserError, match="'a', got 6 targets for 7"):
        trainer.train_group(config, base, [short], PLAN)


ROWS, SEEDS = st.integers(1, 12), st.integers(0, 2**32 - 1)


@settings(deadline=None)
@given(ROWS, SEEDS, st.integers(0, 5))
def test_every_epoch_visits_every_row_once(rows, seed, epoch):
    found = row_order(rows, seed, epoch * rows, rows)
    assert sorted(found.tolist()) == list(range(rows))


@settings(deadline=None)
@given(ROWS, SEEDS, st.integers(0, 30), st.lists(st.integers(1, 15), min_size=1, max_size=6))
def test_the_order_does_not_depend_on_where_it_begins(rows, seed, start, pieces):
    whole = row_order(rows, seed, start, sum(pieces))
    parts = []
    for count in pieces:
        parts += row_order(rows, seed, start, count).tolist()
        start += count
    assert parts == whole.tolist()


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {tuple(row_order(30, seed, epoch * 30, 30).tolist()) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
