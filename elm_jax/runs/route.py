"""`elm route`: which experts of the library a task should use, and why."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from elm_jax import storage
from elm_jax.library import keys as formats
from elm_jax.library.store import Library
from elm_jax.records import Selection, TaskSpec
from elm_jax.routing import table
from elm_jax.routing.evidence import Index, Queries
from elm_jax.runs import data
from elm_jax.runs.index import embed_texts
from elm_jax.runs.workspace import Run, Workspace


def route(
    run: Run,
    wanted: Sequence[TaskSpec],
    *,
    router: str = "roe",
    experts: int = 1,
    queries: int = formats.QUERIES_PER_TASK,
    **options: Any,
) -> list[Selection]:
    """Returns a selection for every task and keeps them in the workspace under `<router>_top<experts>`.

    Experts trained on the task's own dataset are passed over: they would not be zero-shot there.
    """
    chosen = table.find(router)
    keys = formats.index(Library.open(run.workspace.library))
    if router == "roe":
        options["experts"] = experts
    selections = []
    for spec in wanted:
        asked = ask(run, spec, keys, queries)
        found = chosen.route(asked, keys, exclude={spec.dataset}, **options)
        selections.append(replace(found, router=label(router, experts)))
    keep(run.workspace, label(router, experts), selections)
    return selections


def label(router: str, experts: int) -> str:
    """Names a router with the number of experts it takes: `roe_top3`."""
    return f"{router}_top{experts}"


def ask(run: Run, spec: TaskSpec, keys: Index, size: int) -> Queries:
    """Returns a task's queries: a few of its inputs, unlabelled, written and embedded as the keys were."""
    examples = formats.sample(data.examples(spec, run.source), size, run.source.seed)
    texts = formats.texts(examples, keys.text_format, data.choices_expression(spec, run.source))
    embedded = embed_texts(run, texts, keys.text_format)
    return Queries(
        task=spec.id,
        row_ids=tuple(example.row_id for example in examples),
        texts=embedded.texts,
        vectors=embedded.vectors,
        embedder=embedded.embedder,
        text_format=embedded.text_format,
    )


def keep(workspace: Workspace, name: str, selections: Sequence[Selection]) -> None:
    """Writes selections beside those of other tasks by the same router."""
    there = {selection.task: selection for selection in kept(workspace, name)}
    there |= {selection.task: selection for selection in selections}
    rows = [asdict(selection) for selection in there.values()]
    storage.write_json(workspace.selections / f"{name}.json", {"selections": rows})


def kept(workspace: Workspace, name: str) -> list[Selection]:
    """Returns the selections that a router made before; none if it made none."""
    file = workspace.selections / f"{name}.json"
    if not file.exists():
        return []
    return [
        Selection(
            task=row["task"],
            router=row["router"],
            weights=row["weights"],
            votes=row["votes"],
            queries=tuple(row["queries"]),
            nearest=tuple((expert, similarity) for expert, similarity in row["nearest"]),
        )
        for row in storage.read_json(file, what="A router's selections")["selections"]
    ]


def explain(selection: Selection) -> list[str]:
    """Tells why: the votes, and for a few queries the nearest expert and how near."""
    lines = [
        f"{votes:>4} of {len(selection.queries)} votes  {expert}" for expert, votes in selection.votes.items()
    ]
    for query, (expert, similarity) in list(zip(selection.queries, selection.nearest, strict=False))[:5]:
        lines.append(f"query {query}: nearest is {expert} at {similarity:.3f}")
    return lines
