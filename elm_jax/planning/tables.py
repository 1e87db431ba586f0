"""Tables of plans: every program of a slice, and what all of it takes."""

from collections.abc import Iterable

from elm_jax.aot.collectives import Collective
from elm_jax.planning.records import ProgramPlan, SlicePlan
from elm_jax.reporting.formatting import MISSING, format_gigabytes
from elm_jax.reporting.tables import Table

CAPTION = (
    "Of one device and one call. Nothing ran: memory is what the compiler allots, seconds are its own cycles "
    "over the clock, a ruler between programs and no measurement. Waiting for a slow host or for checkpoints "
    "is not in them."
)


def plan_tables(plan: SlicePlan) -> list[Table]:
    """Returns a plan as two tables: its programs, and the whole."""
    header = (
        "program",
        "fits",
        "peak GB",
        "of GB",
        "compiled s",
        "TFLOP",
        "by formula",
        "sent GB",
        "exposed GB",
        "ms",
        "MFU",
    )
    rows = tuple(_program_row(each) for each in plan.programs)
    title = f"{plan.what} on {plan.slice}, {describe_mesh(plan)}"
    return [Table(title, header, rows, CAPTION), _totals_table(plan)]


def describe_mesh(plan: SlicePlan) -> str:
    """Returns the sizes of a mesh's axes as titles have them."""
    axes = " ".join(f"{axis}={size}" for axis, size in plan.mesh.items() if size > 1)
    return axes or "one device"


def _program_row(each: ProgramPlan) -> tuple[str, ...]:
    found = each.compiled
    blocking = [one for one in found.collectives if not one.hidden]
    return (
        found.name,
        "yes" if found.fits else "no",
        _format_gigabytes(found.peak_bytes),
        _format_gigabytes(found.limit_bytes),
        f"{found.compile_seconds:.0f}" + (" (kept)" if found.cached else ""),
        _format_number(found.flops, 1e12),
        _format_number(each.model_flops, 1e12),
        _format_collectives(found.collectives),
        _format_collectives(blocking),
        MISSING if found.seconds is None else f"{1000 * found.seconds:,.1f}",
        MISSING if each.mfu is None else f"{each.mfu:.1%}",
    )


def _totals_table(plan: SlicePlan) -> Table:
    batch = ", ".join(f"{name} {value}" for name, value in plan.batch.items())
    rows = [
        ("fits", "yes" if plan.fits else f"no: {plan.reason}"),
        ("experts at once", f"{plan.experts_at_once:,}"),
        ("a batch", f"{plan.batch_tokens:,} tokens: {batch}"),
    ]
    if plan.filled is not None:
        rows.append(("of its tokens real", f"{plan.filled:.0%}"))
    if plan.memory_filled is not None:
        rows.append(("of free memory used", f"{plan.memory_filled:.0%}"))
    rows.append(("batches", f"{plan.batches:,}"))
    if plan.hours is not None and plan.device_hours is not None:
        rows += [("hours", f"{plan.hours:,.1f}"), ("device-hours", f"{plan.device_hours:,.0f}")]
    elif plan.fits:
        rows.append(("hours", "not known: this compiler tells no seconds"))
    rows.append(("assumed", "; ".join(plan.assumed) or "nothing"))
    unpriced = sorted({name for each in plan.programs for name in each.compiled.unpriced})
    if unpriced:
        rows.append(("not in the seconds", ", ".join(unpriced)))
    return Table("In all", ("what", "how much"), tuple(rows))


def _format_collectives(collectives: Iterable[Collective]) -> str:
    return f"{sum(each.sent_bytes for each in collectives) / 1e9:.3g}"


def _format_gigabytes(count: int | None) -> str:
    return MISSING if count is None else format_gigabytes(count)


def _format_number(value: float | None, unit: float) -> str:
    return MISSING if value is None else f"{value / unit:.3g}"
