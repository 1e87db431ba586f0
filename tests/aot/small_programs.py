"""Small programs that the compiler's tests build in its child process."""

import fcntl
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from elm_jax.aot.program import Program, get_platform, jit, with_replication, with_shardings
from elm_jax.errors import UserError

Shape = jax.ShapeDtypeStruct


def mesh_of(devices: Sequence[Any], sizes: Mapping[str, int]) -> Mesh:
    return jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), devices=devices, axis_types=(AxisType.Auto,) * len(sizes)
    )


def stack(params, x):
    """The sum of what a scanned stack of dense layers gives."""
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params)[0].astype(jnp.float32).sum()


def build(devices, sizes, work):
    """A product of `rows` rows, and the gradient of a stack of layers whose kernels `fsdp` splits."""
    mesh = mesh_of(devices, sizes)
    platform = get_platform(mesh)
    width, rows, layers = work["width"], work["rows"], work["layers"]
    split = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    x = with_shardings(Shape((rows, width), jnp.bfloat16), NamedSharding(mesh, PartitionSpec("fsdp")))
    kernel = with_replication(mesh, Shape((width, width), jnp.bfloat16))
    kernels = with_shardings(Shape((layers, width, width), jnp.bfloat16), split)
    return [
        Program("product", jit(lambda x, w: x @ w, platform=platform), (x, kernel)),
        Program(
            "gradient", jit(jax.grad(stack), platform=platform, out_shardings=split), (kernels, x), (kernel,)
        ),
    ]


def resident(devices, sizes, work):
    """A product beside which an array of so many bytes lies on the device."""
    [product, _] = build(devices, sizes, work)
    beside = with_replication(mesh_of(devices, sizes), Shape((work["beside"],), jnp.uint8))
    return [replace(product, resident=(beside,))]


def refuses(devices, sizes, work):
    raise UserError("Expected a mesh that divides, got none. Fix: choose another.")


def fails(devices, sizes, work):
    raise ZeroDivisionError("a defect")


def dies(devices, sizes, work):
    os.write(2, b"I0000 something\nF0000 1.2 9 x.cc:1] Check failed: the compiler gave up\n  @ 0x12\n")
    os.kill(os.getpid(), signal.SIGABRT)


def waits(devices, sizes, work):
    """Holds a lock for as long as the process lives."""
    with open(work["lock"], "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(str(os.getpid()))
        file.flush()
        time.sleep(600)
