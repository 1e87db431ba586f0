"""`elm tasks`: which tasks there are, and what the model sees of them."""

import json
from dataclasses import asdict, replace
from typing import Annotated

import typer

from elm_jax.cli.flags import flattened
from elm_jax.cli.inputs import load_task_files, override, row_reader
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

app = typer.Typer(help="Which tasks there are, and what the model sees of them.", no_args_is_help=True)


@app.command("list")
def tasks_list(
    group: Annotated[str | None, typer.Option(help="Only this group.")] = None,
    tasks: TaskFiles = None,
    as_json: AsJson = False,
) -> None:
    """All tasks, each a dataset with a prompt."""
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
        print(json.dumps(entries, ensure_ascii=False))
        return
    for spec in chosen:
        print(f"{spec.group:<12} {spec.metric:<11} {spec.id}")


@app.command("show")
def tasks_show(
    name: Annotated[str, typer.Argument(help="A task's id.")],
    templates_dir: TemplatesDir = None,
    tasks: TaskFiles = None,
) -> None:
    """One task: where it comes from, and its template if that is at hand."""
    from elm_jax.tasks import specs, task_templates

    load_task_files(tasks)
    spec = specs.find_task(name)
    for field, value in asdict(spec).items():
        print(f"{field:<16} {value}")
    if templates_dir or task_templates.has_template(spec):
        template = task_templates.find_template(spec, templates_dir)
        print(f"choices          {template.answer_choices}\n\n{template.jinja}")


@app.command("preview")
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
    """Rows as the model sees them: input, choices, target; with --run or --vocabulary tokens too."""
    from rich.text import Text

    from elm_jax.data import preview as previews
    from elm_jax.tasks import data_source, specs
    from elm_jax.telemetry.progress import SafeConsole

    load_task_files(source.tasks)
    reader = row_reader(run, source, tokens, render)
    spec, read = specs.find_task(name), reader.source
    if split:
        read = replace(read, splits={spec.dataset: split})
    shown, count = previews.preview_task(
        spec, read, rows=rows, tokenizer=reader.tokenizer, lengths=reader.lengths
    )
    if as_json:
        print(json.dumps(previews.to_json(shown), ensure_ascii=False))
        return
    console = SafeConsole(highlight=False, soft_wrap=True)
    for row in shown:
        console.rule(Text(row.example.row_id))
        for line in row.lines:
            console.print(line)
    console.print(f"{len(shown)} of {count} rows of the {data_source.get_split(spec, read)} split.")


@app.command("check")
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
    """Find what is wrong with tasks before anything is trained on them; exit code 1 if anything is."""
    from elm_jax.data import check as checks
    from elm_jax.data import task_selection

    load_task_files(source.tasks)
    reader = row_reader(run, source, tokens, render)
    read = override(reader.source, limit=rows.limit)
    allowed, specs = checks.parse_kinds(allow or ()), task_selection.select_tasks([name], read)
    if rows.split:
        read = replace(read, splits={spec.dataset: rows.split for spec in specs})
    checked = checks.check_tasks(specs, read, tokenizer=reader.tokenizer, lengths=reader.lengths)
    if as_json:
        print(json.dumps([asdict(each) for each in checked], ensure_ascii=False))
    else:
        for each in checked:
            print(f"{each.task} ({each.split}): applies to {each.applies:,} of {each.rows:,} rows.")
            for finding in each.findings:
                print(f"  {finding.kind}: {finding.message}")
    if any(each.findings for each in checks.drop_findings(checked, allowed)):
        raise typer.Exit(1)
