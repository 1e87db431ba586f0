"""Configurations and jobs of tests, from the keys that recipes in a library have."""

from dataclasses import replace

from elm_jax.training.config import TrainConfig, replace_fields
from elm_jax.training.jobs import TrainingJob
from elm_jax.training.programs import GroupPlan


def train_config(**values) -> TrainConfig:
    """Returns a configuration with some fields replaced: `train_config(steps=2, rate=1e-2, kind="lora")`."""
    return replace_fields(TrainConfig(), values)


def make_job(name, prompts, targets, *, validation=None, **values) -> TrainingJob:
    """Returns a job, by default of 8 rows a step."""
    config = train_config(**{"batch_size": 8, "rate": 1e-3, **values})
    return TrainingJob(name, prompts, targets, config, validation)


def with_config(job: TrainingJob, **values) -> TrainingJob:
    """Returns a job with fields of its configuration replaced."""
    return replace(job, config=replace_fields(job.config, values))


def make_plan(*, max_experts=32, batch_tokens=8192, save_every=200, **values) -> GroupPlan:
    """Returns what a group shares."""
    return GroupPlan(train_config(**values), max_experts, batch_tokens, save_every)


def change_plan(
    plan: GroupPlan, *, max_experts=None, batch_tokens=None, save_every=None, **values
) -> GroupPlan:
    """Returns a plan with some of it replaced."""
    sizes = {"max_experts": max_experts, "batch_tokens": batch_tokens, "save_every": save_every}
    given = {name: value for name, value in sizes.items() if value is not None}
    return replace(plan, config=replace_fields(plan.config, values), **given)
