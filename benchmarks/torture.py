"""Kills, crowds and damage: whether anything is lost, and whether anybody sees a traceback.

Run     python -m benchmarks.torture [--minutes 3] [--seed 0] [--only TRIAL] [--keep] [--home DIR]
Expect  a line a trial, then what was tried, and "0 tracebacks, 0 losses"; exit code 1 otherwise

A trial is drawn from the seed, in a fresh copy of one small run, with the commands that a user gives:

  kill     SIGKILL, SIGTERM or SIGINT at a random moment of a command; the same command again has to end
           well, with the bytes of one that was never stopped, and to leave no temporary file and no lock;
           no process outlives the one that started it
  job      the same of one of two processes that train together
  limit    a command may write no file over some size, or use no memory over some limit: it ends in one
           sentence, and the same command without the limit as one that was never limited
  crowd    several commands at once: each ends well or says in one sentence who is in its way, and ends well
           when it is given again; no expert is lost
  damage   a file of the run is cut, emptied, changed or replaced; a command that reads ends with a code of
           its own and in time, and harms no other file

`--keep` leaves the directories of trials that failed, and names them.
"""

import argparse
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import torture_run
from benchmarks.torture_damage import DAMAGES
from benchmarks.torture_run import ADDED, EXPERTS, TASK, UNSEEN

LONGEST = 600.0  # seconds of any command, on a machine that has other work, too
CODES = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}

WRITING: dict[str, list[str]] = {
    "train": ["train", TASK, "--steps", "30", "--batch-size", "4", "--limit", "30", "--rate", "1e-3"],
    "evaluate": [
        "evaluate",
        UNSEEN,
        "--limit",
        "6",
        "--method",
        "uniform",
        "--method",
        "roe:experts=2",
    ],
    "index": ["index", "--rebuild", "--size", "6"],
    "prepare": ["prepare", TASK, UNSEEN, "--limit", "30", "--processes", "2"],
    "merge": ["merge", *EXPERTS[:2], "--id", "merged/both"],
    "route": ["route", UNSEEN],
    "add": ["experts", "add", "{exported}", "--replace"],
    "remove": ["experts", "remove", EXPERTS[-1]],
    "export": ["experts", "export", EXPERTS[0], "{new}"],
    "report": ["report"],
    "run": [
        "run",
        "--gin_file=gin/runs/pipeline.gin",
        f"--gin.MIXTURE_OR_TASK_NAME=[{TASK!r}]",
        f"--gin.EVAL_TASKS=[{UNSEEN!r}]",
        "--gin.MODEL_DIR={run!r}",
        "--gin.INITIAL_CHECKPOINT_PATH={base!r}",
        "--gin.TRAIN_STEPS=30",
        "--gin.BATCH_SIZE=4",
        "--gin.LEARNING_RATE=1e-3",
        "--gin.MAX_TRAIN_SAMPLES=30",
        "--gin.LIMIT=6",
        "--gin.KEYS=4",
        "--gin.METHODS=('uniform',)",
        "--gin.MAX_PROMPT=24",
        "--gin.MAX_ANSWER=5",
    ],
}
READING: dict[str, list[str]] = {
    "list": ["experts", "list", "--scores"],
    "show": ["experts", "show", EXPERTS[0]],
    "verify": ["experts", "verify"],
    "export": WRITING["export"],
    "report": ["report"],
    "route": ["route", UNSEEN],
    "dry evaluate": [*WRITING["evaluate"], "--dry-run"],
    "evaluate": WRITING["evaluate"],
}
ONCE = ("remove", "export")
"""What is refused when it was done: there is nothing to remove any more, or the directory is not new."""
RESULTS = ("library", "composites", "scores", "prepared", "selections", "exported")
"""Directories whose files follow from the commands alone."""


@dataclass
class Tally:
    """What was tried and what came of it."""

    tried: Counter[str] = field(default_factory=Counter)
    tracebacks: list[str] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)

    @property
    def failures(self) -> int:
        """How much went wrong."""
        return len(self.tracebacks) + len(self.losses)


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its code, None if it had to be ended, and what it said."""

    code: int | None
    said: str


class Bench:
    """The run that trials copy, and what commands make of it if nobody stops them."""

    def __init__(self, home: Path, draw: random.Random, tally: Tally) -> None:
        self.home, self.draw, self.tally = home, draw, tally
        self.environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(home / "compiled"),
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
        }
        self.template = home / "template"
        if not (home / "exported").exists():
            torture_run.make_run(self.template)
            for command in (
                ["train", *EXPERTS, "--steps", "4", "--batch-size", "4", "--limit", "30"],
                ["index", "--size", "4"],
                WRITING["evaluate"],
                ["experts", "export", EXPERTS[0], str(home / "exported")],
            ):
                self.must(self.template, command)
        self._references: dict[str, tuple[float, dict[str, bytes]]] = {}
        self._copies = 0

    def copy(self) -> Path:
        """Returns a fresh copy of the run."""
        self._copies += 1
        return Path(shutil.copytree(self.template, self.home / f"trial-{self._copies}"))

    def start(
        self, run: Path, command: Sequence[str], *flags: str, limits: Mapping[int, int] | None = None
    ) -> subprocess.Popen[str]:
        """Starts a command of `elm` in a run, as the first process of a session, with the system's limits."""
        names = {"exported": self.home / "exported", "new": run / "exported"}
        names |= {"run": str(run), "base": str(run / "base")}
        words = [word.format(**names) for word in command]
        where = [] if command[0] == "run" else ["--run", str(run)]

        def limit() -> None:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # which a shell's "&" has ignored
            for kind, most in (limits or {}).items():
                resource.setrlimit(kind, (most, most))

        return subprocess.Popen(
            [sys.executable, "-m", "elm_jax.cli", *words, *where, *flags],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            preexec_fn=limit,
        )

    def end(self, process: subprocess.Popen[str], what: str) -> Outcome:
        """Waits for a command; one that does not end, or shows a traceback, is counted."""
        try:
            said, _ = process.communicate(timeout=LONGEST)
        except subprocess.TimeoutExpired:
            process.kill()
            said, _ = process.communicate()
            self.tally.losses.append(f"{what}: did not end in {LONGEST:.0f} s")
            return Outcome(None, said)
        orphans = torture_run.find_orphans(process.pid)
        if orphans:
            self.tally.losses.append(f"{what}: processes outlive it: {orphans}")
        if "Traceback" in said or (process.returncode < 0 and process.returncode != -signal.SIGKILL):
            self.tally.tracebacks.append(f"{what}: code {process.returncode}\n{said[-2000:]}")
        return Outcome(process.returncode, said)

    def do(self, run: Path, command: Sequence[str], what: str, codes: Sequence[int] = (0,)) -> Outcome:
        """Runs a command that has to end with one of some codes."""
        outcome = self.end(self.start(run, command), what)
        if outcome.code is not None and outcome.code not in codes:
            self.tally.losses.append(f"{what}: code {outcome.code}\n{outcome.said[-1000:]}")
        return outcome

    def must(self, run: Path, command: Sequence[str]) -> None:
        """Runs a command without which there is nothing to try."""
        before = self.tally.failures
        self.do(run, command, " ".join(command))
        if self.tally.failures > before:
            raise SystemExit(f"{self.tally.tracebacks}{self.tally.losses}")

    def reference(self, verb: str) -> tuple[float, dict[str, bytes]]:
        """Returns how long a command takes, and the files that it leaves, if nobody stops it."""
        if verb not in self._references:
            run = self.copy()
            began = time.monotonic()
            self.must(run, WRITING[verb])
            self._references[verb] = time.monotonic() - began, results(run)
            shutil.rmtree(run)
        return self._references[verb]

    def repeat(self, run: Path, verb: str, what: str) -> None:
        """Gives a command again that was disturbed, and compares what it leaves with an undisturbed one."""
        _, expected = self.reference(verb)
        self.do(run, WRITING[verb], f"{what}, again", (0, 2) if verb in ONCE else (0,))
        found = results(run)
        differing = sorted(
            name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
        )
        if differing:
            self.tally.losses.append(f"{what}: other bytes in {', '.join(differing[:5])}")
        self.require_sound(run, what, EXPERTS[:-1] if verb == "remove" else EXPERTS)

    def require_sound(self, run: Path, what: str, expected: Sequence[str] = ()) -> None:
        """Counts experts that are missing or damaged, and what is left of writers that are gone."""
        lost, left = torture_run.find_faults(run, expected)
        self.tally.losses += [f"{what}: {each}" for each in lost + left]


def results(run: Path) -> dict[str, bytes]:
    """Returns the files that follow from the commands alone."""
    return {
        str(file.relative_to(run)): file.read_bytes()
        for name in RESULTS
        for file in sorted((run / name).rglob("*"))
        if file.is_file()
    }


def kill(bench: Bench) -> str:
    """Stops a command at a random moment, gives it again, and compares what it leaves."""
    verb = bench.draw.choice(list(WRITING))
    number = bench.draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    lasted, _ = bench.reference(verb)
    moment = bench.draw.uniform(0.2, 1.05) * lasted
    what = f"kill {verb} by {number.name} after {moment:.1f} s"
    run = bench.copy()
    process = bench.start(run, WRITING[verb])
    try:
        process.wait(timeout=moment)
    except subprocess.TimeoutExpired:
        # A terminal sends Ctrl-C to all processes of a command.
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    stopped = bench.end(process, what)
    if stopped.code not in (0, CODES[number]):
        bench.tally.losses.append(f"{what}: ended with code {stopped.code}\n{stopped.said[-500:]}")
    bench.repeat(run, verb, what)
    bench.tally.tried["kills"] += 1
    return what


def job(bench: Bench) -> str:
    """Kills one of two processes that train together; the other ends, and both go on when started again."""
    run, number = bench.copy(), bench.draw.choice([signal.SIGKILL, signal.SIGTERM])
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
    if outcome.code not in (0, 2):
        bench.tally.losses.append(f"{what}: code {outcome.code}\n{outcome.said[-1000:]}")
    bench.repeat(run, verb, what)
    bench.tally.tried["limits"] += 1
    return what


def crowd(bench: Bench) -> str:
    """Gives several commands at once, and those that were refused again."""
    verbs = [bench.draw.choice(list(WRITING)) for _ in range(bench.draw.randint(3, 5))]
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


TRIALS = {kill: 5, crowd: 3, damage: 5, job: 1, limit: 2}


def main() -> int:
    """Tries for some minutes; returns 1 if anything went wrong."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=[trial.__name__ for trial in TRIALS], help="the one kind of trial")
    parser.add_argument("--keep", action="store_true", help="leave the directories of trials that failed")
    parser.add_argument("--home", help="directory of the run and its trials, for a next call to use again")
    given = parser.parse_args()
    draw, tally = random.Random(given.seed), Tally()
    home = Path(given.home or tempfile.mkdtemp(prefix="elm-torture-"))
    home.mkdir(parents=True, exist_ok=True)
    try:
        bench = Bench(home, draw, tally)
        began = time.monotonic()
        while time.monotonic() - began < 60 * given.minutes:
            before = tally.failures
            (trial,) = draw.choices(list(TRIALS), list(TRIALS.values()))
            if given.only:
                trial = next(each for each in TRIALS if each.__name__ == given.only)
            what = trial(bench)
            failed = tally.failures > before
            print(f"{time.monotonic() - began:5.0f} s  {'FAILED  ' if failed else ''}{what}", flush=True)
            for run in home.glob("trial-*"):
                if failed and given.keep:
                    run.rename(home / f"failed-{run.name}")
                else:
                    shutil.rmtree(run)
    finally:
        if not (given.home or (given.keep and tally.failures)):
            shutil.rmtree(home, ignore_errors=True)
    for each in (*tally.tracebacks, *tally.losses):
        print(f"\n{each}")
    tried = ", ".join(f"{count} {name}" for name, count in sorted(tally.tried.items()))
    print(f"\n{tried}; {len(tally.tracebacks)} tracebacks, {len(tally.losses)} losses")
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
