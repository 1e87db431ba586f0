"""Parts: the shares of a sweep, each an `elm train` command with experts of its own, and where they can run.

Parts of one kind train into one library, which any number of processes may write; each has checkpoints of its
own, for these go by the list of experts. A part's list is the same each time, also when some of it is trained
already, so that the next start finds the checkpoints of the last.
"""

import fcntl
import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pod
from gcloud import Failed, Package, Request, Shell, Slice, say

from elm_jax.data import task_selection
from elm_jax.errors import UserError
from elm_jax.experts.library import Library
from elm_jax.session.workspace import Workspace
from elm_jax.tasks import data_source
from elm_jax.training import expert_configs
from elm_jax.training.config import TrainConfig, replace_fields


@dataclass(frozen=True)
class Kind:
    """One sort of experts: which recipe trains them, one on what, and where below the sweep's directory."""

    recipe: str
    train_as: str
    directory: str


# Prompts' and datasets' experts lie apart, so that a router does not have them vote against one another.
KINDS = {
    "prompts": Kind("gin/recipes/prompt_expert.gin", "experts", "prompt_experts"),
    "datasets": Kind("gin/recipes/dataset_expert_adapter.gin", "dataset", "dataset_experts"),
    "full_datasets": Kind("gin/recipes/dataset_expert.gin", "dataset", "full_dataset_experts"),
}
OURS = ("MODEL_DIR", "MIXTURE_OR_TASK_NAME", "TRAIN_AS", "LOGS")  # macros that the sweep sets


@dataclass(frozen=True)
class Part:
    """Some experts of a kind."""

    name: str
    recipe: str
    directory: str  # of the run, with the library in it
    experts: tuple[str, ...]
    tasks: tuple[str, ...]

    def arguments(self, further: Sequence[str]) -> list[str]:
        """Returns what `elm` is called with."""
        macros = {
            "MODEL_DIR": self.directory,
            "LOGS": f"{self.directory}/logs/{self.name}",  # parts write side by side
            "MIXTURE_OR_TASK_NAME": self.tasks,
        }
        bindings = [f"--gin.{name}={value!r}" for name, value in macros.items()]
        return ["train", f"--gin_file={self.recipe}", *bindings, *further]

    def missing(self) -> list[str]:
        """Returns the experts that the library lacks now."""
        there = trained(self.directory)
        return [expert for expert in self.experts if expert not in there]

    def forget(self) -> None:
        """Deletes the checkpoints that a process leaves when it is killed after its last expert."""
        left = Workspace.at(self.directory).checkpoints_of(self.experts)
        if not self.missing() and left.exists():
            left.rmtree()


def trained(directory: str) -> set[str]:
    """Returns the experts in a run's library."""
    try:
        return set(Library.open(f"{directory}/library").ids())
    except UserError:
        return set()  # there is no library yet


def parts_of(
    kinds: Sequence[str], names: Sequence[str], root: str, count: int, task_files: Sequence[str] = ()
) -> list[Part]:
    """Returns the parts of a sweep over the tasks that names stand for, `count` of each kind at most.

    Experts are dealt out in turns, so that parts have about as much to do.
    """
    specs = task_selection.select_tasks(names, data_source.Source(tasks=list(task_files)))
    found = []
    for kind in kinds:
        how = KINDS[kind]
        config = replace_fields(TrainConfig(), {"steps": 1, "train_as": how.train_as})
        chosen = expert_configs.resolve_experts(specs, config)
        shares = [share for share in (chosen[at::count] for at in range(count)) if share]
        for at, share in enumerate(shares, start=1):
            experts = tuple(expert.id for expert in share)
            tasks = tuple(spec.id for expert in share for spec in expert.specs)
            name = f"{kind}-{at}-of-{len(shares)}"
            found.append(Part(name, how.recipe, f"{root.rstrip('/')}/{how.directory}", experts, tasks))
    return found


class Place(Protocol):
    """Where one part after the other runs."""

    def run(self, part: Part, further: Sequence[str], log: Path) -> int | None:
        """Runs a part to its end and returns its exit code; None where it was taken away."""
        ...

    def stop(self) -> None:
        """Has what runs save and end, where it would not go on by itself."""
        ...

    def leave(self) -> None:
        """Gives the place back when nothing is left to run."""
        ...


@dataclass
class Process:
    """A process on this machine."""

    elm: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    dry_run: bool = False
    _child: subprocess.Popen[bytes] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopped: bool = False

    def run(self, part: Part, further: Sequence[str], log: Path) -> int | None:
        """See Place."""
        words = [*self.elm, *part.arguments(further)]
        given = "".join(f"{name}={shlex.quote(value)} " for name, value in self.environment.items())
        say(f"$ {given}{shlex.join(words)}")
        if self.dry_run:
            return 0
        with log.open("ab") as output:
            self._claim(part, output.fileno())
            if not part.missing():
                return 0
            with self._lock:
                if self._stopped:
                    return None
                # In a session of its own: Ctrl-C reaches the sweep alone, which ends it in good order.
                self._child = subprocess.Popen(
                    words,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **self.environment},
                    start_new_session=True,
                )
            say(f"sweep: {part.name} is process {self._child.pid}, its log {log}")
            code = self._child.wait()
        return None if code < 0 else code

    def _claim(self, part: Part, log: int) -> None:
        """Waits for the process that an earlier sweep, which was killed, may have left at work on the part.

        Whoever writes the log holds its lock, and the process inherits it.
        """
        told = False
        while not self._stopped:
            try:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if not told:
                    say(f"sweep: {part.name} has a process already, which is waited for")
                told = True
                time.sleep(0.5)

    def stop(self) -> None:
        """See Place."""
        with self._lock:
            self._stopped = True
            if self._child is not None and self._child.poll() is None:
                self._child.send_signal(signal.SIGTERM)

    def leave(self) -> None:
        """See Place."""


@dataclass
class Pod:
    """A TPU slice, which is made where it is not there."""

    which: Slice
    request: Request
    package: Package
    patience: pod.Patience
    dry_run: bool = False
    delete: bool = False

    def run(self, part: Part, further: Sequence[str], log: Path) -> int | None:
        """See Place."""
        if self.dry_run:
            return self._through(Shell(dry_run=True), part, further)
        say(f"sweep: {part.name} goes to slice {self.which.name}, its log {log}")
        with log.open("a") as output:
            return self._through(Shell(output=output), part, further)

    def _through(self, shell: Shell, part: Part, further: Sequence[str]) -> int | None:
        try:
            how = (self.request, self.package, part.arguments(further), self.patience)
            pod.resume(shell, self.which, *how, replace=True)
            return pod.wait(shell, self.which, self.patience)
        except Failed as told:
            say(f"sweep: {told}")
            return None

    def stop(self) -> None:
        """Does nothing: a job on a slice goes on without us, and the next sweep finds it."""

    def leave(self) -> None:
        """See Place."""
        if not self.delete:
            return
        try:
            pod.delete(Shell(self.dry_run), self.which)
        except Failed as told:
            say(f"sweep: {told}")
