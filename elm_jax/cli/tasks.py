"""`elm tasks`: what is defined, and what the model will see."""

import json
from typing import Annotated

import typer
from rich.console import Console

from elm_jax.cli.opened import given_to, read_as, task_files
from elm_jax.cli.options import (
    AsJson,
    DataDir,
    ExtraIds,
    Faithful,
    KnownRun,
    Limit,
    MaxAnswer,
    MaxPrompt,
    Split,
    TaskFiles,
    TemplatesDir,
    Truncate,
    VocabularyFile,
)

app = typer.Typer(help="What is defined, and what the model will see.", no_args_is_help=True)


@app.command("list")
def tasks_list(
    group: Annotated[str | None, typer.Option(help="Only this group.")] = None,
    tasks: TaskFiles = None,
    as_json: AsJson = False,
) -> None:
    """Every task: one entry a dataset-prompt pair."""
    from elm_jax.tasks import specs

    task_files(tasks)
    found = specs.task_specs(group)
    if as_json:
        entries = [
            {
                "id": spec.id,
                "group": group or spec.group,  # "mini" is the embedded suite, of two groups
                **{name: getattr(spec, name) for name in ("dataset", "config", "prompt", "metric")},
            }
            for spec in found
        ]
        print(json.dumps(entries, ensure_ascii=False))
        return
    for spec in found:
        print(f"{spec.group:<12} {spec.metric:<11} {spec.id}")


@app.command("show")
def tasks_show(
    name: Annotated[str, typer.Argument(help="A task's id.")],
    templates_dir: TemplatesDir = None,
    tasks: TaskFiles = None,
) -> None:
    """One task: where it comes from, and its template where that is at hand."""
    from dataclasses import asdict

    from elm_jax.tasks import specs, task_templates

    task_files(tasks)
    spec = specs.find_task(name)
    for field, value in asdict(spec).items():
        print(f"{field:<16} {value}")
    if templates_dir or task_templates.has_template(spec):
        template = task_templates.template_for(spec, templates_dir)
        print(f"choices          {template.answer_choices}\n\n{template.jinja}")


@app.command("preview")
def tasks_preview(
    name: Annotated[str, typer.Argument(help="A task's id.")],
    rows: Annotated[int, typer.Option(help="How many rows.")] = 3,
    split: Split = None,
    data_dir: DataDir = None,
    templates_dir: TemplatesDir = None,
    tasks: TaskFiles = None,
    run: KnownRun = None,
    vocabulary: VocabularyFile = None,
    extra_ids: ExtraIds = 100,
    max_prompt: MaxPrompt = None,
    max_answer: MaxAnswer = None,
    truncate: Truncate = None,
    faithful: Faithful = None,
) -> None:
    """Rows as the model will see them: input, choices, target; tokens too with --run or --vocabulary."""
    from elm_jax.data import preview as runs
    from elm_jax.tasks import data_source, specs

    task_files(tasks)
    source, pieces, lengths = read_as(run, vocabulary, extra_ids, max_prompt, max_answer)
    spec = specs.find_task(name)
    source = data_source.rendered_as(source, truncate, faithful)
    source = given_to(source, data_dir=data_dir, templates_dir=templates_dir)
    if split:
        source = given_to(source, splits={spec.dataset: split})
    shown, count = runs.preview(spec, source, rows=rows, pieces=pieces, lengths=lengths)
    console = Console(highlight=False, soft_wrap=True)
    for row in shown:
        console.rule(row.example.row_id)
        for line in row.lines:
            console.print(line)
    console.print(f"{len(shown)} of {count} rows of the {data_source.split_of(spec, source)} split.")


@app.command("check")
def tasks_check(
    name: Annotated[
        str, typer.Argument(help="A task's id, a dataset, a group, or a file that defines tasks.")
    ],
    split: Split = None,
    allow: Annotated[
        list[str] | None, typer.Option(help="A kind of finding that is no reason to fail.")
    ] = None,
    data_dir: DataDir = None,
    templates_dir: TemplatesDir = None,
    tasks: TaskFiles = None,
    run: KnownRun = None,
    vocabulary: VocabularyFile = None,
    extra_ids: ExtraIds = 100,
    max_prompt: MaxPrompt = None,
    max_answer: MaxAnswer = None,
    limit: Limit = None,
    truncate: Truncate = None,
    faithful: Faithful = None,
    as_json: AsJson = False,
) -> None:
    """What is wrong with tasks, before anything is trained on them; exit code 1 if anything is."""
    from dataclasses import asdict

    from elm_jax.data import check as runs
    from elm_jax.data import task_selection
    from elm_jax.tasks import data_source

    task_files(tasks)
    source, pieces, lengths = read_as(run, vocabulary, extra_ids, max_prompt, max_answer)
    source = data_source.rendered_as(source, truncate, faithful)
    source = given_to(source, data_dir=data_dir, templates_dir=templates_dir, limit=limit)
    allowed, chosen = runs.kinds(allow or ()), task_selection.choose([name], source)
    if split:
        source = given_to(source, splits={spec.dataset: split for spec in chosen})
    checked = runs.check(chosen, source, pieces=pieces, lengths=lengths)
    refused = runs.without(checked, allowed)
    if as_json:
        print(json.dumps([asdict(each) for each in checked], ensure_ascii=False))
    else:
        for each in checked:
            print(f"{each.task} ({each.split}): applies to {each.applies:,} of {each.rows:,} rows.")
            for finding in each.findings:
                print(f"  {finding.kind}: {finding.says}")
    if any(each.findings for each in refused):
        raise typer.Exit(1)
