"""`elm train`: one expert a task, one a dataset, or one on all tasks, many at once."""

import math
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

import jax
from etils import epath
from jax.sharding import Mesh

from elm_jax import locks, storage
from elm_jax.aot.devices import peak_flops
from elm_jax.data import task_rows, task_selection
from elm_jax.data.identity import ROW_IDENTITIES_KEY
from elm_jax.errors import TrainingStopped, UserError
from elm_jax.experts import lookup
from elm_jax.experts.library import Library
from elm_jax.frames import Records
from elm_jax.launch import hosts, preemption
from elm_jax.models import flops, meshes, paths, shapes
from elm_jax.records import Expert, ExpertSpec, Params, TaskSpec
from elm_jax.session import opening
from elm_jax.session.workspace import Run, Workspace
from elm_jax.tasks import data_source, row_counts
from elm_jax.telemetry import training_view
from elm_jax.telemetry.events import EventHandler
from elm_jax.training import checkpoint_directories, expert_configs, job_loading, sizing, trainer
from elm_jax.training import jobs as job_records
from elm_jax.training.checkpoints import CheckpointDirectory
from elm_jax.training.config import TrainConfig, replace_fields
from elm_jax.training.estimate import TrainingEstimate, estimate
from elm_jax.training.jobs import TrainingJob
from elm_jax.training.programs import GroupPlan
from elm_jax.training.trainer import FinishedHandler

MAX_FSDP_DEVICES = 16  # devices that a full expert's parameters are split over, where there are as many


def train(
    run: Run | storage.PathLike,
    tasks: task_selection.Tasks | Mapping[str, task_selection.Tasks],
    config: TrainConfig | None = None,
    *,
    initial_checkpoint: storage.PathLike | None = None,
    source: data_source.Source | None = None,
    lengths: data_source.Lengths | None = None,
    dtype: str | None = None,
    on_estimate: Callable[[TrainingEstimate], None] | None = None,
    dry_run: bool = False,
    budget: TrainConfig | None = None,
) -> Records[str]:
    """Trains experts on tasks, many in one program, into the library of a run.

    Experts that the library has already with this very recipe are not trained again, and a run that was
    killed goes on where it was. The paper's budgets are `TrainConfig(paper="prompt")` and others.

    Args:
        run: an open run, or its directory, which `initial_checkpoint` makes if there is none.
        tasks: specs or names, of tasks, datasets or groups; or id of an expert -> those that it is trained
            on, whatever `config.expert.train_as` says.
        config: what is trained, how long and how fast. Default: a bottleneck adapter for each task, 1,000
            steps of 8 rows.
        initial_checkpoint: the base of a run that is not open, as `open_run` takes it.
        source: where a run that is not open has its rows from.
        lengths: tokens of a prompt and of an answer that are kept. Default: the run's, or the paper's if
            `config.paper` names a table.
        dtype: that the base of a run that is not open is held and computes in.
        on_estimate: called with what is to be trained and what it takes, before it begins.
        dry_run: whether to stop there, with nothing written. What the training would refuse is refused.
        budget: the old name of `config`.

    Returns:
        The ids of all experts, those that were there already too; none in a dry run.

    Raises:
        UserError: a name does not exist, an expert is there with another recipe, or, when all others are
            done, the loss of one was not finite.

    Source: Jang et al. 2023 (arXiv 2302.03202).
    """
    if not isinstance(run, Run):
        run = opening.open_run(
            Workspace.at(run, read_only=dry_run),
            initial_checkpoint=initial_checkpoint,
            source=source,
            lengths=lengths,
            dtype=dtype,
        )
    elif initial_checkpoint is not None or source is not None or dtype is not None:
        raise UserError(
            "Expected an open run without another base, source or dtype, got one of them. Fix: give them to "
            "`open_run`, or give `train` the run's directory."
        )
    if budget is not None:
        message = "The argument budget is now config; the old name goes in a later version."
        warnings.warn(message, FutureWarning, stacklevel=2)
    given = config or budget or TrainConfig()
    config = expert_configs.inherit_kind_options(given, _library_specs(run))
    if lengths is None and config.paper is None:
        lengths = run.lengths
    specs = (
        {str(name): task_selection.select_tasks(own, run.source) for name, own in tasks.items()}
        if isinstance(tasks, Mapping)
        else task_selection.select_tasks(tasks, run.source)
    )
    experts = expert_configs.resolve_experts(specs, config, lengths)
    jobs = [job_loading.load_job(run, expert) for expert in experts]
    job_records.require_trainable(jobs)
    counts = row_counts.add_counts(job.counts for job in jobs if job.counts)
    if hosts.is_primary():
        task_rows.print_counts(run.stages, [counts])
        task_rows.print_tokenization_report(run.stages, (job.losses for job in jobs))
    library = Library(_library_directory(run, jobs))
    for directory in (library.root, run.workspace.checkpoints, log_directory(run, config)):
        storage.require_writable(directory)
    trained = job_loading.list_trained(library, jobs, run.base, restart=config.checkpoint.restart)
    unknown = [expert for expert in trained if ROW_IDENTITIES_KEY not in library.spec(expert).recipe]
    if unknown:
        run.stages.console.print(
            f"Not known to be trained on these rows, since they were trained before rows were noted: "
            f"{', '.join(unknown)}.",
            highlight=False,
            markup=False,
        )
    mesh = choose_mesh(config, len(jobs))
    if on_estimate is not None:
        on_estimate(estimate(run.base, config, jobs, mesh, trained=trained))
    if not dry_run:
        with hosts.exit_on_failure(TrainingStopped), lock_logs(log_directory(run, config), config):
            _train_jobs(run, jobs, config, mesh)
    return Records([] if dry_run else [job.id for job in jobs])


def train_experts(run: Run, specs: Sequence[TaskSpec], config: TrainConfig) -> list[str]:
    """Trains one expert for every task that the library lacks, and returns all their ids."""
    return train(run, specs, config)


def train_multitask(run: Run, specs: Sequence[TaskSpec], name: str, config: TrainConfig) -> str:
    """Trains one expert on the rows of all tasks, shuffled together, and returns its id, `multitask/<name>`.

    It sees as many rows as all experts of the tasks together: as many steps, with batches as many times
    larger as there are tasks.
    """
    size = (config.batch.size or expert_configs.BATCH_SIZE) * len(specs)
    values = {"batch_size": size, "train_as": "multitask", "name": name}
    return train(run, specs, replace_fields(config, values))[0]


def mesh_sizes(kind: str, devices: int, experts: int, slices: int = 1) -> dict[str, int]:
    """Returns the sizes of the axes of a training's mesh, if none are given.

    Experts lie apart, as far as there are any, and the devices that are left split their rows. A full
    expert's parameters are split over a few devices that gather each other's, and rows over all.

    >>> mesh_sizes("bottleneck", 8, 296), mesh_sizes("lora", 8, 3), mesh_sizes("full", 32, 1)
    ({'expert': 8, 'data': 1}, {'expert': 2, 'data': 4}, {'fsdp': 16, 'data': 2})
    """
    if kind == "full":
        fsdp = math.gcd(MAX_FSDP_DEVICES, devices // slices)
        return {"fsdp": fsdp, "data": devices // fsdp}
    expert = max(size for size in range(1, max(1, min(devices, experts)) + 1) if not devices % size)
    return {"expert": expert, "data": devices // expert}


def _train_jobs(run: Run, jobs: Sequence[TrainingJob], config: TrainConfig, mesh: Mesh | None) -> None:
    """Trains the experts that the library lacks, many at once.

    All start from the same fresh expert, as the original's do, which helps to merge them.
    """
    library = Library.open(_library_directory(run, jobs), create=True)
    if hosts.is_primary():
        lookup.remove_leftovers(run.workspace)
        if config.checkpoint.restart:
            library.remove_all(job.id for job in jobs)
    hosts.barrier("experts are removed")

    def save(job: TrainingJob, params: Params) -> None:
        # One that another process has trained meanwhile is not replaced.
        if hosts.is_primary() and not job_loading.is_trained(library, job, run.base):
            owned = tuple(paths.flatten(params))
            kind = job.config.expert.kind
            spec = ExpertSpec(job.id, kind, run.base.fingerprint, owned, job.datasets, job.steps, job.recipe)
            library.add(Expert(spec, params), replace=True)

    # Not what was found before: another process may have trained some while this one waited.
    trained = job_loading.list_trained(library, jobs, run.base)
    run_jobs(run, jobs, config, mesh, save, trained=trained)


def run_jobs(
    run: Run,
    jobs: Sequence[TrainingJob],
    config: TrainConfig,
    mesh: Mesh | None,
    save: FinishedHandler,
    *,
    trained: Sequence[str],
    what: str = "expert",
) -> None:
    """Runs those of the jobs that are not trained, with the run's checkpoints, logs and views.

    Args:
        run: the run.
        jobs: all that the command names.
        config: what they share.
        mesh: as `choose_mesh` returns it.
        save: called with what each job has made.
        trained: ids of jobs that are done.
        what: is trained, in the singular, for titles.

    Raises:
        UserError: the loss of one was not finite; raised when all others are done.
    """
    missing = len(jobs) - len(trained)
    # Long rows first: the batches that take longest and need most memory come at once.
    jobs = sorted(jobs, key=lambda job: (-int(job_records.token_counts(job.prompts).max()), job.id))
    network = sizing.with_dropout(run.base.config, config)
    checkpoints = CheckpointDirectory(run.workspace.checkpoints, {"base": run.base.fingerprint})
    identity = trainer.checkpoint_identity(network, jobs, sizing.plan_for(config, jobs), checkpoints)
    if not missing:
        with run.stages.stage(f"{what}s are trained already", 0):
            checkpoint_directories.delete_directory(checkpoints.path, identity)
        return
    plan = _plan_training_group(run, config, jobs, mesh)
    with ExitStack() as stack:
        should_stop = stack.enter_context(preemption.watch_for_preemption())
        title = f"train {missing} {what}{'s' * (missing != 1)}"
        on_event = stack.enter_context(_training_view(run, title, jobs, config, mesh))
        table = trainer.train(
            network,
            run.base.params,
            jobs,
            plan,
            save,
            finished=trained,
            checkpoints=checkpoints,
            on_event=on_event,
            should_stop=should_stop,
            mesh=mesh,
        )
        hosts.barrier(f"{what}s are saved")
    if table.failed:
        raise UserError("\n".join(map(trainer.failure_message, table.failed)))
    checkpoint_directories.delete_directory(checkpoints.path, identity)


@contextmanager
def lock_logs(directory: epath.Path, config: TrainConfig) -> Generator[None, None, None]:
    """Keeps a directory of logs to this training, which means a run's directory if it has no other logs."""
    if not hosts.is_primary():
        yield
        return
    seconds, fix = math.inf if config.checkpoint.wait else 0.0, "wait until it ends, or give --wait"
    with locks.hold(directory / ".train.lock", "elm train", seconds=seconds, fix=fix):
        storage.remove_unfinished(directory, deep=True)
        yield


def choose_mesh(config: TrainConfig, experts: int) -> Mesh | None:
    """Returns the mesh of all devices that so many experts train on; None if one device is all it takes.

    The devices that a CPU is divided into are used on request alone, or in a job of several processes.
    """
    devices, sizes = jax.device_count(), config.batch.mesh
    if sizes is None:
        if devices == 1 or (jax.default_backend() == "cpu" and jax.process_count() == 1):
            return None
        slices = len({getattr(device, "slice_index", 0) for device in jax.devices()})
        sizes = mesh_sizes(config.expert.kind, devices, experts, slices)
    rest = 1 if -1 in sizes.values() else -1
    return meshes.make_mesh(None, **{"data": rest, **sizes})


def _library_specs(run: Run) -> list[ExpertSpec]:
    """Returns the experts that a run's library has already."""
    if not run.workspace.library.is_dir():
        return []
    library = Library.open(run.workspace.library)
    return [library.spec(expert) for expert in library.ids()]


def _plan_training_group(
    run: Run, config: TrainConfig, jobs: Sequence[TrainingJob], mesh: Mesh | None
) -> GroupPlan:
    """Returns how the experts share the devices; what the config leaves open is what memory holds."""
    experts, tokens = config.batch.max_experts, config.batch.max_tokens
    if experts is None or tokens is None:
        network = sizing.with_dropout(run.base.config, config)
        fit = sizing.find_fit(network, run.base.params, config, jobs, mesh)
        experts, tokens = fit.layout.slots, tokens or fit.tokens
    return sizing.plan_for(config, jobs, experts, tokens)


def _training_view(
    run: Run, title: str, jobs: Sequence[TrainingJob], config: TrainConfig, mesh: Mesh | None
) -> AbstractContextManager[EventHandler]:
    """Returns what shows the training of these experts, and writes its journal."""
    network, kind = run.base.config, config.expert.kind
    trees = shapes.base_shapes(network), shapes.expert_shapes(network, kind, config.expert.options)
    rows = job_records.attention_spans(jobs)
    devices = jax.devices()[:1] if mesh is None else mesh.devices.flat
    return training_view.training(
        run.stages,
        title,
        cost=flops.training_flops(network, kind, *trees, rows),
        peak=peak_flops(devices, network.dtype),
        logs=log_directory(run, config),
        trackers=config.log.trackers,
        shows=hosts.is_primary(),
        rows={job.id: row_counts.to_json(job.counts) for job in jobs if job.counts},
    )


def log_directory(run: Run, config: TrainConfig) -> epath.Path:
    """Returns where a run's logs are."""
    directory = run.workspace.logs if config.log.directory is None else storage.path(config.log.directory)
    if config.expert.part is None:
        return directory
    # Parts write side by side.
    return directory / "part-{}-of-{}".format(*expert_configs.parse_part(config.expert.part))


def _library_directory(run: Run, jobs: Sequence[TrainingJob]) -> epath.Path:
    """Returns the directory of the library that experts go to."""
    is_composite = any(job.id.startswith(f"{expert_configs.MULTITASK}/") for job in jobs)
    return run.workspace.composites if is_composite else run.workspace.library
