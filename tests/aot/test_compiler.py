"""Programs compiled in the child process."""

import contextlib
import fcntl
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import elm_jax
from elm_jax.aot import compiler, slices
from elm_jax.aot.compiler import CompiledProgram
from elm_jax.errors import UserError

V5E = slices.parse_slice("v5e-1")
ONE = {"fsdp": 1}
pytestmark = pytest.mark.aot


def test_programs_are_compiled_and_counted_and_the_second_time_read(small_programs):
    seen = []
    first = compiler.compile_programs(
        V5E, ONE, "small_programs.build", small_programs, progress=lambda *told: seen.append(told[:2])
    )
    product, gradient = first
    width, rows, layers = 512, 1024, 5
    assert product.flops == 2 * rows * width**2
    assert gradient.flops == pytest.approx(3 * layers * 2 * rows * width**2, rel=0.01)
    # Its arguments and results in bfloat16, and a kernel that is resident.
    assert gradient.peak_bytes is not None
    least = 2 * (2 * layers * width**2 + rows * width + width**2)
    assert least < gradient.peak_bytes < 2 * least
    # XLA's own peak leaves out the code and what is resident, and counts on-chip memory.
    assert gradient.xla_peak_bytes is not None
    assert least - 2 * width**2 < gradient.xla_peak_bytes
    parts = [gradient.cycle_seconds, gradient.collective_seconds, gradient.move_seconds]
    assert sum(each or 0.0 for each in parts) == pytest.approx(gradient.seconds)
    assert [(each.name, each.fits, each.cached, each.reason) for each in first] == [
        ("product", True, False, None),
        ("gradient", True, False, None),
    ]
    assert ("product", "v5e-1") in seen
    assert ("gradient", "v5e-1") in seen

    second = compiler.compile_programs(V5E, ONE, "small_programs.build", small_programs)
    assert [each.cached for each in second] == [True, True]
    assert [{**each.to_json(), "cached": False} for each in second] == [each.to_json() for each in first]
    assert CompiledProgram.from_json(json.loads(json.dumps(gradient.to_json()))) == gradient

    wider = compiler.compile_program(
        V5E, ONE, "small_programs.build", small_programs | {"rows": 2048}, "product"
    )
    assert (wider.cached, wider.flops) == (False, 2 * product.flops)


def test_a_broken_cache_is_written_anew(small_programs, tmp_path):
    def compiled():
        return compiler.compile_program(V5E, ONE, "small_programs.build", small_programs, "product")

    first = compiled()
    [file] = (tmp_path / "cache" / "aot").iterdir()
    file.write_text("{")
    assert not compiled().cached
    again = compiled()
    assert again.cached
    assert again.flops == first.flops


def test_no_cache_is_kept_where_it_is_turned_off(small_programs, tmp_path, monkeypatch):
    monkeypatch.setenv("ELM_COMPILATION_CACHE", "off")
    compiler.compile_program(V5E, ONE, "small_programs.build", small_programs, "product")
    assert not (tmp_path / "cache").exists()


def test_four_devices_gather_kernels_behind_products_and_in_their_way(small_programs):
    found = compiler.compile_program(
        slices.parse_slice("v5e-4"), {"fsdp": 4}, "small_programs.build", small_programs, "gradient"
    )
    whole = 5 * 512 * 512 * 2  # every kernel once forward and once backward
    gathered = [each for each in found.collectives if each.kind == "all-gather" and each.dtype == "bf16"]
    assert sum(each.bytes for each in gathered) == 2 * whole
    assert {each.axes for each in gathered} == {("fsdp",)}
    assert any(each.hidden for each in gathered)


def test_a_program_that_is_too_large_says_what_it_needs(small_programs):
    rows = 2**24  # 16 GiB of them, and as much as a result
    found = compiler.compile_program(
        V5E, ONE, "small_programs.build", small_programs | {"rows": rows}, "product"
    )
    assert not found.fits
    assert found.flops is None
    assert found.peak_bytes == pytest.approx(2 * rows * 512 * 2, rel=0.001)
    assert found.reason is not None
    assert found.reason.startswith("product does not fit on v5e-1: Ran out of memory on HBM")
    assert "15.75G" in found.reason


def test_what_is_resident_beside_a_program_counts(small_programs):
    found = compiler.compile_program(
        V5E, ONE, "small_programs.resident", small_programs | {"beside": 17 * 10**9}, "product"
    )
    assert not found.fits
    assert found.peak_bytes == pytest.approx(17e9, rel=0.01)
    assert found.reason is not None
    assert "16.91 GB are available" in found.reason


@pytest.mark.skipif(not importlib.util.find_spec("jax_cuda13_plugin"), reason="CUDA's compiler is absent")
def test_for_gpus_there_are_memory_and_collectives_and_no_seconds(small_programs):
    found = compiler.compile_program(
        slices.parse_slice("8xh100"), {"fsdp": 8}, "small_programs.build", small_programs, "gradient"
    )
    assert (found.fits, found.flops, found.seconds) == (True, None, None)
    assert found.peak_bytes
    assert {each.kind for each in found.collectives} >= {"all-gather", "reduce-scatter"}


def test_an_error_of_the_user_comes_back_as_it_is(small_programs):
    with pytest.raises(UserError) as error:
        compiler.compile_programs(V5E, ONE, "small_programs.refuses", small_programs)
    assert str(error.value) == "Expected a mesh that divides, got none. Fix: choose another."


def test_a_defect_comes_back_with_its_traceback(small_programs):
    with pytest.raises(RuntimeError, match="ZeroDivisionError: a defect"):
        compiler.compile_programs(V5E, ONE, "small_programs.fails", small_programs)


def test_a_compiler_that_aborts_is_quoted_in_one_sentence(small_programs):
    with pytest.raises(UserError) as error:
        compiler.compile_programs(V5E, ONE, "small_programs.dies", small_programs)
    assert "got a process ended by SIGABRT: 'Check failed: the compiler gave up'. Fix:" in str(error.value)


def test_a_child_that_is_killed_ends_in_one_sentence(small_programs, tmp_path):
    lock = tmp_path / "lock"

    def kill(*_):
        if lock.exists() and (pid := lock.read_text()):
            os.kill(int(pid), signal.SIGKILL)

    with pytest.raises(UserError, match=r"got a process ended by SIGKILL\. Fix:"):
        compiler.compile_programs(V5E, ONE, "small_programs.waits", {"lock": str(lock)}, progress=kill)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_the_child_ends_with_its_parent(tmp_path, sent):
    lock = tmp_path / "lock"
    code = (
        # A shell's background jobs ignore Ctrl-C, and so would this process of one.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import sys; from elm_jax.aot import compiler, slices\n"
        "compiler.compile_programs(slices.parse_slice('v5e-1'), {'fsdp': 1}, 'small_programs.waits', "
        f"{{'lock': {str(lock)!r}}})"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment(), stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: lock.exists() and lock.read_text())
        assert held(lock)
        parent.send_signal(sent)
        parent.wait(30)
        eventually(lambda: not held(lock))
    finally:
        parent.kill()


def environment():
    """That of this process, in which another finds the package and the small programs."""
    package = Path(elm_jax.__file__).parents[1]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(package), str(Path(__file__).parent)])}


def held(lock):
    with lock.open() as file, contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    return True


def eventually(holds, seconds=60):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)
