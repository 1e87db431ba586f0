"""`elm convert`: weights from one format to another."""

from dataclasses import asdict
from typing import Annotated

import typer

from elm_jax.cli.options import AsJson
from elm_jax.cli.output import print_json


def convert(
    src: Annotated[str, typer.Argument(help="A model's directory or name, a PEFT adapter, or an expert.")],
    dst: Annotated[str, typer.Argument(help="New directory; an expert's is LIBRARY/DATASET/PROMPT.")],
    to: Annotated[
        str, typer.Option("--to", help="Format: hf, t5x or elm; of an expert elm, peft, adapters, hf or t5x.")
    ],
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16; default: as stored.")] = None,
    base: Annotated[str | None, typer.Option(help="The base that an expert was trained on.")] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            help="Take an expert out of a T5X checkpoint: bottleneck, lora, dora, vera, ia3, prompt, full."
        ),
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            help="A field of a foreign configuration, of --base too, that does not change the computation; "
            "may be repeated."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Convert weights: Hugging Face, T5X, PEFT and our own format.

    Example: elm convert google/t5-large-lm-adapt models/t5-large --to elm
    """
    from elm_jax.experts import convert as conversion

    made = conversion.convert(src, dst, to, dtype=dtype, base=base, kind=kind, ignore=ignore or ())
    if as_json:
        print_json(asdict(made))
        return
    print(f"{made.directory}: {made.what} of {made.parameters:,} parameters as {made.format}.")
    print(f"Fingerprint of the {'model' if made.what == 'model' else 'base'}: {made.fingerprint}")
