"""Trials of torture: each disturbs a command once, at random, and counts what that harms."""

import importlib.util
import math
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks import torture_run
from benchmarks.torture_bench import LONGEST, ONCE, READING, WRITING, Bench, Outcome
from benchmarks.torture_damage import DAMAGES
from benchmarks.torture_run import ADDED, EXPERTS, T5X_COMMAND

CODES = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}


def kill(bench: Bench, verb: str | None = None, number: signal.Signals | None = None) -> str:
    """Stops a command at a random moment, gives it again, and compares what it leaves."""
    verb = verb or bench.draw.choice(list(WRITING))
    lasted, _ = bench.reference(verb)
    run = bench.copy()
    what = _stop(bench, run, verb, WRITING[verb], lasted, number)
    bench.repeat(run, verb, what)
    bench.tally.tried["kills"] += 1
    return what


def _stop(
    bench: Bench,
    run: Path,
    verb: str,
    command: Sequence[str],
    lasted: float,
    number: signal.Signals | None = None,
) -> str:
    """Starts a command, stops it at a random moment, and returns what was done."""
    number = number or bench.draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    moment = bench.draw.uniform(0.2, 1.05) * lasted
    what = f"kill {verb} by {number.name} after {moment:.1f} s"
    process = bench.start(run, command)
    try:
        process.wait(timeout=moment)
    except subprocess.TimeoutExpired:
        # A terminal sends Ctrl-C to all processes of a command.
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    stopped = bench.end(process, what)
    if stopped.code not in (0, CODES[number]):
        bench.tally.losses.append(f"{what}: ended with code {stopped.code}\n{stopped.said[-500:]}")
    return what


def t5x(bench: Bench, number: signal.Signals | None = None) -> str:
    """Stops T5X's training at a random moment, and gives it again: it ends as one that was never stopped."""
    if not (bench.home / "t5x").exists():
        torture_run.write_t5x_base(bench.template, bench.home / "t5x")
    if "t5x" not in bench.references:
        run, began = bench.copy(), time.monotonic()
        bench.must(run, T5X_COMMAND)
        bench.references["t5x"] = time.monotonic() - began, torture_run.read_t5x(run / "t5x")
    lasted, expected = bench.references["t5x"]
    run = bench.copy()
    what = _stop(bench, run, "t5x", T5X_COMMAND, lasted, number)
    again = bench.do(run, T5X_COMMAND, f"{what}, again")
    if again.code == 0 and torture_run.read_t5x(run / "t5x") != expected:
        bench.tally.losses.append(f"{what}: other parameters")
    bench.tally.tried["kills of T5X"] += 1
    return what


def job(bench: Bench, number: signal.Signals | None = None) -> str:
    """Kills one of two processes that train together; the other ends, and both go on when started again."""
    run, number = bench.copy(), number or bench.draw.choice([signal.SIGKILL, signal.SIGTERM])
    lasted, _ = bench.reference("train")
    moment = bench.draw.uniform(0.5, 2.0) * lasted
    what = f"job killed by {number.name} after {moment:.1f} s"

    def start() -> list[subprocess.Popen[str]]:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        flags = ["--multiprocess", "--coordinator_address", address, "--process_count", "2"]
        return [
            bench.start(run, WRITING["train"], *flags, "--process_index", str(index)) for index in range(2)
        ]

    first = start()
    time.sleep(moment)
    bench.draw.choice(first).send_signal(number)
    for process in first:
        # The runtime's own farewell to a lost process may be long; what counts is that it ends.
        process.communicate(timeout=LONGEST)
    for process in start():
        outcome = bench.end(process, f"{what}, again")
        if outcome.code != 0:
            bench.tally.losses.append(f"{what}, again: code {outcome.code}\n{outcome.said[-1000:]}")
    bench.require_sound(run, what, [*EXPERTS, *ADDED])
    bench.tally.tried["jobs"] += 1
    return what


def limit(bench: Bench) -> str:
    """Runs a command that may write no large file, or use little memory, and then without that limit."""
    verb = bench.draw.choice(list(WRITING))
    if bench.draw.random() < 0.5:
        limits = {resource.RLIMIT_FSIZE: bench.draw.randint(0, 60_000)}
    else:
        limits = {resource.RLIMIT_AS: bench.draw.randint(2_000_000_000, 4_000_000_000)}
    (most,) = limits.values()
    what = f"{verb} with {most:,} bytes of {'files' if resource.RLIMIT_FSIZE in limits else 'memory'}"
    run = bench.copy()
    outcome = bench.end(bench.start(run, WRITING[verb], limits=limits), what)
    return _require_sentence(bench, run, verb, what, outcome)


def disk(bench: Bench) -> str:
    """Runs a command on a disk that becomes full, and then on another; needs the right to mount one."""
    verb, run, full = bench.draw.choice(list(WRITING)), bench.copy(), bench.home / "disk"
    free = bench.draw.randint(0, 300) << 12
    what = f"{verb} with {free:,} bytes of disk"
    full.mkdir(exist_ok=True)
    used = sum(math.ceil(file.stat().st_size / 4096) << 12 for file in run.rglob("*") if file.is_file())
    size = f"size={used + free + 4096}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(full)], check=True, capture_output=True)
    try:
        place = Path(shutil.copytree(run, full / "run"))
        outcome = bench.end(bench.start(place, WRITING[verb]), what)
        shutil.rmtree(run)
        shutil.copytree(place, run)
    finally:
        subprocess.run(["umount", "-l", str(full)], check=True)
    return _require_sentence(bench, run, verb, what, outcome)


def _require_sentence(bench: Bench, run: Path, verb: str, what: str, outcome: Outcome) -> str:
    """Requires that a command that lacked something said so, and ends well when it has it."""
    if outcome.code not in (0, 2):
        bench.tally.losses.append(f"{what}: code {outcome.code}\n{outcome.said[-1000:]}")
    if outcome.code == 2 and outcome.said.count("\n") > 30:
        bench.tally.losses.append(f"{what}: said at length\n{outcome.said[:2000]}")
    bench.repeat(run, verb, what)
    bench.tally.tried["limits"] += 1
    return what


def _can_mount() -> bool:
    """Tells whether this process may mount a disk."""
    with tempfile.TemporaryDirectory() as place:
        try:
            mounted = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], capture_output=True)
        except OSError:
            return False
        if mounted.returncode == 0:
            subprocess.run(["umount", place], check=True)
        return mounted.returncode == 0


def crowd(bench: Bench, *, whole: bool = False) -> str:
    """Gives several commands at once, or all, and those that were refused again."""
    verbs = [bench.draw.choice(list(WRITING)) for _ in range(bench.draw.randint(3, 5))]
    if whole or bench.draw.random() < 0.3:
        verbs = bench.draw.sample(list(WRITING), len(WRITING))
    what, run = f"crowd of {', '.join(verbs)}", bench.copy()
    processes = []
    for verb in verbs:
        processes.append((verb, bench.start(run, WRITING[verb])))
        time.sleep(bench.draw.choice([0, 0, 0.5]))
    refused = []
    for verb, process in processes:
        outcome = bench.end(process, f"{what}: {verb}")
        if outcome.code == 2:
            refused.append(verb)
        elif outcome.code not in (0, None):
            bench.tally.losses.append(f"{what}: {verb} with code {outcome.code}\n{outcome.said[-1000:]}")
    for verb in refused:
        bench.do(run, WRITING[verb], f"{what}: {verb} again", (0, 2) if verb in ONCE else (0,))
    expected = EXPERTS[:-1] if "remove" in verbs else EXPERTS
    bench.require_sound(run, what, [*expected, *(ADDED if "train" in verbs else ())])
    bench.tally.tried["crowdings"] += 1
    return f"{what}; refused: {', '.join(refused) or 'none'}"


def damage(bench: Bench) -> str:
    """Damages a file, and gives a command that reads."""
    run, draw = bench.copy(), bench.draw
    files = [file for file in sorted(run.rglob("*")) if file.is_file()]
    file = draw.choice(files)
    way = draw.choice(list(DAMAGES))
    DAMAGES[way](file, draw)
    verb = draw.choice(list(READING))
    what = f"{verb} with {file.relative_to(run)} {way}"
    before = {
        each: each.read_bytes() for each in (run / "library").rglob("*") if each.is_file() and each != file
    }
    bench.do(run, READING[verb], what, (0, 1, 2))
    changed = [each for each, content in before.items() if not each.exists() or each.read_bytes() != content]
    if changed:
        bench.tally.losses.append(f"{what}: {changed[0]} was changed too")
    bench.tally.tried["damaged inputs"] += 1
    return what


TRIALS: dict[Callable[..., str], int] = {kill: 5, crowd: 3, damage: 5, job: 1, limit: 2}
if _can_mount():
    TRIALS[disk] = 1
if importlib.util.find_spec("t5x"):
    TRIALS[t5x] = 1


def plan_each(draw: random.Random, count: int, only: str | None) -> list[Callable[[Bench], str]]:
    """Returns `count` SIGKILLs of every verb and crowds of all verbs, shuffled; or those of one trial."""
    each = {
        kill: [partial(kill, verb=verb, number=signal.SIGKILL) for verb in WRITING],
        job: [partial(job, number=signal.SIGKILL)],
        t5x: [partial(t5x, number=signal.SIGKILL)],
        crowd: [partial(crowd, whole=True)],
    }
    chosen = [
        do
        for trial, all_of_it in each.items()
        if trial in TRIALS and only in (None, trial.__name__)
        for do in all_of_it
    ] * count
    return draw.sample(chosen, len(chosen))
