"""`elm plan`: what recipes take on slices, by the compilers of TPUs and GPUs."""

import os
import sys
from typing import Annotated

import typer

from elm_jax.cli.options import AsJson, GinBindings
from elm_jax.cli.output import print_json, print_table
from elm_jax.errors import UserError

AXES = ("expert", "data", "fsdp", "tensor")


def plan(
    recipes: Annotated[
        list[str], typer.Argument(metavar="RECIPE", help="Recipes of a training or an evaluation.")
    ],
    slices: Annotated[
        list[str], typer.Option("--slice", help="v4-8, v5e-256, 2xv5e-256, h200, 8xh100; may be repeated.")
    ],
    mesh: Annotated[
        str | None,
        typer.Option(help="Sizes by axis, such as expert=4,fsdp=-1; default: as the run would choose them."),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="Size of the base, such as xl; default: that of the recipe's base, else xl."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="Type of the base: bfloat16 or float32.")] = "bfloat16",
    rows: Annotated[
        int | None,
        typer.Option(
            min=1, help="Rows of each task whose size the catalogue does not know; default: counted."
        ),
    ] = None,
    experts: Annotated[
        int | None,
        typer.Option(min=0, help="Experts of the library to evaluate; default: the run's, else 296."),
    ] = None,
    gin_bindings: GinBindings = None,
    as_json: AsJson = False,
) -> None:
    """Say what recipes take on TPUs and GPUs that are not here.

    Every program is compiled for the slices; memory, time and traffic are printed. The exit code is 1 if
    something does not fit. The compilers come with the extra `plan`.

    Example: elm plan gin/recipes/all_prompt_experts.gin --slice v5e-4
    """
    # The programs are for devices that are not here, so JAX need not look for any.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from elm_jax.aot.slices import parse_slice, require_compiler
    from elm_jax.planning import plan as planning
    from elm_jax.planning import workloads
    from elm_jax.planning.tables import plan_tables

    chosen, sizes = [parse_slice(name) for name in slices], _parse_mesh(mesh)
    for each in chosen:
        require_compiler(each.kind.platform)
    overrides = workloads.PlanOptions(size, dtype, rows, experts)
    loads = [
        (recipe, load)
        for recipe in recipes
        for load in workloads.read_workloads(recipe, gin_bindings or [], overrides)
    ]
    progress, fits, documents = _Progress(), True, []
    for recipe, load in loads:
        for each in chosen:
            result = planning.plan(load, each, sizes, progress)
            progress.end()
            fits = fits and result.fits
            documents.append({"recipe": recipe, **result.to_json()})
            if not as_json:
                for table in plan_tables(result):
                    print_table(table)
    if as_json:
        print_json({"slices": documents})
    for each in documents:
        if not each["fits"]:
            print(f"elm: {each['recipe']} on {each['slice']}: {each['reason']}", file=sys.stderr)
    if not fits:
        raise typer.Exit(1)


class _Progress:
    """Prints to standard error which program is being compiled; a terminal shows one line."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._stream = getattr(sys.stderr, "rich_proxied_file", sys.stderr)  # obeys what clears a line
        self._current: tuple[str, str] | None = None

    def __call__(self, program: str, slice_name: str, seconds: float) -> None:
        if self._terminal:
            print(f"\r\x1b[Kcompiling {program} for {slice_name}: {seconds:.0f} s", end="", file=self._stream)
        elif (program, slice_name) != self._current:
            print(f"compiling {program} for {slice_name}", file=sys.stderr)
        self._current = program, slice_name

    def end(self) -> None:
        """Clears the line."""
        if self._terminal:
            print("\r\x1b[K", end="", file=self._stream)


def _parse_mesh(text: str | None) -> dict[str, int] | None:
    """Parses sizes by axis.

    >>> _parse_mesh("expert=4,fsdp=-1")
    {'expert': 4, 'fsdp': -1}
    """
    if text is None:
        return None
    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, _, size = part.strip().partition("=")
        if axis not in AXES or not size.removeprefix("-").isdigit():
            raise UserError(
                f"Expected sizes of the axes {', '.join(AXES)}, got {text!r}. Fix: give them as "
                "--mesh expert=4,fsdp=-1."
            )
        sizes[axis] = int(size)
    return sizes
