"""`elm index`: the keys by which routers find experts."""

from typing import Annotated

import typer

from elm_jax.cli.flags import flattened
from elm_jax.cli.inputs import open_run
from elm_jax.cli.options import DEFAULT_OUT, Cache, RunDir, SourceFlags, Wait


@flattened
def index(
    run: RunDir = DEFAULT_OUT,
    rebuild: Annotated[bool, typer.Option(help="Embed all keys anew.")] = False,
    size: Annotated[int, typer.Option(min=1, help="Training inputs of each expert to embed.")] = 100,
    text_format: Annotated[str, typer.Option(help="How a row is written as a key.")] = "instance_new",
    embedder: Annotated[
        str | None,
        typer.Option(
            help="t5 (the base's encoder), or a sentence encoder by name or directory; the run remembers it."
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Type that the base or a sentence encoder computes in, float32 or bfloat16; default: the "
            "run's for a base, float32 for an encoder."
        ),
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            help="A field of a sentence encoder's configuration that changes no vector; may be repeated; the "
            "run remembers it."
        ),
    ] = None,
    cache: Cache = None,
    wait: Wait = False,
    *,
    source: SourceFlags,
) -> None:
    """Embed the keys of experts that lack them, so that routers find them."""
    from elm_jax.routing import index as indexing

    opened = open_run(run, source, cache=cache, dtype=dtype)
    indexed = indexing.index(
        opened,
        size=size,
        text_format=text_format,
        rebuild=rebuild,
        embedder=embedder,
        dtype=dtype,
        ignore=ignore or (),
        wait=wait,
    )
    for expert in indexed:
        print(expert)
