"""Verbs: what `elm` does with a run, from the quickstart to the evaluation."""

import json
import os
from typing import Annotated, Any

import typer

from elm_jax.cli.opened import given_to, own_files, router_options, task_files
from elm_jax.cli.options import (
    DEFAULT_OUT,
    AsJson,
    Cache,
    DataDir,
    Dtype,
    ExtraIds,
    Faithful,
    GinBindings,
    GinFiles,
    Limit,
    MaxAnswer,
    MaxPrompt,
    Names,
    Out,
    RunDir,
    Seed,
    Split,
    TaskFiles,
    TemplatesDir,
    Truncate,
    VocabularyFile,
)
from elm_jax.cli.shown import show_outcome
from elm_jax.errors import UserError

app = typer.Typer()


@app.command()
def quickstart(out: Out = DEFAULT_OUT, seed: Seed = 0) -> None:
    """The whole path on the embedded suite, on a CPU, ending in a report."""
    from elm_jax.pipelines import quickstart as runs

    show_outcome(runs.quickstart(out=out, seed=seed))


@app.command()
def run(gin_file: GinFiles = None, gin_bindings: GinBindings = None) -> None:
    """A whole recipe: train, index, route, merge, evaluate, report."""
    from elm_jax.launch import recipes
    from elm_jax.pipelines import pipeline

    if not gin_file:
        raise UserError(
            "A recipe is wanted: elm run --gin_file=gin/recipes/NAME.gin [--gin.MACRO=VALUE ...]."
        )
    show_outcome(recipes.bind(pipeline.run_pipeline, gin_file, gin_bindings or [])())


@app.command()
def prepare(
    names: Names = None,
    run: RunDir = DEFAULT_OUT,
    cache: Cache = None,
    vocabulary: VocabularyFile = None,
    extra_ids: ExtraIds = 100,
    split: Split = None,
    max_prompt: MaxPrompt = None,
    max_answer: MaxAnswer = None,
    processes: Annotated[int | None, typer.Option(help="How many at once; one a core without it.")] = None,
    data_dir: DataDir = None,
    templates_dir: TemplatesDir = None,
    tasks: TaskFiles = None,
    limit: Limit = None,
    truncate: Truncate = None,
    faithful: Faithful = None,
    module: Annotated[str | None, typer.Option(help="Python module that registers NAMES with SeqIO.")] = None,
    as_json: AsJson = False,
) -> None:
    """Render and tokenise tasks once, so that no run does it again; what is current is left alone."""
    from dataclasses import asdict, replace

    from elm_jax.data import prepare as runs
    from elm_jax.data import task_selection
    from elm_jax.session import opening
    from elm_jax.tasks import data_source

    wanted = names or []
    reading = opening.load_data_settings(run, vocabulary_file=vocabulary, extra_ids=extra_ids)
    given: dict[str, Any] = {"data_dir": data_dir, "templates_dir": templates_dir}
    given |= {"limit": limit, "prepared": cache}
    given["tasks"] = [*reading.source.tasks, *task_files(own_files(names, tasks))]
    source = data_source.override_rendering(given_to(reading.source, **given), truncate, faithful)
    how: dict[str, Any] = {"tasks": wanted, "tokenizer": reading.tokenizer}
    how["lengths"] = given_to(reading.lengths, prompt=max_prompt, answer=max_answer)
    if module:
        source = replace(source, splits=dict.fromkeys(wanted, split or "train"))
        made = runs.prepare_seqio_tasks(module, source=source, **how)
    else:
        if split:
            source = replace(
                source, splits={spec.dataset: split for spec in task_selection.select_tasks(wanted, source)}
            )
        made = runs.prepare_tasks(source=source, processes=processes or os.cpu_count() or 1, **how)
    if as_json:
        print(json.dumps([asdict(each) for each in made], ensure_ascii=False))
        return
    for each in made:
        print(f"{each.rows:>9,} rows  {each.task} ({each.split}): {runs.describe_result(each)}")


@app.command()
def index(
    run: RunDir = DEFAULT_OUT,
    rebuild: Annotated[bool, typer.Option(help="Embed all keys anew.")] = False,
    size: Annotated[int, typer.Option(help="Training inputs of each expert to embed.")] = 100,
    text_format: Annotated[str, typer.Option(help="How a row is written as a key.")] = "instance_new",
    embedder: Annotated[
        str | None,
        typer.Option(help="t5 (the base's encoder), or a sentence encoder by name or directory; kept."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="What the base or a sentence encoder computes in, float32 or bfloat16; default: a base "
            "as the run has it, an encoder in float32."
        ),
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(help="A field of a sentence encoder's configuration that changes no vector; kept."),
    ] = None,
    data_dir: DataDir = None,
    templates_dir: TemplatesDir = None,
    tasks: TaskFiles = None,
    cache: Cache = None,
) -> None:
    """Embed the keys of experts that lack them, so that routers find them."""
    from elm_jax.routing import index as runs
    from elm_jax.session import opening

    opened = opening.open_run(
        run,
        data_dir=data_dir,
        templates_dir=templates_dir,
        task_files=task_files(tasks),
        dtype=dtype,
        overrides={"prepared": cache},
    )
    for expert in runs.index(
        opened,
        size=size,
        text_format=text_format,
        rebuild=rebuild,
        embedder=embedder,
        dtype=dtype,
        ignore=ignore or (),
    ):
        print(expert)


@app.command()
def route(
    names: Names = None,
    run: RunDir = DEFAULT_OUT,
    router: Annotated[str, typer.Option(help="How experts are chosen; --routers lists all ways.")] = "roe",
    experts: Annotated[int, typer.Option(help="How many of the most voted to take.")] = 1,
    queries: Annotated[int, typer.Option(help="Inputs of the task that vote.")] = 32,
    option: Annotated[
        list[str] | None, typer.Option(help="An option of the router, NAME=VALUE; may be repeated.")
    ] = None,
    explain: Annotated[bool, typer.Option(help="Show the votes and the nearest keys.")] = False,
    dtype: Dtype = None,
    routers: Annotated[bool, typer.Option("--routers", help="List the routers and their options.")] = False,
    data_dir: DataDir = None,
    templates_dir: TemplatesDir = None,
    tasks: TaskFiles = None,
    cache: Cache = None,
    as_json: AsJson = False,
) -> None:
    """Which experts a task should use, and why."""
    files = task_files(own_files(names, tasks))
    if routers:
        _list_routers()
        return
    from dataclasses import asdict

    from elm_jax.data import task_selection
    from elm_jax.routing import route as runs
    from elm_jax.routing.run_inputs import RoutingInputs
    from elm_jax.session import opening

    given = router_options(option or [])
    opened = opening.open_run(
        run,
        data_dir=data_dir,
        templates_dir=templates_dir,
        task_files=files,
        dtype=dtype,
        overrides={"prepared": cache},
    )
    specs = task_selection.select_tasks(names or [], opened.source, evaluation=True)
    inputs = RoutingInputs(opened, queries_per_task=queries)
    made = runs.route_tasks(inputs, specs, router, given, experts=experts, explain=explain)
    if as_json:
        print(json.dumps([asdict(routed.selection) for routed in made], ensure_ascii=False))
        return
    for routed in made:
        print(f"{routed.selection.task}: {', '.join(routed.selection.weights)}")
        for line in routed.explanation:
            print(f"  {line}")


def _list_routers() -> None:
    import inspect

    from elm_jax.routing.table import ROUTERS

    for name, router in sorted(ROUTERS.items()):
        print(f"{name:<18} {router.description}")
        for option, default in router.options.items():
            shown = "" if default is inspect.Parameter.empty else f" (default: {default})"
            print(f"{'':<18} {option}{shown}")
