"""Expert cache: experts of libraries on the host and stacked on the devices, within limits of bytes.

`Library.load_stack` reads all experts from files at every call. The cache keeps the experts used last, as
many as fit, so that a library that fits is read once. Both return the same parameters for the same ids.
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
from elm_jax.models import expert_layers as ex
from elm_jax.models import paths, sharding
from elm_jax.models.expert_kinds import is_kernel
from elm_jax.records import Params

ShapeKey = tuple[tuple[str, tuple[int, ...]], ...]  # path and shape of every parameter of an expert
NEUTRAL_SLOT = 0
"""The slot of the expert that changes nothing, in a cache that was given the base's parameters."""


@dataclass
class _Stack:
    """Experts of one shape on the devices, [P, …], and the slot of each."""

    params: dict[str, Any]
    slots: int  # P
    first: int  # the first slot for experts; slots before it are reserved
    bytes: int  # on one device
    # Expert -> (slot, checksum), the least recently used first.
    loaded: OrderedDict[str, tuple[int, str]] = field(default_factory=OrderedDict)

    @property
    def capacity(self) -> int:
        return self.slots - self.first

    def free_slot(self, keep: Collection[str]) -> int:
        """Returns an empty slot, or that of the least recently used expert that is not in `keep`."""
        used = {slot for slot, _ in self.loaded.values()}
        if len(used) < self.capacity:
            return min(set(range(self.first, self.slots)) - used)
        return self.loaded.pop(next(expert for expert in self.loaded if expert not in keep))[0]


class ExpertCache:
    """A least-recently-used cache of the experts of one base, on the host and on the devices.

    Experts of one shape share a stack [P, …] on the devices. An expert that the stack lacks is written into
    an empty slot or over the least recently used one, by one compiled update, so other ids compile nothing.
    Every shape has its own stack. If there is no memory for a new stack, the least recently used ones are
    dropped. An expert that was replaced in its library is read again. One thread at a time may use a cache.

    Attributes:
        reads: How many experts were read from files.
        writes: How many experts were written to the devices.
        host_bytes: The bytes that the cache holds on the host.
    """

    def __init__(
        self,
        libraries: Library | Sequence[Library],
        base: str,
        *,
        host_bytes: int,
        device_bytes: int,
        slots: int | None = None,
        dtype: Any = np.float32,
        kernel_dtype: Any = None,
        neutral: Params | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        """Makes an empty cache.

        Args:
            libraries: Where experts are; the first library that has an id provides the expert.
            base: The fingerprint of the base that all experts belong to.
            host_bytes: The limit on the host; an expert that is larger is not kept there.
            device_bytes: The limit on each device.
            slots: The most experts of a stack; default: as many as the libraries have.
            dtype: The type of the parameters in the cache.
            kernel_dtype: That of kernels, which products cast to the network's type; default: `dtype`.
            neutral: The base's parameters. With them, slot 0 of every stack is the expert that changes
                nothing.
            mesh: Splits stacks as `models.sharding` does, whole experts along its axis `expert`.

        Raises:
            UserError: If a limit is negative, or `slots` is below 1.
        """
        if min(host_bytes, device_bytes) < 0 or (slots is not None and slots < 1):
            raise UserError(
                "Expected limits of at least 0 bytes and of at least 1 slot, got "
                f"{host_bytes}, {device_bytes} and {slots}. Fix: raise them."
            )
        self.reads = self.writes = self.host_bytes = 0
        self._libraries = (libraries,) if isinstance(libraries, Library) else tuple(libraries)
        self._base, self._neutral, self._mesh = base, neutral, mesh
        self._dtype, self._kernel_dtype = (
            np.dtype(dtype),
            np.dtype(dtype if kernel_dtype is None else kernel_dtype),
        )
        self._host_limit, self._device_limit, self._most_slots = host_bytes, device_bytes, slots
        # Expert -> (checksum, parameters); both the least recently used first.
        self._host: OrderedDict[str, tuple[str, Params]] = OrderedDict()
        self._stacks: OrderedDict[ShapeKey, _Stack] = OrderedDict()
        self._put: Callable[..., Any] = jax.jit(_write_slot, donate_argnums=0)

    @property
    def device_bytes(self) -> int:
        """Returns the bytes of all stacks on one device."""
        return sum(stack.bytes for stack in self._stacks.values())

    def load_stack(self, ids: Sequence[str]) -> tuple[dict[str, Any], Int[np.ndarray, " N"]]:
        """Loads experts and returns their stack and slots.

        Args:
            ids: Experts of one kind and shape.

        Returns:
            The stack, arrays [P, …], and the slot of each expert, in the order of `ids`. Other slots hold
            other experts or zeros. The stack is valid until the next call, which writes over it.

        Raises:
            UserError: As `Library.load_stack`; also if the stack cannot hold all of them at once
                (`load_chunks` takes any number).
        """
        described = self._describe(ids)
        key = _shape_key(described)
        stack = self._find_stack(key, len(described))
        for name, description in described.items():
            if name in stack.loaded:
                stack.loaded.move_to_end(name)
            if stack.loaded.get(name, (0, None))[1] != description.checksum:
                self._load_into(key, stack, name, description, described)
        return stack.params, np.array([stack.loaded[name][0] for name in ids], np.int32)

    def load_chunks(
        self, ids: Sequence[str], size: int | None = None
    ) -> Iterator[tuple[list[str], dict[str, Any], Int[np.ndarray, " N"]]]:
        """Yields all experts once, in chunks of at most `size` and of what a stack holds.

        Experts that are on the devices come first.

        Args:
            ids: Experts of one kind and shape, any number.
            size: The most experts of a chunk; default: what a stack holds.

        Yields:
            The ids of a chunk, their stack and their slots, as `load_stack` returns these.

        Raises:
            UserError: As `load_stack`.
        """
        described = self._describe(ids)
        key, count = _shape_key(described), len(described) if size is None else min(size, len(described))
        stack = self._find_stack(key, max(1, min(count, self._capacity(key, self._device_limit))))
        ordered = sorted(described, key=lambda name: name not in stack.loaded)
        step = stack.capacity if size is None else min(size, stack.capacity)
        for start in range(0, len(ordered), step):
            chunk = ordered[start : start + step]
            yield chunk, *self.load_stack(chunk)

    def _describe(self, ids: Sequence[str]) -> dict[str, files.ExpertDescription]:
        """Reads the descriptions of experts and checks that these may be stacked."""
        found = {name: self._library_of(name).describe(name) for name in ids}
        for description in found.values():
            files.require_base(description.spec, self._base)
        compatibility.require_compatible(
            [(description.spec, description.shapes) for description in found.values()]
        )
        return found

    def _library_of(self, name: str) -> Library:
        return next((library for library in self._libraries if name in library), self._libraries[-1])

    def _find_stack(self, key: ShapeKey, experts: int) -> _Stack:
        """Returns the stack of a shape with room for so many experts, a new one if the old is too small."""
        capacity = self._capacity(key, self._device_limit)
        if capacity < experts:
            one = self._bytes(key, self._parts) // self._parts
            slots = "" if self._most_slots is None else f" and {self._most_slots} slots"
            raise UserError(
                f"Expected room for {experts} experts of {one:,} bytes each on a device, got "
                f"{self._device_limit:,} bytes{slots}, which hold {max(capacity, 0)}. Fix: load fewer at "
                "once, or raise the limit."
            )
        stack = self._stacks.pop(key, None)
        if stack is None or stack.capacity < experts:
            stack = None  # frees its memory before the new one is made
            while self._capacity(key, self._device_limit - self.device_bytes) < experts:
                self._stacks.popitem(last=False)
            stack = self._make_stack(key, experts)
        self._stacks[key] = stack
        return stack

    def _make_stack(self, key: ShapeKey, experts: int) -> _Stack:
        """Makes a stack with room for all experts of the libraries if memory allows."""
        every = (
            sum(len(library.ids()) for library in self._libraries)
            if self._most_slots is None
            else self._most_slots
        )
        capacity = self._capacity(key, self._device_limit - self.device_bytes)
        first = 0 if self._neutral is None else NEUTRAL_SLOT + 1
        slots = min(max(every, experts), capacity) + first
        slots += -slots % self._parts
        zeros = partial(
            jax.tree.map, lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), self._shapes(key, slots)
        )
        made = jax.jit(zeros, out_shardings=self._shardings(key, slots))()
        stack = _Stack(made, slots, first, self._bytes(key, slots))
        if self._neutral is not None:
            nothing = paths.unflatten({path: np.zeros(shape, self._dtype) for path, shape in key})
            params = self._cast(paths.flatten(ex.make_neutral_expert(nothing, self._neutral)))
            stack.params = self._put(stack.params, params, np.int32(NEUTRAL_SLOT))
        return stack

    def _capacity(self, key: ShapeKey, device_bytes: int) -> int:
        """Returns how many experts of a shape a stack of so many bytes on a device holds."""
        slots = device_bytes // self._bytes(key, self._parts) * self._parts
        capacity = slots if self._neutral is None else slots - 1
        return capacity if self._most_slots is None else min(capacity, self._most_slots)

    @property
    def _parts(self) -> int:
        """Returns how many parts the mesh splits experts into."""
        return 1 if self._mesh is None else self._mesh.shape["expert"]

    def _shardings(self, key: ShapeKey, slots: int) -> Any:
        if self._mesh is None:
            return None
        return sharding.param_shardings(self._mesh, self._shapes(key, slots), experts=True)

    def _bytes(self, key: ShapeKey, slots: int) -> int:
        """Returns the bytes of a stack on one device."""
        leaves = jax.tree.leaves(self._shapes(key, slots))
        if self._mesh is None:
            return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
        parts = zip(leaves, jax.tree.leaves(self._shardings(key, slots)), strict=True)
        return sum(int(np.prod(to.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf, to in parts)

    def _load_into(
        self,
        key: ShapeKey,
        stack: _Stack,
        name: str,
        description: files.ExpertDescription,
        keep: Collection[str],
    ) -> None:
        """Writes an expert into its slot of a stack; experts in `keep` keep theirs."""
        checksum, params = self._load_params(name, description)
        slot = stack.loaded.pop(name)[0] if name in stack.loaded else stack.free_slot(keep)
        try:
            stack.params = self._put(stack.params, params, np.int32(slot))
        except BaseException:
            self._stacks.pop(key, None)  # its old arrays were donated
            raise
        stack.loaded[name] = slot, checksum
        self.writes += 1

    def _load_params(self, name: str, description: files.ExpertDescription) -> tuple[str, Params]:
        """Returns an expert's checksum and parameters, from the host if its file is unchanged."""
        loaded = self._host.pop(name, None)
        if loaded is not None:
            self.host_bytes -= _count_bytes(loaded[1])
        if loaded is None or loaded[0] != description.checksum:
            now, flat = self._library_of(name).read_params(name)
            # Another writer may have replaced the expert since it was described.
            compatibility.require_compatible([(description.spec, description.shapes), (now.spec, now.shapes)])
            self.reads += 1
            loaded = now.checksum, self._cast(flat)
        size = _count_bytes(loaded[1])
        if size <= self._host_limit:
            while self.host_bytes + size > self._host_limit:
                self.host_bytes -= _count_bytes(self._host.popitem(last=False)[1][1])
            self._host[name] = loaded
            self.host_bytes += size
        return loaded

    def _dtype_of(self, path: str) -> np.dtype:
        return self._kernel_dtype if is_kernel(path) else self._dtype

    def _shapes(self, key: ShapeKey, slots: int) -> dict[str, Any]:
        """Returns the shapes and types of a stack."""
        return paths.unflatten(
            {path: jax.ShapeDtypeStruct((slots, *shape), self._dtype_of(path)) for path, shape in key}
        )

    def _cast(self, flat: Mapping[str, Array]) -> dict[str, Any]:
        """Returns the tree of parameters by path in the types of the cache."""
        return paths.unflatten(
            {path: np.asarray(value).astype(self._dtype_of(path), copy=False) for path, value in flat.items()}
        )


def _shape_key(described: Mapping[str, files.ExpertDescription]) -> ShapeKey:
    first = next(iter(described.values()))
    return tuple(sorted((path, tuple(shape)) for path, shape in first.shapes.items()))


def _write_slot(stack: Params, params: Params, slot: Array) -> Any:
    """Returns the stack with an expert's parameters in a slot; devices exchange no other experts."""
    one = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], params)
    return sharding.constrain_sharding_like(sharding.put_expert(stack, one, slot), jax.tree.leaves(stack)[0])


def _count_bytes(params: Params) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))
