"""Interrupts: Ctrl-C ends with 130 and SIGTERM with 143, whatever the code does that they meet."""

import signal
import subprocess
import sys
import time

import pytest

from elm_jax.launch import interrupts

pytestmark = pytest.mark.usefixtures("ctrl_c")
SWALLOW = """
import sys, time
from elm_jax.launch import interrupts
interrupts.GRACE_SECONDS = 1.0
with interrupts.exit_on_signals():
    print("begun", flush=True)
    while True:
        try:
            {work}
        except BaseException:
            pass
"""
PLAIN = """
from elm_jax.launch import interrupts
with interrupts.exit_on_signals():
    print("begun", flush=True)
    {work}
"""


def outcome(script, number, *, times=1):
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    for _ in range(times):
        process.send_signal(number)
        time.sleep(0.1)
    with process:
        try:
            _, said = process.communicate(timeout=30)
        finally:
            process.kill()
    return process.returncode, said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_with_its_code_and_one_sentence(number):
    code, said = outcome(PLAIN.format(work="import time; time.sleep(60)"), number)
    assert (code, said) == (128 + number, interrupts.MESSAGE + "\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_code_that_swallows_the_signal_is_ended_all_the_same(number):
    code, said = outcome(SWALLOW.format(work="time.sleep(0.01)"), number)
    assert (code, said) == (128 + number, interrupts.MESSAGE + "\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_meets_a_callback_of_the_garbage_collector_ends_the_command(number):
    # What a callback raises is printed and dropped; here hardly any other code runs.
    work = "import gc, time; gc.callbacks.append(lambda *of: time.sleep(60)); gc.collect(); time.sleep(60)"
    began = time.monotonic()
    code, said = outcome(PLAIN.format(work=work), number)
    assert (code, said) == (128 + number, interrupts.MESSAGE + "\n")
    assert time.monotonic() - began < interrupts.GRACE_SECONDS


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_another_error_that_a_signal_becomes_is_no_traceback(number):
    work = """
    import time
    try:
        time.sleep(60)
    except SystemExit as stop:
        raise RuntimeError("a callback failed") from stop"""
    code, said = outcome(PLAIN.format(work=work), number)
    assert (code, said) == (128 + number, interrupts.MESSAGE + "\n")


def test_a_second_ctrl_c_ends_code_that_runs_no_python():
    began = time.monotonic()
    work = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"
    code, _ = outcome(PLAIN.format(work=work), signal.SIGINT, times=2)
    assert code == 130
    assert time.monotonic() - began < interrupts.GRACE_SECONDS


ENDED = """
import atexit, time
from elm_jax.launch import interrupts
def say():
    print("begun", flush=True)
    {work}
with interrupts.exit_on_signals(to_process_end=True):
    atexit.register(say)
    {end}
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "work", ["time.sleep(60)", "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"]
)
@pytest.mark.parametrize(("end", "code"), [("pass", 0), ("raise SystemExit(2)", 2)])
def test_after_a_command_a_signal_ends_what_the_interpreter_still_does_with_the_commands_code(
    number, work, end, code
):
    began = time.monotonic()
    assert outcome(ENDED.format(work=work, end=end), number) == (code, "")
    assert time.monotonic() - began < interrupts.GRACE_SECONDS


def test_after_a_command_another_signal_ends_nothing():
    script = """
import atexit, os, signal, time
from elm_jax.launch import interrupts
def say():
    print("begun", flush=True)
    time.sleep(1)
    os._exit(7)
signal.signal(signal.SIGUSR1, lambda *of: None)
with interrupts.exit_on_signals(to_process_end=True):
    atexit.register(say)
"""
    assert outcome(script, signal.SIGUSR1) == (7, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_when_modules_are_torn_down_a_signal_changes_nothing(number):
    # What a module holds is deleted after everything that is registered to run at exit.
    script = """
import time
from elm_jax.launch import interrupts
class Held:
    def __del__(self, write=print, sleep=time.sleep):
        write("begun", flush=True)
        sleep(1)
held = Held()
with interrupts.exit_on_signals(to_process_end=True):
    pass
"""
    assert outcome(script, number) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_meets_an_import_reaches_no_code_that_may_not_survive_an_exception(number, tmp_path):
    # Native code that initializes itself calls Python, and aborts the process if that raises.
    (tmp_path / "native.py").write_text(
        "import os, time\n"
        "print('begun', flush=True)\n"
        "try:\n    time.sleep(60)\n"
        "except BaseException:\n    os.abort()\n"
    )
    script = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from elm_jax.launch import interrupts
with interrupts.exit_on_signals():
    import native"""
    code, said = outcome(script, number)
    assert (code, said) == (128 + number, interrupts.MESSAGE + "\n")


def test_the_handlers_before_come_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with interrupts.exit_on_signals():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_what_ends_by_itself_keeps_its_code():
    with pytest.raises(SystemExit) as stop, interrupts.exit_on_signals():
        raise SystemExit(2)
    assert stop.value.code == 2
