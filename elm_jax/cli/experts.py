"""`elm experts`: the experts of a library."""

import json
from typing import Annotated

import typer

from elm_jax.cli.options import (
    DEFAULT_OUT,
    AsJson,
    RunDir,
)

app = typer.Typer(help="The experts of a library.", no_args_is_help=True)


@app.command("list")
def experts_list(run: RunDir = DEFAULT_OUT, as_json: AsJson = False) -> None:
    """All experts of a run's library, with their sizes."""
    from dataclasses import asdict

    from elm_jax.library.store import Library
    from elm_jax.runs.workspace import Workspace

    library = Library.open(Workspace.open(run).library)
    sizes = library.sizes()
    if as_json:
        print(json.dumps([{"id": expert, **asdict(size)} for expert, size in sizes.items()]))
        return
    for expert, size in sizes.items():
        keys = "keys" if library.has_keys(expert) else "no keys"
        print(f"{size.parameters:>12,} parameters {size.bytes:>12,} bytes  {keys:<8} {expert}")


@app.command("show")
def experts_show(
    name: Annotated[str, typer.Argument(help="An expert's id.")], run: RunDir = DEFAULT_OUT
) -> None:
    """One expert's spec: base, recipe, and the parameters it owns."""
    from elm_jax.library.store import Library
    from elm_jax.reporting import tables
    from elm_jax.runs.workspace import Workspace

    spec = Library.open(Workspace.open(run).library).spec(name)
    told = {"id": spec.id, "kind": spec.kind, "base": spec.base, "steps": spec.steps}
    for field, value in tables.flat(
        {**told, "datasets": ", ".join(spec.datasets), "recipe": dict(spec.recipe)}
    ):
        print(f"{field:<20} {value}")
    for path in spec.paths:
        print(f"owns                 {path}")


@app.command("verify")
def experts_verify(run: RunDir = DEFAULT_OUT) -> None:
    """Checksums, base, missing files; exit code 1 if anything is wrong."""
    from elm_jax.library.store import Library
    from elm_jax.runs.workspace import Workspace
    from elm_jax.weights import elm

    workspace = Workspace.open(run)
    library = Library.open(workspace.library)
    findings = library.verify(base=elm.load(workspace.base).fingerprint)
    for finding in findings:
        print(f"{finding.expert}: {finding.problem}")
    if findings:
        raise typer.Exit(1)
    print(f"{len(library.ids())} experts are sound.")


@app.command("remove")
def experts_remove(
    name: Annotated[str, typer.Argument(help="An expert's id.")], run: RunDir = DEFAULT_OUT
) -> None:
    """Take one expert out of the library."""
    from elm_jax.library.store import Library
    from elm_jax.runs.workspace import Workspace

    Library.open(Workspace.open(run).library).remove(name)


@app.command("add")
def experts_add(
    src: Annotated[
        str, typer.Argument(help="A checkpoint of T5X's, an exported expert, or an adapter of PEFT's.")
    ],
    id: Annotated[
        str | None, typer.Option("--id", help="DATASET/PROMPT; an exported expert brings its own.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="bottleneck, lora, ia3 or full; told by the parameters' names without.")
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option("--dataset", help="What it was trained on; may be repeated. That of --id without it."),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of one that is there.")] = False,
    run: RunDir = DEFAULT_OUT,
) -> None:
    """Put an expert that was made elsewhere into the library."""
    from elm_jax.runs import adopt

    spec = adopt.add(src, id=id, kind=kind, datasets=dataset or (), run=run, replace=replace)
    print(f"{spec.id}: {spec.kind}, {spec.steps} steps, trained on {', '.join(spec.datasets)}.")


@app.command("export")
def experts_export(
    name: Annotated[str, typer.Argument(help="An expert's id.")],
    dst: Annotated[str, typer.Argument(help="New directory.")],
    run: RunDir = DEFAULT_OUT,
) -> None:
    """Copy one expert out of the library, for `elm experts add` to take elsewhere."""
    from elm_jax.runs import adopt

    print(adopt.export(name, dst, run=run))
