"""`elm train --gates`: gates of the library's LoRA experts, trained beside them as PHATGOOSE does.

"Learning to Route Among Specialized Experts for Zero-Shot Generalization" (Muqeeth et al. 2024, arXiv
2402.05859): base and expert stay as they are; a token gets σ(g · x) of what the expert adds at a projection,
and the vectors g, which begin at 0, are trained on the expert's own rows. Experts of one shape are in one
program; the router `phatgoose` reads their gates.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from elm_jax.data import task_rows, task_selection
from elm_jax.errors import TrainingStopped, UserError
from elm_jax.experts import gate_files, training_rows
from elm_jax.experts.files import ExpertDescription
from elm_jax.experts.library import Library
from elm_jax.frames import Records
from elm_jax.launch import hosts
from elm_jax.models import paths
from elm_jax.models.expert_kinds import GATES
from elm_jax.records import Gates, Params
from elm_jax.session.workspace import Run
from elm_jax.training import expert_configs, job_loading, train
from elm_jax.training.config import BatchConfig, ScheduleConfig, TrainConfig
from elm_jax.training.estimate import TrainingEstimate, estimate
from elm_jax.training.jobs import FrozenExpert, TrainingJob

STEPS, BATCH_SIZE, LEARNING_RATE, WARMUP_SHARE = 100, 32, 5e-3, 0.06


def gate_config(
    steps: int | None = None, batch_size: int | None = None, learning_rate: float | None = None, seed: int = 0
) -> TrainConfig:
    """Returns how gates are trained: as the authors' release trains them, but with smaller batches.

    The release has AdamW at 5e-3, constant after a warm-up over 6 % of 100 steps, with 1,024 rows in most.
    """
    steps = STEPS if steps is None else steps
    return TrainConfig(
        schedule=ScheduleConfig(
            steps=steps,
            learning_rate=LEARNING_RATE if learning_rate is None else learning_rate,
            warmup=round(WARMUP_SHARE * steps),
            name="constant",
        ),
        batch=BatchConfig(size=BATCH_SIZE if batch_size is None else batch_size),
        seed=seed,
    )


def train_gates(
    run: Run,
    experts: Sequence[str] = (),
    config: TrainConfig | None = None,
    *,
    on_estimate: Callable[[TrainingEstimate], None] | None = None,
    dry_run: bool = False,
) -> Records[str]:
    """Trains gates for LoRA experts of a run's library that have none, many in one program.

    A run that was killed goes on where it was.

    Args:
        run: the run.
        experts: ids of experts, or names of tasks, datasets or groups whose experts are meant. Default: all
            LoRA experts whose training rows are known.
        config: how they are trained, and which part of them; its kind and its options are the experts' own.
            Default: `gate_config()`.
        on_estimate: called with what is to be trained and what it takes, for the experts of each shape.
        dry_run: whether to stop there.

    Returns:
        The ids of all experts that have gates now, of those that are meant; none in a dry run.

    Raises:
        UserError: an expert is no LoRA, its rows are not known or have changed, or it has gates that were
            trained otherwise.
    """
    config = config or gate_config()
    if config.checkpoint.validate_every or config.loss.needs_choices or config.answers != "first":
        raise UserError(
            "Expected gates to be trained on rows' first answers, without validation and losses of choices, "
            "got one of these. Fix: leave validate_every, unlikely_loss and mc_loss at 0, and answers at "
            "'first'."
        )
    library = Library.open(run.workspace.library)
    chosen = expert_configs.select_expert_shard(_choose_experts(run, library, experts), config.expert.part)
    known = [expert for expert in chosen if library.has_gates(expert) and not config.checkpoint.restart]
    if known and hosts.is_primary():
        told = f"Gates are trained already for {', '.join(known)}."
        run.stages.console.print(told, highlight=False, markup=False, soft_wrap=True)
    by_shape: dict[tuple[int, tuple[str, ...]], list[TrainingJob]] = {}
    for expert in chosen:
        shape = lora_options(library.describe(expert))
        by_shape.setdefault(shape, []).append(_load_job(run, library, expert, config, shape))
    for (rank, projections), jobs in by_shape.items():
        own = _with_kind(config, rank, projections)
        trained = _list_trained(library, jobs, restart=config.checkpoint.restart)
        mesh = train.choose_mesh(own, len(jobs))
        if on_estimate is not None:
            on_estimate(estimate(run.base, own, jobs, mesh, trained=trained))
        if not dry_run:
            directory = train.log_directory(run, config)
            with hosts.exit_on_failure(TrainingStopped), train.lock_logs(directory, config):
                _train_jobs(run, library, jobs, own)
    return Records([] if dry_run else chosen)


def _train_jobs(run: Run, library: Library, jobs: Sequence[TrainingJob], config: TrainConfig) -> None:
    expert_of = {job.id: _expert_of(job) for job in jobs}
    if config.checkpoint.restart and hosts.is_primary():
        for expert in expert_of.values():
            library.remove_gates(expert)
    hosts.barrier("gates are removed")

    def save(job: TrainingJob, params: Params) -> None:
        if hosts.is_primary():
            assert job.frozen is not None
            vectors = {path.rpartition("/")[0]: value for path, value in paths.flatten(params).items()}
            library.write_gates(expert_of[job.id], Gates(vectors, job.frozen.checksum, job.recipe))

    trained = _list_trained(library, jobs)
    mesh = train.choose_mesh(config, len(jobs))
    train.run_jobs(run, jobs, config, mesh, save, trained=trained, what="gate")


def _choose_experts(run: Run, library: Library, named: Sequence[str]) -> list[str]:
    """Returns the ids of the experts that are meant."""
    if named:
        found = [
            expert
            for name in named
            for expert in (
                [name]
                if name in library
                else [each.id for each in task_selection.select_tasks([name], run.source)]
            )
        ]
        return list(dict.fromkeys(found))
    specs = [spec for spec in map(library.spec, library.ids()) if spec.kind == "lora"]
    if not specs:
        raise UserError(
            f"Expected LoRA experts in the library at {str(library.root)!r}, got none. Fix: train some with "
            "`elm train --kind lora`."
        )
    chosen, skipped = [], []
    for spec in specs:
        try:
            training_rows.find_training_tasks(spec, run.source)
        except UserError:
            skipped.append(spec.id)
        else:
            chosen.append(spec.id)
    if skipped and hosts.is_primary():
        told = f"Skipped, because their training rows are not known: {', '.join(skipped)}."
        run.stages.console.print(told, highlight=False, markup=False, soft_wrap=True)
    return chosen


def _load_job(
    run: Run, library: Library, expert: str, config: TrainConfig, shape: tuple[int, tuple[str, ...]]
) -> TrainingJob:
    """Renders and tokenises the rows that an expert was trained on."""
    about = library.describe(expert)
    spec = about.spec
    lengths = training_rows.training_lengths(spec, run.lengths)
    rows = [
        task_rows.tokenize_task(examples, run.tokenizer, lengths)
        for _, examples in training_rows.load_training_rows(spec, run.source)
    ]
    prompts = job_loading.join_rows([each.inputs for each in rows])
    targets = job_loading.join_rows([each.targets for each in rows])

    def load() -> Params:
        return library.load_expert(expert, base=run.base.fingerprint).params

    return TrainingJob(
        id=f"{expert}/{GATES}",
        prompts=prompts,
        targets=targets,
        config=_with_kind(config, *shape),
        datasets=spec.datasets,
        data={"rows": len(prompts), "max_prompt": lengths.prompt, "max_answer": lengths.answer},
        frozen=FrozenExpert(about.checksum, load),
    )


def _expert_of(job: TrainingJob) -> str:
    return job.id.removesuffix(f"/{GATES}")


def _with_kind(config: TrainConfig, rank: int, projections: Sequence[str]) -> TrainConfig:
    options = {"rank": rank, "projections": list(projections)}
    return replace(config, expert=replace(config.expert, kind=GATES, options=options))


def lora_options(about: ExpertDescription) -> tuple[int, tuple[str, ...]]:
    """Returns the rank and the paths of the projections of a LoRA expert."""
    projections = tuple(sorted(gate_files.gate_shapes(about.shapes)))
    ranks = {shape[2] for path, shape in about.shapes.items() if path.endswith("/lora_a")}
    if not projections or len(ranks) != 1:
        raise UserError(
            f"Expected a LoRA expert of one rank, got {about.spec.id!r} of kind {about.spec.kind!r}. Fix: "
            "name other experts, or train some with `elm train --kind lora`."
        )
    return ranks.pop(), projections


def _list_trained(library: Library, jobs: Sequence[TrainingJob], *, restart: bool = False) -> list[str]:
    """Returns the ids of the jobs whose gates are there; none if all are to be trained anew.

    Raises:
        UserError: some were trained otherwise.
    """
    if restart:
        return []
    present = [job for job in jobs if library.has_gates(_expert_of(job))]
    for job in present:
        noted = library.load_gates(_expert_of(job)).recipe
        other = sorted(name for name, value in job.recipe.items() if noted.get(name) != value)
        if other:
            raise UserError(
                f"Expected gates of {_expert_of(job)!r} that were trained as asked, got others, with another "
                f"{' and '.join(other)}. Fix: give --restart to train them anew, or the options that they "
                "were trained with."
            )
    return [job.id for job in present]
