"""What short commands take: help, a list of a thousand experts, completion in bash, registering all tasks.

Run     python -m benchmarks.command_start [--rounds 5]
Takes   about two minutes on one core
Expect  help in a quarter of a second, a thousand experts in less than one, completion in a tenth
"""

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from elm_jax.experts.library import Library
from elm_jax.records import Expert, ExpertSpec

EXPERTS = 1000
COMPLETE = """
source "$1"
COMP_WORDS=(elm train --st) COMP_CWORD=2
_elm
"""
REGISTER = """
import time
import seqio
from elm_jax.tasks import seqio_tasks, specs
known = specs.task_specs()
begun = time.process_time()
seqio_tasks.register_tasks(known, vocabulary=seqio.ByteVocabulary(), templates_dir=None)
print(time.process_time() - begun)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory)
        make_library(run / "library")
        script = run / "completion"
        elm = [sys.executable, "-m", "elm_jax"]
        with script.open("w") as file:
            subprocess.run([*elm, "completion", "bash"], stdout=file, check=True)
        commands = {
            "`elm --help`": [*elm, "--help"],
            f"`elm experts list` of {EXPERTS:,}": [*elm, "experts", "list", "--run", str(run), "--json"],
            "completion of `elm train --st` in bash": ["bash", "-c", COMPLETE, "bash", str(script)],
        }
        print("| what | seconds of the processor |\n| --- | ---: |")
        for name, command in commands.items():
            print(f"| {name} | {statistics.median(processor_seconds(command) for _ in range(rounds)):.2f} |")
        print(f"| registration of all tasks in SeqIO, imported before | {registration_seconds(rounds):.2f} |")


def make_library(root: Path) -> None:
    """Writes a library of small experts: one that is added, and copies of it."""
    library = Library.open(root, create=True)
    spec = ExpertSpec("data/0", "bottleneck", "0" * 16, ("encoder/scale",), ("data",), 7)
    library.add(Expert(spec, {"encoder": {"scale": np.ones(4, np.float32)}}))
    told = json.loads((root / "data" / "0" / "expert.json").read_text())
    for number in range(1, EXPERTS):
        place = root / "data" / str(number)
        shutil.copytree(root / "data" / "0", place)
        (place / "expert.json").write_text(json.dumps({**told, "id": f"data/{number}"}))


def processor_seconds(command: list[str]) -> float:
    """Runs a command and returns what the processor spent on it, in the system too."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def registration_seconds(rounds: int) -> float:
    """Returns the median of a few processes that import SeqIO and then register all tasks."""
    command = [sys.executable, "-c", REGISTER]
    told = (subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(rounds))
    return statistics.median(float(each.split()[-1]) for each in told)


if __name__ == "__main__":
    main()
