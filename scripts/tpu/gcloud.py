"""Gcloud: the commands that act on a TPU slice, as words, and the shell that prints and runs them.

A slice is a queued resource with one node, both of the same name. On its workers everything lies in `elm`
below the home directory: the environment, the log, and of the job its process number and, when it is over,
its exit code.
"""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

TPUS = ("gcloud", "compute", "tpus")
HOME = "elm"  # below a worker's home directory
LOG = "elm.log"
ACTIVE, ABSENT = "ACTIVE", "ABSENT"  # the second is ours: there is no such request
GOING = ("SUSPENDING", "DELETING")
GONE = ("SUSPENDED", "FAILED")  # of no use any more, but the name is taken until it is deleted


class Failed(Exception):
    """A command that did not do what it should; one sentence on it, and what to do."""


@dataclass(frozen=True)
class Slice:
    """A slice by name; without zone and project those of gcloud's configuration hold."""

    name: str
    zone: str | None = None
    project: str | None = None

    @property
    def flags(self) -> list[str]:
        """What every command on the slice ends with."""
        given = (("zone", self.zone), ("project", self.project))
        return [f"--{name}={value}" for name, value in given if value]


@dataclass(frozen=True)
class Request:
    """What hardware is asked for."""

    accelerator: str
    runtime: str
    spot: bool = False
    flags: tuple[str, ...] = ()  # of `queued-resources create`, as they are


@dataclass(frozen=True)
class Package:
    """What is installed on the workers, and which files go with it."""

    wheel: str | None = None  # a file of this machine, or else
    git: str | None = None  # an address, with @ a branch, tag or commit
    python: str = "3.12"
    constraints: str | None = None
    files: tuple[str, ...] = ()  # recipes and tasks of one's own

    @property
    def sent(self) -> list[str]:
        """The files that are copied to every worker."""
        return [file for file in (self.wheel, self.constraints) if file] + list(self.files)


@dataclass(frozen=True)
class Shell:
    """Prints every command before it runs; with `dry_run` it only prints."""

    dry_run: bool = False
    output: IO[str] | None = None  # where commands and what they say go; standard output and error without

    def run(self, words: Sequence[str], remedy: str) -> None:
        """Runs a command to its end; Failed, with the remedy, if it ends badly."""
        self.say(f"$ {shlex.join(words)}")
        if self.dry_run:
            return
        try:
            code = subprocess.run(words, stdout=self.output, stderr=self.output, check=False).returncode
        except OSError as error:
            raise _absent(words, error) from None
        if code:
            raise failed(words, code, remedy)

    def look(self, words: Sequence[str]) -> tuple[int, str, str]:
        """Returns a command's exit code, output and errors; of a dry run nothing."""
        self.say(f"$ {shlex.join(words)}")
        if self.dry_run:
            return 0, "", ""
        try:
            done = subprocess.run(words, capture_output=True, text=True, check=False)
        except OSError as error:
            raise _absent(words, error) from None
        return done.returncode, done.stdout.strip(), done.stderr.strip()

    def say(self, line: str) -> None:
        """Prints a line."""
        say(line, self.output)


def say(line: str, output: IO[str] | None = None) -> None:
    """Prints a line at one go, for several threads do at once."""
    to = sys.stdout if output is None else output
    to.write(f"{line}\n")
    to.flush()


def failed(words: Sequence[str], code: int, remedy: str, said: str = "") -> Failed:
    """Returns what tells of a command that ended badly: the command, how it ended, and what to do."""
    last = f": {said.splitlines()[-1]}" if said else ""
    return Failed(f"`{shlex.join(words)}` ended with exit code {code}{last}. {remedy}")


def create(which: Slice, request: Request) -> list[str]:
    """Asks for a slice; it comes when there is room for it."""
    words = [*TPUS, "queued-resources", "create", which.name, f"--node-id={which.name}"]
    words += [f"--accelerator-type={request.accelerator}", f"--runtime-version={request.runtime}"]
    return [*words, *(["--spot"] if request.spot else []), *request.flags, *which.flags]


def describe(which: Slice) -> list[str]:
    """Prints the state of the request for a slice."""
    return [*TPUS, "queued-resources", "describe", which.name, "--format=value(state.state)", *which.flags]


def delete(which: Slice) -> list[str]:
    """Deletes the slice and the request for it, and returns when both are gone."""
    return [*TPUS, "queued-resources", "delete", which.name, "--force", "--quiet", *which.flags]


def ssh(which: Slice, script: str, worker: str = "all") -> list[str]:
    """Runs a shell script on a worker, or on all."""
    return [*TPUS, "tpu-vm", "ssh", which.name, f"--worker={worker}", f"--command={script}", *which.flags]


def send(which: Slice, files: Sequence[str]) -> list[str]:
    """Copies files and directories of this machine to all workers."""
    there = f"{which.name}:{HOME}/"
    return [*TPUS, "tpu-vm", "scp", *files, there, "--recurse", "--worker=all", *which.flags]


def fetch(which: Slice, source: str, destination: str, worker: str = "0") -> list[str]:
    """Copies results here: of a bucket, or of one worker, where a relative path is one below `elm`."""
    if source.startswith("gs://"):
        return ["gcloud", "storage", "cp", "--recursive", source, destination]
    path = source if source.startswith(("/", "~")) else f"{HOME}/{source}"
    there = f"{which.name}:{path}"
    return [*TPUS, "tpu-vm", "scp", there, destination, "--recurse", f"--worker={worker}", *which.flags]


MAKE_HOME = f'mkdir -p "$HOME/{HOME}"'


def install(package: Package, *, anew: bool = True) -> str:
    """Returns the script that installs elm_jax on a worker; without `anew` one that has it stays as it is.

    A runtime's own Python may be older than elm_jax wants, so uv brings one.
    """
    source = f"./{Path(package.wheel).name}" if package.wheel else f"git+{package.git}"
    wanted = f"{source}[tpu]" if package.wheel else f"elm_jax[tpu] @ {source}"
    held = ["-c", Path(package.constraints).name] if package.constraints else []
    pip = ["venv/bin/python", "-m", "pip", "install", "--quiet"]
    # A wheel of the same version would not take the other's place by itself.
    again = [*pip, "--no-deps", "--force-reinstall", source]
    uv = "python3 -m pip install --quiet --user"
    # Newer systems guard their own Python against pip, which for the user alone does no harm.
    uv = f"{uv} uv || {uv} --break-system-packages uv"
    venv = f"python3 -m uv venv --quiet --seed --python {shlex.quote(package.python)} venv"
    lines = [
        f'cd "$HOME/{HOME}"',
        *([] if anew else ["if [ -x venv/bin/elm ]; then exit 0; fi"]),
        f"if [ ! -x venv/bin/python ]; then {uv}; {venv}; fi",
        shlex.join([*pip, *held, wanted]),
        shlex.join(again),
        "venv/bin/elm --help > /dev/null",
    ]
    return "set -e; " + "; ".join(lines)


def start(arguments: Sequence[str], *, replace: bool = False) -> str:
    """Returns the script that starts `elm` on a worker, where it outlives the connection.

    The same job, where it runs already, is left alone. Another one is a failure, or with `replace` is told
    to save and end first.
    """
    words = shlex.join(["venv/bin/elm", *arguments])
    # The trap keeps the shell, which notes the exit code, alive where the whole group is told to stop.
    job = f"trap : TERM; {words}; echo $? > exit"
    told = 'echo "elm: $(hostname)'
    other = f'{told} runs another job" >&2; exit 4;'
    if replace:
        other = f'{told} runs another job, which is stopped"; {END}; while {ALIVE}; do sleep 1; done;'
    return (
        f'cd "$HOME/{HOME}" && [ -x venv/bin/elm ] || {{ {told} has nothing installed" >&2; exit 3; }}; '
        f'if {ALIVE}; then if [ "$(cat job)" = {shlex.quote(words)} ]; then {told} runs this job already"; '
        f"exit 0; fi; {other} fi; rm -f exit; printf %s {shlex.quote(words)} > job; "
        f"setsid nohup bash -c {shlex.quote(job)} < /dev/null >> {LOG} 2>&1 & echo $! > pid"
    )


# A job that has noted its exit code is over, even where its process still waits for its parent to hear of it.
ALIVE = '[ ! -f exit ] && [ -f pid ] && kill -0 "$(cat pid)" 2> /dev/null'
END = 'kill -TERM -- "-$(cat pid)"'
STANDING = (
    f'cd "$HOME/{HOME}" 2> /dev/null || {{ echo nothing; exit 0; }}; '
    f'if {ALIVE}; then echo running; elif [ -f exit ]; then echo "exit code $(cat exit)"; '
    "elif [ -f pid ]; then echo lost; else echo nothing; fi"
)
STOP = f'cd "$HOME/{HOME}" && if {ALIVE}; then {END}; fi'


def follow(lines: int) -> str:
    """Returns the script that shows a worker's log, and goes on as it grows."""
    return f'tail -n {lines} -F "$HOME/{HOME}/{LOG}"'


def _absent(words: Sequence[str], error: OSError) -> Failed:
    return Failed(
        f"`{words[0]}` is wanted on the PATH, but could not be run ({error.strerror}). Install the Google "
        "Cloud CLI, and log in with `gcloud auth login`."
    )
