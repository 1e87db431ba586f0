"""`elm train`: one expert a task, many in one program; or one expert on all tasks, the multitask baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from elm_jax import names, storage
from elm_jax.engine import train as engine
from elm_jax.errors import UserError
from elm_jax.library.store import Library
from elm_jax.models import paths
from elm_jax.records import Expert, ExpertSpec, TaskSpec
from elm_jax.runs import base as bases
from elm_jax.runs import data
from elm_jax.runs.workspace import DEFAULT, Run
from elm_jax.tasks import lists
from elm_jax.weights.elm import Base


@dataclass(frozen=True)
class Budget:
    """What expert is trained, how long and how fast; the defaults are the paper's but for `steps`."""

    steps: int = 1000
    batch_size: int = 8
    rate: float = 1e-4
    warmup: int = 0
    kind: str = "bottleneck"
    options: Mapping[str, Any] = field(default_factory=dict)  # of the kind, see `models.kinds`
    dropout: float = 0.1
    group: int = 32  # experts in one program


def train(
    *,
    tasks: Sequence[str],
    out: storage.PathLike = DEFAULT,
    initial_checkpoint: storage.PathLike | None = None,
    budget: Budget | None = None,
    source: data.Source | None = None,
    lengths: data.Lengths | None = None,
    multitask: str | None = None,
    seed: int = 0,
) -> list[str]:
    """Trains experts on tasks named by id, dataset or group, into the library of `out`; returns their ids.

    The base is `initial_checkpoint`, a directory, or without it the base of `out`. `multitask` names one
    expert to be trained on all tasks together instead of one on each.
    """
    run = bases.open_run(out, initial_checkpoint=initial_checkpoint, source=source, lengths=lengths)
    specs = data.choose(tasks, run.source)
    if multitask:
        return [train_multitask(run, specs, multitask, budget or Budget(), seed=seed)]
    return train_experts(run, specs, budget or Budget(), seed=seed)


def train_experts(run: Run, specs: Sequence[TaskSpec], budget: Budget, *, seed: int) -> list[str]:
    """Trains one expert for every task that the library lacks, in groups, and returns all their ids.

    All start from the same fresh expert, as the original's do, which helps to merge them. An expert that is
    there with another recipe is a UserError.
    """
    library = Library.open(run.workspace.library, create=True)
    missing = []
    for spec in specs:
        found = data.examples(spec, run.source)
        recipe = _recipe(run, budget, seed, rows=len(found))
        if not _is_done(library, spec.id, recipe, run.base):
            made = data.prepare(found, run.pieces, run.lengths)
            job = engine.Job(spec.id, made.inputs, made.targets, budget.steps, budget.rate, seed)
            missing.append((job, recipe, (spec.dataset,)))
    # Rows of one length together: a group is padded to its longest.
    missing.sort(key=lambda entry: max(map(len, entry[0].prompts)))
    groups = [missing[at : at + budget.group] for at in range(0, len(missing), budget.group)]
    title = f"train {len(missing)} experts" if missing else "experts are trained already"
    with run.stages.stage(title, budget.steps * len(groups)) as advance:
        for number, group in enumerate(groups):
            _train(
                run,
                group,
                budget,
                library,
                lambda done, loss, before=number * budget.steps: advance(before + done, f"loss {loss:.2f}"),
            )
    return [spec.id for spec in specs]


def train_multitask(run: Run, specs: Sequence[TaskSpec], name: str, budget: Budget, *, seed: int) -> str:
    """Trains one expert on the rows of all tasks, shuffled together, and returns its id, `multitask/<name>`.

    It sees as many rows as all experts of the tasks together: as many steps, with batches as many times
    larger as there are tasks.
    """
    library = Library.open(run.workspace.composites, create=True)
    identifier = names.task_id("multitask", name)
    made = [data.prepare(data.examples(spec, run.source), run.pieces, run.lengths) for spec in specs]
    prompts = lists.of_tokens(row for each in made for row in each.inputs)
    targets = lists.of_tokens(row for each in made for row in each.targets)
    wide = replace(budget, batch_size=budget.batch_size * len(specs), group=1)
    recipe = _recipe(run, wide, seed, rows=len(prompts)) | {"tasks": [spec.id for spec in specs]}
    if _is_done(library, identifier, recipe, run.base):
        return identifier
    job = engine.Job(identifier, prompts, targets, wide.steps, wide.rate, seed)
    datasets = tuple(sorted({spec.dataset for spec in specs}))
    with run.stages.stage("train the multitask baseline", wide.steps) as advance:
        _train(
            run,
            [(job, recipe, datasets)],
            wide,
            library,
            lambda done, loss: advance(done, f"loss {loss:.2f}"),
        )
    return identifier


def _train(
    run: Run,
    entries: Sequence[tuple[engine.Job, dict, tuple[str, ...]]],
    budget: Budget,
    library: Library,
    progress: engine.Progress,
) -> None:
    """Trains one group and puts its experts into the library."""
    jobs = [job for job, _, _ in entries]
    plan = engine.Plan(
        kind=budget.kind,
        batch_size=budget.batch_size,
        options=budget.options,
        warmup=budget.warmup,
        save_every=max(25, budget.steps // 8),
    )
    name = storage.fingerprint([job.id for job in jobs])
    trained = engine.train_group(
        replace(run.base.config, dropout_rate=budget.dropout),
        run.base.params,
        jobs,
        plan,
        checkpoint_dir=run.workspace.checkpoints / f"experts-{name}",
        progress=progress,
    )
    for (job, recipe, datasets), params in zip(entries, trained, strict=True):
        owned = tuple(paths.flatten(params))
        spec = ExpertSpec(job.id, budget.kind, run.base.fingerprint, owned, datasets, budget.steps, recipe)
        library.add(Expert(spec, params), replace=True)


def _recipe(run: Run, budget: Budget, seed: int, *, rows: int) -> dict:
    made = {name: value for name, value in asdict(budget).items() if name != "group"}
    return made | {
        "optimizer": "adamw",
        "schedule": "linear",
        "seed": seed,
        "data_seed": run.source.seed,
        "truncate": run.source.truncate,
        "faithful": list(data.switches(run.source)),
        "rows": rows,
        "max_prompt": run.lengths.prompt,
        "max_answer": run.lengths.answer,
    }


def _is_done(library: Library, identifier: str, recipe: dict, base: Base) -> bool:
    """Says whether the library has this very expert; one of the same name but another recipe is an error."""
    if identifier not in library.ids():
        return False
    spec = library.spec(identifier)
    differs = [name for name, value in recipe.items() if spec.recipe.get(name) != value]
    if spec.base != base.fingerprint:
        differs.append("base")
    if differs:
        raise UserError(
            f"Expert {identifier!r} is in the library at {str(library.root)!r} already, with another "
            f"{' and '.join(differs)}. Remove it with `elm experts remove`, or name another directory."
        )
    return True
