"""Worker: the process that builds, compiles and counts programs for `compiler`.

It reads one request, a line of JSON on stdin, and writes one event a line on stdout. It ends when stdin does,
which is when its parent ends. Everything else that is written, by libtpu above all, goes to stderr.
"""

import contextlib
import hashlib
import importlib
import importlib.metadata
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from elm_jax import cache, storage, switches
from elm_jax.aot import costs, memory, slices
from elm_jax.aot.compiler import CompiledProgram
from elm_jax.aot.program import Program
from elm_jax.aot.slices import Slice
from elm_jax.errors import UserError

Send = Callable[[Mapping[str, Any]], None]
# Environment variables that change what is compiled.
_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "ELM_ATTENTION_KERNEL")
# XLA chooses the tiles of a product's kernel by trying them on the GPU. Without one it takes tiles that some
# shapes do not allow, and fails; so products are calls into a library here.
_WITHOUT_DEVICE: Mapping[str, Mapping[str, Any]] = {"gpu": {"xla_gpu_enable_triton_gemm": False}}
_COMPILERS = {"tpu": ("libtpu",), "gpu": ("jax-cuda13-plugin", "jax-cuda13-pjrt")}


def main() -> None:
    """Serves one request."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    request = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def send(event: Mapping[str, Any]) -> None:
        events.write(json.dumps(event) + "\n")
        events.flush()

    try:
        serve(request, send)
        send({"done": True})
    except UserError as error:
        send({"refused": str(error)})
    except Exception:
        send({"failed": traceback.format_exc()})


def serve(request: Mapping[str, Any], send: Send) -> None:
    """Compiles the programs of a request, and sends an event before and after each of them."""
    target = slices.parse_slice(request["slice"])
    module, _, function = request["build"].rpartition(".")
    build = getattr(importlib.import_module(module), function)
    programs: Sequence[Program] = build(slices.topology_devices(target), request["sizes"], request["work"])
    by_name = {program.name: program for program in programs}
    for name in request["chosen"] or by_name:
        if name not in by_name:
            raise ValueError(f"Expected one of the programs {', '.join(by_name)}, got {name!r}")
        send({"begun": name})
        send({"compiled": compile_program(by_name[name], target).to_json()})


def compile_program(program: Program, target: Slice) -> CompiledProgram:
    """Compiles a program for a slice and counts what it costs, or takes that from the cache."""
    ids, sizes = _layout(program)
    lowered = program.lower()
    file = _cache_file(program.name, lowered, target, ids, sizes)
    found = _read(file)
    value = found or _compile(program, lowered, target, sizes)
    if file is not None and not found:
        with contextlib.suppress(UserError):  # what cannot be kept is compiled again
            storage.write_json(file, value)
    return _record(program, target, value, cached=bool(found))


def _compile(program: Program, lowered: Any, target: Slice, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Returns what the cache keeps: memory and costs, or why the compiler refused."""
    begun = time.monotonic()
    try:
        executable = lowered.compile(compiler_options=dict(_WITHOUT_DEVICE.get(target.kind.platform, {})))
    except jax.errors.JaxRuntimeError as error:
        message = str(error)
        if "RESOURCE_EXHAUSTED" not in message:
            raise UserError(
                f"Expected {program.name} to compile for {target.name}, got {_first_line(message)!r} from "
                "the compiler. Fix: choose another mesh or other shapes."
            ) from error
        return {
            "compile_seconds": time.monotonic() - begun,
            "bytes": memory.required_bytes(message),
            "xla_bytes": None,
            "refusal": _first_line(message).partition(": ")[2].rstrip("."),
        }
    seconds = time.monotonic() - begun
    counted = costs.count_costs(executable.as_text(), target.kind, sizes)
    return {
        "compile_seconds": seconds,
        "bytes": memory.count_program_bytes(executable),
        "xla_bytes": memory.xla_peak_bytes(executable),
        "refusal": None,
        "costs": counted.to_json(),
    }


def _record(program: Program, target: Slice, value: Mapping[str, Any], *, cached: bool) -> CompiledProgram:
    resident = memory.resident_bytes(program)
    limit = target.kind.memory_limit
    peak = None if value["bytes"] is None else value["bytes"] + resident
    reason = value["refusal"]
    if reason is None and peak is not None and peak > limit:
        reason = f"it needs {peak / 1e9:.2f} GB of a device's memory, and {limit / 1e9:.2f} GB are available"
    counted = costs.Costs.from_json(value["costs"]) if "costs" in value else None
    return CompiledProgram(
        name=program.name,
        slice=target.name,
        fits=reason is None,
        peak_bytes=peak,
        xla_peak_bytes=value["xla_bytes"],
        limit_bytes=limit,
        compile_seconds=value["compile_seconds"],
        flops=counted.flops if counted else None,
        seconds=counted.seconds if counted else None,
        cycle_seconds=counted.cycle_seconds if counted else None,
        collective_seconds=counted.collective_seconds if counted else None,
        move_seconds=counted.move_seconds if counted else None,
        kernel_seconds=counted.kernel_seconds if counted else None,
        collectives=counted.collectives if counted else (),
        unpriced=counted.unpriced if counted else (),
        reason=reason and f"{program.name} does not fit on {target.name}: {reason}.",
        cached=cached,
    )


def _layout(program: Program) -> tuple[list[int], dict[str, int]]:
    """Returns the ids of the devices in a program's order, and the sizes of its mesh by axis."""
    for leaf in jax.tree.leaves(program.arguments):
        mesh = leaf.sharding.mesh if isinstance(leaf.sharding, NamedSharding) else None
        if isinstance(mesh, Mesh):
            return [device.id for device in mesh.devices.flat], dict(mesh.shape)
    raise ValueError(f"Expected an argument of {program.name} with a NamedSharding, got none")


def _cache_file(
    name: str, lowered: Any, target: Slice, ids: Sequence[int], sizes: Mapping[str, int]
) -> Path | None:
    """Returns the file where the result is kept; None if nothing is to be kept or can be."""
    if switches.is_off("ELM_COMPILATION_CACHE", os.environ):
        return None
    options = getattr(getattr(lowered, "_lowering", None), "_compiler_options_kvs", None)
    if options is None:  # another JAX, whose options we cannot see
        return None
    key = {
        "name": name,
        "text": hashlib.sha256(lowered.as_text().encode()).hexdigest(),
        "options": sorted(map(repr, options)),
        "slice": [target.name, target.topology, sorted(map(repr, target.topology_arguments.items()))],
        "devices": ids,
        "mesh": sizes,
        "versions": [_version(package) for package in ("jax", "jaxlib", *_COMPILERS[target.kind.platform])],
        "flags": [os.environ.get(flag, "") for flag in _FLAGS],
        "counted_by": [storage.file_fingerprint(each) for each in sorted(Path(__file__).parent.glob("*.py"))],
    }
    directory = Path(cache.directory()) / "aot"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return None
    return directory / f"{storage.fingerprint(key)}.json"


def _read(file: Path | None) -> dict[str, Any] | None:
    if file is None or not file.exists():
        return None
    try:
        return storage.read_json(file, what="A compiled program")
    except UserError:  # broken: it is written anew
        return None


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _first_line(message: str) -> str:
    return next(iter(message.strip().splitlines()), "")


def _end_with_parent() -> None:
    """Waits for the end of stdin, and ends the process at once, in the middle of whatever it does."""
    while os.read(0, 1 << 10):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
