"""Compiler: programs compiled for devices that are not here, one after the other in a process of their own.

A compiler may abort, and it takes gigabytes that a process does not give back. So it runs in a child process
(`worker`), which ends with its parent whatever ends that. What was compiled and counted is cached on disk.
"""

import contextlib
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import IO, Any

from elm_jax.aot import slices
from elm_jax.aot.collectives import Collective
from elm_jax.aot.slices import Slice
from elm_jax.errors import UserError

Progress = Callable[[str, str, float], None]
"""Called about once a second with a program's name, its slice's name and the seconds since it was begun."""
_POLL = 1.0  # seconds between two calls of it
_FATAL = re.compile(r"F\d{4} |Check failed|Fatal Python error|FATAL|terminate called")
_NOISE = re.compile(
    r"InitGoogle|TPU_|Source Location Trace|^\S+\.cc:\d+$"
)  # what libtpu says of every machine
_PREFIX = re.compile(r"^[IWEF]\d{4} \S+\s+\d+ [\w./]+:\d+\] ")


@dataclass(frozen=True)
class CompiledProgram:
    """What compiling one program for one slice has shown. Every figure is of one device and one call.

    Attributes:
        name: the program's name.
        slice: the slice's name.
        fits: whether the program and what is resident beside it fit into the device's memory.
        peak_bytes: arguments, results, temporaries, code and what is resident; where the compiler refused the
            program, what it said is required. None where it did not say.
        xla_peak_bytes: XLA's own peak, without the code and what is resident; None for a program that was
            refused, and where this JAX has none.
        limit_bytes: the device's memory.
        compile_seconds: of the compiler alone; from the first time if the result was cached.
        flops: of matrix products, loops included; None on GPUs and for a program that was refused.
        seconds: by the compiler's cycles, with the gaps filled as `costs` says; None as for `flops`.
        cycle_seconds: the part of them that are the compiler's cycles.
        collective_seconds: the part in which collectives block.
        move_seconds: the part of moves that have no cycles.
        kernel_seconds: the part of our own kernels, by roofline.
        collectives: what devices send one another.
        unpriced: what `seconds` does not contain.
        reason: why it does not fit, in one sentence; None if it fits.
        cached: whether the result came from the cache.
    """

    name: str
    slice: str
    fits: bool
    peak_bytes: int | None
    xla_peak_bytes: int | None
    limit_bytes: int
    compile_seconds: float
    flops: float | None
    seconds: float | None
    cycle_seconds: float | None
    collective_seconds: float | None
    move_seconds: float | None
    kernel_seconds: float | None
    collectives: tuple[Collective, ...]
    unpriced: tuple[str, ...]
    reason: str | None
    cached: bool

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON has them."""
        return asdict(self)

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "CompiledProgram":
        """Returns what `to_json` was called on."""
        fields = dict(value)
        fields["collectives"] = tuple(Collective.from_json(each) for each in value["collectives"])
        fields["unpriced"] = tuple(value["unpriced"])
        return CompiledProgram(**fields)


def compile_program(
    target: Slice,
    sizes: Mapping[str, int],
    build: str,
    work: Mapping[str, Any],
    name: str,
    progress: Progress | None = None,
) -> CompiledProgram:
    """Compiles one of the programs that a function builds; see `compile_programs`."""
    return compile_programs(target, sizes, build, work, [name], progress)[0]


def compile_programs(
    target: Slice,
    sizes: Mapping[str, int],
    build: str,
    work: Mapping[str, Any],
    chosen: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> list[CompiledProgram]:
    """Compiles programs for a slice, one after the other, in one child process.

    Args:
        target: the slice.
        sizes: the sizes of the mesh by axis, as `build` takes them.
        build: the dotted path of an importable function `(devices, sizes, work) -> list[Program]`. It is
            called in the child with the slice's devices, which hold no arrays, and makes the mesh itself.
        work: what the function builds from; it goes through JSON.
        chosen: the names of the programs to compile; default all.
        progress: called while a program is compiled.

    Returns:
        One record for each program, in the order of `chosen`, or else in that of `build`.

    Raises:
        UserError: the compiler is not installed, it died, it cannot compile a program for another reason than
            memory, or `build` raised one.
        RuntimeError: `build` or the worker failed otherwise; the message has the child's traceback.
    """
    slices.require_compiler(target.kind.platform)
    request = {
        "slice": target.name,
        "sizes": dict(sizes),
        "build": build,
        "work": dict(work),
        "chosen": None if chosen is None else list(chosen),
    }
    found: list[CompiledProgram] = []
    current = chosen[0] if chosen else "the programs"
    with tempfile.TemporaryFile() as noise, contextlib.closing(_events(request, noise)) as events:
        begun = time.monotonic()
        for event in events:
            match event:
                case None:
                    pass
                case {"begun": name}:
                    current, begun = name, time.monotonic()
                case {"compiled": record}:
                    found.append(CompiledProgram.from_json(record))
                    continue
                case {"refused": sentence}:
                    raise UserError(sentence)
                case {"failed": traceback}:
                    raise RuntimeError(
                        f"Compiling {current} for {target.name} failed in the child:\n{traceback}"
                    )
                case {"done": _}:
                    return found
                case {"exit": code}:
                    raise UserError(
                        f"Expected the compiler to finish {current} for {target.name}, got {_ending(code)}"
                        f"{_quoted(noise)}. Fix: try another mesh or a smaller batch, or free memory on this "
                        "host."
                    )
                case _:
                    raise RuntimeError(f"The compiler's process sent {event!r}")
            if progress is not None:
                progress(current, target.name, time.monotonic() - begun)
    raise RuntimeError("The compiler's process sent nothing more")


def _events(request: Mapping[str, Any], noise: IO[bytes]) -> Generator[dict[str, Any] | None]:
    """Yields what the child sends, None every second in between, and at last its exit code if it died."""
    path = os.pathsep.join(map(os.path.abspath, sys.path))  # the child imports what this process can
    environment = {**os.environ, **slices.ENVIRONMENT, "PYTHONPATH": path}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "elm_jax.aot.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=noise,
        env=environment,
        start_new_session=True,  # Ctrl-C reaches the parent alone, which ends the child
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        # The pipe stays open: when the parent ends, the child reads the end of it and ends too.
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            pending = b""
            while True:
                if not selector.select(_POLL):
                    yield None
                    continue
                read = os.read(process.stdout.fileno(), 1 << 16)
                *lines, pending = (pending + read).split(b"\n")
                yield from map(json.loads, lines)
                if not read:
                    break
        yield {"exit": process.wait()}
    except BrokenPipeError:
        yield {"exit": process.wait()}
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stdin.close()


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"a process ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"a process ended by signal {-code}"


def _quoted(noise: IO[bytes]) -> str:
    """Returns the last line of the child's stderr that says something, in quotes after a colon."""
    noise.seek(0)
    lines = [line.strip() for line in noise.read().decode(errors="replace").splitlines()]
    lines = [line for line in lines if re.search(r"\w", line) and not _NOISE.search(line)]
    fatal = [line for line in lines if _FATAL.search(line)]
    last = _PREFIX.sub("", (fatal or lines or [""])[-1])
    return f": {last[:300]!r}" if last else ""
