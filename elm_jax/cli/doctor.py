"""`elm doctor`: what is here and what is missing; with `--plan`, what would fit."""

import json
from typing import Annotated

import typer

from elm_jax.cli.options import AsJson
from elm_jax.cli.shown import show
from elm_jax.errors import UserError


def doctor(
    plan: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory that a base of this size would take, as xl.")
    ] = None,
    experts: Annotated[int, typer.Option(help="Experts held at once.")] = 0,
    kind: Annotated[str, typer.Option(help="bottleneck, lora, ia3 or full.")] = "bottleneck",
    width: Annotated[int | None, typer.Option(help="Of a bottleneck; emb_dim // 32 without it.")] = None,
    rank: Annotated[int | None, typer.Option(help="Of a LoRA; 8 without it.")] = None,
    slices: Annotated[
        list[str] | None, typer.Option("--slice", help="v4-8, v5e-256, h200, 8xh100, …; may be repeated.")
    ] = None,
    mesh: Annotated[
        str | None,
        typer.Option(help="As expert=4,fsdp=-1; without it the one that fits with the least fsdp."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of the base: bfloat16 or float32.")] = "bfloat16",
    expert_dtype: Annotated[str, typer.Option(help="Of experts that are held.")] = "float32",
    group: Annotated[int, typer.Option(help="Experts that train together.")] = 32,
    train_tokens: Annotated[int, typer.Option(help="Tokens of a batch that trains them.")] = 8192,
    prompt: Annotated[int, typer.Option(help="Tokens of a row's prompt.")] = 512,
    answer: Annotated[int, typer.Option(help="Tokens of its answer.")] = 128,
    optimizer: Annotated[str, typer.Option(help="adamw or adafactor.")] = "adamw",
    as_json: AsJson = False,
) -> None:
    """Devices, versions, what is missing and the command that mends it; or --plan: what fits where."""
    if plan is None:
        _here(as_json)
        return
    from dataclasses import asdict

    from elm_jax.runs import plan as runs

    options = {name: value for name, value in (("width", width), ("rank", rank)) if value is not None}
    work = runs.Work(
        runs.network(plan, dtype),
        experts=experts,
        kind=kind,
        options=options,
        expert_dtype=expert_dtype,
        group=group,
        train_tokens=train_tokens,
        prompt=prompt,
        answer=answer,
        optimizer=optimizer,
    )
    found = runs.plan(work, slices or runs.SLICES, None if mesh is None else _sizes(mesh))
    if as_json:
        fits = {share.slice.name: runs.verdicts(share) for share in found.shares}
        print(json.dumps({**asdict(found), "fits": fits}))
        return
    show(runs.table(found))


def _here(as_json: bool) -> None:
    from elm_jax.reporting import documents
    from elm_jax.runs import doctor as runs

    found = runs.doctor()
    if as_json:
        print(json.dumps(found))
        return
    for name, value in documents.flat({name: value for name, value in found.items() if name != "mend"}):
        print(f"{name:<32}{'missing' if value == 'None' else value}")
    for command in found["mend"]:
        print(f"to mend: {command}")


def _sizes(mesh: str) -> dict[str, int]:
    """Reads `expert=4,fsdp=-1`."""
    sizes: dict[str, int] = {}
    for part in mesh.split(","):
        axis, _, size = part.strip().partition("=")
        if axis not in ("expert", "data", "fsdp", "tensor") or not size.lstrip("-").isdigit():
            raise UserError(
                f"Sizes of a mesh's axes expert, data, fsdp and tensor are wanted, as expert=4,fsdp=-1; "
                f"{mesh!r} came."
            )
        sizes[axis] = int(size)
    return sizes
