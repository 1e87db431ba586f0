"""What the paper's recipes take on slices, and our programs beside T5X's, by the slices' own compilers.

Run     python -m benchmarks.slices [--only PATTERN …] [--json FILE] [--list]
        wants the plan extra; for T5X's programs T5X too, as benchmarks/t5x_step.py says
Takes   about an hour on two cores, seconds once compilations are cached; it may be stopped and started again
Expect  the tables of RESULTS.md, "Slices, by their own compilers"

No chip runs. The first table is `elm plan` of recipes on slices, and its JSON (`slices`) is that of `elm plan
--json`. The second is fixed work, the same for every version (`slice_cases`), ours beside T5X's own program,
compiled by the same compiler and counted in the same way (`cases` in the JSON). FLOPs are those of the
mathematics on both sides, so MFU compares seconds; padding counts. Memory is what the program allots on a
device (arguments, results, temporaries, code, and what lies beside it), and in brackets XLA's own peak, which
knows when temporaries live, leaves out code and what lies beside, and counts on-chip memory.
"""

import argparse
import fnmatch
import importlib.metadata
import importlib.util
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # what is compiled is for devices that are not here

from benchmarks import slice_cases
from benchmarks.slice_cases import Case
from elm_jax.aot.compiler import compile_programs
from elm_jax.aot.slices import parse_slice, require_compiler
from elm_jax.errors import UserError
from elm_jax.planning import plan as planning
from elm_jax.planning import workloads
from elm_jax.planning.records import SlicePlan
from elm_jax.reporting.documents import table_to_markdown
from elm_jax.reporting.formatting import MISSING
from elm_jax.reporting.tables import Table

ALL_DATASETS = ("MIXTURE_OR_TASK_NAME='train'",)
PACKAGES = ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin")
PARTS = ("seconds", "cycle_seconds", "collective_seconds", "move_seconds", "kernel_seconds")


@dataclass(frozen=True)
class RecipePlan:
    """A recipe on a slice."""

    recipe: str
    slice: str
    bindings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What `--only` calls it."""
        return f"{self.recipe}/{self.slice}"


RECIPES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "all_prompt_experts": (("v5e-4", "v4-8", "v6e-4", "v5e-256", "h200", "8xh100"), ()),
    "dataset_expert": (("v4-8", "v5p-8", "v5e-16", "2xv5e-16", "h200", "8xh100"), ALL_DATASETS),
    "dataset_expert_adapter": (("v5e-4",), ALL_DATASETS),
    "multitask": (("v4-8",), ()),
    "evaluate_unseen": (("v5e-4", "v4-8"), ()),
}
"""Recipe -> slices, and bindings of its macros: all datasets where a recipe has one for an example."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures to this file, after every row")
    parser.add_argument("--only", nargs="+", default=["*"], help="names, or patterns such as 'full/*'")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    options = parser.parse_args()

    plans = [
        RecipePlan(recipe, on, bindings) for recipe, (slices, bindings) in RECIPES.items() for on in slices
    ]
    plans = [each for each in plans if _chosen(each.name, options.only)]
    cases = [each for each in slice_cases.cases() if _chosen(each.name, options.only)]
    if options.list:
        print("\n".join(each.name for each in (*plans, *cases)))
        return
    if not plans and not cases:
        sys.exit(f"Expected a name that --list prints, got {' '.join(options.only)}.")
    if any(each.side == "T5X" for each in cases) and importlib.util.find_spec("t5x") is None:
        cases = [each for each in cases if each.side != "T5X"]
        print("T5X cannot be imported, so its programs are left out: see benchmarks/t5x_step.py.")

    result: dict[str, Any] = {"date": str(date.today()), "versions": _versions(), "slices": [], "cases": []}
    failed = False
    for each in (*plans, *cases):
        print(f"{each.name} …", file=sys.stderr, flush=True)
        try:
            if isinstance(each, Case):
                result["cases"].append(case_row(each))
            else:
                result["slices"] += [{"recipe": each.recipe, **found.to_json()} for found in _planned(each)]
        except UserError as error:
            failed = True
            print(f"{each.name}: {error}", file=sys.stderr)
            result.setdefault("failed", {})[each.name] = str(error)
        if options.json:
            options.json.write_text(json.dumps(result, indent=2) + "\n")
    for table in (plan_table(result["slices"]), case_table(result["cases"])):
        if table.rows:
            print(table_to_markdown(table))
    if failed:
        sys.exit(1)


def case_row(case: Case) -> dict[str, Any]:
    """Compiles a case and returns its figures, of one device and one call of all its programs."""
    of = parse_slice(case.slice)
    require_compiler(of.kind.platform)
    compiled = compile_programs(of, case.mesh, case.build, case.told, case.programs, _progress)
    names = (*slice_cases.WHOLE_STEP, *slice_cases.STEP, *case.programs)
    asked = (case.work.model_flops(name) for name in names)
    flops = next((each / of.devices for each in asked if each is not None), None)
    row: dict[str, Any] = {
        "name": case.name,
        "what": case.what,
        "side": case.side,
        "slice": of.name,
        "mesh": dict(case.mesh),
        "fits": all(each.fits for each in compiled),
        "reason": next((each.reason for each in compiled if each.reason), None),
    }
    for part in PARTS:
        values = [getattr(each, part) for each in compiled]
        row[part] = None if None in values else sum(values)
    seconds = row["seconds"]
    peaks, own = ([getattr(each, name) for each in compiled] for name in ("peak_bytes", "xla_peak_bytes"))
    return row | {
        "model_flops": flops,
        "mfu": flops and seconds and flops / seconds / of.kind.peak_flops,
        "tokens": case.tokens,
        "tokens_per_second_per_chip": seconds and case.tokens / of.devices / seconds,
        "peak_bytes": None if None in peaks else max(peaks),
        "xla_peak_bytes": None if None in own else max(own),
        "limit_bytes": of.kind.memory_limit,
        "compile_seconds": sum(each.compile_seconds for each in compiled),
        "programs": [each.to_json() for each in compiled],
    }


def plan_table(rows: list[dict[str, Any]]) -> Table:
    """Returns what recipes take on slices, a row for each."""
    header = (
        *("recipe", "slice", "mesh", "fits", "experts at once", "tokens a batch", "real", "peak GB", "of GB"),
        *("ms a batch", "MFU", "exposed ms", "batches", "hours", "device-hours", "compiled s"),
    )
    cells = []
    for row in rows:
        programs = [each for each in row["programs"] if each["seconds"] is not None]
        names = (*slice_cases.STEP, *slice_cases.WHOLE_STEP)
        batch = [each for each in programs if each["name"] in names] or programs[:1]
        peaks = [each["peak_bytes"] for each in row["programs"] if each["peak_bytes"] is not None]
        first = next((each for each in row["programs"] if each["model_flops"] is not None), {})
        cells.append(
            (
                f"{row['recipe']}, {row['what']}" if row["what"] != "training" else row["recipe"],
                row["slice"],
                " ".join(f"{axis}={size}" for axis, size in row["mesh"].items() if size > 1) or "one device",
                "yes" if row["fits"] else "no",
                f"{row['experts_at_once']:,}",
                f"{row['batch_tokens']:,}",
                _share(row["filled"], 0),
                _scaled(max(peaks, default=None), 1e-9, 2),
                _scaled(row["programs"][0]["limit_bytes"], 1e-9, 2) if row["programs"] else MISSING,
                _scaled(sum(each["seconds"] for each in batch) if batch else None, 1e3, 0),
                _share(first.get("mfu"), 1),
                _scaled(sum(each["collective_seconds"] for each in batch) if batch else None, 1e3, 0),
                f"{row['batches']:,}",
                _scaled(row["hours"], 1, 1),
                _scaled(row["device_hours"], 1, 0),
                _scaled(sum(each["compile_seconds"] for each in row["programs"]), 1, 0),
            )
        )
    return Table("Recipes on slices", header, tuple(cells))


def case_table(rows: list[dict[str, Any]]) -> Table:
    """Returns the fixed cases, a row for each."""
    header = (
        *(
            "work",
            "slice",
            "whose",
            "ms",
            "cycles",
            "exposed collectives",
            "moves",
            "kernels",
            "MFU",
            "tokens/s/chip",
        ),
        *("peak GB (XLA's)", "compiled s"),
    )
    cells = [
        (
            row["what"] if row["fits"] else f"{row['what']}: does not fit",
            row["slice"],
            row["side"],
            *(_scaled(row[part], 1e3, 1) for part in PARTS),
            _share(row["mfu"], 1),
            _scaled(row["tokens_per_second_per_chip"], 1, 0),
            f"{_scaled(row['peak_bytes'], 1e-9, 1)} ({_scaled(row['xla_peak_bytes'], 1e-9, 1)})",
            _scaled(row["compile_seconds"], 1, 0),
        )
        for row in rows
    ]
    return Table("The same work, ours and T5X's", header, tuple(cells))


def _planned(each: RecipePlan) -> list[SlicePlan]:
    of = parse_slice(each.slice)
    require_compiler(of.kind.platform)
    loads = workloads.read_workloads(f"gin/recipes/{each.recipe}.gin", each.bindings, workloads.PlanOptions())
    return [planning.plan(load, of, None, _progress) for load in loads]


def _chosen(name: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatch(name, each) for each in patterns)


def _versions() -> dict[str, str]:
    installed = {each.name: each.version for each in importlib.metadata.distributions()}
    return {package: installed[package] for package in PACKAGES if package in installed}


_LAST: list[tuple[str, str]] = []


def _progress(program: str, slice_name: str, seconds: float) -> None:
    """Says once what is compiled."""
    if _LAST[-1:] != [(program, slice_name)]:
        _LAST[:] = [(program, slice_name)]
        print(f"  compiling {program} for {slice_name}", file=sys.stderr, flush=True)


def _scaled(value: float | None, unit: float, digits: int) -> str:
    return MISSING if value is None else f"{value * unit:,.{digits}f}"


def _share(value: float | None, digits: int) -> str:
    return MISSING if value is None else f"{100 * value:.{digits}f} %"


if __name__ == "__main__":
    main()
