"""Records of plans: what a workload and each of its programs take on a slice."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from elm_jax.aot.compiler import CompiledProgram
from elm_jax.aot.slices import Slice
from elm_jax.models import meshes
from elm_jax.planning.program_specs import ProgramSpec


@dataclass(frozen=True)
class ProgramPlan:
    """A compiled program and the FLOPs that its mathematics needs.

    Attributes:
        compiled: what the compiler reports, of one device.
        model_flops: FLOPs by the formula, of one device; None for a program without relevant products.
        mfu: model FLOPs divided by what the device could do in the program's seconds.
    """

    compiled: CompiledProgram
    model_flops: float | None
    mfu: float | None

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON has them."""
        return self.compiled.to_json() | {"model_flops": self.model_flops, "mfu": self.mfu}


@dataclass(frozen=True)
class SlicePlan:
    """What a workload takes on a slice.

    Attributes:
        what: "training" or "evaluation".
        slice: the slice's name.
        devices: how many devices the slice has.
        mesh: sizes by axis.
        programs: the compiled programs.
        reason: why a program does not fit, in the compiler's words; None if all fit.
        experts_at_once: how many experts train together, or are loaded for scoring.
        batch: the shape of a batch.
        batch_tokens: the tokens of a batch on all devices, padding included.
        batches: how many batches there are.
        assumed: what is unknown, and what was assumed.
        filled: the share of a batch's tokens that are real.
        memory_filled: the share of a device's free memory that a batch uses; None in an evaluation.
        hours: on the slice; None if seconds are unknown.
    """

    what: str
    slice: str
    devices: int
    mesh: Mapping[str, int]
    programs: tuple[ProgramPlan, ...]
    reason: str | None
    experts_at_once: int
    batch: Mapping[str, int]
    batch_tokens: int
    batches: int
    assumed: tuple[str, ...]
    filled: float | None = None
    memory_filled: float | None = None
    hours: float | None = None

    @property
    def fits(self) -> bool:
        """Whether all programs fit."""
        return self.reason is None

    @property
    def device_hours(self) -> float | None:
        """Devices times hours."""
        return None if self.hours is None else self.hours * self.devices

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON has them."""
        return asdict(replace(self, programs=())) | {
            "fits": self.fits,
            "device_hours": self.device_hours,
            "programs": [each.to_json() for each in self.programs],
        }


def make_program_plan(
    compiled: CompiledProgram, spec: ProgramSpec, target: Slice, devices: int
) -> ProgramPlan:
    """Returns a compiled program with the FLOPs that it needs, on the devices that share these."""
    needed = spec.model_flops(compiled.name)
    if needed is None:
        return ProgramPlan(compiled, None, None)
    mfu = None if not compiled.seconds else needed / devices / compiled.seconds / target.kind.peak_flops
    return ProgramPlan(compiled, needed / devices, mfu)


def resolve_mesh_sizes(target: Slice, sizes: Mapping[str, int]) -> dict[str, int]:
    """Returns the sizes of all axes of a mesh; `data` takes the remaining devices."""
    rest = 1 if -1 in sizes.values() else -1
    ones = dict.fromkeys(meshes.AXES, 1)
    found = ones | meshes.resolve_sizes(target.devices, **(ones | {"data": rest} | dict(sizes)))
    meshes.slices_per_axis(found, target.slices)
    return found
