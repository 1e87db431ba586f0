"""`elm train`: what it trains, from names and flags or from a recipe, on this machine or on many."""

import os
from typing import Annotated, Any

import typer

from elm_jax.cli.opened import own_files, task_files
from elm_jax.cli.options import (
    DEFAULT_OUT,
    Cache,
    Coordinator,
    DataDir,
    Dtype,
    GinBindings,
    GinFiles,
    Limit,
    Multiprocess,
    Names,
    ProcessCount,
    ProcessIndex,
    RunDir,
    Seed,
    TaskFiles,
    TemplatesDir,
)
from elm_jax.cli.shown import show

Kind = Annotated[str, typer.Option(help="What an expert owns: bottleneck, lora, ia3 or full.")]
As = Annotated[
    str,
    typer.Option(
        "--as", help="One expert for each task (experts), for each dataset, or for all (multitask)."
    ),
]
Track = Annotated[
    list[str] | None,
    typer.Option(
        "--track", help="Write to tensorboard, wandb or a tracker of your own too; may be repeated."
    ),
]


def train(
    names: Names = None,
    run: RunDir = DEFAULT_OUT,
    steps: Annotated[int, typer.Option(help="Steps of each expert.")] = 1000,
    batch_size: Annotated[int, typer.Option(help="Rows of each expert in a step.")] = 8,
    rate: Annotated[float, typer.Option(help="Learning rate, falling in a line to 0.")] = 1e-4,
    kind: Kind = "bottleneck",
    width: Annotated[
        int | None, typer.Option(help="Bottleneck width; the library's, else emb_dim // 32.")
    ] = None,
    rank: Annotated[int | None, typer.Option(help="LoRA's rank; the library's, else 8.")] = None,
    as_: As = "experts",
    multitask: Annotated[str | None, typer.Option(help="Train one expert of this name on all tasks.")] = None,
    data_dir: DataDir = None,
    templates_dir: TemplatesDir = None,
    tasks: TaskFiles = None,
    cache: Cache = None,
    limit: Limit = None,
    dtype: Dtype = None,
    seed: Seed = 0,
    track: Track = None,
    gin_file: GinFiles = None,
    gin_bindings: GinBindings = None,
    gin_search_paths: Annotated[
        str | None, typer.Option("--gin_search_paths", help="Where recipes are looked for, by commas.")
    ] = None,
    tfds_data_dir: Annotated[
        str | None, typer.Option("--tfds_data_dir", help="Where TensorFlow Datasets keeps its own.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", "--dry_run", help="Say what would be trained and what it takes; no more."),
    ] = False,
    multiprocess: Multiprocess = False,
    coordinator: Coordinator = None,
    process_count: ProcessCount = None,
    process_index: ProcessIndex = None,
) -> None:
    """Train experts, many in one program: one a task, one a dataset, or one on all tasks.

    A run that was stopped goes on where it was when the same command is given again.
    """
    if tfds_data_dir:
        os.environ["TFDS_DATA_DIR"] = tfds_data_dir
    from elm_jax.training import train as runs
    from elm_jax.training import trainer

    if multiprocess:
        from elm_jax.launch import hosts

        hosts.join(hosts.HostAddress(coordinator, process_count, process_index))
    how: dict[str, Any] = {"on_estimate": _show_estimate, "dry_run": True} if dry_run else {}
    try:
        if gin_file:
            search_paths = gin_search_paths.split(",") if gin_search_paths else []
            trained = _train_by_recipe(gin_file, gin_bindings or [], search_paths, track, how)
        else:
            from elm_jax.session import opening
            from elm_jax.training import config as configs

            files = task_files(own_files(names, tasks))
            opened = opening.open_run(
                run,
                data_dir=data_dir,
                templates_dir=templates_dir,
                task_files=files,
                overrides={"prepared": cache, "limit": limit},
                dtype=dtype,
            )
            options = {name: value for name, value in (("width", width), ("rank", rank)) if value is not None}
            config = configs.TrainConfig(
                expert=configs.ExpertConfig(
                    kind, options, train_as="multitask" if multitask else as_, name=multitask
                ),
                schedule=configs.ScheduleConfig(steps=steps, learning_rate=rate),
                batch=configs.BatchConfig(size=batch_size),
                log=configs.LogConfig(trackers=track or ()),
                seed=seed,
            )
            trained = runs.train(opened, names or [], config, **how)
    except trainer.Stopped as stopped:
        # A machine that is taken away is no failure: whoever started the job starts it again.
        typer.echo(f"elm: {stopped}", err=True)
        return
    for expert in trained:
        print(expert)


def _train_by_recipe(
    files: list[str],
    bindings: list[str],
    search_paths: list[str],
    track: list[str] | None,
    how: dict[str, Any],
) -> list[str]:
    from elm_jax.launch import recipes
    from elm_jax.training import train as runs

    if track:
        bindings = [*bindings, f"TRACKERS = {tuple(track)!r}"]
    call = recipes.bind(runs.train, files, bindings, search_paths=search_paths)
    if how:
        print(recipes.config_text())
    return call(**how)


def _show_estimate(estimate: Any) -> None:
    from elm_jax.training import estimate as estimates

    for table in estimates.tables(estimate):
        show(table)
