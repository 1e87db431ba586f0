"""Shelf: experts of libraries kept at hand, on the host and stacked on the devices, within limits of bytes.

`Library.load` reads what it is asked for, whole, every time, and keeps nothing. A shelf keeps as many as fit
of the experts it was asked for, those used last: a library that fits is read once, one that does not is
read page by page. Both give the same parameters for the same names.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from elm_jax.axes import Array
from elm_jax.errors import UserError
from elm_jax.experts import compatibility, files
from elm_jax.experts.library import Library
from elm_jax.models import experts as ex
from elm_jax.models import paths, sharding
from elm_jax.records import Params

ShapeKey = tuple[tuple[str, tuple[int, ...]], ...]  # path and shape of every parameter of an expert
NEUTRAL_SLOT = 0
"""The place of the expert that changes nothing, where a shelf has one."""


@dataclass
class _Stack:
    """Experts of one group on the devices, [P, …], and who stands where."""

    params: dict[str, Any]
    places: int
    first: int  # place that experts may take
    bytes: int  # on one device
    # Expert -> (place, checksum), the least recently used first.
    there: OrderedDict[str, tuple[int, str]] = field(default_factory=OrderedDict)

    def take(self, wanted: Collection[str]) -> int:
        """Returns a place that is empty, or else that of the expert used longest ago that is not wanted."""
        taken = {place for place, _ in self.there.values()}
        if len(taken) < self.places - self.first:
            return min(set(range(self.first, self.places)) - taken)
        return self.there.pop(next(expert for expert in self.there if expert not in wanted))[0]


class ExpertCache:
    """Experts of one base at hand; `libraries` are looked through in order, the first that has one gives it.

    Experts of one shape share a stack [P, …] on the devices. Those it lacks are written into places that are
    empty or were used longest ago, by one compiled update, so that other names compile nothing. Every shape
    that is asked for has a stack of its own; where a new one has no room, those used longest ago are given
    up.

    `host_bytes` and `device_bytes` (of each device) bound what is kept; of an expert that is larger than
    `host_bytes` nothing is kept on the host. `places` bounds how many experts a stack has, which is otherwise
    as many as the libraries have. `dtype` is what parameters are kept in. With `neutral`, the base's
    parameters, place 0 of every stack is the expert that changes nothing. On a `mesh` stacks are split as
    `models.sharding` says, whole experts along its axis `expert`.

    An expert that was replaced in its library is noticed and read anew. Not for several threads at once.
    """

    def __init__(
        self,
        libraries: Library | Sequence[Library],
        base: str,
        *,
        host_bytes: int,
        device_bytes: int,
        places: int | None = None,
        dtype: Any = np.float32,
        neutral: Params | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        if min(host_bytes, device_bytes) < 0 or (places is not None and places < 1):
            raise UserError(
                "Limits of 0 bytes or more and of at least one place are wanted for a shelf, but "
                f"{host_bytes}, {device_bytes} and {places} came."
            )
        self.read = self.written = self.host_bytes = 0
        self._libraries = (libraries,) if isinstance(libraries, Library) else tuple(libraries)
        self._base, self._dtype, self._neutral, self._mesh = base, np.dtype(dtype), neutral, mesh
        self._host_limit, self._device_limit, self._most = host_bytes, device_bytes, places
        # Expert -> (checksum, parameters); both the least recently used first.
        self._host: OrderedDict[str, tuple[str, Params]] = OrderedDict()
        self._stacks: OrderedDict[ShapeKey, _Stack] = OrderedDict()
        self._put: Callable[..., Any] = jax.jit(_write_slot, donate_argnums=0)

    @property
    def device_bytes(self) -> int:
        """Returns the bytes of all stacks on one device."""
        return sum(stack.bytes for stack in self._stacks.values())

    def stack(self, names: Sequence[str]) -> tuple[dict[str, Any], Int[np.ndarray, " N"]]:
        """Returns the stack [P, …] that has these experts, and the place of each, in the order of the names.

        It is good until the next call, which writes over it. Other places have other experts, or zeros.

        Raises a UserError as `Library.load` does, before any parameter is read, and if the stack cannot have
        all of them at once (`chunks` takes any number); and for a damaged file.
        """
        described = self._described(names)
        group = _shape_key(described)
        stack = self._stacked(group, len(described))
        for name, description in described.items():
            if name in stack.there:
                stack.there.move_to_end(name)
            if stack.there.get(name, (0, None))[1] != description.checksum:
                self._bring(group, stack, name, description, described)
        return stack.params, np.array([stack.there[name][0] for name in names], np.int32)

    def chunks(
        self, names: Sequence[str], size: int | None = None
    ) -> Iterator[tuple[list[str], dict[str, Any], Int[np.ndarray, " N"]]]:
        """Yields all of the experts, each once, as many at a time as a stack has, or `size` at most.

        Those on the devices come first. Each stack is good until the next is asked for. Raises as `stack`.
        """
        described = self._described(names)
        group, count = _shape_key(described), len(described) if size is None else min(size, len(described))
        stack = self._stacked(group, max(1, min(count, self._fits(group, self._device_limit))))
        wanted = sorted(described, key=lambda name: name not in stack.there)
        step = stack.places - stack.first if size is None else min(size, stack.places - stack.first)
        for at in range(0, len(wanted), step):
            chunk = wanted[at : at + step]
            yield chunk, *self.stack(chunk)

    def _described(self, names: Sequence[str]) -> dict[str, files.ExpertDescription]:
        """Returns what the libraries say of the experts, all of which fit together."""
        found = {name: self._home(name).describe(name) for name in names}
        for description in found.values():
            if description.spec.base != self._base:
                raise UserError(files.other_base(description.spec, self._base))
        compatibility.require_compatible(
            [(description.spec, description.shapes) for description in found.values()]
        )
        return found

    def _home(self, name: str) -> Library:
        return next((library for library in self._libraries if name in library), self._libraries[-1])

    def _stacked(self, group: ShapeKey, experts: int) -> _Stack:
        """Returns the stack of a group with room for so many experts, an older one if it has that."""
        fits = self._fits(group, self._device_limit)
        if fits < experts:
            one = self._bytes(group, self._parts) // self._parts
            places = "" if self._most is None else f" and {self._most} places"
            raise UserError(
                f"Room for {experts} experts at once is wanted, of {one:,} bytes each on a device, but with "
                f"{self._device_limit:,} bytes{places} there is room for {max(fits, 0)}. Take fewer at once, "
                "or raise the limit."
            )
        stack = self._stacks.pop(group, None)
        if stack is None or stack.places - stack.first < experts:
            stack = None  # before another takes its memory
            while self._fits(group, self._device_limit - self.device_bytes) < experts:
                self._stacks.popitem(last=False)
            stack = self._begun(group, experts)
        self._stacks[group] = stack
        return stack

    def _begun(self, group: ShapeKey, experts: int) -> _Stack:
        """Returns a new stack, with room for all experts of the libraries where there is as much."""
        every = sum(len(library.ids()) for library in self._libraries) if self._most is None else self._most
        fits = self._fits(group, self._device_limit - self.device_bytes)
        first = 0 if self._neutral is None else NEUTRAL_SLOT + 1
        places = min(max(every, experts), fits) + first
        places += -places % self._parts
        zeros = partial(_make_zeros, group, places, self._dtype)
        made = jax.jit(zeros, out_shardings=self._layout(group, places))()
        stack = _Stack(made, places, first, self._bytes(group, places))
        if self._neutral is not None:
            nothing = paths.unflatten({path: np.zeros(shape, self._dtype) for path, shape in group})
            params = jax.tree.map(self._cast, ex.neutral(nothing, self._neutral))
            stack.params = self._put(stack.params, params, np.int32(NEUTRAL_SLOT))
        return stack

    def _fits(self, group: ShapeKey, room: int) -> int:
        """Returns how many experts of a group a stack of so many bytes on a device has, and of its places."""
        places = room // self._bytes(group, self._parts) * self._parts
        fits = places if self._neutral is None else places - 1
        return fits if self._most is None else min(fits, self._most)

    @property
    def _parts(self) -> int:
        return 1 if self._mesh is None else self._mesh.shape["expert"]

    def _layout(self, group: ShapeKey, places: int) -> Any:
        if self._mesh is None:
            return None
        return sharding.shardings(self._mesh, _stack_shapes(group, places, self._dtype), experts=True)

    def _bytes(self, group: ShapeKey, places: int) -> int:
        """Returns the bytes of a stack on one device."""
        leaves = jax.tree.leaves(_stack_shapes(group, places, self._dtype))
        if self._mesh is None:
            return sum(leaf.size for leaf in leaves) * self._dtype.itemsize
        parts = zip(leaves, jax.tree.leaves(self._layout(group, places)), strict=True)
        return sum(int(np.prod(to.shard_shape(leaf.shape))) for leaf, to in parts) * self._dtype.itemsize

    def _bring(
        self,
        group: ShapeKey,
        stack: _Stack,
        name: str,
        description: files.ExpertDescription,
        wanted: Collection[str],
    ) -> None:
        """Writes an expert into its place of a stack, or into one that it takes."""
        checksum, params = self._params(name, description)
        place = stack.there.pop(name)[0] if name in stack.there else stack.take(wanted)
        try:
            stack.params = self._put(stack.params, params, np.int32(place))
        except BaseException:
            self._stacks.pop(group, None)  # its old arrays were given up
            raise
        stack.there[name] = place, checksum
        self.written += 1

    def _params(self, name: str, description: files.ExpertDescription) -> tuple[str, Params]:
        """Returns an expert's parameters and checksum, from the host if they are there as the file is now."""
        kept = self._host.pop(name, None)
        if kept is not None:
            self.host_bytes -= _count_bytes(kept[1])
        if kept is None or kept[0] != description.checksum:
            now, flat = self._home(name).read(name)
            # Another writer may have replaced the expert since it was described.
            compatibility.require_compatible([(description.spec, description.shapes), (now.spec, now.shapes)])
            self.read += 1
            kept = now.checksum, paths.unflatten({path: self._cast(value) for path, value in flat.items()})
        size = _count_bytes(kept[1])
        if size <= self._host_limit:
            while self.host_bytes + size > self._host_limit:
                self.host_bytes -= _count_bytes(self._host.popitem(last=False)[1][1])
            self._host[name] = kept
            self.host_bytes += size
        return kept

    def _cast(self, value: Array) -> np.ndarray:
        return np.asarray(value).astype(self._dtype, copy=False)


def _shape_key(described: Mapping[str, files.ExpertDescription]) -> ShapeKey:
    first = next(iter(described.values()))
    return tuple(sorted((path, tuple(shape)) for path, shape in first.shapes.items()))


def _stack_shapes(group: ShapeKey, places: int, dtype: np.dtype) -> dict[str, Any]:
    return paths.unflatten({path: jax.ShapeDtypeStruct((places, *shape), dtype) for path, shape in group})


def _make_zeros(group: ShapeKey, places: int, dtype: np.dtype) -> dict[str, Any]:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), _stack_shapes(group, places, dtype))


def _write_slot(stack: Params, params: Params, place: Array) -> Any:
    """Returns the stack with an expert's parameters in a place; no device moves what is not its own."""
    one = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], params)
    return sharding.kept(sharding.put_expert(stack, one, place), jax.tree.leaves(stack)[0])


def _count_bytes(params: Params) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))
