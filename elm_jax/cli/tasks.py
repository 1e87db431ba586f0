"""`elm tasks`: which tasks there are, and what the model sees of them."""

from dataclasses import asdict, replace
from typing import Annotated

import typer

from elm_jax.cli.flags import flattened
from elm_jax.cli.help_texts import Command, make_group
from elm_jax.cli.inputs import load_task_files, replace_given, row_reader
from elm_jax.cli.options import (
    AsJson,
    OptionalRun,
    RenderFlags,
    RowFlags,
    SourceFlags,
    Split,
    TaskFiles,
    TemplatesDir,
    TokenFlags,
)
from elm_jax.cli.output import print_json

app = make_group("Which tasks there are, and what the model sees of them.")


@app.command("list", cls=Command)
def tasks_list(
    group: Annotated[str | None, typer.Option(help="Only this group.")] = None,
    tasks: TaskFiles = None,
    as_json: AsJson = False,
) -> None:
    """List all tasks, each a dataset with a prompt.

    Example: elm tasks list --group unseen
    """
    from elm_jax.tasks import specs

    load_task_files(tasks)
    chosen = specs.task_specs(group)
    if as_json:
        entries = [
            {
                "id": spec.id,
                "group": group or spec.group,  # "mini" is the embedded suite, of two groups
                **{name: getattr(spec, name) for name in ("dataset", "config", "prompt", "metric")},
            }
            for spec in chosen
        ]
        print_json(entries)
        return
    for spec in chosen:
        print(f"{spec.group:<12} {spec.metric:<11} {spec.id}")


@app.command("show", cls=Command)
def tasks_show(
    name: Annotated[str, typer.Argument(help="A task's id.")],
    templates_dir: TemplatesDir = None,
    tasks: TaskFiles = None,
    as_json: AsJson = False,
) -> None:
    """Show where a task comes from, and its template if it is here.

    Example: elm tasks show dream/baseline
    """
    from elm_jax.tasks import specs, task_templates

    load_task_files(tasks)
    spec = specs.find_task(name)
    here = templates_dir or task_templates.has_template(spec)
    template = task_templates.find_template(spec, templates_dir) if here else None
    if as_json:
        shown = {"choices": template.answer_choices, "template": template.jinja} if template else {}
        print_json({"id": spec.id, **asdict(spec), **shown})
        return
    for field, value in asdict(spec).items():
        print(f"{field:<16} {value}")
    if template:
        print(f"choices          {template.answer_choices}\n\n{template.jinja}")


@app.command("preview", cls=Command)
@flattened
def tasks_preview(
    name: Annotated[str, typer.Argument(help="A task's id.")],
    rows: Annotated[int, typer.Option(min=1, help="Rows to print.")] = 3,
    run: OptionalRun = None,
    split: Split = None,
    as_json: AsJson = False,
    *,
    source: SourceFlags,
    tokens: TokenFlags,
    render: RenderFlags,
) -> None:
    """Show rows as the model sees them: input, choices, target.

    With --run or --vocabulary it shows tokens too.

    Example: elm tasks preview "mini_size_animal/than a dog" --rows 1
    """
    from rich.text import Text

    from elm_jax.data import preview as previews
    from elm_jax.tasks import data_source, specs
    from elm_jax.tasks.row_counts import describe_counts
    from elm_jax.telemetry.progress import SafeConsole

    load_task_files(source.tasks)
    reader = row_reader(run, source, tokens, render)
    spec, read = specs.find_task(name), reader.source
    if split:
        read = replace(read, splits={spec.dataset: split})
    preview = previews.preview_task(spec, read, rows=rows, tokenizer=reader.tokenizer, lengths=reader.lengths)
    if as_json:
        print_json(previews.to_json(preview))
        return
    console = SafeConsole(highlight=False, soft_wrap=True)
    for row in preview.rows:
        console.rule(Text(row.example.row_id))
        for line in row.lines:
            console.print(line)
    split = data_source.get_split(spec, read)
    console.print(f"{len(preview.rows)} of {preview.count} rows of the {split} split.")
    console.print(f"{describe_counts(preview.counts)}.")


@app.command("check", cls=Command)
@flattened
def tasks_check(
    name: Annotated[
        str, typer.Argument(help="A task's id, a dataset, a group, or a file that defines tasks.")
    ],
    allow: Annotated[
        list[str] | None, typer.Option(help="A kind of finding that is no failure; may be repeated.")
    ] = None,
    run: OptionalRun = None,
    as_json: AsJson = False,
    *,
    source: SourceFlags,
    rows: RowFlags,
    tokens: TokenFlags,
    render: RenderFlags,
) -> None:
    """Find what is wrong with tasks before anything is trained on them.

    The exit code is 1 if anything is wrong.

    Example: elm tasks check reviews.yaml
    """
    from elm_jax.data import check as checks
    from elm_jax.data import task_selection
    from elm_jax.tasks.row_counts import describe_counts

    load_task_files(source.tasks)
    reader = row_reader(run, source, tokens, render)
    read = replace_given(reader.source, limit=rows.limit)
    allowed, specs = checks.parse_kinds(allow or ()), task_selection.select_tasks([name], read)
    if rows.split:
        read = replace(read, splits={spec.dataset: rows.split for spec in specs})
    checked = checks.check_tasks(specs, read, tokenizer=reader.tokenizer, lengths=reader.lengths)
    if as_json:
        print_json([asdict(each) for each in checked])
    else:
        for each in checked:
            print(f"{each.task} ({each.split}): applies to {each.applies:,} of {each.rows:,} rows.")
            if each.counts.left_out or each.counts.cut:
                print(f"  {describe_counts(each.counts)}.")
            for finding in each.findings:
                print(f"  {finding.kind}: {finding.message}")
    if any(each.findings for each in checks.drop_findings(checked, allowed)):
        raise typer.Exit(1)
