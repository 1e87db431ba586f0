"""Sweep: trains all experts, in parts that run side by side, on this machine or on TPU slices.

    python scripts/tpu/sweep.py --model-dir=gs://BUCKET/xl --slices=4 --name=sweep --zone=ZONE --spot \\
        --accelerator-type=v4-32 --runtime-version=V --wheel=W -- --gin.INITIAL_CHECKPOINT_PATH="'gs://BUCKET/base'"
    python scripts/tpu/sweep.py --model-dir=runs/xl --local=4 -- --gin.INITIAL_CHECKPOINT_PATH="'models/xl'"

trains an expert for each of the 296 prompts and one for each of the 36 datasets. What is trained is what the
libraries have, and nothing else is remembered: the same command goes on where the last ended. A part whose
process was killed, or whose slice was taken away, is started again, a bounded number of times.
"""

import argparse
import os
import shlex
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import parts
import pod
from gcloud import Slice, say
from parts import Part, Place

from elm_jax.errors import UserError

MISTAKE = 2  # exit code of `elm` where starting it again would help nothing


@dataclass
class Sweep:
    """Parts that wait for a place, and what became of them."""

    further: Sequence[str]
    attempts: int
    logs: Path
    pause: float = 0  # seconds before a part is started again
    dry_run: bool = False
    stopping: threading.Event = field(default_factory=threading.Event)

    def through(self, every: Sequence[Part], places: Sequence[Place]) -> None:
        """Runs what is not trained of the parts, side by side, and returns when nothing is left to run.

        A part has its place, the same each time: a slice may be at work on it still since the last sweep.
        """
        shares = [[part for part in every[at :: len(places)] if part.missing()] for at in range(len(places))]
        if self.dry_run:
            for place, share in zip(places, shares, strict=True):
                self._serve(place, share)
            return
        pairs = zip(places, shares, strict=True)
        threads = [threading.Thread(target=self._serve, args=pair, daemon=True) for pair in pairs]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():  # a plain join would hear no signal
                    thread.join(0.5)
        except KeyboardInterrupt:
            self.stopping.set()
            say("sweep: stops; processes on this machine save what they have")
            for place in places:
                place.stop()
            for thread, place in zip(threads, places, strict=True):
                if isinstance(place, parts.Process):
                    thread.join()
            raise

    def _serve(self, place: Place, share: Sequence[Part]) -> None:
        for part in share:
            self._run(place, part)
        if share and not self.stopping.is_set():
            place.leave()

    def _run(self, place: Place, part: Part) -> None:
        log = self.logs / f"{part.name}.log"
        for attempt in range(1, self.attempts + 1):
            if self.stopping.is_set():
                return
            code = place.run(part, self.further, log)
            if self.dry_run or self.stopping.is_set():
                return
            missing = len(part.missing())
            how = "was taken away" if code is None else f"ended with exit code {code}"
            say(
                f"sweep: {part.name} {how} after start {attempt} of {self.attempts}; "
                f"{len(part.experts) - missing} of its {len(part.experts)} experts are trained"
            )
            if not missing:
                return
            if code == MISTAKE:
                say(f"sweep: {part.name} is not started again: {_last_line(log)}")
                return
            self.stopping.wait(self.pause)


def _last_line(log: Path) -> str:
    """Returns the last thing that was said; of a slice, where its log is."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    told = [line for line in lines if line.startswith("elm: ")]
    return told[-1] if told else f"see {log}, or `pod.py logs`"


def parser() -> argparse.ArgumentParser:
    """Returns the reader of the command line."""
    made = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], fromfile_prefix_chars="@", allow_abbrev=False
    )
    made.add_argument(
        "kinds", nargs="*", help=f"of {', '.join(parts.KINDS)}; prompts and datasets without any"
    )
    made.add_argument(
        "--model-dir", required=True, help="what all processes see: a bucket, a network mount, a directory"
    )
    made.add_argument("--names", nargs="+", default=["train"], help="tasks by id, dataset or group")
    made.add_argument("--tasks", action="append", default=[], help="a file that defines tasks of your own")
    where = made.add_mutually_exclusive_group(required=True)
    where.add_argument("--local", type=int, help="so many processes on this machine")
    where.add_argument("--slices", type=int, help="so many slices, NAME-1 and on; made where absent")
    made.add_argument("--parts", type=int, help="of each kind; as many as there are places without it")
    made.add_argument("--attempts", type=int, default=5, help="starts of a part at most")
    made.add_argument("--logs", default="sweep_logs", help="directory on this machine")
    made.add_argument(
        "--env", action="append", default=[], help="NAME=VALUE of a local process; {place} is its number"
    )
    made.add_argument("--elm", help="the command for `elm` on this machine; that of this Python without it")
    made.add_argument("--name", default="elm", help="what the slices' names begin with")
    made.add_argument("--delete", action="store_true", help="delete a slice when nothing is left for it")
    pod.place_flags(made)
    pod.request_flags(made, required=False)
    pod.patience_flags(made)
    pod.package_flags(made, required=False)
    return made


def places_of(given: argparse.Namespace) -> list[Place]:
    """Returns where parts run."""
    if given.local is not None:
        elm = shlex.split(given.elm) if given.elm else [sys.executable, "-m", "elm_jax.cli"]
        pairs = [text.partition("=") for text in given.env]
        return [
            parts.Process(
                elm,
                {name: value.replace("{place}", str(at)) for name, _, value in pairs},
                given.dry_run,
            )
            for at in range(given.local)
        ]
    lacking = [flag for flag in ("accelerator_type", "runtime_version") if not getattr(given, flag)]
    lacking += [] if given.wheel or given.git else ["wheel"]
    if lacking:
        flags = " and ".join(f"--{flag.replace('_', '-')}" for flag in lacking)
        raise UserError(f"A sweep over slices wants {flags}, to make those that are not there.")
    request, package, patience = pod.request_of(given), pod.package_of(given), pod.patience_of(given)
    return [
        parts.Pod(
            Slice(f"{given.name}-{at}", given.zone, given.project),
            request,
            package,
            patience,
            given.dry_run,
            given.delete,
        )
        for at in range(1, given.slices + 1)
    ]


def carry_out(given: argparse.Namespace, further: list[str]) -> int:
    """Sweeps and says what is missing; 0 if nothing is."""
    kinds = given.kinds or ["prompts", "datasets"]
    for kind in kinds:
        if kind not in parts.KINDS:
            raise UserError(f"A kind of experts is wanted, of {', '.join(parts.KINDS)}, but {kind!r} came.")
    for macro in parts.OURS:
        if any(word.startswith(f"--gin.{macro}=") for word in further):
            raise UserError(
                f"The sweep sets {macro} for every part: leave it out, and see --model-dir, --names."
            )
    count = given.slices if given.local is None else given.local
    if count < 1 or (given.parts or 1) < 1 or given.attempts < 1:
        raise UserError(
            "At least one place, part and attempt are wanted: --local, --slices, --parts, --attempts."
        )
    places = places_of(given)
    if given.tasks:
        further = [f"--gin.TASK_FILES={tuple(given.tasks)!r}", *further]
    every = parts.parts_of(kinds, given.names, given.model_dir, given.parts or len(places), given.tasks)
    open_ones = [part for part in every if part.missing()]
    total, left = sum(len(part.experts) for part in every), _missing(every)
    say(f"sweep: {total - len(left)} of {total} experts are trained; {len(open_ones)} parts to run")
    logs = Path(given.logs)
    if not given.dry_run and open_ones:
        logs.mkdir(parents=True, exist_ok=True)
    pause = given.every if given.slices else 0
    Sweep(further, given.attempts, logs, pause, given.dry_run).through(every, places)
    if given.dry_run:
        return 0
    for part in every:
        part.forget()
    left = _missing(every)
    say(f"sweep: {total - len(left)} of {total} experts are trained")
    for expert in left:
        print(f"missing: {expert}")
    if left:
        say("sweep: give the same command again to go on; why a part ended stands in its log.")
    if given.slices and not given.delete and open_ones:
        say("sweep: the slices are still there and cost; `pod.py delete NAME` deletes one.")
    return 1 if left else 0


def _missing(every: Sequence[Part]) -> list[str]:
    return [expert for part in every for expert in part.missing()]


def main() -> int:
    """Reads the command line; 0 if all experts are trained, 1 if some are missing, 2 for a user's mistake."""
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        return carry_out(parser().parse_args(words[:cut]), words[cut + 1 :])
    except UserError as error:
        print(f"sweep: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sweep: stopped. Give the same command again to go on.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
