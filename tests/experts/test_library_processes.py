"""Processes that read and write one library at once see each expert whole, old or new, or not at all."""

import subprocess
import sys
import time

import numpy as np

from elm_jax.models import paths
from elm_jax.records import Expert, ExpertSpec

NAME = "dream/shared"
SIZE = 40_000  # values: large enough that writing takes a while
WRITER = f"""
import sys, time
import numpy as np
from elm_jax.experts.library import Library
from elm_jax.records import Expert, ExpertSpec, Keys

library, value, until = Library.open(sys.argv[1]), float(sys.argv[2]), time.time() + float(sys.argv[3])
print("ready", flush=True)
while time.time() < until:
    spec = ExpertSpec({NAME!r}, "bottleneck", "base", ("w", "z"), ("dream",), int(value))
    params = {{name: np.full({SIZE}, value, np.float32) for name in ("w", "z")}}
    keys = Keys(np.full((3, 2), value, np.float32), ("k",) * 3, f"toy {{int(value)}}", "instance")
    library.add(Expert(spec, params), keys, replace=True)
    value += 2
"""
SECONDS = 2.0


def plain(name, value):
    flat = {name: np.full(SIZE, value, np.float32) for name in ("w", "z")}
    spec = ExpertSpec(name, "bottleneck", "base", tuple(flat), ("dream",), int(value))
    return Expert(spec, paths.unflatten(flat))


def start(library, first, seconds):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(library.root), str(first), str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_two_writers_and_readers_never_meet_half_an_expert(library):
    library.add(plain(NAME, 0))
    library.add(plain("dream/quiet", 7))
    writers = [start(library, first, SECONDS) for first in (1, 2)]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        assert library.ids() == ("dream/quiet", NAME)
        found = library.load_expert(NAME)
        values = {float(value) for leaf in found.params.values() for value in np.unique(leaf)}
        assert values == {float(found.spec.steps)}
        stacked = library.load_stack(["dream/quiet", NAME])
        assert np.unique(stacked["w"][0]).tolist() == [7.0]
        assert np.unique(stacked["w"][1]).size == 1
        seen |= values
    for writer in writers:
        _, told = writer.communicate()
        assert writer.returncode == 0, told
    assert len(seen) > 2
    assert library.verify() == []


def test_a_writer_that_is_killed_leaves_the_old_or_the_new(library):
    library.add(plain(NAME, 0))
    for number in range(3):
        writer = start(library, 1, 60)
        time.sleep(0.15 + 0.07 * number)
        writer.kill()
        writer.communicate()
        found = library.load_expert(NAME)
        assert {float(value) for leaf in found.params.values() for value in np.unique(leaf)} == {
            float(found.spec.steps)
        }
        assert library.verify([NAME]) == []
