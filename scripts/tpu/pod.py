"""Pod: creates a TPU slice, installs elm_jax on its workers, runs, follows and resumes a job, and deletes it.

    python scripts/tpu/pod.py create NAME --zone=ZONE --accelerator-type=v4-32 --runtime-version=V --spot
    python scripts/tpu/pod.py install NAME --zone=ZONE --wheel=elm_jax-0.1.0-py3-none-any.whl
    python scripts/tpu/pod.py run NAME --zone=ZONE -- train --gin_file=gin/recipes/prompt_expert.gin …

Every command is printed before it runs; with `--dry-run` none does. Flags may stand in a file, one a line,
given as `@FILE`. Nothing is remembered here: a slice's state is what gcloud says.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import gcloud
from gcloud import Failed, Package, Request, Shell, Slice

SOON = "See what is there with `pod.py status`; a slice that was preempted comes back with `pod.py resume`."
UNREACHED = 10  # times that a worker of a slice that is there may be out of reach, one after the other


@dataclass(frozen=True)
class Patience:
    """How often it is looked, and how long a slice is waited for, in seconds."""

    every: float = 30
    most: float = 24 * 3600


def state(shell: Shell, which: Slice) -> str:
    """Returns the state of the request for a slice, ABSENT where there is none."""
    words = gcloud.describe(which)
    code, out, said = shell.look(words)
    if code and "NOT_FOUND" in said:
        return gcloud.ABSENT
    if code:
        raise gcloud.failed(words, code, "Log in with `gcloud auth login`; check --zone and --project.", said)
    return out


def create(shell: Shell, which: Slice, request: Request) -> None:
    """Asks for a slice."""
    remedy = (
        "Types that a zone has are shown by `gcloud compute tpus accelerator-types list --zone=ZONE`; a name "
    )
    shell.run(gcloud.create(which, request), remedy + "that is taken is freed by `pod.py delete`.")


def delete(shell: Shell, which: Slice) -> None:
    """Deletes a slice; it costs nothing any more."""
    remedy = (
        "What is there, and is paid for, is shown by `gcloud compute tpus queued-resources list --zone=ZONE`."
    )
    shell.run(gcloud.delete(which), remedy)


def await_active(shell: Shell, which: Slice, patience: Patience) -> None:
    """Waits until a slice is there."""
    began = time.monotonic()
    while not shell.dry_run:
        now = state(shell, which)
        if now == gcloud.ACTIVE:
            return
        if now in (*gcloud.GONE, gcloud.ABSENT):
            raise Failed(f"A slice {which.name} was wanted, but it is {now}. Ask again with `pod.py resume`.")
        if time.monotonic() - began > patience.most:
            raise Failed(
                f"A slice {which.name} was wanted, but it is still {now}. It stays in the queue: run the "
                "same command later, or give up with `pod.py delete`."
            )
        time.sleep(patience.every)
    shell.say(f"$ {shlex.join(gcloud.describe(which))}  # until it says ACTIVE")


def bring_up(shell: Shell, which: Slice, request: Request, patience: Patience) -> None:
    """Waits for a slice that was asked for, and asks again for one that is gone."""
    now = state(shell, which)
    while now in gcloud.GOING:
        time.sleep(patience.every)
        now = state(shell, which)
    if shell.dry_run:
        shell.say("# where it is SUSPENDED or FAILED:")
    if shell.dry_run or now in gcloud.GONE:
        delete(shell, which)
    if shell.dry_run or now in (*gcloud.GONE, gcloud.ABSENT):
        create(shell, which, request)
    await_active(shell, which, patience)


def install(shell: Shell, which: Slice, package: Package, *, anew: bool = True) -> None:
    """Installs elm_jax on every worker; without `anew` on those that lack it."""
    shell.run(gcloud.ssh(which, gcloud.MAKE_HOME), SOON)
    if package.sent:
        shell.run(gcloud.send(which, package.sent), f"The files must be there, and the slice too. {SOON}")
    shell.run(
        gcloud.ssh(which, gcloud.install(package, anew=anew)),
        "Workers without addresses of their own need Cloud NAT to reach the package index; what pip said "
        "stands above. The same command may be given again.",
    )


def run(shell: Shell, which: Slice, arguments: Sequence[str], *, replace: bool = False) -> None:
    """Starts a verb of `elm` on all workers, as one job; with `replace` another job is stopped for it."""
    words = list(arguments)
    if "--multiprocess" not in words:
        words.append("--multiprocess")
    remedy = f"`pod.py install` comes first, and `pod.py stop` where another job runs. {SOON}"
    shell.run(gcloud.ssh(which, gcloud.start(words, replace=replace)), remedy)


def standing(shell: Shell, which: Slice) -> str | None:
    """Returns "running", "exit code N", "lost" or "nothing", by worker 0; None where it is out of reach."""
    code, out, _ = shell.look(gcloud.ssh(which, gcloud.STANDING, worker="0"))
    return out.splitlines()[-1].strip() if code == 0 and out else None


def wait(shell: Shell, which: Slice, patience: Patience) -> int | None:
    """Waits for the end of a job and returns its exit code; None where the slice or the job is gone."""
    unreached = 0
    while True:
        said = standing(shell, which)
        if shell.dry_run:
            return 0
        if said and said.startswith("exit code"):
            return int(said.split()[-1])
        if said in ("lost", "nothing"):
            return None
        unreached = 0 if said else unreached + 1
        if unreached and (unreached > UNREACHED or state(shell, which) != gcloud.ACTIVE):
            return None
        time.sleep(patience.every)


def resume(
    shell: Shell,
    which: Slice,
    request: Request,
    package: Package,
    arguments: Sequence[str],
    patience: Patience,
    *,
    replace: bool = False,
) -> None:
    """Brings a slice back, installs where needed, and starts the same command, which goes on where it was."""
    bring_up(shell, which, request, patience)
    install(shell, which, package, anew=False)
    run(shell, which, arguments, replace=replace)


def which_of(given: argparse.Namespace) -> Slice:
    """Returns the slice that the flags name."""
    return Slice(given.name, given.zone, given.project)


def request_of(given: argparse.Namespace) -> Request:
    """Returns the hardware they ask for."""
    return Request(given.accelerator_type, given.runtime_version, given.spot, tuple(given.create_flag))


def package_of(given: argparse.Namespace) -> Package:
    """Returns what the flags say is installed."""
    return Package(given.wheel, given.git, given.python, given.constraints, tuple(given.send))


def patience_of(given: argparse.Namespace) -> Patience:
    """Returns how long the flags have it wait."""
    return Patience(given.every, given.patience * 3600)


def place_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that every command takes."""
    parser.add_argument("--zone", help="that of gcloud's configuration without it")
    parser.add_argument("--project", help="likewise")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, and run none")


def request_flags(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Adds the flags that say what hardware is asked for."""
    parser.add_argument("--accelerator-type", required=required, help="v4-32, v5litepod-16, v6e-8, …")
    parser.add_argument(
        "--runtime-version", required=required, help="tpu-ubuntu2204-base, v2-alpha-tpuv5-lite, …"
    )
    parser.add_argument("--spot", action="store_true", help="cheaper, and may be taken away at any time")
    parser.add_argument(
        "--create-flag", action="append", default=[], help="another flag of `queued-resources create`"
    )


def patience_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say how long is waited."""
    parser.add_argument("--every", type=float, default=30, help="seconds from look to look")
    parser.add_argument("--patience", type=float, default=24, help="hours that a slice is waited for")


def package_flags(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Adds the flags that say what is installed."""
    source = parser.add_mutually_exclusive_group(required=required)
    source.add_argument("--wheel", help="a wheel of elm_jax on this machine")
    source.add_argument("--git", help="its repository, https://…@BRANCH")
    parser.add_argument("--python", default="3.12", help="version of Python on the workers")
    parser.add_argument("--constraints", help="a file of exact versions, as constraints.txt")
    parser.add_argument(
        "--send", action="append", default=[], help="a file of your own to copy along, recipe or tasks"
    )


def parser() -> argparse.ArgumentParser:
    """Returns the reader of the command line."""
    whole = argparse.ArgumentParser(
        description="TPU slices by plain gcloud.", fromfile_prefix_chars="@", allow_abbrev=False
    )
    commands = whole.add_subparsers(dest="command", required=True)

    def command(
        name: str, told: str, *flags: Callable[[argparse.ArgumentParser], None]
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=told, fromfile_prefix_chars="@", allow_abbrev=False)
        made.add_argument("name", help="the slice")
        for add in (place_flags, *flags):
            add(made)
        return made

    made = command("create", "ask for a slice", request_flags, patience_flags)
    made.add_argument("--wait", action="store_true", help="until it is there")
    command("status", "the slice's state, and the job's")
    command("install", "install elm_jax on every worker", package_flags)
    command("run", "start `elm` on all workers: `pod.py run NAME … -- train --gin_file=…`")
    command("wait", "wait for the job's end; the exit code is the job's", patience_flags)
    made = command("logs", "follow the log of one worker; Ctrl-C ends it, not the job")
    made.add_argument("--worker", default="0")
    made.add_argument("--lines", type=int, default=100, help="of what is there already")
    command(
        "resume",
        "after preemption: bring the slice back and start the same command, given as for `run`",
        *(request_flags, package_flags, patience_flags),
    )
    command("stop", "have the job save and end")
    made = command("fetch", "copy results here")
    made.add_argument("source", help="gs://…, or a path on a worker, below its elm directory")
    made.add_argument("destination")
    made.add_argument("--worker", default="0")
    command("delete", "delete the slice, which costs until then")
    return whole


def carry_out(given: argparse.Namespace, arguments: list[str]) -> int:
    """Does what the command line says and returns the exit code."""
    shell, which, command = Shell(given.dry_run), which_of(given), given.command
    if command in ("run", "resume") and not arguments:
        raise Failed(f"A verb of elm is wanted after --: `pod.py {command} NAME … -- train --gin_file=F`.")
    if command == "create":
        create(shell, which, request_of(given))
        if given.wait:
            await_active(shell, which, patience_of(given))
    elif command == "status":
        now = state(shell, which)
        job = standing(shell, which) if now == gcloud.ACTIVE or given.dry_run else None
        print(f"{which.name}: {now or 'not looked for'}; its job: {job or 'unknown'}")
    elif command == "install":
        install(shell, which, package_of(given))
    elif command == "run":
        run(shell, which, arguments)
    elif command == "wait":
        code = wait(shell, which, patience_of(given))
        if code is None:
            raise Failed(f"The job on {which.name} did not come to its end: slice or job are gone. {SOON}")
        return code
    elif command == "logs":
        shell.run(gcloud.ssh(which, gcloud.follow(given.lines), worker=given.worker), SOON)
    elif command == "resume":
        resume(shell, which, request_of(given), package_of(given), arguments, patience_of(given))
    elif command == "stop":
        shell.run(gcloud.ssh(which, gcloud.STOP), SOON)
    elif command == "fetch":
        words = gcloud.fetch(which, given.source, given.destination, given.worker)
        shell.run(words, "Results in a bucket outlive the slice: give their gs:// address.")
    else:
        delete(shell, which)
    return 0


def main() -> int:
    """Reads the command line; 0 if all went well, 1 if a command failed."""
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    try:
        return carry_out(parser().parse_args(words[:cut]), words[cut + 1 :])
    except Failed as told:
        print(f"pod: {told}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
