"""`elm train`: what it trains, from names and flags or from a recipe, on this machine or on many."""

import dataclasses
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from elm_jax.cli.flags import flattened
from elm_jax.cli.inputs import join_hosts, open_run
from elm_jax.cli.options import (
    DEFAULT_OUT,
    AsJson,
    DataFlags,
    Names,
    ProcessFlags,
    RecipeFlags,
    RunDir,
    Seed,
    Wait,
)
from elm_jax.cli.output import print_json, print_table

if TYPE_CHECKING:
    from elm_jax.training.config import LossConfig


@dataclass(frozen=True)
class TrainingFlags:
    """How long and how fast an expert is trained."""

    PANEL: ClassVar[str] = "Training"
    steps: Annotated[int | None, typer.Option(help="Steps of each expert; default: 1000, of gates 100.")] = (
        None
    )
    batch_size: Annotated[
        int | None, typer.Option(help="Rows of each expert in a step; default: 8, of gates 32.")
    ] = None
    rate: Annotated[
        float | None,
        typer.Option(
            help="Learning rate, which falls linearly to 0; default: 0.0001, of gates 0.005, which stays."
        ),
    ] = None
    answers: Annotated[
        str, typer.Option(help="Of a row's accepted answers train on the first, or on each.")
    ] = "first"
    seed: Seed = 0
    unlikely_loss: Annotated[
        float, typer.Option(min=0, help="Weight of T-Few's loss against wrong choices' tokens; there 1.")
    ] = 0.0
    mc_loss: Annotated[
        float, typer.Option(min=0, help="Weight of T-Few's loss for the right choice; there 1.")
    ] = 0.0
    length_norm: Annotated[
        float, typer.Option(min=0, help="Power of a choice's length by which --mc-loss divides its score.")
    ] = 1.0
    track: Annotated[
        list[str] | None,
        typer.Option("--track", help="Write to tensorboard or wandb too; may be repeated."),
    ] = None


@dataclass(frozen=True)
class ExpertFlags:
    """What an expert is, and what one is trained on."""

    PANEL: ClassVar[str] = "Experts"
    kind: Annotated[
        str,
        typer.Option(help="Parameters of an expert: bottleneck, lora, dora, vera, ia3, prompt or full."),
    ] = "bottleneck"
    width: Annotated[
        int | None, typer.Option(min=1, help="Bottleneck width; default: the library's, else emb_dim // 32.")
    ] = None
    rank: Annotated[
        int | None,
        typer.Option(
            min=1, help="Rank of LoRA and DoRA (8) or VeRA (256); default: the library's, else this."
        ),
    ] = None
    alpha: Annotated[
        float | None,
        typer.Option(min=0, help="Alpha of LoRA and DoRA; default: --rank, or 8 with --rslora."),
    ] = None
    rslora: Annotated[
        bool, typer.Option("--rslora", help="Scale LoRA and DoRA by alpha / sqrt(rank), not alpha / rank.")
    ] = False
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a soft prompt; default: the library's, else 100.")
    ] = None
    as_: Annotated[
        str,
        typer.Option(
            "--as", help="One expert for each task (experts), for each dataset, or for all (multitask)."
        ),
    ] = "experts"
    multitask: Annotated[str | None, typer.Option(help="Train one expert of this name on all tasks.")] = None
    clusters: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Cluster the library's LoRA experts by their parameters, and train one expert on the tasks "
            "of each cluster.",
        ),
    ] = None
    gates: Annotated[
        bool,
        typer.Option(
            "--gates",
            help="Train gates for LoRA experts of the library that have none, which the router phatgoose "
            "reads. NAMES are then experts; default: all.",
        ),
    ] = False
    part: Annotated[
        str | None,
        typer.Option(help="I/N trains part I of N of the experts, of which others train the other parts."),
    ] = None


@dataclass(frozen=True)
class PresentFlags:
    """What is done about what is in the run's directory."""

    PANEL: ClassVar[str] = "Training"
    restart: Annotated[
        bool,
        typer.Option("--restart", help="Begin anew: these experts and their checkpoints are deleted first."),
    ] = False
    wait: Wait = False


@dataclass(frozen=True)
class TrainRecipeFlags(RecipeFlags):
    """A recipe, and where T5X's flags say that things are."""

    gin_search_paths: Annotated[
        str | None,
        typer.Option("--gin_search_paths", help="Directories to search for recipes, separated by commas."),
    ] = None
    tfds_data_dir: Annotated[
        str | None, typer.Option("--tfds_data_dir", help="Directory of TensorFlow Datasets.")
    ] = None


@flattened
def train(
    names: Names = None,
    run: RunDir = DEFAULT_OUT,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", "--dry_run", help="Print what would be trained and what it takes; write nothing."
        ),
    ] = False,
    as_json: AsJson = False,
    *,
    training: TrainingFlags,
    expert: ExpertFlags,
    present: PresentFlags,
    data: DataFlags,
    recipe: TrainRecipeFlags,
    processes: ProcessFlags,
) -> None:
    """Train experts: one a task, one a dataset, or one on all tasks.

    Many are trained in one program. With --gates, gates of experts are trained. A run that was stopped
    continues if the same command is given again.

    Example: elm train reviews.yaml --run my_run --steps 200

    Example: elm train dream cosmos_qa --run my_run --kind lora --dry-run
    """
    if recipe.tfds_data_dir:
        os.environ["TFDS_DATA_DIR"] = recipe.tfds_data_dir
    from elm_jax.training import train as runs

    join_hosts(processes)
    how: dict[str, Any] = (
        {
            "on_estimate": functools.partial(_print_estimate, as_json=as_json),
            "dry_run": True,
        }
        if dry_run
        else {}
    )
    if recipe.gin_file or recipe.config:
        added = {
            "TRACKERS": tuple(training.track or ()),
            "PART": expert.part,
            "RESTART": present.restart,
            "WAIT": present.wait,
        }
        trained = _train_recipe(recipe, {name: value for name, value in added.items() if value}, how)
    elif expert.gates:
        _require_no_expert_flags(expert)
        trained = _train_gates(names or [], expert.part, run, training, present, data, how)
    else:
        from elm_jax.training import config as configs

        sizes = (
            ("width", expert.width),
            ("rank", expert.rank),
            ("alpha", expert.alpha),
            ("rslora", expert.rslora or None),
            ("tokens", expert.tokens),
        )
        options = {name: value for name, value in sizes if value is not None}
        config = configs.TrainConfig(
            expert=configs.ExpertConfig(
                expert.kind,
                options,
                train_as="multitask" if expert.multitask else expert.as_,
                name=expert.multitask,
                part=expert.part,
            ),
            loss=_loss_config(training),
            schedule=configs.ScheduleConfig(
                steps=1000 if training.steps is None else training.steps,
                learning_rate=1e-4 if training.rate is None else training.rate,
            ),
            batch=configs.BatchConfig(size=8 if training.batch_size is None else training.batch_size),
            checkpoint=configs.CheckpointConfig(restart=present.restart, wait=present.wait),
            log=configs.LogConfig(trackers=training.track or ()),
            answers=training.answers,
            seed=training.seed,
        )
        opened = open_run(
            run, data, names, cache=data.cache, limit=data.limit, dtype=data.dtype, dry_run=dry_run
        )
        if expert.clusters is None:
            trained = runs.train(opened, names or [], config, **how)
        else:
            from elm_jax.routing import cluster_training

            _require_no_tasks(names, expert)
            trained = cluster_training.train_clusters(opened, expert.clusters, config, **how)
    if as_json and not dry_run:
        print_json(trained)
        return
    for expert_id in trained:
        print(expert_id)


def _require_no_expert_flags(expert: ExpertFlags) -> None:
    if expert != ExpertFlags(gates=True, part=expert.part):
        from elm_jax.errors import UserError

        raise UserError(
            "Expected --gates without flags that say what an expert is, such as --kind, got one. Fix: leave "
            "it out; the experts are in the library."
        )


def _train_gates(
    experts: list[str],
    part: str | None,
    run: str,
    training: TrainingFlags,
    present: PresentFlags,
    data: DataFlags,
    how: Mapping[str, Any],
) -> list[str]:
    """Trains gates of experts of the library."""
    from elm_jax.training import config as configs
    from elm_jax.training import gates

    config = dataclasses.replace(
        gates.gate_config(training.steps, training.batch_size, training.rate, training.seed),
        expert=configs.ExpertConfig(part=part),
        loss=_loss_config(training),
        checkpoint=configs.CheckpointConfig(restart=present.restart, wait=present.wait),
        log=configs.LogConfig(trackers=training.track or ()),
        answers=training.answers,
    )
    dry_run = bool(how)
    opened = open_run(run, data, cache=data.cache, limit=data.limit, dtype=data.dtype, dry_run=dry_run)
    return gates.train_gates(opened, experts, config, **how)


def _loss_config(training: TrainingFlags) -> "LossConfig":
    from elm_jax.training.config import LossConfig

    return LossConfig(
        unlikely_loss=training.unlikely_loss, mc_loss=training.mc_loss, length_norm=training.length_norm
    )


def _require_no_tasks(names: list[str] | None, expert: ExpertFlags) -> None:
    if names or expert.multitask or expert.as_ != ExpertFlags().as_:
        from elm_jax.errors import UserError

        raise UserError(
            "Expected --clusters without names of tasks, --as and --multitask, got one of these. Fix: leave "
            "it out; the tasks are those of the library's experts."
        )


def _train_recipe(
    recipe: TrainRecipeFlags, macros: Mapping[str, Any], arguments: Mapping[str, Any]
) -> list[str]:
    """Trains what a recipe and macros say; what they came to is written into the run's logs, if it is."""
    from elm_jax.launch import recipes
    from elm_jax.training import train as runs

    search_paths = recipe.gin_search_paths.split(",") if recipe.gin_search_paths else []
    bindings = [*(recipe.gin_bindings or []), *(f"{name} = {value!r}" for name, value in macros.items())]
    files = recipe.files("gin/runs/train.gin")
    trained = recipes.bind(runs.train, files, bindings, search_paths=search_paths)(**arguments)
    if not arguments.get("dry_run"):
        recipes.write_config("train")
    return trained


def _print_estimate(estimate: Any, *, as_json: bool) -> None:
    from elm_jax.training import estimate as estimates

    found = estimates.tables(estimate)
    if as_json:
        print_json(
            {
                table.title: [dict(zip(table.header, row, strict=True)) for row in table.rows]
                for table in found
            }
        )
        return
    for table in found:
        print_table(table)
