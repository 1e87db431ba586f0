"""Trains one part of all experts, or says which experts are missing.

    python scripts/sweep.py prompts --part=1/4 --model-dir=runs/xl -- --gin.INITIAL_CHECKPOINT_PATH="'base'"
    python scripts/sweep.py prompts --model-dir=runs/xl --missing

A part is one `elm train` of every fourth expert, into the library that all parts share. A launcher starts the
parts, and starts those again that were killed: `scripts/sky/sweep.yaml`, Slurm, or a shell. A part has the
same experts each time, so that it finds its checkpoints; `elm train` skips those that are trained.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from elm_jax.data import task_selection
from elm_jax.errors import UserError
from elm_jax.experts.library import Library
from elm_jax.tasks import data_source
from elm_jax.training import expert_configs
from elm_jax.training.config import TrainConfig, replace_fields


@dataclass(frozen=True)
class Kind:
    """One sort of experts: the recipe that trains them, and what one is trained on."""

    recipe: str
    train_as: str
    directory: str  # below --model-dir: a router must not have prompts' and datasets' experts side by side


KINDS = {
    "prompts": Kind("gin/recipes/prompt_expert.gin", "experts", "prompt_experts"),
    "datasets": Kind("gin/recipes/dataset_expert_adapter.gin", "dataset", "dataset_experts"),
    "full_datasets": Kind("gin/recipes/dataset_expert.gin", "dataset", "full_dataset_experts"),
}


def experts_of(kind: Kind, names: Sequence[str], task_files: Sequence[str] = ()) -> dict[str, list[str]]:
    """Returns the experts of a kind by id, each with the ids of its tasks."""
    specs = task_selection.select_tasks(names, data_source.Source(tasks=list(task_files)))
    config = replace_fields(TrainConfig(), {"steps": 1, "train_as": kind.train_as})
    chosen = expert_configs.resolve_experts(specs, config)
    return {expert.id: [spec.id for spec in expert.specs] for expert in chosen}


def part_command(
    kind: Kind,
    directory: str,
    part: tuple[int, int],
    experts: dict[str, list[str]],
    task_files: Sequence[str],
) -> list[str]:
    """Returns the arguments of `elm` that train part i of n; experts are dealt out in turns."""
    number, count = part
    tasks = tuple(task for expert in list(experts)[number - 1 :: count] for task in experts[expert])
    macros = {
        "MODEL_DIR": directory,
        "LOGS": f"{directory}/logs/part-{number}-of-{count}",  # parts write side by side
        "MIXTURE_OR_TASK_NAME": tasks,
        **({"TASK_FILES": tuple(task_files)} if task_files else {}),
    }
    bindings = [f"--gin.{name}={value!r}" for name, value in macros.items()]
    return ["train", f"--gin_file={kind.recipe}", *bindings]


def missing(directory: str, experts: Sequence[str]) -> list[str]:
    """Returns the experts that the library of a run lacks."""
    try:
        trained = Library.open(f"{directory}/library").ids()
    except UserError:
        trained = ()  # there is no library yet
    return [expert for expert in experts if expert not in trained]


def parse_part(text: str) -> tuple[int, int]:
    """Reads I/N, part I of N.

    >>> parse_part("2/4")
    (2, 4)
    """
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"expected a part I/N such as 1/4, got {text!r}")
    return int(number), int(count)


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line; what follows `--` goes to `elm train`."""
    made = argparse.ArgumentParser(description="Trains one part of all experts.", allow_abbrev=False)
    made.add_argument("kind", choices=KINDS)
    made.add_argument("--model-dir", required=True, help="directory that all parts see")
    made.add_argument("--names", nargs="+", default=["train"], help="tasks by id, dataset or group")
    made.add_argument("--tasks", action="append", default=[], help="a file that defines tasks of your own")
    what = made.add_mutually_exclusive_group(required=True)
    what.add_argument("--part", type=parse_part, help="I/N, the part to train")
    what.add_argument("--missing", action="store_true", help="print missing experts; exit code 1 if any are")
    return made


def main() -> int:
    """Becomes the `elm train` of a part; with --missing returns 1 if experts are missing."""
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    given = parser().parse_args(words[:cut])
    kind = KINDS[given.kind]
    directory = f"{given.model_dir.rstrip('/')}/{kind.directory}"
    try:
        experts = experts_of(kind, given.names, given.tasks)
        lacking = missing(directory, list(experts))
    except UserError as error:
        print(f"sweep: {error}", file=sys.stderr)
        return 2
    if given.part:
        command = part_command(kind, directory, given.part, experts, given.tasks)
        # The process becomes elm's: a signal to stop reaches the training, and its exit code the launcher.
        os.execv(sys.executable, [sys.executable, "-m", "elm_jax.cli", *command, *words[cut + 1 :]])
    print(*lacking, sep="\n", end="\n" if lacking else "")
    print(f"{len(experts) - len(lacking)} of {len(experts)} experts are trained", file=sys.stderr)
    return 1 if lacking else 0


if __name__ == "__main__":
    sys.exit(main())
