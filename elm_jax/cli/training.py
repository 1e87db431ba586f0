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
    list[str] | None, typer.Option("--track", help="Write to tensorboard or wandb too; may be repeated.")
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

    if multiprocess:
        from elm_jax.launch import hosts

        hosts.join(hosts.Hosts(coordinator, process_count, process_index))
    told: dict[str, Any] = {"told": _shown, "dry_run": True} if dry_run else {}
    try:
        if gin_file:
            trained = _by_recipe(gin_file, gin_bindings or [], gin_search_paths, told, track)
        else:
            from elm_jax.session import opening
            from elm_jax.training.config import Budget

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
            budget = Budget(steps=steps, batch_size=batch_size, rate=rate, kind=kind, options=options)
            trained = runs.train(
                opened,
                names or [],
                budget=budget,
                as_="multitask" if multitask else as_,
                name=multitask,
                trackers=track or (),
                seed=seed,
                **told,
            )
    except runs.Stopped as stopped:
        # A machine that is taken away is no failure: whoever started the job starts it again.
        typer.echo(f"elm: {stopped}", err=True)
        return
    for expert in trained:
        print(expert)


def _by_recipe(
    files: list[str], bindings: list[str], places: str | None, told: dict[str, Any], track: list[str] | None
) -> list[str]:
    from elm_jax.launch import recipes
    from elm_jax.training import train as runs

    given = {"trackers": tuple(track)} if track else {}
    call = recipes.bound(runs.train, files, bindings, places=places.split(",") if places else ())
    if told:
        print(recipes.resolved())
    return call(**told, **given)


def _shown(forecast: Any) -> None:
    from elm_jax.training import forecast as runs

    for table in runs.tables(forecast):
        show(table)
