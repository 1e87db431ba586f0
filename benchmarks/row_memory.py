"""How much memory and time rows take: looking at one, preparing a large file, and training on millions.

Run     python -m benchmarks.row_memory [preview] [prepare] [train] [--json FILE] [--megabytes 500] [--rows N]
Takes   some minutes on two cores, most of them to prepare the large file twice
Expect  one row of a file in no more memory than an empty command takes; a file of any size prepared in less
        than 400 MB a process, 1.6 times as fast with two processes; and the jobs of 6.4 million prepared
        rows, as many as the paper's 296 experts have, in some 100 MB beside what maps their files

Memory is the largest that one process has had: `anonymous` is what it holds itself, and `peak` counts the
pages of mapped files too, which the system takes back when it needs them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from elm_jax.data import prepared_files, ragged, tokenized_rows
from elm_jax.data.ragged import RaggedTexts, RaggedTokens
from elm_jax.tokenizers import sentencepiece

EXPERTS, ROWS_OF_EXPERT = 296, 21_622
STORY = "the dog ran to a gate because it had heard what car of its owner in that street ."
WORDS = STORY.split()
TASK = """\
datasets:
  made_up:
    jsonl: rows.jsonl
    prompts:
      p:
        answer_choices: "no ||| yes"
        jinja: "{{text}} Is it so? ||| {{answer_choices[label]}}"
"""
MEBIBYTE = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("parts", nargs="*", help="preview, prepare, train; default: all")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--megabytes", type=int, default=500, help="size of the file that is prepared")
    parser.add_argument("--rows", type=int, default=ROWS_OF_EXPERT, help="rows of each of the experts")
    parser.add_argument("--jobs", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.jobs:
        read_jobs(options.jobs)
        return
    parts = options.parts or ["preview", "prepare", "train"]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        if "train" in parts:
            found |= measure_training(place, options.rows)
        if "preview" in parts or "prepare" in parts:
            model = place / "m.model"
            sentencepiece.train([" ".join(WORDS)], model, 64, kind="word")
            found |= measure_files(place, model, parts, options.megabytes)
    for what, value in found.items():
        print(f"{what:44}{value:14,.1f}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def measure_files(place: Path, model: Path, parts: list[str], megabytes: int) -> dict[str, float]:
    """Measures the commands that read a file of rows."""
    (place / "mine.yaml").write_text(TASK)
    size = write_rows(place / "rows.jsonl", megabytes * MEBIBYTE)
    found = {"file_megabytes": size / MEBIBYTE}
    task, with_model = str(place / "mine.yaml"), ["--vocabulary", str(model)]
    known = ["made_up/p", "--tasks", task]
    if "preview" in parts:
        found |= measure("help", ["tasks", "--help"])
        found |= measure("preview_1_row", ["tasks", "preview", *known, "--rows", "1"])
        found |= measure("check_100_rows", ["tasks", "check", *known, "--limit", "100"])
    if "prepare" in parts:
        for count in (1, 2):
            command = ["prepare", task, *with_model, "--cache", str(place / f"p{count}")]
            found |= measure(f"prepare_{count}_processes", [*command, "--processes", str(count)])
        found["speed_of_two_processes"] = (
            found["prepare_1_processes_seconds"] / found["prepare_2_processes_seconds"]
        )
    return found


def write_rows(file: Path, size: int) -> int:
    """Writes rows of some 60 words, until the file has that size."""
    rng = np.random.default_rng(0)
    with file.open("w") as stream:
        number = 0
        while stream.tell() < size:
            text = " ".join(rng.choice(WORDS, 60))
            stream.write(json.dumps({"text": f"{number} {text}", "label": number % 2}) + "\n")
            number += 1
    return file.stat().st_size


def measure(name: str, command: list[str]) -> dict[str, float]:
    """Runs a command of elm, and measures it and the processes below it, of which the largest counts."""
    return measure_process(name, [sys.executable, "-m", "elm_jax.cli", *command])


def measure_process(name: str, command: list[str]) -> dict[str, float]:
    most = {"RssAnon": 0.0, "VmHWM": 0.0}
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            for each in [process.pid, *children_of(process.pid)]:
                for field, value in read_memory(each).items():
                    most[field] = max(most[field], value)
            threading.Event().wait(0.02)
    return {
        f"{name}_seconds": time.perf_counter() - start,
        f"{name}_anonymous_megabytes": most["RssAnon"],
        f"{name}_peak_megabytes": most["VmHWM"],
    }


def children_of(process: int) -> list[int]:
    """Returns the processes that a process has started, and those that these have."""
    try:
        own = [int(each) for each in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []
    return [*own, *(below for each in own for below in children_of(each))]


def read_memory(process: int) -> dict[str, float]:
    """Returns a process's memory in megabytes."""
    try:
        lines = [line.split() for line in Path(f"/proc/{process}/status").read_text().splitlines()]
    except OSError:  # it has ended
        return {}
    return {line[0][:-1]: int(line[1]) / 1024 for line in lines if line and line[0] in ("RssAnon:", "VmHWM:")}


def measure_training(place: Path, rows: int) -> dict[str, float]:
    """Measures a process that reads the jobs of all experts, and batches of them in their order."""
    folder = place / "prepared"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for expert in range(EXPERTS):
        write_prepared(folder / f"{expert:03}.safetensors", rows, rng)
    size = sum(file.stat().st_size for file in folder.iterdir()) / MEBIBYTE
    found = {"training_rows": float(EXPERTS * rows), "training_files_megabytes": size}
    command = [sys.executable, "-m", "benchmarks.row_memory", "--jobs"]
    empty = place / "empty"
    empty.mkdir()
    found |= measure_process("no_jobs", [*command, str(empty)])
    found |= measure_process("training_jobs", [*command, str(folder)])
    for file in folder.iterdir():
        file.unlink()
    return found


def write_prepared(file: Path, rows: int, rng: np.random.Generator) -> None:
    """Writes rows of some 60 tokens and 4 of an answer, with empty texts."""

    def tokens(lengths: np.ndarray) -> RaggedTokens:
        ids = rng.integers(3, 32_000, int(lengths.sum()), np.int32)
        return RaggedTokens(ids, np.insert(np.cumsum(lengths), 0, 0))

    nothing = RaggedTexts(np.zeros(0, np.uint8), np.zeros(rows + 1, np.int64))
    made = tokenized_rows.TokenizedRows(
        row_ids=nothing,
        texts=nothing,
        target_texts=nothing,
        choice_texts=RaggedTexts(nothing.content, np.zeros(1, np.int64)),
        inputs=tokens(rng.integers(20, 100, rows)),
        targets=tokens(rng.integers(2, 7, rows)),
        choices=ragged.pack_tokens([]),
        choice_starts=np.zeros(rows + 1, np.int64),
        labels=np.full(rows, -1, np.int32),
        accepted=nothing,
    )
    prepared_files.save(file, made, "made up")


def read_jobs(folder: Path) -> None:
    """Does with prepared rows what a training does on the host: identity, lengths, packed batches."""
    from elm_jax.training import batches
    from elm_jax.training import jobs as job_records
    from elm_jax.training.config import TrainConfig, replace_fields
    from elm_jax.training.jobs import TrainingJob

    config = replace_fields(TrainConfig(), {"steps": 1000, "rate": 1e-4, "batch_size": 32})
    jobs = []
    for file in sorted(folder.iterdir()):
        rows = prepared_files.load(file)
        jobs.append(TrainingJob(file.stem, rows.inputs, rows.targets, config))
    if jobs:
        job_records.require_trainable(jobs)
        job_records.attention_spans(jobs)
    for job in jobs:
        measured = batches.measure(job)
        job_records.resume_identity(job)
        for step in range(20):
            for example in batches.step_examples(measured, 0, step):
                assert len(job.prompts[example.row]) == example.prompt
                assert job.targets[example.row].max() > 0
    print(len(jobs), os.getpid())


if __name__ == "__main__":
    main()
