"""Training: any number of experts, so many at once, from their rows to finished parameters.

A round is one batch, with examples of any experts that stand at a place; an expert moves when batches have
had all examples of its step. A run that was killed goes on from its last checkpoint: who stands where, and
what a batch takes, follows from what was there before, so it ends with the same bytes.
"""

# pyright: reportUninitializedInstanceVariable=false
# `open` makes what depends on a checkpoint, before anything else is called.

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from elm_jax import storage
from elm_jax.aot.program import platform_of
from elm_jax.axes import Array
from elm_jax.errors import UserError
from elm_jax.models.sizes import T5Config
from elm_jax.records import Params
from elm_jax.scoring import scorer
from elm_jax.scoring.buckets import PromptWithChoices
from elm_jax.telemetry.events import Event, Failure, Standing, Validation, Watch
from elm_jax.training import batches, jobs, optimizers, slots
from elm_jax.training.batches import Offer
from elm_jax.training.checkpoints import Store
from elm_jax.training.group import Group
from elm_jax.training.jobs import Job
from elm_jax.training.programs import Plan, layout_for
from elm_jax.training.slots import Places
from elm_jax.training.step import GOING, GroupState, Move, Sums

Done = Callable[[Job, Params], None]
LOOK_EVERY = 100  # rounds between looks for experts whose loss is not finite


class Stopped(Exception):
    """A run that was asked to stop, and has saved where it is."""

    def __init__(self, round: int) -> None:
        super().__init__(f"Stopped after round {round}; the same command goes on from there.")
        self.round = round


def train_group(
    config: T5Config, base: Params, jobs: Sequence[Job], plan: Plan, **options: Any
) -> list[Params]:
    """Trains the jobs' experts and returns their parameters, in the order of the jobs; see `train`.

    An expert that was stopped is a UserError, when all others are done.
    """
    found: dict[str, Params] = {}
    ended = train(config, base, jobs, plan, lambda job, params: found.update({job.id: params}), **options)
    for failure in ended.failed:
        raise UserError(told(failure))
    return [found[job.id] for job in jobs]


def train(
    config: T5Config,
    base: Params,
    jobs: Sequence[Job],
    plan: Plan,
    done: Done,
    *,
    finished: Sequence[str] = (),
    identity: Mapping[str, Any] | None = None,
    checkpoint_dir: storage.PathLike | None = None,
    watch: Watch | None = None,
    stop: Callable[[int], bool] | None = None,
    mesh: Mesh | None = None,
) -> Places:
    """Trains the jobs' experts, `plan.places` at a time, and hands each over when it is done.

    Jobs begin in their order, those named in `finished` excepted: they were done before the run began. What
    an expert becomes depends on no neighbour, but for the order in which floating-point numbers are added.
    One whose loss is not finite is stopped and the others go on; the places returned name it, see `told`.

    With a `checkpoint_dir` the state is saved every `plan.save_every` rounds, and a call with the same jobs
    and plan goes on from the last save, be it on other devices. `identity` is what else must be the same.
    `done` may be called again for an expert that was done after the last save, with the same bytes.
    `watch` is told of every round. When `stop` says so, at the end of a round, the state is saved and
    `Stopped` raised. On a `mesh` experts lie along its `expert` axis, rows and base as `sharding` tells; on
    several hosts all call this alike.
    """
    run = _Run(config, base, jobs, plan, done, watch, mesh)
    identities = _identity(config, jobs, plan, identity or {}) if checkpoint_dir is not None else {}
    queue = [job.id for job in jobs if job.id not in set(finished)]
    with Store(checkpoint_dir, identities | {"_queue": queue}) as store:
        run.open(store)
        while not slots.is_over(run.places):
            run.round()
            at = run.places.round
            stopping = stop is not None and stop(at)
            if stopping or (at % plan.save_every == 0 and not slots.is_over(run.places)):
                run.save(store)
            if stopping:
                raise Stopped(at)
        run.tell()
    return run.places


def told(failure: Failure) -> str:
    """Returns the sentence about an expert that was stopped."""
    rows = ", ".join(map(str, failure.rows[:16])) + ", …" * (len(failure.rows) > 16)
    return (
        f"Training of {failure.expert!r} was stopped at step {failure.step}: its loss or gradient was not "
        f"finite on rows {rows}. Look at these rows, or lower the learning rate; the others went on."
    )


class _Run:
    """One run: its group, who stands where, and what is still to be told."""

    def __init__(
        self,
        config: T5Config,
        base: Params,
        given: Sequence[Job],
        plan: Plan,
        done: Done,
        watch: Watch | None,
        mesh: Mesh | None,
    ) -> None:
        jobs.require_trainable(given)
        self.jobs = {job.id: job for job in given}
        self.plan, self.done, self.watch, self.mesh = plan, done, watch, mesh
        self.config, self.base = config, base
        for job in given:
            optimizers.schedule(job.schedule)  # whether there is one of that name
        self.known = {job.id: batches.known(job) for job in given}
        self.offered: dict[int, list[Offer]] = {}
        self.untold: tuple[Event, list[tuple[int, Standing]], Array | None] | None = None
        self.news: dict[str, list[Any]] = {"finished": [], "failed": [], "validations": []}

    def open(self, store: Store) -> None:
        """Puts the first experts at their places, or all where the last checkpoint has them."""
        queue = store.identity["_queue"]
        missing = [name for name in queue if name not in self.jobs]
        if missing:
            raise UserError(
                f"A run that is to go on wants the expert {missing[0]!r} that it began with, but it was not "
                "given. Run the command that it began with, or delete its checkpoints."
            )
        saved = store.position()
        there = slots.from_json(saved[1]) if saved else None
        count = len(there.at) if there else max(1, min(self.plan.places, len(queue)))
        self.layout = layout_for(self.plan.kind, count, self.mesh)
        self.places = there or slots.opened(queue, self.layout.places)
        if there and self.layout.places != count:
            raise UserError(
                f"The checkpoint has {count} experts side by side, which a mesh with an expert axis of "
                f"{self.layout.parts} does not divide. Give a mesh whose expert axis does."
            )
        first = [self.jobs[name] for name in queue[: self.layout.places]] or list(self.jobs.values())[:1]
        self.shape = self._shape(queue)
        self.group = Group(self.config, self.base, self.plan, self.layout, self.shape, self.mesh)
        seeds = [job.seed for job in first]
        self.state = self.group.begin(seeds + [0] * (self.layout.places - len(seeds)))
        self.sums = self.group.zero(self.state)
        self.best = jax.tree.map(jnp.copy, self.state.params) if self.plan.keep == "best" else None
        if saved:
            found = store.restore(saved[0], self._saved())
            self.state, self.sums = GroupState(*found["state"]), Sums(*found["sums"])
            self.best = found.get("best")
        else:
            self.places, _ = slots.filled(self.places)  # as they were begun
        self._release()

    def round(self) -> None:
        """Trains on one batch, and moves the experts whose step it makes whole."""
        group, at = self.group, dict(enumerate(self.places.at))
        standing = {number: place for number, place in at.items() if place is not None}
        of = {number: self.jobs[place.expert] for number, place in standing.items()}
        for number, place in standing.items():
            if number not in self.offered:
                step_rows = batches.of_step(self.known[place.expert], number, place.step)
                self.offered[number] = [offer for offer in step_rows if offer.at not in place.taken]
        left = {number: _left(of[number], place) for number, place in standing.items()}
        order = sorted(left, key=lambda number: -left[number])
        offered = [self.offered[number] for number in order]
        alone = frozenset(number for number, place in standing.items() if place.step < place.alone)
        batch = batches.pack(
            offered, self.shape, places=self.layout.places, parts=self.layout.parts, alone=alone
        )
        taken: dict[int, list[int]] = {}
        for offer in batch.taken:
            self.offered[offer.place].remove(offer)
            taken.setdefault(offer.place, []).append(offer.at)
        whole = [number for number in taken if not self.offered[number]]
        self.sums = group.gather(self.state.params, batch, of, self.sums)
        moving = [(number, _standing(of[number], standing[number].step)) for number in sorted(whole)]
        loss = self._move(moving) if moving else None
        self.tell()
        self.places = slots.stepped(self.places, taken, whole)
        event = Event(
            round=self.places.round,
            steps_done=self.places.steps,
            steps=sum(job.steps for job in self.jobs.values()),
            standings=(),
            prompt_tokens=sum(offer.prompt for offer in batch.taken),
            answer_tokens=sum(offer.target for offer in batch.taken),
            padded_tokens=batch.shape.tokens,
            waiting=len(self.places.waiting),
        )
        self.untold = (event, moving, loss)
        for number in whole:
            del self.offered[number]
        if self.plan.validate_every:
            self._validate(whole)
        self._release()

    def _move(self, moving: Sequence[tuple[int, Standing]]) -> Array:
        count = self.layout.places
        move = Move(np.zeros(count, np.float32), np.zeros(count, bool), np.zeros(count, np.int32))
        for number, each in moving:
            move.rate[number], move.active[number], move.step[number] = each.rate, True, each.step
        self.state, self.sums, loss = self.group.advance(self.state, self.sums, move)
        return loss

    def tell(self) -> None:
        """Tells of the round before, which the device has done by now or soon will have."""
        if self.untold is None:
            return
        event, moved, loss = self.untold
        # Waits, so that the host is never more than a round ahead.
        losses = np.zeros(0) if loss is None else np.asarray(loss)
        standings = tuple(replace(each, loss=float(losses[number])) for number, each in moved)
        news = {name: tuple(found) for name, found in self.news.items()}
        self.untold, self.news = None, {name: [] for name in self.news}
        if self.watch:
            self.watch(replace(event, standings=standings, **news))

    def save(self, store: Store) -> None:
        """Saves the state and who stands where."""
        store.save(self.places.round, self._saved(), slots.to_json(self.places))

    def _saved(self) -> dict[str, Any]:
        return {"state": tuple(self.state), "sums": tuple(self.sums)} | (
            {} if self.best is None else {"best": self.best}
        )

    def _shape(self, queue: Sequence[str]) -> batches.Shape:
        """Returns the one shape of all batches: a function of what was queued, whatever is still to do."""
        given = [self.known[name] for name in queue] or list(self.known.values())
        return batches.shape_for(
            given,
            self.plan.batch_tokens,
            places=self.layout.places,
            parts=self.layout.parts,
            multiple=self.layout.row_parts,
            cost=batches.batch_cost(self.config, self.plan.kind, platform_of(self.mesh)),
        )

    def _release(self) -> None:
        """Hands over who is done, looks for who stopped, and lets those who wait take free places."""
        looking = self.places.round % LOOK_EVERY == 0
        while True:
            ended = [
                number
                for number, place in enumerate(self.places.at)
                if place is not None and (looking or place.step >= self.jobs[place.expert].steps)
            ]
            stopped = self.group.whole(self.state.stopped) if ended else None
            for number in ended:
                assert stopped is not None
                self._release_one(number, int(stopped[number]))
            self.places, came = slots.filled(self.places)
            for number, name in came.items():
                self.state = self.group.put(self.state, number, self.jobs[name].seed)
            if not any(self.jobs[name].steps == 0 for name in came.values()):
                return

    def _release_one(self, number: int, stopped: int) -> None:
        """Takes an expert from its place if it is done, or if it stopped although it shared no row.

        What is not finite in one expert spreads to all that share a row with it. None of them has moved
        since: each goes on from there in rows of its own, and only the one that is to blame stops again.
        """
        place = self.places.at[number]
        assert place is not None
        job = self.jobs[place.expert]
        if stopped != GOING and stopped > place.alone:
            alone = stopped + LOOK_EVERY  # so that the next look finds it alone still
            self.places = slots.retried(self.places, number, stopped - 1, alone)
            self.state, self.sums = self.group.take_up(self.state, self.sums, number)
            self.offered.pop(number, None)
        elif stopped != GOING:
            failure = Failure(job.id, stopped, tuple(jobs.rows_of_step(job, stopped - 1).tolist()))
            self.places = slots.failed(self.places, number, failure)
            self.state, self.sums = self.group.take_up(self.state, self.sums, number)
            self.offered.pop(number, None)
            self.news["failed"].append(failure)
        elif place.step >= job.steps:
            kept = self.best if self.best is not None and place.best is not None else self.state.params
            self.done(job, self.group.take(kept, number))
            self.places = slots.finished(self.places, number)
            self.news["finished"].append(job.id)

    def _validate(self, moved: Sequence[int]) -> None:
        """Judges the experts whose turn it is on their held-out rows, and keeps the best if so planned."""
        for number, place in enumerate(self.places.at):
            if place is None or number not in moved:
                continue
            job = self.jobs[place.expert]
            found = batches.held(job)
            if found is None or (place.step % self.plan.validate_every and place.step < job.steps):
                continue
            loss, accuracy = self._loss(found, number), self._accuracy(job, number)
            worth = -loss if accuracy is None else accuracy
            best = bool(np.isfinite(loss)) and (place.best is None or worth > place.best)
            if best and self.best is not None:
                self.best = self.group.copy(self.best, self.state.params, number)
            if best:
                self.places = slots.judged(self.places, number, worth)
            self.news["validations"].append(Validation(job.id, place.step, loss, accuracy, best))

    def _loss(self, found: batches.Known, number: int) -> float:
        """Returns the loss of the expert at a place on rows that were held out."""
        waiting, cut = batches.of_all(found, number), []
        while waiting:
            batch = batches.pack([waiting], self.shape, places=self.layout.places, parts=self.layout.parts)
            here = {offer.at for offer in batch.taken}
            waiting = [offer for offer in waiting if offer.at not in here]
            cut.append(batch)
        return float(self.group.measure(self.state.params, cut, {number: found.job})[number])

    def _accuracy(self, job: Job, number: int) -> float | None:
        """Returns the share of held-out rows whose right choice is the likeliest."""
        held = job.held
        if held is None or held.choices is None or held.labels is None:
            return None
        rows = [
            PromptWithChoices(prompt, own) for prompt, own in zip(held.prompts, held.choices, strict=True)
        ]
        params, experts = self.group.to_score(self.state.params, number)
        scores = scorer.score_rows(self.config, params, rows, experts, batch_tokens=self.plan.batch_tokens)
        right = [int(np.argmax(own)) == label for own, label in zip(scores, held.labels, strict=True)]
        return float(np.mean(right))


def _left(job: Job, place: slots.Place) -> int:
    """Returns how many rows an expert is still to be trained on."""
    return (job.steps - place.step) * job.batch_size - len(place.taken)


def _standing(job: Job, done: int) -> Standing:
    rate = optimizers.schedule(job.schedule)(done, job.steps, job.rate, job.warmup)
    return Standing(job.id, done + 1, job.steps, float("nan"), rate)


def _identity(config: T5Config, given: Sequence[Job], plan: Plan, more: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same for a checkpoint to be gone on from; not how much fits on the devices."""
    fixed = {name: value for name, value in vars(plan).items() if name not in ("places", "batch_tokens")}
    return {
        "network": storage.fingerprint(vars(config)),
        "plan": storage.fingerprint(fixed),
        "jobs": [jobs.identity(job) for job in given],
        **more,
    }
