"""Plans: a workload on a slice, each of its programs compiled for it, and what all of it takes.

The largest batch is found by compiling. Seconds are the compiler's cycles over the clock: a ruler between
programs, and no measurement.
"""

from collections.abc import Mapping

from elm_jax.aot.compiler import Progress
from elm_jax.aot.slices import Slice
from elm_jax.planning.evaluation_plan import plan_evaluation
from elm_jax.planning.records import SlicePlan
from elm_jax.planning.training_plan import plan_training
from elm_jax.planning.workloads import ScoringWorkload, TrainingWorkload


def plan(
    load: TrainingWorkload | ScoringWorkload,
    target: Slice,
    mesh: Mapping[str, int] | None = None,
    progress: Progress | None = None,
) -> SlicePlan:
    """Returns what a workload takes on a slice.

    Args:
        load: from `workloads.read_workloads`.
        target: the slice.
        mesh: sizes by axis; None is the recipe's, or what the run would take.
        progress: called while a program is compiled.

    Raises:
        UserError: the mesh does not divide the devices, or the compiler is missing or died.
    """
    if isinstance(load, TrainingWorkload):
        return plan_training(load, target, mesh, progress)
    return plan_evaluation(load, target, mesh, progress)
