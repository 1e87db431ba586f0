"""Program: a jitted function with the shapes and shardings that a run calls it with.

The engines run programs, and `elm plan` compiles the same objects for devices that are not there. A program
holds shapes alone, so it can be made from a configuration and a mesh, with no array.
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

# Options of the compiler by the platform that a program is compiled for. Without them a v4 waits for every
# gather of a sharded kernel; with them gathers and exchanges run while it multiplies. They do not hide
# reduce-scatters, for which options fail in libtpu 0.0.42.1. Fusing gathers with products
# (xla_tpu_enable_async_collective_fusion) hid fewer of them, and cost cycles.
COMPILER_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "tpu": {"xla_enable_async_all_gather": True, "xla_tpu_enable_async_all_to_all": True}
}


@dataclass(frozen=True)
class Program:
    """A jitted function and what it is called with.

    Attributes:
        name: what tables call it.
        function: the jitted function itself; every program of the same function shares its compilations.
        arguments: a tree of `jax.ShapeDtypeStruct` with shardings for every argument.
        resident: trees of what lies on the devices while it runs, besides its arguments and results.
    """

    name: str
    function: Any
    arguments: tuple[Any, ...]
    resident: tuple[Any, ...] = ()

    def __call__(self, *arguments: Any) -> Any:
        """Runs the function; arguments have the shapes and shardings of `arguments`."""
        return self.function(*arguments)

    def lower(self) -> Any:
        """Returns the lowered function, to be compiled for the devices of its shardings."""
        return self.function.lower(*self.arguments)


_traced_platform: ContextVar[str] = ContextVar("_traced_platform", default="cpu")


@contextmanager
def trace_for(platform: str) -> Generator[None]:
    """Makes `traced_platform` return that platform: "cpu", "gpu" or "tpu"."""
    token = _traced_platform.set(platform)
    try:
        yield
    finally:
        _traced_platform.reset(token)


def traced_platform() -> str:
    """Returns the platform that the program being traced is for; outside of `trace_for` "cpu".

    Networks have forms of equal results for it, each fast where it is chosen.
    """
    return _traced_platform.get()


def jit(
    function: Callable[..., Any],
    *,
    platform: str,
    compiler_options: Mapping[str, Mapping[str, Any]] | None = None,
    **options: Any,
) -> Any:
    """Returns `jax.jit` of a function, traced for a platform and compiled with the options for it.

    Args:
        function: what is compiled.
        platform: what it is traced for.
        compiler_options: by the platform, besides `COMPILER_OPTIONS`.
        options: of `jax.jit`.
    """
    of_platform = [given.get(platform, {}) for given in (COMPILER_OPTIONS, compiler_options or {})]

    @wraps(function)
    def traced(*arguments: Any, **keywords: Any) -> Any:
        with trace_for(platform):
            return function(*arguments, **keywords)

    return jax.jit(traced, compiler_options={**of_platform[0], **of_platform[1]}, **options)


def get_platform(mesh: Mesh | AbstractMesh | None) -> str:
    """Returns the platform of a mesh's devices; without devices, that of JAX's default device."""
    return mesh.devices.flat[0].platform if isinstance(mesh, Mesh) else jax.default_backend()


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """Returns a tree of shapes that have these shardings, a tree of the same form or one for all."""
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, shapes)
    return jax.tree.map(
        lambda leaf, to: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=to), shapes, shardings
    )


def with_replication(mesh: Mesh | AbstractMesh | None, shapes: Any) -> Any:
    """Returns a tree of shapes that lie whole on every device of a mesh."""
    if mesh is None:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), shapes)
    return with_shardings(shapes, NamedSharding(mesh, PartitionSpec()))
