"""Few-shot fine-tuning: the expert that a router chose, trained further on a few labelled rows of the task.

The usual use of a retrieved expert where some labels are there (Liu et al. 2022, arXiv 2205.05638, fine-tune
from a pretrained (IA)³; few-shot results of Ye et al. 2022 and of LoraHub compare with it). It has no formula
of its own: it is `training` from another start than a fresh expert.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from elm_jax.data import identity, task_rows
from elm_jax.errors import UserError
from elm_jax.evaluation.few_shot import FewShotExamples
from elm_jax.experts.files import ExpertDescription
from elm_jax.experts.library import Library
from elm_jax.merging.method import MergeOption
from elm_jax.models import paths
from elm_jax.records import VOCABULARY, Expert, TaskSpec
from elm_jax.session.workspace import Run
from elm_jax.training import gates, sizing, trainer
from elm_jax.training.config import BatchConfig, ExpertConfig, ScheduleConfig, TrainConfig
from elm_jax.training.jobs import FrozenExpert, TrainingJob

FINETUNE = "finetune"
"""What stands in a method's string in the place of a merge."""
FINETUNE_OPTIONS = {
    "shots": MergeOption(int, 32, "labelled rows", "a whole number above 0", lambda value: value > 0),
    "steps": MergeOption(int, 100, "of training", "a whole number above 0", lambda value: value > 0),
    "rate": MergeOption(float, 1e-3, "learning rate", "a number above 0", lambda value: value > 0),
}
BATCH_SIZE = 8


def finetune(
    run: Run, name: str, task: TaskSpec, expert: str, shots: FewShotExamples, options: Mapping[str, Any]
) -> Expert:
    """Returns an expert of the library after training on a few labelled rows of a task.

    Args:
        run: with the base and the library.
        name: of the new expert.
        task: the task.
        expert: that training begins from; it stays as it is.
        shots: the labelled rows.
        options: values of `FINETUNE_OPTIONS`.

    Raises:
        UserError: If the loss is not finite, or the kind's options of the expert are not known.
    """
    library = Library.open(run.workspace.library)
    about = library.describe(expert)
    spec = about.spec
    rows = task_rows.tokenize_task(shots.examples, run.tokenizer, run.lengths)
    config = TrainConfig(
        expert=ExpertConfig(spec.kind, find_kind_options(about)),
        schedule=ScheduleConfig(steps=options["steps"], learning_rate=options["rate"]),
        batch=BatchConfig(size=min(BATCH_SIZE, len(rows.inputs))),
    )
    start = FrozenExpert(
        about.checksum, lambda: library.load_expert(expert, base=run.base.fingerprint).params
    )
    job = TrainingJob(name, rows.inputs, rows.targets, config, datasets=spec.datasets, start=start)
    network = sizing.with_dropout(run.base.config, config)
    longest = max(map(len, rows.inputs)) + max(map(len, rows.targets))
    plan = sizing.plan_for(config, [job], 1, max(1024, BATCH_SIZE * longest))
    params = trainer.train_group(network, run.base.params, [job], plan)[0]
    recipe = {
        "method": FINETUNE,
        VOCABULARY: run.tokenizer.fingerprint,
        "merged_from": [expert],
        "options": dict(config.expert.options),
        "shots": [example.row_id for example in shots.examples],
        "task": task.id,
        **identity.merge_identities([spec.recipe]),
    }
    datasets = tuple(sorted({*spec.datasets, task.dataset}))
    made = replace(spec, id=name, paths=tuple(paths.flatten(params)), datasets=datasets, recipe=recipe)
    return Expert(replace(made, steps=spec.steps + options["steps"]), params)


def find_kind_options(about: ExpertDescription) -> dict[str, Any]:
    """Returns the options of an expert's kind with which a fresh expert has its shapes.

    Raises:
        UserError: If neither its recipe nor its shapes say so.
    """
    noted = about.spec.recipe.get("options")
    if noted is not None:
        return dict(noted)
    if about.spec.kind == "lora":
        rank, projections = gates.lora_options(about)
        return {"rank": rank, "projections": list(projections)}
    raise UserError(
        f"Expected an expert whose recipe names its options, to be trained further, got {about.spec.id!r}. "
        "Fix: leave +finetune out, or train the expert with `elm train`."
    )
