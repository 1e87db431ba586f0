"""A group: experts on their devices, and the programs that train so many places of them over one base."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from elm_jax.axes import Array
from elm_jax.engine import batches
from elm_jax.engine.batches import Batch
from elm_jax.engine.jobs import Job
from elm_jax.models import sharding
from elm_jax.models.sizes import T5Config
from elm_jax.records import Params
from elm_jax.training import optimizers, step
from elm_jax.training.step import GroupState, Move, Sums


@dataclass(frozen=True)
class Plan:
    """What the experts of a group share."""

    kind: str = "bottleneck"
    options: Mapping[str, Any] = field(default_factory=dict)  # of a fresh expert, by kind
    optimizer: str = "adamw"
    clip: float | None = None  # the gradient's largest norm, where not the optimiser's own
    z_loss: float = 0.0
    label_smoothing: float = 0.0
    places: int = 32  # experts that train at once
    batch_tokens: int = 8192  # of the longest batch, prompts and answers
    save_every: int = 200  # rounds; at most so many are lost
    validate_every: int = 0  # steps of an expert; 0 is never
    keep: str = "last"  # or "best", of those that were validated


class Group:
    """Places for experts beside a base, on one device or on a mesh."""

    def __init__(
        self, config: T5Config, base: Params, plan: Plan, *, places: int, mesh: Mesh | None = None
    ) -> None:
        self.parts = mesh.shape["expert"] if mesh else 1
        self.places = -(-places // self.parts) * self.parts
        if plan.kind == "full":
            self.places = self.parts  # no row has a network of its own
        self.rows = math.prod(mesh.shape[axis] for axis in sharding.RULES["batch"]) if mesh else 1
        self.config, self.plan, self.mesh = config, plan, mesh
        self.base = sharding.place(base, sharding.shardings(mesh, base)) if mesh else base
        options = {} if plan.clip is None else {"clip": plan.clip}
        self._optimizer = optimizers.optimizer(plan.optimizer, **options)
        self._begin = step.begin(plan.kind, _hashable(plan.options), self._optimizer)
        self._gather = step.gather(
            config, plan.kind, z_loss=plan.z_loss, label_smoothing=plan.label_smoothing
        )
        self._advance = step.advance(self._optimizer)
        self._measure = step.measure(config, plan.kind)

    def begin(self, seeds: Sequence[int]) -> GroupState:
        """Returns the state of fresh experts at all places."""
        return self._begin(np.asarray(seeds, np.uint32), self.base)

    def put(self, state: GroupState, place: int, seed: int) -> GroupState:
        """Puts a fresh expert at a place; the old state is given up."""
        return step.put(state, np.int32(place), self.begin([seed]))

    def gather(self, params: Params, batch: Batch, of: Mapping[int, Job], sums: Sums) -> Sums:
        """Adds the gradients of a batch, whose places have these jobs; the old sums are given up."""
        return self._gather(params, self.base, self._laid(batch, of), sums)

    def advance(self, state: GroupState, sums: Sums, move: Move) -> tuple[GroupState, Sums, Array]:
        """Moves experts by what was gathered; the old two are given up, the losses are to come."""
        state, sums, loss = self._advance(state, sums, move)
        return state, sums, self._everywhere(loss)

    def measure(self, params: Params, cut: Sequence[Batch], of: Mapping[int, Job]) -> np.ndarray:
        """Returns the loss of the experts on batches, without dropout, z-loss and label smoothing."""
        loss: Array = np.zeros(self.places, np.float32)
        for batch in cut:
            loss = self._measure(params, self.base, self._laid(batch, of), loss)
        return np.asarray(self._everywhere(loss))

    def take_up(self, state: GroupState, sums: Sums, place: int) -> tuple[GroupState, Sums]:
        """Lets the expert at a place that was stopped go on; the old two are given up."""
        return step.taken_up(state, sums, np.int32(place))

    def whole(self, array: Array) -> np.ndarray:
        """Returns an array on the host, wherever it lies."""
        return np.asarray(self._everywhere(array))

    def take(self, tree: Any, place: int) -> Any:
        """Returns what stands at a place of stacked trees, on the host."""
        one = self._everywhere(step.taken(tree, np.int32(place)))
        return jax.tree.map(lambda leaf: np.asarray(leaf)[0], one)

    def copy(self, tree: Any, source: Any, place: int) -> Any:
        """Returns the tree with what the source has at a place; the old tree is given up."""
        return step.put(tree, np.int32(place), step.taken(source, np.int32(place)))

    def to_score(self, params: Params, place: int) -> tuple[Params, Params | None]:
        """Returns the parameters to score with, and the stack that has the expert at a place alone."""
        one = step.taken(params, np.int32(place))
        if self.plan.kind == "full":
            return jax.tree.map(lambda leaf: leaf[0], one), None
        return self.base, one

    def _everywhere(self, tree: Any) -> Any:
        """Returns arrays that every process has whole."""
        return tree if self.mesh is None else _gathered(self.mesh)(tree)

    def _laid(self, batch: Batch, of: Mapping[int, Job]) -> step.Rows:
        """Returns a batch as the programs take it; each process reads the rows of its own devices alone."""
        own = self.places // self.parts
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

        rows, prompt, target, segments, folded = batch.shape
        widths = (prompt, prompt, target, target, segments, segments, segments)
        to = NamedSharding(self.mesh, PartitionSpec(sharding.RULES["batch"]))
        return step.Rows(
            *(
                jax.make_array_from_callback(
                    (rows // folded if name in step.OF_TARGETS else rows, width), to, part(name)
                )
                for name, width in zip(step.Rows._fields, widths, strict=True)
            )
        )


@lru_cache(maxsize=8)
def _gathered(mesh: Mesh) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))


def _hashable(options: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    return tuple(sorted(plain.items()))
