"""Records of plans: what a workload and each of its programs take on a slice."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from elm_jax.aot.compiler import Compiled
from elm_jax.aot.slices import Slice
from elm_jax.models import meshes
from elm_jax.planning.work import Work


@dataclass(frozen=True)
class ProgramPlan:
    """A program as compiled, beside what its mathematics asks for.

    Attributes:
        compiled: what the compiler says, of one device.
        model_flops: by the formula, of one device; None where the program has no products to speak of.
        mfu: model FLOPs over what the device could do in the program's seconds.
    """

    compiled: Compiled
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
        devices: of the slice.
        mesh: sizes by axis.
        programs: each of them as compiled.
        fits: whether all of them do.
        reason: why not, in the compiler's words; None if they do.
        experts_at_once: that train together, or are held to score with.
        batch: its shape.
        batch_tokens: of all devices, padding among them.
        filled: the share of them that is real.
        memory_filled: the share of what a device has free for a batch that is used; None in an evaluation.
        batches: in all.
        hours: on the slice; None where seconds are not known.
        device_hours: devices times hours.
        assumed: what is not known, and what it was taken to be.
    """

    what: str
    slice: str
    devices: int
    mesh: Mapping[str, int]
    programs: tuple[ProgramPlan, ...]
    fits: bool
    reason: str | None
    experts_at_once: int
    batch: Mapping[str, int]
    batch_tokens: int
    filled: float | None
    memory_filled: float | None
    batches: int
    hours: float | None
    device_hours: float | None
    assumed: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON has them."""
        return asdict(replace(self, programs=())) | {"programs": [each.to_json() for each in self.programs]}


def program_plan(compiled: Compiled, work: Work, of: Slice, devices: int) -> ProgramPlan:
    """Returns a program beside the products that its mathematics asks for, on the devices that share them."""
    asked = work.model_flops(compiled.name)
    if asked is None:
        return ProgramPlan(compiled, None, None)
    mfu = None if not compiled.seconds else asked / devices / compiled.seconds / of.kind.peak_flops
    return ProgramPlan(compiled, asked / devices, mfu)


def mesh_sizes(of: Slice, asked: Mapping[str, int]) -> dict[str, int]:
    """Returns the sizes of all axes of a mesh; `data` has what is left."""
    rest = 1 if -1 in asked.values() else -1
    ones = dict.fromkeys(meshes.AXES, 1)
    found = ones | meshes.resolve_sizes(of.devices, **(ones | {"data": rest} | dict(asked)))
    meshes.slices_per_axis(found, of.slices)
    return found
