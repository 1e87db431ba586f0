"""A group: experts on their devices, and the programs that train so many places of them over one base."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from elm_jax.axes import Array
from elm_jax.models import sharding
from elm_jax.models.sizes import T5Config
from elm_jax.records import Params
from elm_jax.training import batches, step
from elm_jax.training.batches import Batch, Shape
from elm_jax.training.jobs import Job
from elm_jax.training.programs import Layout, Plan, group_programs
from elm_jax.training.step import GroupState, Move, Sums


class Group:
    """Places for experts beside a base, on one device or on a mesh.

    Full experts stand in the base's place: it is on the devices while they begin, and no longer.
    """

    def __init__(
        self,
        config: T5Config,
        base: Params,
        plan: Plan,
        layout: Layout,
        shape: Shape,
        mesh: Mesh | None = None,
    ) -> None:
        self.layout, self.plan, self.mesh = layout, plan, mesh
        self.programs = group_programs(config, plan, layout, shape, base=base, mesh=mesh)
        self._given = base
        self.base = None if plan.kind == "full" else self._placed_base()

    def begin(self, seeds: Sequence[int]) -> GroupState:
        """Returns the state of fresh experts at all places."""
        base = self._placed_base() if self.base is None else self.base
        begin = self.programs.begin if len(seeds) == self.layout.places else self.programs.begin_one
        return begin(np.asarray(seeds, np.uint32), base)

    def zero(self, state: GroupState) -> Sums:
        """Returns the sums before the first batch."""
        return self.programs.zero(state.params)

    def put(self, state: GroupState, place: int, seed: int) -> GroupState:
        """Puts a fresh expert at a place; the old state is given up."""
        return self.programs.put(state, np.int32(place), self.begin([seed]))

    def gather(self, params: Params, batch: Batch, of: Mapping[int, Job], sums: Sums) -> Sums:
        """Adds the gradients of a batch, whose places have these jobs; the old sums are given up."""
        return self.programs.gather(params, self.base, self._laid(batch, of), sums)

    def advance(self, state: GroupState, sums: Sums, move: Move) -> tuple[GroupState, Sums, Array]:
        """Moves experts by what was gathered; the old two are given up, the losses are to come."""
        state, sums, loss = self.programs.advance(state, sums, move)
        return state, sums, self._everywhere(loss)

    def measure(self, params: Params, cut: Sequence[Batch], of: Mapping[int, Job]) -> np.ndarray:
        """Returns the loss of the experts on batches, without dropout, z-loss and label smoothing."""
        loss: Array = np.zeros(self.layout.places, np.float32)
        if self.mesh is not None:
            loss = jax.device_put(loss, self.programs.measure.arguments[3].sharding)
        for batch in cut:
            loss = self.programs.measure(params, self.base, self._laid(batch, of), loss)
        return np.asarray(self._everywhere(loss))

    def take_up(self, state: GroupState, sums: Sums, place: int) -> tuple[GroupState, Sums]:
        """Lets the expert at a place that was stopped go on; the old two are given up."""
        return self.programs.restart(state, sums, np.int32(place))

    def whole(self, array: Array) -> np.ndarray:
        """Returns an array on the host, wherever it lies."""
        return np.asarray(self._everywhere(array))

    def take(self, params: Params, place: int) -> Params:
        """Returns the parameters of the expert at a place, on the host."""
        one = self._everywhere(self.programs.take(params, np.int32(place)))
        return jax.tree.map(lambda leaf: np.asarray(leaf)[0], one)

    def copy(self, tree: Any, source: Any, place: int) -> Any:
        """Returns the tree with what the source has at a place; the old tree is given up."""
        return step.put(tree, np.int32(place), step.taken(source, np.int32(place)))

    def to_score(self, params: Params, place: int) -> tuple[Params, Params | None]:
        """Returns the parameters to score with, and the stack that has the expert at a place alone."""
        one = step.taken(params, np.int32(place))
        if self.base is None:
            return jax.tree.map(lambda leaf: leaf[0], one), None
        return self.base, one

    def _placed_base(self) -> Params:
        return jax.device_put(
            self._given, sharding.param_shardings(self.mesh, self._given) if self.mesh else None
        )

    def _everywhere(self, tree: Any) -> Any:
        """Returns arrays that every process has whole."""
        return tree if self.mesh is None else _gathered(self.mesh)(tree)

    def _laid(self, batch: Batch, of: Mapping[int, Job]) -> step.Rows:
        """Returns a batch as the programs take it; each process reads the rows of its own devices alone."""
        own = self.layout.places // self.layout.parts
        if self.mesh is None:
            return batches.assemble(batch, of, own=own)
        known: dict[tuple[int, int], step.Rows] = {}

        def part(field: str) -> Any:
            def of_index(index: Any) -> np.ndarray:
                by = batch.shape.folded if field in step.OF_TARGETS else 1
                first, last, _ = index[0].indices(batch.shape.rows // by)
                here = slice(first * by, last * by)
                if (here.start, here.stop) not in known:
                    known[here.start, here.stop] = batches.assemble(batch, of, here, own=own)
                return getattr(known[here.start, here.stop], field)

            return of_index

        return step.Rows(
            *(
                jax.make_array_from_callback(wanted.shape, wanted.sharding, part(name))
                for name, wanted in zip(step.Rows._fields, self.programs.gather.arguments[2], strict=True)
            )
        )


@lru_cache(maxsize=8)
def _gathered(mesh: Mesh) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))
