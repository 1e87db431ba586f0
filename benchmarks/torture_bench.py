"""The bench of torture: the run that trials copy, the commands that they give, and what came of them."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import torture_run
from benchmarks.torture_run import EXPERTS, TASK, UNSEEN
from elm_jax.session import opening

LONGEST = 600.0  # seconds of any command, on a machine that has other work, too

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
        self.references: dict[str, tuple[float, dict[str, bytes]]] = {}
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
        names |= {"run": str(run), "base": str(run / "base"), "trained": str(run / "t5x")}
        names |= {"checkpoint": str(self.home / "t5x" / "checkpoint_0")}
        names |= {"vocabulary": str(run / "base" / opening.VOCABULARY_FILE)}
        module = "elm_jax.cli"
        words = [word.format(**names) for word in command]
        where = [] if command[0] == "run" else ["--run", str(run)]
        if command[0] == "t5x":
            module, words, where = "elm_jax.t5x.launch", words[1:], []

        def limit() -> None:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # which a shell's "&" has ignored
            for kind, most in (limits or {}).items():
                resource.setrlimit(kind, (most, most))

        return subprocess.Popen(
            [sys.executable, "-m", module, *words, *where, *flags],
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
        if verb not in self.references:
            run = self.copy()
            began = time.monotonic()
            self.must(run, WRITING[verb])
            self.references[verb] = time.monotonic() - began, results(run)
            shutil.rmtree(run)
        return self.references[verb]

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
