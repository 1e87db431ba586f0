"""`elm prepare`: rows rendered and tokenised once."""

import os
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import typer

from elm_jax.cli.flags import flattened
from elm_jax.cli.inputs import load_task_files, replace_given, row_reader, task_files
from elm_jax.cli.options import (
    DEFAULT_OUT,
    AsJson,
    Cache,
    Names,
    RenderFlags,
    RowFlags,
    RunDir,
    SourceFlags,
    TokenFlags,
    Wait,
)
from elm_jax.cli.output import print_json


@dataclass(frozen=True)
class WorkFlags:
    """How the work is done."""

    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes that work side by side; default: one for each core.")
    ] = None
    wait: Wait = False


@flattened
def prepare(
    names: Names = None,
    run: RunDir = DEFAULT_OUT,
    cache: Cache = None,
    module: Annotated[str | None, typer.Option(help="Python module that registers NAMES with SeqIO.")] = None,
    as_json: AsJson = False,
    *,
    work: WorkFlags,
    source: SourceFlags,
    rows: RowFlags,
    tokens: TokenFlags,
    render: RenderFlags,
) -> None:
    """Render and tokenise tasks once, so that no run does it again.

    What is current is left alone.

    Example: elm prepare mini_sentiment_hotel --run elm_out
    """
    from elm_jax.data import prepare as preparation
    from elm_jax.data import task_selection
    from elm_jax.experts import lookup
    from elm_jax.session.run_directory import Workspace

    chosen = names or []
    reader = row_reader(run, source, tokens, render)
    assert reader.tokenizer is not None
    if (workspace := Workspace.at(run)).root.is_dir():
        lookup.remove_leftovers(workspace)
    files = load_task_files(task_files(source.tasks, names))
    read = replace_given(
        reader.source, limit=rows.limit, prepared=cache, tasks=[*reader.source.tasks, *files]
    )
    how: dict[str, Any] = {"tasks": chosen, "tokenizer": reader.tokenizer, "lengths": reader.lengths}
    if module:
        read = replace(read, splits=dict.fromkeys(chosen, rows.split or "train"))
        made = preparation.prepare_seqio_tasks(module, source=read, wait=work.wait, **how)
    else:
        if rows.split:
            specs = task_selection.select_tasks(chosen, read)
            read = replace(read, splits={spec.dataset: rows.split for spec in specs})
        count = os.cpu_count() or 1 if work.processes is None else work.processes
        made = preparation.prepare_tasks(source=read, processes=count, wait=work.wait, **how)
    if as_json:
        print_json([asdict(each) for each in made])
        return
    for each in made:
        print(f"{each.rows:>9,} rows  {each.task} ({each.split}): {preparation.describe_result(each)}")
