"""`elm merge`: one expert made of several."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import typer

from elm_jax.cli.flags import flattened
from elm_jax.cli.inputs import load_task_files, open_run, parse_options
from elm_jax.cli.options import DEFAULT_OUT, AsJson, RunDir, SourceFlags
from elm_jax.cli.output import print_entry, print_json
from elm_jax.errors import UserError


@dataclass(frozen=True)
class MergeFlags:
    """How experts are merged."""

    PANEL: ClassVar[str] = "Merging"
    method: Annotated[str, typer.Option(help="Merging method; --methods lists all.")] = "average"
    weights: Annotated[
        str | None, typer.Option(help="One for each expert, separated by commas; default: equal.")
    ] = None
    option: Annotated[
        list[str] | None, typer.Option(help="An option of the method, NAME=VALUE; may be repeated.")
    ] = None
    statistics: Annotated[
        list[str] | None,
        typer.Option(
            help="A safetensors file with an expert's statistics of data, in the order of the experts; "
            "default: computed from each expert's training rows."
        ),
    ] = None
    rows: Annotated[int, typer.Option(min=1, help="Training rows of each expert that statistics are of.")] = (
        256
    )
    id: Annotated[str | None, typer.Option("--id", help="Id of the merged expert.")] = None


@flattened
def merge(
    experts: Annotated[list[str] | None, typer.Argument(help="Experts by id.")] = None,
    run: RunDir = DEFAULT_OUT,
    methods: Annotated[bool, typer.Option("--methods", help="List the methods and their options.")] = False,
    as_json: AsJson = False,
    *,
    merging: MergeFlags,
    source: SourceFlags,
) -> None:
    """Make one expert of several.

    It goes to the run's composites, where no router finds it.

    Example: elm merge dream/baseline cosmos_qa/no_prompt_text --method ties

    Example: elm merge --methods
    """
    load_task_files(source.tasks)
    if methods:
        _print_methods(as_json)
        return
    from elm_jax import storage
    from elm_jax.merging import merge as runs
    from elm_jax.session.run_directory import Workspace

    files = merging.statistics
    statistics = [storage.read_arrays(file, what="Statistics") for file in files] if files else None
    # Mistakes that the experts' specs show are reported before the base is read.
    plan = runs.plan_run_merge(
        Workspace.open(run),
        experts or [],
        merging.method,
        parse_options(merging.option, (), "density=0.3"),
        weights=None if merging.weights is None else list(map(_weight, merging.weights.split(","))),
        statistics=statistics,
        id=merging.id,
    )
    opened = open_run(run, source)
    spec = runs.run_merge(opened, plan, statistics=statistics, rows=merging.rows).spec
    if as_json:
        document = {"id": spec.id, "kind": spec.kind, "datasets": spec.datasets, "recipe": dict(spec.recipe)}
        print_json(document)
        return
    print(spec.id)
    for name in ("note", "error"):
        if name in spec.recipe:
            print(f"{name}: {spec.recipe[name]}")


def _print_methods(as_json: bool) -> None:
    from elm_jax.merging.table import MERGES

    if as_json:
        documents = [
            {
                "name": name,
                "says": method.description,
                "options": {known: option.description for known, option in method.options.items()},
                "statistics": method.statistics_shape is not None,
                "symmetric": method.symmetric,
            }
            for name, method in MERGES.items()
        ]
        print_json(documents)
        return
    for name, method in MERGES.items():
        print_entry(name, method.description)
        for known, option in method.options.items():
            default = "" if option.default is None else f"; default: {option.default}"
            print_entry("", f"{known}: {option.description}{default}")


def _weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(
            f"Expected weights separated by commas, such as 0.3,0.7, got {text!r}. Fix: give --weights one "
            "number for each expert."
        ) from None
