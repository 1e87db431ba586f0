"""A group: experts in slots on their devices, and the programs that train them over one base."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from elm_jax.axes import Array
from elm_jax.models import sharding
from elm_jax.models.expert_kinds import GATES
from elm_jax.models.sizes import T5Config
from elm_jax.records import Params
from elm_jax.training import batches, step
from elm_jax.training.batches import Batch, Shape
from elm_jax.training.jobs import TrainingJob
from elm_jax.training.programs import GroupPlan, Layout, group_programs
from elm_jax.training.step import Frozen, GradAccumulator, GroupState, SlotUpdates


class Group:
    """Slots for experts over a base, on one device or on a mesh.

    Full experts take the base's place: it is on the devices while they are initialised, and no longer.
    """

    def __init__(
        self,
        network: T5Config,
        base: Params,
        plan: GroupPlan,
        layout: Layout,
        shape: Shape,
        mesh: Mesh | None = None,
    ) -> None:
        self.layout, self.mesh = layout, mesh
        self.programs = group_programs(network, plan, layout, shape, base=base, mesh=mesh)
        self._given_base = base
        self.base = None if plan.config.expert.kind == "full" else self._base_on_devices()
        self.frozen: Params | Frozen | None = self.base
        if self.base is not None and plan.config.expert.kind == GATES:
            self.frozen = Frozen(self.base, _make_zeros(self.programs.accumulate.arguments[1].experts))

    def init(self, seeds: Sequence[int]) -> GroupState:
        """Returns the state of fresh experts, in all slots or of a single one."""
        base = self._base_on_devices() if self.base is None else self.base
        program = self.programs.init if len(seeds) == self.layout.slots else self.programs.init_one
        return program(np.asarray(seeds, np.uint32), base)

    def zero(self, state: GroupState) -> GradAccumulator:
        """Returns the accumulator before the first batch."""
        return self.programs.zero(state.params)

    def put_fresh(self, state: GroupState, slot: int, seed: int) -> GroupState:
        """Puts a fresh expert into a slot; the old state is donated."""
        return self.programs.put_slot(state, np.int32(slot), self.init([seed]))

    def put_warm_start_expert(self, state: GroupState, slot: int, expert: Params) -> GroupState:
        """Puts an expert to go on from into a slot; the old state is donated."""
        one = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32)[None], dict(expert))
        return self.programs.put_slot(state, np.int32(slot), self.init([0])._replace(params=one))

    def put_frozen(self, slot: int, expert: Params) -> None:
        """Puts the expert that gates are trained beside into their slot."""
        assert isinstance(self.frozen, Frozen)
        one = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32)[None], expert)
        self.frozen = self.frozen._replace(experts=step.put_slot(self.frozen.experts, np.int32(slot), one))

    def accumulate(
        self,
        params: Params,
        batch: Batch,
        job_of: Mapping[int, TrainingJob],
        accumulator: GradAccumulator,
    ) -> GradAccumulator:
        """Adds the gradients of a batch, given the job of every slot; the old accumulator is donated."""
        return self.programs.accumulate(params, self.frozen, self._arrays(batch, job_of), accumulator)

    def update(
        self, state: GroupState, accumulator: GradAccumulator, update: SlotUpdates
    ) -> tuple[GroupState, GradAccumulator, Array]:
        """Moves experts by what was accumulated; the old two are donated, the losses are still computed."""
        state, accumulator, loss = self.programs.update(state, accumulator, update)
        return state, accumulator, self._replicate(loss)

    def train_step(
        self, state: GroupState, batch: Batch, job_of: Mapping[int, TrainingJob], update: SlotUpdates
    ) -> tuple[GroupState, Array]:
        """Moves experts by a batch that has their whole steps; the old state is donated."""
        state, loss = self.programs.train_step(state, self.frozen, self._arrays(batch, job_of), update)
        return state, self._replicate(loss)

    def evaluate(
        self, params: Params, validation: Sequence[Batch], job_of: Mapping[int, TrainingJob]
    ) -> np.ndarray:
        """Returns the loss of the experts on batches, without dropout, z-loss and label smoothing."""
        loss: Array = np.zeros(self.layout.slots, np.float32)
        if self.mesh is not None:
            loss = jax.device_put(loss, self.programs.evaluate.arguments[3].sharding)
        for batch in validation:
            loss = self.programs.evaluate(params, self.frozen, self._arrays(batch, job_of), loss)
        return np.asarray(self._replicate(loss))

    def resume(
        self, state: GroupState, accumulator: GradAccumulator, slot: int
    ) -> tuple[GroupState, GradAccumulator]:
        """Lets the stopped expert in a slot go on; the old two are donated."""
        return self.programs.resume_slot(state, accumulator, np.int32(slot))

    def to_host(self, array: Array) -> np.ndarray:
        """Returns a whole array on the host, wherever it lies."""
        return np.asarray(self._replicate(array))

    def take(self, params: Params, slot: int) -> Params:
        """Returns the parameters of the expert in a slot, on the host."""
        one = self._replicate(self.programs.take_slot(params, np.int32(slot)))
        return jax.tree.map(lambda leaf: np.asarray(leaf)[0], one)

    def copy_slot(self, tree: Any, source: Any, slot: int) -> Any:
        """Returns the tree with what the source has in a slot; the old tree is donated."""
        return step.put_slot(tree, np.int32(slot), step.take_slot(source, np.int32(slot)))

    def params_to_score(self, params: Params, slot: int) -> tuple[Params, Params | None]:
        """Returns the base to score with, and the stack that has the expert in a slot alone."""
        one = step.take_slot(params, np.int32(slot))
        if self.base is None:
            return jax.tree.map(lambda leaf: leaf[0], one), None
        return self.base, one

    def _base_on_devices(self) -> Params:
        base = self._given_base
        return jax.device_put(base, sharding.param_shardings(self.mesh, base) if self.mesh else None)

    def _replicate(self, tree: Any) -> Any:
        """Returns arrays that every process has whole."""
        return tree if self.mesh is None else _replicator(self.mesh)(tree)

    def _arrays(self, batch: Batch, job_of: Mapping[int, TrainingJob]) -> step.Rows:
        """Returns a batch as the programs take it; each process reads the rows of its own devices alone."""
        slots = self.layout.slots // self.layout.parts
        if self.mesh is None:
            return batches.assemble(batch, job_of, slots_of_part=slots)
        assembled: dict[tuple[int, int], step.Rows] = {}

        def part(fields: Sequence[str]) -> Any:
            def of_index(index: Any) -> np.ndarray:
                by = batch.shape.folded if fields[-1] in step.OF_TARGETS else 1
                first, last, _ = index[0].indices(batch.shape.rows // by)
                rows = slice(first * by, last * by)
                if (rows.start, rows.stop) not in assembled:
                    assembled[rows.start, rows.stop] = batches.assemble(
                        batch, job_of, rows, slots_of_part=slots
                    )
                return reduce(getattr, fields, assembled[rows.start, rows.stop])

            return of_index

        def make(keys: Any, struct: Any) -> Array:
            return jax.make_array_from_callback(
                struct.shape, struct.sharding, part([key.name for key in keys])
            )

        return jax.tree_util.tree_map_with_path(make, self.programs.accumulate.arguments[2])


def _make_zeros(shapes: Any) -> Any:
    """Returns zeros of these shapes, where their shardings say that they lie."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding), shapes)


@lru_cache(maxsize=8)
def _replicator(mesh: Mesh) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))
