"""`elm doctor`: what is here and what is missing; with `--plan`, what would fit and how long it takes."""

import json
from typing import Annotated, Any

import typer

from elm_jax.cli.options import AsJson, GinBindings
from elm_jax.cli.shown import show
from elm_jax.errors import UserError

OF_A_SIZE = {
    "group": 32,
    "train_tokens": 8192,
    "optimizer": "adamw",
}
"""What a size alone is planned with; a recipe says it itself."""
OF_A_RECIPE = ("size", "gin_bindings", "mean_prompt", "mean_answer", "disk")
LENGTHS = {"prompt": 512, "answer": 128}
POSITIVE = {"mean_prompt", "mean_answer", "disk", "width", "rank", "prompt", "answer"}


def doctor(
    plan: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE|SIZE",
            help="Memory, time and traffic of a recipe of `elm train` or `elm evaluate`; or the memory that "
            "a base of a size would take, as xl.",
        ),
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Of a recipe's base, where the recipe does not name a published one.")
    ] = None,
    experts: Annotated[int, typer.Option(help="Experts held at once, or in the library.")] = 0,
    kind: Annotated[str | None, typer.Option(help="bottleneck, lora, ia3 or full.")] = None,
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
    group: Annotated[int | None, typer.Option(help="Experts that train together; 32 without it.")] = None,
    train_tokens: Annotated[
        int | None, typer.Option(help="Tokens of a batch that trains them; 8192 without it.")
    ] = None,
    prompt: Annotated[
        int | None, typer.Option(help="Tokens of a row's prompt; 512, or a recipe's 256, without it.")
    ] = None,
    answer: Annotated[int | None, typer.Option(help="Tokens of its answer; 128 without it.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw or adafactor; adamw without it.")] = None,
    mean_prompt: Annotated[
        float | None, typer.Option(help="Tokens of a recipe's prompts on average; assumed without it.")
    ] = None,
    mean_answer: Annotated[
        float | None, typer.Option(help="Tokens of its answers on average; assumed without it.")
    ] = None,
    disk: Annotated[
        float | None, typer.Option(help="GB a second that a host writes and reads; 1 without it.")
    ] = None,
    gin_bindings: GinBindings = None,
    as_json: AsJson = False,
) -> None:
    """Devices, versions, what is missing and the command that mends it; or --plan: what fits where."""
    if plan is None:
        _here(as_json)
        return
    given: dict[str, Any] = {name: value for name, value in locals().items() if value is not None}
    for name in POSITIVE & given.keys():
        if not given[name] > 0:
            raise UserError(
                f"A number above 0 is wanted for --{name.replace('_', '-')}, but {given[name]} came."
            )
    options = {name: given[name] for name in ("width", "rank") if name in given}
    if plan.endswith(".gin"):
        _recipe(given, options, as_json)
    else:
        _size(given, options, as_json)


def _size(given: dict[str, Any], options: dict[str, int], as_json: bool) -> None:
    """Shows the memory that a size takes."""
    from dataclasses import asdict

    from elm_jax.runs import outlook
    from elm_jax.runs import plan as runs

    _refuse(given, OF_A_RECIPE, f"a recipe's, but {given['plan']!r} is a size. Leave it out")
    chosen = {name: given.get(name, value) for name, value in (OF_A_SIZE | LENGTHS).items()}
    work = runs.Work(
        runs.network(given["plan"], given["dtype"]),
        experts=given["experts"],
        kind=given.get("kind", "bottleneck"),
        options=options,
        expert_dtype=given["expert_dtype"],
        **chosen,
    )
    found = runs.plan(work, given.get("slices") or runs.SLICES, _mesh(given))
    if as_json:
        fits = {share.slice.name: runs.verdicts(share) for share in found.shares}
        print(json.dumps({**asdict(found), "fits": fits}))
        return
    show(outlook.memory(found))


def _recipe(given: dict[str, Any], options: dict[str, int], as_json: bool) -> None:
    """Shows what a recipe takes."""
    from elm_jax.runs import outlook, workload
    from elm_jax.runs import plan as runs
    from elm_jax.runs.data import Lengths

    lengths = Lengths(given.get("prompt", Lengths.prompt), given.get("answer", Lengths.answer))
    load = workload.read(
        given["plan"],
        given.get("gin_bindings") or [],
        size=given.get("size"),
        dtype=given["dtype"],
        means=(given.get("mean_prompt"), given.get("mean_answer")),
        experts=given["experts"],
        held={"kind": given.get("kind", "bottleneck"), "options": options},
        lengths=lengths,
    )
    says = "what a recipe says itself. Give it as a macro, as --gin.PLACES=8"
    _refuse(given, tuple(OF_A_SIZE), says)
    if isinstance(load, workload.Training):
        _refuse(given, ("kind", "width", "rank", "prompt", "answer"), says)
    else:
        _refuse(given, ("mesh",), "training's, but the recipe evaluates, with rows of its own on each device")
    found = outlook.predicted(
        load, given.get("slices") or runs.SLICES, _mesh(given), disk=1e9 * given.get("disk", 1.0)
    )
    if as_json:
        print(json.dumps(outlook.values(load, found)))
        return
    for table in outlook.tables(load, found):
        show(table)


def _refuse(given: dict[str, Any], names: tuple[str, ...], why: str) -> None:
    """Refuses a flag that means nothing here."""
    for name in names:
        if name in given:
            flag = "--gin.MACRO=VALUE" if name == "gin_bindings" else f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} is {why}.")


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


def _mesh(given: dict[str, Any]) -> dict[str, int] | None:
    """Reads `expert=4,fsdp=-1`."""
    if "mesh" not in given:
        return None
    sizes: dict[str, int] = {}
    for part in given["mesh"].split(","):
        axis, _, size = part.strip().partition("=")
        if axis not in ("expert", "data", "fsdp", "tensor") or not size.lstrip("-").isdigit():
            raise UserError(
                f"Sizes of a mesh's axes expert, data, fsdp and tensor are wanted, as expert=4,fsdp=-1; "
                f"{given['mesh']!r} came."
            )
        sizes[axis] = int(size)
    return sizes
