"""Ranges: a number out of its range is refused when the record is made, whoever makes it."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from elm_jax import ranges
from elm_jax.errors import UserError
from elm_jax.evaluation.config import EvaluationConfig
from elm_jax.tasks.data_source import Lengths, Source
from elm_jax.training.config import (
    BatchConfig,
    CheckpointConfig,
    ExpertConfig,
    LossConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from elm_jax.training.pretraining import Pretraining

NAN = float("nan")


@pytest.mark.parametrize(
    ("record", "field", "refused", "taken"),
    [
        (ScheduleConfig, "steps", [0, -1], [None, 1, 10**6]),
        (ScheduleConfig, "learning_rate", [NAN, -1e-4, 1.01, math.inf], [0.0, 1e-4, 1.0]),
        (ScheduleConfig, "epochs", [0, -1, NAN], [0.5, 3]),
        (ScheduleConfig, "warmup", [-1], [0, 10]),
        (BatchConfig, "size", [0, -8], [1]),
        (BatchConfig, "max_experts", [0], [1]),
        (BatchConfig, "max_tokens", [0], [1]),
        (LossConfig, "label_smoothing", [1.0, -0.1, NAN], [0.0, 0.1]),
        (LossConfig, "z_loss", [-1.0, NAN], [0.0, 1e-4]),
        (OptimizerConfig, "clip", [0.0, -1.0, NAN], [None, 0.5]),
        (ExpertConfig, "dropout", [1.0, -0.1, NAN], [0.0, 0.99]),
        (CheckpointConfig, "save_every", [0], [1]),
        (CheckpointConfig, "validate_every", [-1], [0]),
        (TrainConfig, "seed", [-1, 2**32], [0, 2**32 - 1]),
        (EvaluationConfig, "queries", [0], [1]),
        (EvaluationConfig, "merged", [0], [1]),
        (EvaluationConfig, "batch_tokens", [0], [1]),
        (EvaluationConfig, "truncate", [-1], [0]),
        (Source, "limit", [0, -3], [None, 1]),
        (Source, "seed", [-1], [0]),
        (Lengths, "prompt", [0], [1]),
        (Lengths, "answer", [0], [1]),
        (Pretraining, "steps", [0], [1]),
    ],
)
def test_a_number_out_of_its_range_is_refused_naming_the_field(record, field, refused, taken):
    for value in taken:
        assert getattr(record(**{field: value}), field) == value
    for value in refused:
        with pytest.raises(UserError, match=f"Expected {field} .*got {value!r}"):
            record(**{field: value})
        with pytest.raises(UserError, match=field):
            replace(record(), **{field: value})


@dataclass(frozen=True)
class Oven:
    eggs: Any = field(default=None, metadata=ranges.whole(1, 12))
    heat: Any = field(default=None, metadata=ranges.real(0, 250, above=True))

    __post_init__ = ranges.check


@pytest.mark.parametrize("eggs", [2.5, "5", True, [1], 13, math.inf, np.float32(2)])
def test_what_is_no_whole_number_is_refused_as_recipes_may_give_it(eggs):
    with pytest.raises(UserError, match="eggs as a whole number of at least 1 and at most 12"):
        Oven(eggs=eggs)


def test_numbers_of_numpy_are_numbers():
    assert Oven(np.int64(3), np.float32(0.5)).eggs == 3
    with pytest.raises(UserError, match="heat as a number above 0 and at most 250"):
        Oven(heat="hot")


def test_the_argument_of_a_function_is_refused_by_its_name():
    ranges.require("rows", 1, ranges.whole(1))
    with pytest.raises(UserError, match="Expected rows as a whole number of at least 1, got 0"):
        ranges.require("rows", 0, ranges.whole(1))
