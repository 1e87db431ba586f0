"""`elm train`: one expert a task, one a dataset, or one on all tasks, many at once and resumed at will."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from elm_jax import storage
from elm_jax.aot.devices import peak_flops
from elm_jax.data import task_selection
from elm_jax.errors import UserError
from elm_jax.experts.library import Library
from elm_jax.launch import hosts, preemption
from elm_jax.models import flops, meshes, paths, shapes
from elm_jax.records import Expert, ExpertSpec, Params, TaskSpec
from elm_jax.session import opening
from elm_jax.session.workspace import Run
from elm_jax.tasks import data_source
from elm_jax.telemetry import training_view
from elm_jax.telemetry.events import Watch
from elm_jax.training import config as courses
from elm_jax.training import sizing
from elm_jax.training import trainer as engine
from elm_jax.training.config import Budget, Course
from elm_jax.training.entries import Entry, entry_of, is_done
from elm_jax.training.forecast import Forecast, forecast
from elm_jax.training.jobs import Job
from elm_jax.training.programs import Plan
from elm_jax.weights.elm import Base

FSDP = 16  # devices that a full expert's parameters are split over, where there are as many
Stopped = engine.Stopped
Told = Callable[[Forecast], None]


def train(
    run: Run | storage.PathLike,
    tasks: task_selection.Tasks,
    *,
    budget: Budget | None = None,
    as_: str = "experts",
    name: str | None = None,
    initial_checkpoint: storage.PathLike | None = None,
    source: data_source.Source | None = None,
    lengths: data_source.Lengths | None = None,
    dtype: str | None = None,
    mesh: Mapping[str, int] | None = None,
    trackers: Sequence[str] = (),
    logs: storage.PathLike | None = None,
    told: Told | None = None,
    dry_run: bool = False,
    seed: int = 0,
) -> list[str]:
    """Trains experts on tasks, many in one program, into the library of a run; returns their ids.

    `run` is a run that is open, or its directory, which `initial_checkpoint` makes where there is none:
    `open_run` has it, `source`, `lengths` and `dtype`. `tasks` are specs or names, of tasks, datasets or
    groups. `as_` is "experts", one a task; "dataset", one a dataset on all its prompts; or "multitask", one
    called `name` on all tasks, which goes to the composites. What is trained, how long and how fast, is the
    `budget`'s to say; its defaults are 1,000 steps of 8 rows. All start from the same fresh expert, drawn
    from `seed`.

    `mesh` has the sizes of the axes of a mesh of all devices. The journal and what `trackers` ("tensorboard",
    "wandb") write goes to `logs`, without it to that directory of the run. `told` hears what is to be trained
    and what it takes; with `dry_run` no more is done, and no id returned, but what the training would refuse
    is refused.

    Experts that the library has already with this very recipe are not trained again, and a run that was
    killed goes on where it was. Raises a UserError for names that do not exist, for an expert that is there
    with another recipe, and, when all others are done, for one whose loss was not finite.

    Source: Jang et al. 2023 (arXiv 2302.03202); the paper's budgets are `Budget(paper="prompt")` and others.
    """
    if not isinstance(run, Run):
        run = opening.open_run(
            run, initial_checkpoint=initial_checkpoint, source=source, lengths=lengths, dtype=dtype
        )
    elif initial_checkpoint is not None or source is not None or dtype is not None:
        raise UserError(
            "A run that is open has its base and its source, but others came. Give them to "
            "`open_run`, or give `train` the run's directory."
        )
    budget = courses.like_others(budget or Budget(), _others(run))
    specs = task_selection.choose(tasks, run.source)
    chosen = courses.courses(specs, budget, as_=as_, name=name, lengths=lengths or _lengths(run, budget))
    if told is not None or dry_run:
        entries = [entry_of(run, course, budget, seed) for course in chosen]
        home = _home(run, chosen)
        done = _done(Library(home), entries, run.base) if home.exists() else []
        if told is not None:
            jobs = [entry.job for entry in entries]
            told(forecast(run.base, budget, jobs, mesh_of(budget, mesh, len(jobs)), done=done))
    if dry_run:
        return []
    return train_courses(run, chosen, budget, mesh=mesh, trackers=trackers, logs=logs, seed=seed)


def train_experts(run: Run, specs: Sequence[TaskSpec], budget: Budget, *, seed: int) -> list[str]:
    """Trains one expert for every task that the library lacks, and returns all their ids."""
    return train(run, specs, budget=budget, seed=seed)


def train_multitask(run: Run, specs: Sequence[TaskSpec], name: str, budget: Budget, *, seed: int) -> str:
    """Trains one expert on the rows of all tasks, shuffled together, and returns its id, `multitask/<name>`.

    It sees as many rows as all experts of the tasks together: as many steps, with batches as many times
    larger as there are tasks.
    """
    wide = replace(budget, batch_size=(budget.batch_size or courses.BATCH_SIZE) * len(specs))
    return train(run, specs, budget=wide, as_="multitask", name=name, seed=seed)[0]


def train_courses(
    run: Run,
    chosen: Sequence[Course],
    budget: Budget,
    *,
    mesh: Mapping[str, int] | None = None,
    trackers: Sequence[str] = (),
    logs: storage.PathLike | None = None,
    seed: int = 0,
) -> list[str]:
    """Trains the experts that the library lacks, many at once, and returns the ids of all.

    All start from the same fresh expert, as the original's do, which helps to merge them. An expert that is
    there with another recipe is a UserError; so is one that was stopped, when all others are done.
    """
    library = Library.open(_home(run, chosen), create=True)
    entries = [entry_of(run, course, budget, seed) for course in chosen]
    done = _done(library, entries, run.base)
    missing = len(entries) - len(done)
    title = f"train {missing} expert{'s' * (missing != 1)}" if missing else "experts are trained already"
    checkpoints = run.workspace.checkpoints_of([entry.job.id for entry in entries])
    logs = run.workspace.logs if logs is None else logs
    if not missing:
        with run.stages.stage(title, 0):
            _forget(checkpoints)
        return [course.id for course in chosen]
    # Long rows first: the batches that take longest and need most memory come at once.
    entries.sort(key=lambda entry: (-max(map(len, entry.job.prompts)), entry.job.id))
    by_id = {entry.job.id: entry for entry in entries}
    config = sizing.with_dropout(run.base.config, budget)

    def keep(job: Job, params: Params) -> None:
        if hosts.is_first():
            entry = by_id[job.id]
            owned = tuple(paths.flatten(params))
            of = (run.base.fingerprint, owned, entry.datasets, job.steps, entry.recipe)
            library.add(Expert(ExpertSpec(job.id, budget.kind, *of), params), replace=True)

    on = mesh_of(budget, mesh, len(entries))
    plan = _plan(run.base, budget, entries, on)
    with ExitStack() as stack:
        stack.enter_context(hosts.together(Stopped))
        stop = stack.enter_context(preemption.preemption())
        watch = stack.enter_context(_watched(run, title, entries, budget, on, trackers, storage.path(logs)))
        ended = engine.train(
            config,
            run.base.params,
            [entry.job for entry in entries],
            plan,
            keep,
            finished=done,
            identity={"base": run.base.fingerprint},
            checkpoint_dir=checkpoints,
            watch=watch,
            stop=stop,
            mesh=on,
        )
        hosts.meet("experts are kept")
    if ended.failed:
        raise UserError("\n".join(map(engine.told, ended.failed)))
    _forget(checkpoints)
    return [course.id for course in chosen]


def mesh_of(budget: Budget, sizes: Mapping[str, int] | None, experts: int) -> Mesh | None:
    """Returns the mesh of all devices that so many experts train on; None where one device is all it takes.

    What a CPU is divided into is used on request alone, or where a job has several processes.
    """
    devices = jax.device_count()
    if sizes is None:
        if devices == 1 or (jax.default_backend() == "cpu" and jax.process_count() == 1):
            return None
        slices = len({getattr(device, "slice_index", 0) for device in jax.devices()})
        sizes = mesh_sizes(budget.kind, devices, experts, slices)
    rest = 1 if -1 in sizes.values() else -1
    return meshes.mesh(None, **{"data": rest, **sizes})


def mesh_sizes(kind: str, devices: int, experts: int, slices: int = 1) -> dict[str, int]:
    """Returns the sizes of the mesh that a training takes unless it is told others.

    Experts lie apart, as far as there are any, and the devices that are left split their rows. A full
    expert's parameters are split over a few devices that gather each other's, and rows over all.

    >>> mesh_sizes("bottleneck", 8, 296), mesh_sizes("lora", 8, 3), mesh_sizes("full", 32, 1)
    ({'expert': 8, 'data': 1}, {'expert': 2, 'data': 4}, {'fsdp': 16, 'data': 2})
    """
    if kind == "full":
        fsdp = math.gcd(FSDP, devices // slices)
        return {"fsdp": fsdp, "data": devices // fsdp}
    expert = max(size for size in range(1, max(1, min(devices, experts)) + 1) if not devices % size)
    return {"expert": expert, "data": devices // expert}


def _others(run: Run) -> list[ExpertSpec]:
    """Returns the experts that a run's library has already."""
    if not run.workspace.library.is_dir():
        return []
    library = Library.open(run.workspace.library)
    return [library.spec(expert) for expert in library.ids()]


def _lengths(run: Run, budget: Budget) -> data_source.Lengths | None:
    """Returns the run's lengths, unless the paper's table says an expert's own."""
    return None if budget.paper else run.lengths


def _plan(base: Base, budget: Budget, entries: Sequence[Entry], on: Mesh | None) -> Plan:
    """Returns how the experts share the devices; what the budget leaves open is what memory holds."""
    jobs = [entry.job for entry in entries]
    if budget.places is not None and budget.batch_tokens is not None:
        return sizing.plan_of(budget, jobs, budget.places, budget.batch_tokens)
    found = sizing.fit(sizing.with_dropout(base.config, budget), base.params, budget, jobs, on)
    return sizing.plan_of(budget, jobs, found.layout.places, budget.batch_tokens or found.tokens)


def _watched(
    run: Run,
    title: str,
    entries: Sequence[Entry],
    budget: Budget,
    on: Mesh | None,
    trackers: Sequence[str],
    logs: epath.Path,
) -> AbstractContextManager[Watch]:
    """Returns what shows the training of these experts, and keeps how it went."""
    config = run.base.config
    trees = shapes.base_shapes(config), shapes.expert_shapes(config, budget.kind, budget.options)
    rows = flops.attended(
        (row for entry in entries for row in entry.job.prompts),
        (row for entry in entries for row in entry.job.targets),
    )
    devices = jax.devices()[:1] if on is None else on.devices.flat
    return training_view.training(
        run.stages,
        title,
        cost=flops.cost(config, budget.kind, *trees, rows),
        peak=peak_flops(devices, config.dtype),
        logs=logs,
        trackers=trackers,
        shows=hosts.is_first(),
    )


def _home(run: Run, chosen: Sequence[Course]) -> epath.Path:
    """Returns the directory of the library that experts go to."""
    composite = any(course.id.startswith(f"{courses.MULTITASK}/") for course in chosen)
    return run.workspace.composites if composite else run.workspace.library


def _done(library: Library, entries: Sequence[Entry], base: Base) -> list[str]:
    """Returns the ids of the experts that the library has already; raises what `entries.is_done` does."""
    return [entry.job.id for entry in entries if is_done(library, entry, base)]


def _forget(checkpoints: Any) -> None:
    """Deletes the checkpoints of a run that is over."""
    if hosts.is_first() and checkpoints.exists():
        checkpoints.rmtree()
