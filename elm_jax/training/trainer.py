"""The trainer: any number of experts, a few at once, from their rows to finished parameters.

A batch has examples of any experts that are in a slot; an expert moves when batches have had all examples of
its step. A run that was killed goes on from its last checkpoint: which expert is in which slot, and what a
batch takes, follows from what was there before, so it ends with the same bytes.
"""

# pyright: reportUninitializedInstanceVariable=false
# `open` makes what depends on a checkpoint, before anything else is called.

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from elm_jax import storage
from elm_jax.aot.program import get_platform
from elm_jax.axes import Array
from elm_jax.errors import TrainingStopped, UserError
from elm_jax.models.sizes import T5Config
from elm_jax.records import Params
from elm_jax.scoring import scorer
from elm_jax.scoring.buckets import PromptWithChoices
from elm_jax.telemetry.events import Event, EventHandler, Failure, StepMetrics, Validation
from elm_jax.training import batches, checkpoint_directories, optimizers, slots
from elm_jax.training import config as configs
from elm_jax.training import jobs as job_records
from elm_jax.training.batches import JobWithLengths, PendingExample
from elm_jax.training.checkpoints import CheckpointDirectory, CheckpointStore
from elm_jax.training.group import Group
from elm_jax.training.jobs import TrainingJob
from elm_jax.training.programs import GroupPlan, layout_for
from elm_jax.training.slots import Slot, SlotTable
from elm_jax.training.step import ALL_FINITE, GradAccumulator, GroupState, SlotUpdates

FinishedHandler = Callable[[TrainingJob, Params], None]
CHECK_EVERY = 100  # batches between checks for experts whose loss is not finite


def train_group(
    network: T5Config,
    base: Params,
    jobs: Sequence[TrainingJob],
    plan: GroupPlan,
    *,
    checkpoints: CheckpointDirectory | None = None,
    on_event: EventHandler | None = None,
    mesh: Mesh | None = None,
) -> list[Params]:
    """Trains the jobs' experts and returns their parameters, in the order of the jobs; see `train`.

    Raises:
        UserError: an expert was stopped; raised when all others are done.
    """
    params_of: dict[str, Params] = {}

    def collect(job: TrainingJob, params: Params) -> None:
        params_of[job.id] = params

    table = train(network, base, jobs, plan, collect, checkpoints=checkpoints, on_event=on_event, mesh=mesh)
    for failure in table.failed:
        raise UserError(failure_message(failure))
    return [params_of[job.id] for job in jobs]


def train(
    network: T5Config,
    base: Params,
    jobs: Sequence[TrainingJob],
    plan: GroupPlan,
    on_finished: FinishedHandler,
    *,
    finished: Sequence[str] = (),
    checkpoints: CheckpointDirectory | None = None,
    on_event: EventHandler | None = None,
    should_stop: Callable[[int], bool] | None = None,
    mesh: Mesh | None = None,
) -> SlotTable:
    """Trains the jobs' experts, `plan.max_experts` at a time.

    What an expert becomes depends on no neighbour, but for the order in which floating-point numbers are
    added. One whose loss is not finite is stopped and the others go on. On several hosts all call this alike.

    Args:
        network: the base's, with the dropout to train with.
        base: its parameters.
        jobs: begun in their order.
        plan: what they share.
        on_finished: called with each expert when it is done; again, with the same bytes, for one that was
            done after the last save of a run that was killed.
        finished: ids of jobs that were done before the run began.
        checkpoints: where the state is saved every `plan.save_every` batches. A call with the same jobs and
            plan goes on from the last save, on these devices or on others; one that differs begins anew in
            a directory of its own. Default: nothing is saved.
        on_event: called after every batch.
        should_stop: asked after every batch, with its number, whether to save and stop.
        mesh: of devices: experts lie along its `expert` axis, rows and base as `models.sharding` says.

    Returns:
        Which experts are finished and which have failed; see `failure_message`.

    Raises:
        TrainingStopped: `should_stop` said so, and the state is saved.
        UserError: jobs without rows, or another process that trains the same.
    """
    run = _Run(network, base, jobs, plan, on_finished, on_event, mesh)
    queue = [job.id for job in jobs if job.id not in set(finished)]
    own = plan.config.checkpoint
    identity = checkpoint_identity(network, jobs, plan, checkpoints) if checkpoints else {}
    with checkpoint_directories.open_store(
        checkpoints, {**identity, "_queue": queue}, restart=own.restart, wait=own.wait
    ) as store:
        run.open(store)
        while not slots.is_over(run.table):
            run.train_batch()
            batch = run.table.batches
            stopping = should_stop is not None and should_stop(batch)
            if stopping or (batch % plan.save_every == 0 and not slots.is_over(run.table)):
                run.save(store)
            if stopping:
                raise TrainingStopped(batch)
        run.send_event()
    return run.table


def checkpoint_identity(
    network: T5Config, jobs: Sequence[TrainingJob], plan: GroupPlan, checkpoints: CheckpointDirectory
) -> dict[str, Any]:
    """Returns what a resumed run must have too; how much fits on the devices may differ."""
    shared = configs.shared_identity(plan.config) | {"save_every": plan.save_every}
    return {
        "network": storage.fingerprint(vars(network)),
        "plan": storage.fingerprint(shared),
        "jobs": [job_records.resume_identity(job) for job in jobs],
        **checkpoints.identity,
    }


def failure_message(failure: Failure) -> str:
    """Returns the sentence about an expert that was stopped."""
    rows = ", ".join(map(str, failure.rows[:16])) + ", …" * (len(failure.rows) > 16)
    return (
        f"Expected a finite loss and gradient of {failure.expert!r}, got one that is not at step "
        f"{failure.step}, on rows {rows}. Fix: look at these rows, or lower the learning rate. The other "
        "experts are trained."
    )


class _Run:
    """One run: its group, which expert is in which slot, and the event that is still to be sent."""

    def __init__(
        self,
        network: T5Config,
        base: Params,
        jobs: Sequence[TrainingJob],
        plan: GroupPlan,
        on_finished: FinishedHandler,
        on_event: EventHandler | None,
        mesh: Mesh | None,
    ) -> None:
        job_records.require_trainable(jobs)
        self.jobs = {job.id: job for job in jobs}
        self.plan, self.on_finished, self.on_event, self.mesh = plan, on_finished, on_event, mesh
        self.network, self.base = network, base
        for job in jobs:
            optimizers.require_schedule(job.config.schedule)
        self.measured = {job.id: batches.measure(job) for job in jobs}
        self.pending: dict[int, list[PendingExample]] = {}
        self.unsent: tuple[Event, list[tuple[int, StepMetrics]], Array | None] | None = None
        self.news: dict[str, list[Any]] = {"finished": [], "failed": [], "validations": []}

    def open(self, store: CheckpointStore) -> None:
        """Puts the first experts into slots, or all where the last checkpoint has them."""
        queue = store.identity["_queue"]
        missing = [name for name in queue if name not in self.jobs]
        if missing:
            raise UserError(
                f"Expected the expert {missing[0]!r} that this run began with, got a command without it. "
                "Fix: give the command that the run began with, or delete its checkpoints."
            )
        saved = store.position()
        table = slots.from_json(saved[1]) if saved else None
        count = len(table.slots) if table else max(1, min(self.plan.max_experts, len(queue)))
        self.layout = layout_for(self.plan.config.expert.kind, count, self.mesh)
        self.table = table or slots.empty_table(queue, self.layout.slots)
        if table and self.layout.slots != count:
            raise UserError(
                f"Expected a mesh whose expert axis divides the {count} experts that the checkpoint has, got "
                f"an expert axis of {self.layout.parts}. Fix: give a mesh whose expert axis does."
            )
        first = [self.jobs[name] for name in queue[: self.layout.slots]] or list(self.jobs.values())[:1]
        self.shape = self._choose_shape(queue)
        self.group = Group(self.network, self.base, self.plan, self.layout, self.shape, self.mesh)
        seeds = [job.seed for job in first]
        self.state = self.group.init(seeds + [0] * (self.layout.slots - len(seeds)))
        # Made when a step is more than one batch for the first time.
        self.accumulator: GradAccumulator | None = None
        together = [self.measured[job.id] for job in first]
        self.steps_are_batches = batches.holds_steps(
            together, self.shape, self.layout.slots, self.layout.parts
        )
        keeps_best = self.plan.config.checkpoint.keep == "best"
        self.best = jax.tree.map(jnp.copy, self.state.params) if keeps_best else None
        if saved:
            restored = store.restore(saved[0], self._saved_state())
            self.state = GroupState(*restored["state"])
            self.accumulator = GradAccumulator(*restored["sums"])
            self.best = restored.get("best")
        else:
            self.table, new = slots.fill_slots(self.table)  # `init` has put fresh ones there
            for number, name in new.items():
                self._put_start(number, name)
        for number, slot in enumerate(self.table.slots):
            if slot is not None:
                self._place_frozen_expert(number, slot.expert)
        self._refill()

    def train_batch(self) -> None:
        """Trains on one batch, and moves the experts whose step it completes."""
        group = self.group
        in_slot = {number: slot for number, slot in enumerate(self.table.slots) if slot is not None}
        job_of = {number: self.jobs[slot.expert] for number, slot in in_slot.items()}
        for number, slot in in_slot.items():
            if number not in self.pending:
                examples = batches.step_examples(self.measured[slot.expert], number, slot.step)
                self.pending[number] = [each for each in examples if each.number not in slot.used_examples]
        left = {number: _rows_left(job_of[number], slot) for number, slot in in_slot.items()}
        order = sorted(left, key=lambda number: -left[number])
        batch = batches.pack(
            [self.pending[number] for number in order],
            self.shape,
            slots=self.layout.slots,
            parts=self.layout.parts,
            isolated=frozenset(number for number, slot in in_slot.items() if slot.step < slot.isolated_until),
        )
        used: dict[int, list[int]] = {}
        for example in batch.examples:
            self.pending[example.slot].remove(example)
            used.setdefault(example.slot, []).append(example.number)
        completed = [number for number in used if not self.pending[number]]
        metrics = [
            (number, _step_metrics(job_of[number], in_slot[number].step)) for number in sorted(completed)
        ]
        whole = len(completed) == len(used) and not any(in_slot[number].used_examples for number in used)
        if self.steps_are_batches and whole:
            self.state, loss = group.train_step(self.state, batch, job_of, self._slot_updates(metrics))
        else:
            self.accumulator = group.accumulate(self.state.params, batch, job_of, self._accumulator_or_zero())
            loss = self._update(metrics) if metrics else None
        self.send_event()
        self.table = slots.record_batch(self.table, used, completed)
        event = Event(
            batch=self.table.batches,
            steps_done=self.table.steps,
            steps=sum(job.steps for job in self.jobs.values()),
            metrics=(),
            prompt_tokens=sum(example.prompt for example in batch.examples),
            answer_tokens=sum(example.target for example in batch.examples),
            padded_tokens=batch.shape.tokens,
            waiting=len(self.table.waiting),
        )
        self.unsent = (event, metrics, loss)
        for number in completed:
            del self.pending[number]
        if self.plan.config.checkpoint.validate_every:
            self._validate(completed)
        self._refill()

    def _update(self, metrics: Sequence[tuple[int, StepMetrics]]) -> Array:
        update, accumulator = self._slot_updates(metrics), self._accumulator_or_zero()
        self.state, self.accumulator, loss = self.group.update(self.state, accumulator, update)
        return loss

    def _accumulator_or_zero(self) -> GradAccumulator:
        return self.group.zero(self.state) if self.accumulator is None else self.accumulator

    def _slot_updates(self, metrics: Sequence[tuple[int, StepMetrics]]) -> SlotUpdates:
        count = self.layout.slots
        update = SlotUpdates(np.zeros(count, np.float32), np.zeros(count, bool), np.zeros(count, np.int32))
        for number, each in metrics:
            update.learning_rate[number], update.active[number] = each.learning_rate, True
            update.step[number] = each.step
        return update

    def send_event(self) -> None:
        """Sends the event of the batch before, which the device has done by now or soon will have."""
        if self.unsent is None:
            return
        event, metrics, loss = self.unsent
        # Waits, so that the host is never more than a batch ahead.
        losses = np.zeros(0) if loss is None else np.asarray(loss)
        with_losses = tuple(replace(each, loss=float(losses[number])) for number, each in metrics)
        news = {name: tuple(each) for name, each in self.news.items()}
        self.unsent, self.news = None, {name: [] for name in self.news}
        if self.on_event:
            self.on_event(replace(event, metrics=with_losses, **news))

    def save(self, store: CheckpointStore) -> None:
        """Saves the state and which expert is in which slot."""
        store.save(self.table.batches, self._saved_state(), slots.to_json(self.table))

    def _saved_state(self) -> dict[str, Any]:
        return {"state": tuple(self.state), "sums": tuple(self._accumulator_or_zero())} | (
            {} if self.best is None else {"best": self.best}
        )

    def _choose_shape(self, queue: Sequence[str]) -> batches.Shape:
        """Returns the one shape of all batches: it follows from the queue, whatever is still to do."""
        measured = [self.measured[name] for name in queue] or list(self.measured.values())
        kind = self.plan.config.expert.kind
        return batches.choose_shape(
            measured,
            self.plan.batch_tokens,
            slots=self.layout.slots,
            parts=self.layout.parts,
            multiple=self.layout.row_parts,
            cost=batches.batch_cost(self.network, kind, get_platform(self.mesh)),
        )

    def _refill(self) -> None:
        """Takes finished and stopped experts out of their slots, and puts waiting ones into free slots."""
        checking = self.table.batches % CHECK_EVERY == 0
        ended = [
            number
            for number, slot in enumerate(self.table.slots)
            if slot is not None and (checking or slot.step >= self.jobs[slot.expert].steps)
        ]
        stopped = self.group.to_host(self.state.stopped) if ended else None
        for number in ended:
            assert stopped is not None
            self._release_slot(number, int(stopped[number]))
        self.table, new = slots.fill_slots(self.table)
        for number, name in new.items():
            self.state = self.group.put_fresh(self.state, number, self.jobs[name].seed)
            self._put_start(number, name)
            self._place_frozen_expert(number, name)

    def _put_start(self, number: int, name: str) -> None:
        start = self.jobs[name].start
        if start is not None:
            self.state = self.group.put_warm_start_expert(self.state, number, start.load_finite(name))

    def _place_frozen_expert(self, number: int, name: str) -> None:
        frozen = self.jobs[name].frozen
        if frozen is not None:
            self.group.put_frozen(number, frozen.load_finite(name))

    def _release_slot(self, number: int, stopped: int) -> None:
        """Takes an expert out of its slot if it is done, or if it stopped although it shared no row.

        What is not finite in one expert spreads to all that share a row with it. None of them has moved
        since: each goes on from there in rows of its own, and only the one that caused it stops again.
        """
        slot = self.table.slots[number]
        assert slot is not None
        job = self.jobs[slot.expert]
        if stopped == ALL_FINITE:
            if slot.step >= job.steps:
                best = None if slot.best_score is None else self.best
                params = self.state.params if best is None else best
                self.on_finished(job, self.group.take(params, number))
                self.table = slots.finish_expert(self.table, number)
                self.news["finished"].append(job.id)
            return
        if stopped > slot.isolated_until:
            until = stopped + CHECK_EVERY  # so that the next check finds it isolated still
            self.table = slots.rewind_expert(self.table, number, stopped - 1, until)
        else:
            rows = job_records.rows_of_step(job, stopped - 1)
            failure = Failure(job.id, stopped, tuple(rows.tolist()))
            self.table = slots.fail_expert(self.table, number, failure)
            self.news["failed"].append(failure)
        self.state, self.accumulator = self.group.resume(self.state, self._accumulator_or_zero(), number)
        self.pending.pop(number, None)

    def _validate(self, moved: Sequence[int]) -> None:
        """Validates the experts whose turn it is, and copies those that are at their best step so far."""
        every = self.plan.config.checkpoint.validate_every
        for number, slot in enumerate(self.table.slots):
            if slot is None or number not in moved:
                continue
            job = self.jobs[slot.expert]
            measured = batches.measure_validation(job)
            if measured is None or (slot.step % every and slot.step < job.steps):
                continue
            loss, accuracy = self._validation_loss(measured, number), self._accuracy(job, number)
            score = -loss if accuracy is None else accuracy
            best = bool(np.isfinite(loss)) and (slot.best_score is None or score > slot.best_score)
            if best and self.best is not None:
                self.best = self.group.copy_slot(self.best, self.state.params, number)
            if best:
                self.table = slots.set_best_score(self.table, number, score)
            self.news["validations"].append(Validation(job.id, slot.step, loss, accuracy, best))

    def _validation_loss(self, measured: JobWithLengths, number: int) -> float:
        """Returns the loss of the expert in a slot on its validation rows."""
        pending, packed = batches.all_examples(measured, number), []
        while pending:
            batch = batches.pack([pending], self.shape, slots=self.layout.slots, parts=self.layout.parts)
            used = {example.number for example in batch.examples}
            pending = [example for example in pending if example.number not in used]
            packed.append(batch)
        return float(self.group.evaluate(self.state.params, packed, {number: measured.job})[number])

    def _accuracy(self, job: TrainingJob, number: int) -> float | None:
        """Returns the share of validation rows whose right choice is the likeliest; one of n counts 1 / n."""
        validation = job.validation
        if validation is None or validation.choices is None or validation.labels is None:
            return None
        pairs = zip(validation.prompts, validation.choices, strict=True)
        rows = [PromptWithChoices(prompt, choices) for prompt, choices in pairs]
        params, experts = self.group.params_to_score(self.state.params, number)
        tokens = self.plan.batch_tokens
        scores = scorer.score_rows(self.network, params, rows, experts, batch_tokens=tokens)
        credits = [
            (own[label] == own.max()) / np.count_nonzero(own == own.max())
            for own, label in zip(scores, validation.labels, strict=True)
        ]
        return float(np.mean(credits))


def _rows_left(job: TrainingJob, slot: Slot) -> int:
    """Returns how many rows an expert is still to be trained on."""
    return (job.steps - slot.step) * job.batch_size - len(slot.used_examples)


def _step_metrics(job: TrainingJob, steps_done: int) -> StepMetrics:
    """Returns the metrics of an expert's next step, its loss still unknown."""
    learning_rate = optimizers.learning_rate_at(job.config.schedule, steps_done)
    return StepMetrics(job.id, steps_done + 1, job.steps, float("nan"), learning_rate)
