"""The outlook: what a size or a recipe takes on several slices side by side, as tables and plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from elm_jax.reporting.tables import Table
from elm_jax.runs import plan, prediction
from elm_jax.runs.forecast import duration
from elm_jax.runs.prediction import Scored, Trained
from elm_jax.runs.roofline import EXPOSED, STREAMED, UTILISATION
from elm_jax.runs.slices import slice_of
from elm_jax.runs.workload import Evaluation, Training

CAPTION = (
    "Nothing here was measured on an accelerator. Memory is counted from shapes, but what stands between the "
    "layers is estimated within a factor of two. Times take "
    f"{UTILISATION:.0%} of the vendor's peak for products and {STREAMED:.0%} of its rate for memory, and "
    f"{EXPOSED:.0%} of the traffic's time on top. Compilation and the host's own work are left out."
)


def predicted(
    load: Training | Evaluation,
    slices: Sequence[str],
    mesh: Mapping[str, int] | None = None,
    disk: float = prediction.DISK,
) -> list[Trained] | list[Scored]:
    """Returns what a workload takes on each slice; `mesh` and `disk` as `prediction.trained` has them."""
    found = [slice_of(name) for name in slices]
    if isinstance(load, Training):
        return [prediction.trained(load, on, mesh, disk=disk) for on in found]
    return [prediction.scored(load, on, disk=disk) for on in found]


def tables(load: Training | Evaluation, found: Sequence[Any]) -> list[Table]:
    """Returns the workload, and its predictions with a column for every slice."""
    if isinstance(load, Training):
        return [_asked(load), _table([_trained(each) for each in found], found)]
    return [_scorable(load), _table([_scored(each) for each in found], found)]


def values(load: Training | Evaluation, found: Sequence[Any]) -> dict[str, Any]:
    """Returns the same as plain values for a script."""
    return {
        "workload": asdict(load),
        "predictions": [
            asdict(each)
            | {"seconds": None if each.fits == "no" else each.seconds}
            | {"device_hours": None if each.fits == "no" else each.device_hours}
            for each in found
        ],
    }


def memory(found: plan.Plan) -> Table:
    """Returns a plan as a table: what for, in all, and on one device of each slice."""
    work, every = found.work, [found.in_all, *(share.need for share in found.shares)]
    dtype = work.network.dtype

    def line(what: str, *parts: str) -> tuple[str, ...]:
        return (what, *(plan.gb(sum(getattr(need, part) for part in parts)) for need in every))

    def of_shares(what: str, values: Sequence[str]) -> tuple[str, ...]:
        return (what, "", *values)

    fits = [plan.verdicts(share) for share in found.shares]
    rows = [
        line(f"base of {_short(found.parameters)} parameters, {dtype}", "base"),
        line(
            f"{work.experts} {work.kind} experts of {_short(found.expert_parameters)}, {work.expert_dtype}",
            "experts",
        ),
        line(f"scoring {work.batch_tokens} tokens at once, about", "scoring"),
        line("all for evaluation", "base", "experts", "scoring"),
        line(f"{work.group} that train: parameters and {work.optimizer}'s moments", "state"),
        line("their gradients", "gradients"),
        line(
            f"a batch of {work.train_tokens} tokens, rows of {work.prompt} + {work.answer}, about",
            "activations",
        ),
        line("the same with remat, about", "activations_remat"),
        line("all for training", "base", "state", "gradients", "activations"),
        line("all for training with remat", "base", "state", "gradients", "activations_remat"),
        of_shares("a device has", [plan.gb(share.slice.memory) for share in found.shares]),
        *(
            of_shares(f"{what} fits", [one[what] for one in fits])
            for what in ("evaluation", "training", "training with remat")
        ),
        of_shares("mesh", [plan.mesh_told(share.mesh) for share in found.shares]),
    ]
    header = (
        "GB (10⁹ bytes)",
        "in all",
        *(f"{s.slice.name}: each of {s.slice.devices}" for s in found.shares),
    )
    return Table(
        "Memory",
        header,
        tuple(rows),
        "What stands without “about” is counted from shapes. The rest is estimated within a factor of two: "
        "“perhaps” fits only if the estimate is not exceeded. JAX takes three quarters of a GPU unless "
        "XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.",
    )


def _asked(load: Training) -> Table:
    experts, budget = load.experts, load.budget
    tokens = sum(each.tokens for each in experts)
    longest = max(each.steps for each in experts)
    options = f" with {dict(budget.options)}" if budget.options else ""
    rows = [
        ("experts", f"{len(experts):,} of kind {budget.kind}{options}"),
        ("rows", f"{sum(each.rows for each in experts):,}"),
        ("steps", f"{sum(each.steps for each in experts):,}, at most {longest:,} of one expert"),
        ("real tokens of all steps, about", f"{tokens:.3g}"),
        ("assumed", "; ".join(load.assumed) or "nothing"),
    ]
    return Table("Training", ("what", "how much"), tuple(rows))


def _scorable(load: Evaluation) -> Table:
    oracle = load.scorers > load.experts
    told = f", {load.rows * load.experts:,} of them the experts'" if oracle else ""
    rows = [
        ("tasks", f"{load.tasks:,} of {load.rows:,} rows"),
        ("scorers of a row", f"{load.scorers:,}, of {load.experts:,} experts and what is made of them"),
        ("passes through the encoder", f"{load.passes:,}{told}"),
        ("real tokens, about", f"{load.passes * (load.prompt + load.answer):.3g}"),
        ("assumed", "; ".join(load.assumed) or "nothing"),
    ]
    return Table("Evaluation", ("what", "how much"), tuple(rows))


def _table(columns: Sequence[Mapping[str, str]], found: Sequence[Any]) -> Table:
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = tuple((name, *(column.get(name, "") for column in columns)) for name in names)
    header = tuple(f"{each.slice.name}: {each.slice.devices}" for each in found)
    return Table("On slices", ("slice: devices", *header), rows, CAPTION)


def _trained(found: Trained) -> dict[str, str]:
    """Returns one column of the table of training, by the names of its rows."""
    mesh = plan.mesh_told(found.mesh) + (" (give MESH)" if found.given else "")
    need, cost, each = found.need, found.cost, found.each
    if need is None or cost is None or each is None:
        return {"mesh": mesh, "device has, GB": plan.gb(found.memory), "fits": "no"}
    sent = ", ".join(f"{plan.gb(int(count))} {axes}" for axes, count in cost.sent.items())
    return {
        "mesh": mesh,
        "experts at once": f"{found.places:,}",
        "tokens of a batch": f"{found.tokens:,}",
        "of them real": f"{found.filled:.0%}",
        "base, GB of a device": plan.gb(need.base),
        "experts, moments, gradients": plan.gb(need.state + need.gradients),
        "between the layers, about": plan.gb(found.between),
        "device has, GB": plan.gb(found.memory),
        "fits": found.fits,
        "batches": f"{found.batches:,}",
        "products of a batch, ms": _ms(each.compute),
        "its memory, at the same time": _ms(each.memory),
        "its traffic": _ms(each.traffic),
        "moving experts": _ms(each.moving),
        "sent by a device, GB a batch": sent or "0",
        "input of a batch, MB": f"{found.input / 1e6:.2f}",
        "a checkpoint, GB": plan.gb(found.checkpoint),
        "written in the background": f"{duration(found.writing)}, {found.saves:,} times",
        "time": duration(found.seconds),
        "device-hours": _hours(found.device_hours),
    }


def _scored(found: Scored) -> dict[str, str]:
    """Returns one column of the table of an evaluation, by the names of its rows."""
    need, each = found.need, found.each
    return {
        "experts held at once": f"{found.held:,}",
        "base, GB of a device": plan.gb(need.base),
        "experts, float32": plan.gb(need.experts),
        "scoring, about": plan.gb(need.scoring),
        "device has, GB": plan.gb(found.memory),
        "fits": found.fits,
        "batches": f"{found.batches:,.0f}",
        "products of a batch, ms": _ms(each.compute),
        "its memory, at the same time": _ms(each.memory),
        "experts that a process reads, GB": plan.gb(found.read),
        "read in": duration(found.reading),
        "time": duration(found.seconds),
        "device-hours": _hours(found.device_hours),
    }


def _short(count: int) -> str:
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return str(count)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.0f}" if seconds >= 0.01 else f"{1000 * seconds:.1f}"


def _hours(count: float) -> str:
    return f"{count:,.0f}" if count >= 100 else f"{count:.1f}"
