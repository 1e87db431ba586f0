"""Configuration of training: everything that a recipe or a script can say about how experts are trained.

A hyper-parameter is a field of one of these records, which is handed whole to where it is used. So a new one
is three edits: the field with its default and docstring, its use, and its macro in `gin/runs/train.gin`.

Each record notes which of its fields belong to an expert: those are written into the expert's recipe in the
library, and a change of one of them is another expert. `RECIPE_KEYS` has the keys on disk that differ from
the names here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from elm_jax import ranges

NOT_IN_RECIPE = {"recipe": False}  # metadata of a field that changes a run, and not what an expert becomes
NOT_RECORDED = {"recipe": False, "identity": False}  # one that may differ when a run is resumed
NOT_IN_IDENTITY = {"identity": False}  # one that the network's own fingerprint has
# One that checkpoints of before do not have: it is part of what a resumed run must have where it is set.
IN_IDENTITY_WHERE_SET = {"identity": "where set"}

RECIPE_KEYS: Mapping[str, str] = {
    "optimizer.name": "optimizer",
    "schedule.name": "schedule",
    "schedule.learning_rate": "rate",
    "batch.size": "batch_size",
    "batch.max_experts": "places",
    "batch.max_tokens": "batch_tokens",
    "log.directory": "logs",
}
"""Path of a field -> its key in files and in flat settings; every other field goes by its own name."""


@dataclass(frozen=True)
class ExpertConfig:
    """What an expert is.

    Attributes:
        kind: what an expert owns: "bottleneck", "lora", "dora", "vera", "ia3", "prompt" or "full".
        options: of the kind, such as `{"rank": 8}`. An option that is not given is the one that all experts
            of the kind in the library share, else the kind's default.
        dropout: probability, in the network while it trains.
        train_as: "experts" trains one expert for each task, "dataset" one for each dataset on all its
            prompts, "multitask" one on all tasks.
        name: of the expert on all tasks, for `train_as="multitask"`.
        part: "I/N" trains part I of N of the experts, of which other processes train the other parts into the
            same library; experts are dealt out in turns.
    """

    kind: str = "bottleneck"
    options: Mapping[str, Any] = field(default_factory=dict)
    dropout: float = field(default=0.1, metadata=NOT_IN_IDENTITY | ranges.real(0, 1, below=True))
    train_as: str = field(default="experts", metadata=NOT_RECORDED)
    name: str | None = field(default=None, metadata=NOT_RECORDED)
    part: str | None = field(default=None, metadata=NOT_RECORDED)

    __post_init__ = ranges.check


@dataclass(frozen=True)
class OptimizerConfig:
    """How a gradient becomes a direction.

    Attributes:
        name: "adamw" or "adafactor".
        clip: largest norm of an expert's gradient. Default: the optimiser's own, 1.0 and 0.5.
    """

    name: str = "adamw"
    clip: float | None = field(default=None, metadata=ranges.real(0, above=True))

    __post_init__ = ranges.check


@dataclass(frozen=True)
class LossConfig:
    """What is added to the cross-entropy of the targets.

    T-Few trains with `unlikely_loss` and `mc_loss` of 1 (Liu et al. 2022, arXiv 2205.05638), for which every
    row has to have answer choices, with its target among them.

    Attributes:
        z_loss: weight of log(Z)², which keeps the softmax's normaliser Z near 1. T5X trains with 1e-4.
        label_smoothing: share of a target's mass that goes to all other tokens evenly. As in T5X the entropy
            of the target is subtracted, so that a perfect prediction has loss 0.
        unlikely_loss: weight of the mean of -log(1 - p) over tokens of wrong choices of probability p.
        mc_loss: weight of the cross-entropy of the right choice among all choices of a row, by their
            log-probabilities divided by their length.
        length_norm: power of the length there.
    """

    z_loss: float = field(default=0.0, metadata=ranges.real(0))
    label_smoothing: float = field(default=0.0, metadata=ranges.real(0, 1, below=True))
    unlikely_loss: float = field(default=0.0, metadata=IN_IDENTITY_WHERE_SET | ranges.real(0))
    mc_loss: float = field(default=0.0, metadata=IN_IDENTITY_WHERE_SET | ranges.real(0))
    length_norm: float = field(default=1.0, metadata=IN_IDENTITY_WHERE_SET | ranges.real(0))

    __post_init__ = ranges.check

    @property
    def needs_choices(self) -> bool:
        """Whether rows have to have answer choices."""
        return self.unlikely_loss > 0 or self.mc_loss > 0


@dataclass(frozen=True)
class ScheduleConfig:
    """How long an expert is trained, and how fast. Give `steps` or `epochs`, not both.

    Attributes:
        steps: of each expert. Default: the paper's if `TrainConfig.paper` names a table, else 1,000.
        epochs: in place of steps; the last step of an epoch takes the rows that are left.
        learning_rate: the highest one. Default: the paper's, else 1e-4.
        warmup: steps in which the learning rate rises to the highest.
        name: "linear" falls to 0 at the last step, "constant" stays.
    """

    steps: int | None = field(default=None, metadata=ranges.whole(1))
    epochs: int | float | None = field(default=None, metadata=NOT_RECORDED | ranges.real(0, above=True))
    learning_rate: float | None = field(default=None, metadata=ranges.real(0, 1))
    warmup: int = field(default=0, metadata=ranges.whole(0))
    name: str = "linear"

    __post_init__ = ranges.check

    @property
    def total_steps(self) -> int:
        """The steps, of a schedule that is resolved for one expert."""
        assert self.steps is not None, "the steps of an expert are known once its rows are"
        return self.steps

    @property
    def peak(self) -> float:
        """The highest learning rate, of a schedule that is resolved for one expert."""
        assert self.learning_rate is not None, "the learning rate is known once the schedule is resolved"
        return self.learning_rate


@dataclass(frozen=True)
class BatchConfig:
    """What is done at once.

    Attributes:
        size: rows of each expert in a step. Default: the paper's, else 8.
        max_experts: experts that train in one program. Default: as many as memory holds.
        max_tokens: tokens of a batch, prompts and answers of all experts. Default: as many as memory holds.
        mesh: sizes of the axes of a mesh of all devices, such as `{"expert": 4, "fsdp": 2}`. Default: experts
            on devices of their own, and the parameters of full experts split.
    """

    size: int | None = field(default=None, metadata=ranges.whole(1))
    max_experts: int | None = field(default=None, metadata=NOT_RECORDED | ranges.whole(1))
    max_tokens: int | None = field(default=None, metadata=NOT_RECORDED | ranges.whole(1))
    mesh: Mapping[str, int] | None = field(default=None, metadata=NOT_RECORDED)

    __post_init__ = ranges.check


@dataclass(frozen=True)
class CheckpointConfig:
    """When a run is saved and experts are validated, and which step of an expert is kept.

    Attributes:
        save_every: batches between two checkpoints. Default: an eighth of an expert's steps, at least 25.
        validate_every: an expert's own steps between two validations; 0 is never.
        validate_rows: rows of a task that an expert is validated on, at most. The paper's are 300.
        keep: step that is kept, "last" or "best", the one that validated best.
        restart: whether to begin anew: the experts and their checkpoints are deleted first.
        wait: whether to wait while another process trains in the run's directory.
    """

    save_every: int | None = field(default=None, metadata=NOT_IN_RECIPE | ranges.whole(1))
    validate_every: int = field(default=0, metadata=NOT_IN_RECIPE | ranges.whole(0))
    validate_rows: int = field(default=300, metadata=NOT_RECORDED | ranges.whole(1))
    keep: str = "last"
    restart: bool = field(default=False, metadata=NOT_RECORDED)
    wait: bool = field(default=False, metadata=NOT_RECORDED)

    __post_init__ = ranges.check


@dataclass(frozen=True)
class LogConfig:
    """What is written about a training beside its experts.

    Attributes:
        trackers: what else than the journal is written, such as "tensorboard" and "wandb".
        directory: where all of it goes. Default: `logs` in the run's directory.
    """

    trackers: Sequence[str] = field(default=(), metadata=NOT_RECORDED)
    directory: str | None = field(default=None, metadata=NOT_RECORDED)


@dataclass(frozen=True)
class TrainConfig:
    """Everything about how experts are trained, but the base and the data.

    Attributes:
        expert: what an expert is.
        optimizer: how a gradient becomes a direction.
        loss: what is added to the cross-entropy.
        schedule: how long and how fast.
        batch: what is done at once.
        checkpoint: when a run is saved and validated.
        log: what is written about it.
        answers: which of a row's accepted answers are targets: the "first", or "each" in a row of its own.
        paper: table of the paper that says what `schedule` and `batch` leave open: "prompt",
            "dataset_adapter", "dataset" or "target".
        seed: of fresh experts, of the order of rows and of dropout.
    """

    expert: ExpertConfig = field(default_factory=ExpertConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    answers: str = field(default="first", metadata=NOT_RECORDED)
    paper: str | None = field(default=None, metadata=NOT_RECORDED)
    seed: int = field(default=0, metadata=ranges.seed())

    __post_init__ = ranges.check


SECTIONS: Mapping[str, type] = {
    "expert": ExpertConfig,
    "optimizer": OptimizerConfig,
    "loss": LossConfig,
    "schedule": ScheduleConfig,
    "batch": BatchConfig,
    "checkpoint": CheckpointConfig,
    "log": LogConfig,
}


def recipe_of(config: TrainConfig) -> dict[str, Any]:
    """Returns the fields that make an expert what it is, by their keys in the library."""
    return _flatten(config, "recipe")


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """Returns all fields, by their keys in files."""
    return {_key(path): _as_json(value) for path, value, _ in _leaves(config)}


def shared_identity(config: TrainConfig) -> dict[str, Any]:
    """Returns the fields that all experts of a run share and that a resumed run must have, by key."""
    sections = ("expert", "optimizer", "loss", "checkpoint")
    return _flatten(config, "identity", lambda path: path.split(".")[0] in sections)


def own_identity(config: TrainConfig) -> dict[str, Any]:
    """Returns the fields that are an expert's own and that a resumed run must have, by key."""
    own = ("schedule", "batch", "seed")
    return _flatten(config, "identity", lambda path: path.split(".")[0] in own)


def recipe_defaults() -> dict[str, Any]:
    """Returns the default of every key of a recipe: what an expert had before its key existed."""
    return recipe_of(TrainConfig())


def replace_fields(config: TrainConfig, values: Mapping[str, Any]) -> TrainConfig:
    """Returns the configuration with some fields replaced, by their keys in files.

    >>> replace_fields(TrainConfig(), {"rate": 0.5, "steps": 3}).schedule.learning_rate
    0.5
    """
    paths = field_paths()
    by_section: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section, _, name = paths[key].rpartition(".")
        by_section.setdefault(section, {})[name] = value
    own = by_section.pop("", {})
    changed = {name: replace(getattr(config, name), **new) for name, new in by_section.items()}
    return replace(config, **own, **changed)


def field_paths() -> dict[str, str]:
    """Returns key in files -> path of the field, such as "rate" -> "schedule.learning_rate"."""
    return {_key(path): path for path, _, _ in _leaves(TrainConfig())}


def from_json(values: Mapping[str, Any]) -> TrainConfig:
    """Returns the configuration that `dataclasses.asdict` was called on, before JSON."""
    sections = {
        section: kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in values[section].items()})
        for section, kind in SECTIONS.items()
    }
    return TrainConfig(**{**values, **sections})


def _flatten(config: TrainConfig, flag: str, is_wanted: Any = lambda path: True) -> dict[str, Any]:
    defaults = {path: value for path, value, _ in _leaves(TrainConfig())}
    return {
        _key(path): _as_json(value)
        for path, value, metadata in _leaves(config)
        if metadata.get(flag, True)
        and is_wanted(path)
        and not (metadata.get(flag) == IN_IDENTITY_WHERE_SET["identity"] and value == defaults[path])
    }


def _leaves(record: Any, prefix: str = "") -> list[tuple[str, Any, Mapping[str, Any]]]:
    found = []
    for each in fields(record):
        value = getattr(record, each.name)
        if is_dataclass(value):
            found += _leaves(value, f"{prefix}{each.name}.")
        else:
            found.append((f"{prefix}{each.name}", value, each.metadata))
    return found


def _key(path: str) -> str:
    return RECIPE_KEYS.get(path, path.rpartition(".")[2])


def _as_json(value: Any) -> Any:
    """Returns a value as JSON gives it back, so that it equals itself when it is read again."""
    if isinstance(value, Mapping):
        return {name: _as_json(each) for name, each in value.items()}
    return list(value) if isinstance(value, tuple) else value
