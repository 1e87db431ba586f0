"""Kills, crowds and damage: whether anything is lost, and whether anybody sees a traceback.

Run     python -m benchmarks.torture [--minutes 3 | --each 20] [--seed 0] [--only TRIAL] [--keep] [--home DIR]
Expect  a line a trial, then what was tried, and "0 tracebacks, 0 losses"; exit code 1 otherwise

A trial is drawn from the seed, in a fresh copy of one small run, with the commands that a user gives:

  kill     SIGKILL, SIGTERM or SIGINT at a random moment of a command; the same command again has to end
           well, with the bytes of one that was never stopped, and to leave no temporary file and no lock;
           no process outlives the one that started it
  job      the same of one of two processes that train together
  t5x      the same of T5X's own training, if T5X can be imported, started by `elm_jax.t5x.launch`
  limit    a command may write no file over some size, or use no memory over some limit: it ends in one
           sentence, and the same command without the limit as one that was never limited
  disk     the same on a disk that becomes full, where one may be mounted
  crowd    several commands at once, or all of them: each ends well or says in one sentence who is in its
           way, and ends well when it is given again; no expert is lost
  damage   a file of the run is cut, emptied, changed or replaced; a command that reads ends with a code of
           its own and in time, and harms no other file

`--each N` tries, in the place of some minutes, N SIGKILLs of every verb, of two processes and of T5X, and
N crowds of all verbs, shuffled; with `--only` those of one trial. `--keep` leaves the directories of trials
that failed, and names them.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.torture_bench import Bench, Tally
from benchmarks.torture_trials import TRIALS, plan_each


def main() -> int:
    """Tries for some minutes; returns 1 if anything went wrong."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--each", type=int, help="SIGKILLs of every verb, and crowds of all")
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
        draw_by_time = _draw_trials(draw, given.only, given.minutes)
        for trial in plan_each(draw, given.each, given.only) if given.each else draw_by_time:
            before = tally.failures
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


def _draw_trials(draw: random.Random, only: str | None, minutes: float) -> Iterator[Callable[..., str]]:
    """Yields trials for some minutes."""
    began = time.monotonic()
    while time.monotonic() - began < 60 * minutes:
        (trial,) = draw.choices(list(TRIALS), list(TRIALS.values()))
        yield next(each for each in TRIALS if each.__name__ == only) if only else trial


if __name__ == "__main__":
    sys.exit(main())
