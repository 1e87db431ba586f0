"""`elm index`: the keys by which routers find experts."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import typer

from elm_jax.cli.flags import flattened
from elm_jax.cli.inputs import open_run
from elm_jax.cli.options import DEFAULT_OUT, AsJson, Cache, RunDir, SourceFlags, Wait
from elm_jax.cli.output import print_json
from elm_jax.errors import UserError


@dataclass(frozen=True)
class EmbedderFlags:
    """What embeds keys."""

    PANEL: ClassVar[str] = "Embedder"
    embedder: Annotated[
        str | None,
        typer.Option(
            help="t5 (the base's encoder), or a sentence encoder by name or directory; the run remembers it."
        ),
    ] = None
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Type that the base or a sentence encoder computes in, float32 or bfloat16; default: the "
            "run's for a base, float32 for an encoder."
        ),
    ] = None
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            help="A field of a sentence encoder's configuration that changes no vector; may be repeated; the "
            "run remembers it."
        ),
    ] = None


@dataclass(frozen=True)
class KeyFlags:
    """Which keys are made."""

    PANEL: ClassVar[str] = "Keys"
    rebuild: Annotated[bool, typer.Option(help="Embed all keys anew.")] = False
    size: Annotated[int, typer.Option(min=1, help="Training inputs of each expert to embed.")] = 100
    expert: Annotated[
        list[str] | None,
        typer.Option("--expert", help="An expert's id; may be repeated; default: all that have no keys."),
    ] = None
    keys: Annotated[
        str | None,
        typer.Option(help="Text file with an input a line: the keys of the one --expert, made elsewhere."),
    ] = None
    text_format: Annotated[str, typer.Option(help="How a row is written as a key.")] = "instance_new"


@flattened
def index(
    run: RunDir = DEFAULT_OUT,
    cache: Cache = None,
    wait: Wait = False,
    as_json: AsJson = False,
    *,
    made: KeyFlags,
    encoder: EmbedderFlags,
    source: SourceFlags,
) -> None:
    """Embed the keys by which routers find experts.

    Experts that have keys keep them.

    Example: elm index --run elm_out
    """
    from elm_jax.routing import index as indexing

    if made.keys is not None and len(made.expert or ()) != 1:
        raise UserError("Expected one expert for the texts of --keys. Fix: name it with --expert.")
    texts = None if made.keys is None else indexing.read_text_lines(made.keys)
    opened = open_run(run, source, cache=cache, dtype=encoder.dtype)
    if made.expert and texts is not None:
        indexing.index_texts(opened, made.expert[0], texts, wait=wait)
        print_json(made.expert) if as_json else print(made.expert[0])
        return
    indexed = indexing.index(
        opened,
        experts=made.expert,
        size=made.size,
        text_format=made.text_format,
        rebuild=made.rebuild,
        embedder=encoder.embedder,
        dtype=encoder.dtype,
        ignore=encoder.ignore or (),
        wait=wait,
    )
    if as_json:
        print_json(indexed)
        return
    for name in indexed:
        print(name)
