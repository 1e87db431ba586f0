"""Old names: what recipes and scripts of before import is read, with a warning that tells the new name."""

import importlib
import inspect
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

# Old module -> what was taken from it -> where that is now.
MOVED = {
    "elm_jax.reporting.written": "elm_jax.reporting.text_metrics",
    "elm_jax.runs.base": {
        "Pretraining": "elm_jax.Pretraining",
        "open_run": "elm_jax.open_run",
    },
    "elm_jax.runs.courses": {"Budget": "elm_jax.Budget"},
    "elm_jax.runs.data": {
        "Lengths": "elm_jax.Lengths",
        "Source": "elm_jax.Source",
        "feature_lengths": "elm_jax.feature_lengths",
    },
    "elm_jax.runs.evaluate": {"evaluate": "elm_jax.evaluate"},
    "elm_jax.runs.pipeline": {"run": "elm_jax.run_pipeline"},
    "elm_jax.runs.train": {"Budget": "elm_jax.Budget", "train": "elm_jax.train"},
    "elm_jax.tasks.own": {
        "define": "elm_jax.define_task",
        "load": "elm_jax.tasks.user_tasks.load_tasks",
    },
    "elm_jax.t5x_door.checkpoints": {
        "batches": "elm_jax.t5x.checkpoints.get_dataset",
        "fresh": "elm_jax.t5x.checkpoints.restore_rules",
    },
    "elm_jax.t5x_door.launch": "elm_jax.t5x.launch",
    "elm_jax.t5x_door.module": "elm_jax.t5x.module",
    "elm_jax.t5x_door.optimizers": "elm_jax.t5x.optimizers",
    "elm_jax.t5x_door.registry": {"registered": "elm_jax.t5x.registry.register_with_seqio"},
}
MOVED_PACKAGES = ("elm_jax.runs", "elm_jax.t5x_door")
# Old name of the package's own -> the new one.
RENAMED = {"Budget": "elm_jax.TrainConfig"}
TRAIN_CONFIG_SECTIONS = {
    "expert": "elm_jax.ExpertConfig",
    "optimizer": "elm_jax.OptimizerConfig",
    "loss": "elm_jax.LossConfig",
    "schedule": "elm_jax.ScheduleConfig",
    "batch": "elm_jax.BatchConfig",
    "checkpoint": "elm_jax.CheckpointConfig",
    "log": "elm_jax.LogConfig",
}
# What old recipes bind -> what it is now.
OLD_PARAMETERS = {
    "Budget.paper": "elm_jax.TrainConfig.paper",
    "Budget.steps": "elm_jax.ScheduleConfig.steps",
    "Budget.epochs": "elm_jax.ScheduleConfig.epochs",
    "Budget.batch_size": "elm_jax.BatchConfig.size",
    "Budget.rate": "elm_jax.ScheduleConfig.learning_rate",
    "Budget.warmup": "elm_jax.ScheduleConfig.warmup",
    "Budget.schedule": "elm_jax.ScheduleConfig.name",
    "Budget.optimizer": "elm_jax.OptimizerConfig.name",
    "Budget.clip": "elm_jax.OptimizerConfig.clip",
    "Budget.z_loss": "elm_jax.LossConfig.z_loss",
    "Budget.label_smoothing": "elm_jax.LossConfig.label_smoothing",
    "Budget.kind": "elm_jax.ExpertConfig.kind",
    "Budget.options": "elm_jax.ExpertConfig.options",
    "Budget.dropout": "elm_jax.ExpertConfig.dropout",
    "Budget.places": "elm_jax.BatchConfig.max_experts",
    "Budget.batch_tokens": "elm_jax.BatchConfig.max_tokens",
    "Budget.save_every": "elm_jax.CheckpointConfig.save_every",
    "Budget.validate_every": "elm_jax.CheckpointConfig.validate_every",
    "Budget.validate_rows": "elm_jax.CheckpointConfig.validate_rows",
    "Budget.keep": "elm_jax.CheckpointConfig.keep",
    "Pretraining.rate": "elm_jax.Pretraining.learning_rate",
    "run.budget": "elm_jax.run_pipeline.config",
    "run_pipeline.budget": "elm_jax.run_pipeline.config",
    "train.budget": "elm_jax.train.config",
    "train.as_": "elm_jax.ExpertConfig.train_as",
    "train.name": "elm_jax.ExpertConfig.name",
    "train.mesh": "elm_jax.BatchConfig.mesh",
    "train.trackers": "elm_jax.LogConfig.trackers",
    "train.logs": "elm_jax.LogConfig.directory",
    "train.seed": "elm_jax.TrainConfig.seed",
}


class OldNames:
    """Finds modules under their old names, and warns whoever asks for them."""

    def find_spec(self, name: str, path: object, target: ModuleType | None = None) -> ModuleSpec | None:
        """Returns how to load a module that has moved; None for all others."""
        del path, target
        if name not in MOVED and name not in MOVED_PACKAGES:
            return None
        return ModuleSpec(name, self, is_package=name in MOVED_PACKAGES)  # pyright: ignore[reportArgumentType]

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Returns the module at its new place, or an empty one that knows where its names went."""
        new = MOVED.get(spec.name, {})
        return OldModule(spec.name) if isinstance(new, dict) else _renamed(spec.name, new)

    def exec_module(self, module: ModuleType) -> None:
        """Runs nothing: what is new was run where it is."""


class OldModule(ModuleType):
    """A module of before, whose names are taken from where they are now."""

    def __getattr__(self, name: str) -> Any:
        names = MOVED.get(self.__name__, {})
        if not isinstance(names, dict) or name not in names:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        new = names[name]
        _warn(f"{self.__name__}.{name}", new)
        module, _, inside = new.rpartition(".")
        return getattr(importlib.import_module(module), inside)


def old_name(name: str) -> Any:
    """Returns what stands for an old name of the package's own, and warns."""
    _warn(f"elm_jax.{name}", RENAMED[name])
    return globals()[name]


def Budget(**values: Any) -> Any:
    """Returns the `TrainConfig` of the flat fields that `Budget` had, such as `steps`, `rate` and `kind`."""
    config = importlib.import_module("elm_jax.training.config")
    return config.replace_fields(config.TrainConfig(), values)


Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")


def accepts_old_parameters(
    name: str, moved: Mapping[str, str], **defaults: Callable[[], Any]
) -> Callable[[Callable[Parameters, Returned]], Callable[Parameters, Returned]]:
    """Decorates a function whose parameters went into a configuration: old ones are read with a warning.

    Args:
        name: of the function, as recipes have it.
        moved: old parameter -> where it is now: a parameter, or a field of one as "config.queries".
        defaults: parameter -> what makes its default value, if it is None.
    """

    def decorate(function: Callable[Parameters, Returned]) -> Callable[Parameters, Returned]:
        signature = inspect.signature(function)

        def call(*arguments: Any, **options: Any) -> Returned:
            old = {each: options.pop(each) for each in moved if each in options}
            bound = signature.bind_partial(*arguments, **options)
            bound.arguments.update(with_old_parameters(call, {**bound.arguments, **old}))
            return function(*bound.args, **bound.kwargs)

        own = [inspect.Parameter(each, inspect.Parameter.KEYWORD_ONLY, default=None) for each in moved]

        def with_all_parameters(**options: Any) -> None:
            """Has the old parameters in its signature too: gin asks it which ones a recipe may bind."""

        full = signature.replace(parameters=[*signature.parameters.values(), *own])
        with_all_parameters.__dict__.pop("__wrapped__", None)  # a type checker may have set it
        with_all_parameters.__signature__ = full  # pyright: ignore[reportFunctionMemberAccess]
        call.__signature__, call.__wrapped__ = signature, with_all_parameters  # pyright: ignore[reportFunctionMemberAccess]
        call.__name__, call.__qualname__, call.__doc__ = (
            name.rpartition(".")[2],
            function.__qualname__,
            function.__doc__,
        )
        call.__module__, call.moved = function.__module__, (name, moved, defaults)  # pyright: ignore[reportFunctionMemberAccess]
        return call

    return decorate


def with_old_parameters(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a function's arguments with the old ones among them where they are now, and warns of each."""
    name, moved, defaults = function.moved  # pyright: ignore[reportFunctionMemberAccess]
    new = {each: value for each, value in arguments.items() if each not in moved}
    for old in (each for each in arguments if each in moved):
        parameter, *path = moved[old].split(".")
        if not path:
            new[parameter] = arguments[old]
            _warn(f"{name}.{old}", f"{name}.{parameter}")
            continue
        config = new.get(parameter)
        config = defaults[parameter]() if config is None else config
        new[parameter], owner = _replace_field(config, path, arguments[old])
        _warn(f"{name}.{old}", f"elm_jax.{owner}.{path[-1]}")
    return new


def _replace_field(config: Any, path: list[str], value: Any) -> tuple[Any, str]:
    """Returns a frozen record with a field of it, or of a record in it, replaced; and the owner's class."""
    if len(path) == 1:
        return replace(config, **{path[0]: value}), type(config).__name__
    inner, owner = _replace_field(getattr(config, path[0]), path[1:], value)
    return replace(config, **{path[0]: inner}), owner


def install() -> None:
    """Lets Python find modules under their old names too."""
    if not any(isinstance(finder, OldNames) for finder in sys.meta_path):
        sys.meta_path.append(OldNames())


def _renamed(old: str, new: str) -> ModuleType:
    _warn(old, new)
    module = ModuleType(old)
    module.__dict__.update(vars(importlib.import_module(new)))
    return module


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} is now {new}; the old name goes in a later version.", FutureWarning, stacklevel=3)
