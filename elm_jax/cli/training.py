"""`elm train`: what it trains, from names and flags or from a recipe, on this machine or on many."""

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import typer

from elm_jax.cli.flags import flattened
from elm_jax.cli.inputs import join_hosts, open_run
from elm_jax.cli.options import DEFAULT_OUT, DataFlags, Names, ProcessFlags, RecipeFlags, RunDir, Seed, Wait
from elm_jax.cli.output import print_table
from elm_jax.launch import interrupts


@dataclass(frozen=True)
class TrainingFlags:
    """How long and how fast an expert is trained."""

    PANEL: ClassVar[str] = "Training"
    steps: Annotated[int, typer.Option(help="Steps of each expert.")] = 1000
    batch_size: Annotated[int, typer.Option(help="Rows of each expert in a step.")] = 8
    rate: Annotated[float, typer.Option(help="Learning rate, which falls linearly to 0.")] = 1e-4
    seed: Seed = 0


@dataclass(frozen=True)
class ExpertFlags:
    """What an expert is, and what one is trained on."""

    PANEL: ClassVar[str] = "Experts"
    kind: Annotated[str, typer.Option(help="Parameters of an expert: bottleneck, lora, ia3 or full.")] = (
        "bottleneck"
    )
    width: Annotated[
        int | None, typer.Option(min=1, help="Bottleneck width; default: the library's, else emb_dim // 32.")
    ] = None
    rank: Annotated[int | None, typer.Option(min=1, help="LoRA's rank; default: the library's, else 8.")] = (
        None
    )
    as_: Annotated[
        str,
        typer.Option(
            "--as", help="One expert for each task (experts), for each dataset, or for all (multitask)."
        ),
    ] = "experts"
    multitask: Annotated[str | None, typer.Option(help="Train one expert of this name on all tasks.")] = None


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
    track: Annotated[
        list[str] | None,
        typer.Option("--track", help="Write to tensorboard or wandb too; may be repeated."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "--dry_run", help="Print what would be trained and what it takes.")
    ] = False,
    *,
    training: TrainingFlags,
    expert: ExpertFlags,
    present: PresentFlags,
    data: DataFlags,
    recipe: TrainRecipeFlags,
    processes: ProcessFlags,
) -> None:
    """Train experts, many in one program: one a task, one a dataset, or one on all tasks.

    A run that was stopped continues if the same command is given again.
    """
    if recipe.tfds_data_dir:
        os.environ["TFDS_DATA_DIR"] = recipe.tfds_data_dir
    from elm_jax.training import train as runs
    from elm_jax.training import trainer

    join_hosts(processes)
    how: dict[str, Any] = {"on_estimate": _print_estimate, "dry_run": True} if dry_run else {}
    try:
        if recipe.gin_file:
            added = {"TRACKERS": tuple(track or ()), "RESTART": present.restart, "WAIT": present.wait}
            trained = _train_recipe(recipe, {name: value for name, value in added.items() if value}, how)
        else:
            from elm_jax.training import config as configs

            sizes = (("width", expert.width), ("rank", expert.rank))
            options = {name: value for name, value in sizes if value is not None}
            config = configs.TrainConfig(
                expert=configs.ExpertConfig(
                    expert.kind,
                    options,
                    train_as="multitask" if expert.multitask else expert.as_,
                    name=expert.multitask,
                ),
                schedule=configs.ScheduleConfig(steps=training.steps, learning_rate=training.rate),
                batch=configs.BatchConfig(size=training.batch_size),
                checkpoint=configs.CheckpointConfig(restart=present.restart, wait=present.wait),
                log=configs.LogConfig(trackers=track or ()),
                seed=training.seed,
            )
            opened = open_run(run, data, names, cache=data.cache, limit=data.limit, dtype=data.dtype)
            trained = runs.train(opened, names or [], config, **how)
    except trainer.Stopped as stopped:
        typer.echo(f"elm: {stopped}", err=True)
        raise typer.Exit(interrupts.EXIT_CODES[signal.SIGTERM]) from None
    for expert_id in trained:
        print(expert_id)


def _train_recipe(
    recipe: TrainRecipeFlags, macros: Mapping[str, Any], arguments: Mapping[str, Any]
) -> list[str]:
    """Trains what a recipe and macros say; a dry run prints the resolved recipe first."""
    from elm_jax.launch import recipes
    from elm_jax.training import train as runs

    search_paths = recipe.gin_search_paths.split(",") if recipe.gin_search_paths else []
    bindings = [*(recipe.gin_bindings or []), *(f"{name} = {value!r}" for name, value in macros.items())]
    call = recipes.bind(runs.train, recipe.gin_file or [], bindings, search_paths=search_paths)
    if arguments.get("dry_run"):
        print(recipes.config_text())
    return call(**arguments)


def _print_estimate(estimate: Any) -> None:
    from elm_jax.training import estimate as estimates

    for table in estimates.tables(estimate):
        print_table(table)
