"""`elm init`: a run's directory with its base, so that every other verb needs no more than `--run`."""

from typing import Annotated

import typer

from elm_jax.cli.flags import flattened
from elm_jax.cli.inputs import open_run
from elm_jax.cli.options import AsJson, Dtype, LengthFlags, SourceFlags
from elm_jax.cli.output import print_json
from elm_jax.errors import UserError


@flattened
def init(
    run: Annotated[str, typer.Argument(help="Directory to make.")],
    dtype: Dtype = None,
    as_json: AsJson = False,
    *,
    source: SourceFlags,
    lengths: LengthFlags,
) -> None:
    """Make a run: the directory in which a base's experts will be.

    It remembers the base, its tokenizer, and where data are.

    Example: elm init my_run --base hf:google/flan-t5-base

    Example: elm init my_run --base models/t5-xl --tokenizer spiece.model --data-dir data
    """
    if source.base is None:
        raise UserError(
            "Expected a base, got none. Fix: name its directory or its name on the hub, as in `elm init "
            f"{run} --base hf:google/flan-t5-base`."
        )
    opened = open_run(run, source, dtype=dtype, lengths=lengths)
    config, fingerprint = opened.base.config, opened.base.fingerprint
    if as_json:
        size = {"layers": config.num_encoder_layers + config.num_decoder_layers, "width": config.emb_dim}
        print_json({"run": run, "base": fingerprint, "tokenizer": opened.tokenizer.size, **size})
        return
    print(
        f"{run}: a base of {config.num_encoder_layers} + {config.num_decoder_layers} layers, width "
        f"{config.emb_dim}, and a tokenizer of {opened.tokenizer.size:,} ids. Fingerprint: {fingerprint}"
    )
    print(f"Next: elm train TASK --run {run}")
