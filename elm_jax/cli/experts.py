"""`elm experts`: the experts of a library."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elm_jax.cli.options import DEFAULT_OUT, AsJson, RunDir
from elm_jax.errors import UserError

if TYPE_CHECKING:
    from elm_jax.experts.listing import ExpertSummary

app = typer.Typer(help="The experts of a library.", no_args_is_help=True)


@app.command("list")
def experts_list(
    run: RunDir = DEFAULT_OUT,
    composites: Annotated[
        bool, typer.Option("--composites", help="List merged and multitask experts instead.")
    ] = False,
    scores: Annotated[bool, typer.Option("--scores", help="Print their accuracies in this run too.")] = False,
    as_json: AsJson = False,
) -> None:
    """All experts of a run's library: sizes, owners, accuracies."""
    from elm_jax.cli.output import print_table
    from elm_jax.experts import listing
    from elm_jax.experts.library import Library
    from elm_jax.session.workspace import Workspace

    workspace = Workspace.open(run)
    ids = Library(workspace.composites).ids() if composites else None
    experts = listing.summarize_experts(workspace, ids, scored=scores)
    if as_json:
        told = [asdict(one) if isinstance(one, listing.BadExpert) else _to_json(one) for one in experts]
        print(json.dumps(told, ensure_ascii=False))
        return
    print_table(listing.summary_table(experts, scored=scores), may_shrink=True)


@app.command("show")
def experts_show(
    name: Annotated[str, typer.Argument(help="An expert's id.")],
    run: RunDir = DEFAULT_OUT,
    as_json: AsJson = False,
) -> None:
    """One expert: size, owner, base, recipe, accuracies, and the parameters it owns."""
    from elm_jax.experts import listing
    from elm_jax.session.workspace import Workspace

    (expert,) = listing.summarize_experts(Workspace.open(run), [name], scored=True)
    if isinstance(expert, listing.BadExpert):
        raise UserError(expert.problem)
    if as_json:
        print(json.dumps(_to_json(expert), ensure_ascii=False))
        return
    for field, value in listing.summary_fields(expert):
        print(f"{field:<24} {value}")


@app.command("verify")
def experts_verify(run: RunDir = DEFAULT_OUT) -> None:
    """Check checksums, base, vocabulary and files; exit code 1 if anything is wrong."""
    from elm_jax.data.identity import VOCABULARY
    from elm_jax.experts import compatibility
    from elm_jax.experts.library import Library
    from elm_jax.session import opening, settings
    from elm_jax.session.workspace import Workspace
    from elm_jax.weights import load

    workspace = Workspace.open(run)
    library = Library.open(workspace.library)
    fingerprint = load.load_base(settings.base_directory(workspace)).fingerprint
    findings = library.verify(base=fingerprint)
    for finding in findings:
        print(f"{finding.expert}: {finding.problem}")
    bad = {finding.expert for finding in findings}
    specs = [library.spec(expert) for expert in library.ids() if expert not in bad]
    others = []
    if any(VOCABULARY in spec.recipe for spec in specs):
        vocabulary = opening.load_data_settings(run).tokenizer.fingerprint
        others = compatibility.find_other_vocabularies(specs, vocabulary)
    for expert in others:
        print(f"{expert}: was trained with another vocabulary than the run's")
    if findings or others:
        raise typer.Exit(1)
    print(f"{len(library.ids())} experts are sound.")


@app.command("remove")
def experts_remove(
    names: Annotated[list[str], typer.Argument(help="Experts by id, or patterns such as 'dream/*'.")],
    run: RunDir = DEFAULT_OUT,
) -> None:
    """Remove experts from the library, or from the composites if the library has none of that id."""
    from elm_jax.experts import lookup
    from elm_jax.session.workspace import Workspace

    workspace = Workspace.open(run)
    lookup.remove_leftovers(workspace)
    # All are found before one is removed, so that a mistake removes none.
    for name, library in lookup.match_experts(workspace, names).items():
        library.remove(name)
        others = [each for each in lookup.libraries(workspace) if name in each]
        rest = f"; another of that id is still in {others[0].root}" if others else ""
        print(f"{name} was removed from {library.root}{rest}.")


@app.command("add")
def experts_add(
    src: Annotated[str, typer.Argument(help="A T5X checkpoint, an exported expert, or a PEFT adapter.")],
    id: Annotated[
        str | None, typer.Option("--id", help="DATASET/PROMPT; default: the exported expert's own.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="bottleneck, lora, ia3 or full; default: by the parameters' names.")
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            "--dataset", help="A dataset it was trained on; may be repeated; default: that of --id."
        ),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace an expert of the same id.")] = False,
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            help="A field of PEFT's configuration that does not change the computation; may be repeated."
        ),
    ] = None,
    run: RunDir = DEFAULT_OUT,
) -> None:
    """Add an expert that was made elsewhere to the library."""
    from elm_jax.experts import import_export

    spec = import_export.import_expert(
        src, id=id, kind=kind, datasets=dataset or (), run=run, replace=replace, ignore=ignore or ()
    )
    print(f"{spec.id}: {spec.kind}, {spec.steps} steps, trained on {', '.join(spec.datasets)}.")


@app.command("export")
def experts_export(
    name: Annotated[str, typer.Argument(help="An expert's id.")],
    dst: Annotated[str, typer.Argument(help="New directory.")],
    run: RunDir = DEFAULT_OUT,
) -> None:
    """Copy one expert out of the library, for `elm experts add` to take elsewhere."""
    from elm_jax.experts import import_export

    print(import_export.export_expert(name, dst, run=run))


@app.command("push")
def experts_push(
    repository: Annotated[
        str, typer.Argument(help="owner/name or owner/name@branch; created if it is absent.")
    ],
    names: Annotated[
        list[str] | None, typer.Argument(help="Experts by id; default: the whole library.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option(help="The model card's licence, such as apache-2.0; default: unchanged.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace an expert of the same id.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    run: RunDir = DEFAULT_OUT,
    as_json: AsJson = False,
) -> None:
    """Upload experts, with a model card, to a repository of the Hugging Face hub, in one commit."""
    from elm_jax.experts import push_pull

    done = push_pull.push(repository, names or (), run=run, licence=licence, replace=replace, private=private)
    if as_json:
        print(json.dumps(asdict(done), ensure_ascii=False))
        return
    print(
        f"{len(done.experts)} experts pushed, of which {len(done.unchanged)} were there already; "
        f"hf:{done.repository}@{done.commit} has {len(done.every)}."
    )


@app.command("pull")
def experts_pull(
    repository: Annotated[str, typer.Argument(help="owner/name or owner/name@revision.")],
    only: Annotated[
        str | None, typer.Option(help="An id, or a pattern such as 'dream/*'; default: all.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace an expert of the same id.")] = False,
    run: RunDir = DEFAULT_OUT,
    as_json: AsJson = False,
) -> None:
    """Download experts of a repository of the Hugging Face hub into the library."""
    from elm_jax.experts import push_pull

    done = push_pull.pull(repository, only=only, run=run, replace=replace)
    if as_json:
        print(json.dumps(asdict(done), ensure_ascii=False))
        return
    print(
        f"{len(done.experts)} experts of hf:{done.repository}@{done.commit} are in the library, "
        f"of which {len(done.unchanged)} were there already."
    )


def _to_json(one: "ExpertSummary") -> dict[str, Any]:
    """Returns what `--json` prints of an expert."""
    about, size, spec = one.description, one.size, one.description.spec
    return {
        "id": spec.id,
        "kind": spec.kind,
        "owner": about.owner,
        "base": spec.base,
        "steps": spec.steps,
        "datasets": list(spec.datasets),
        "parameters": size.parameters,
        "bytes": size.bytes,
        "keys": one.has_keys,
        "checksum": about.checksum,
        "recipe": dict(spec.recipe),
        "accuracies": {
            task: {"accuracy": share, "rows": rows} for task, (share, rows) in one.accuracies.items()
        },
        "owns": list(spec.paths),
    }
