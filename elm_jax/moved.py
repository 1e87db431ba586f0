"""Old names: what recipes and scripts of before import is read, with a warning that tells the new name."""

import importlib
import sys
import warnings
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Old module -> what was taken from it -> where that is now.
MOVED = {
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
    "elm_jax.t5x_door.checkpoints": {
        "batches": "elm_jax.t5x.checkpoints.get_dataset",
        "fresh": "elm_jax.t5x.checkpoints.restore_rules",
    },
    "elm_jax.t5x_door.launch": "elm_jax.t5x.launch",
    "elm_jax.t5x_door.module": "elm_jax.t5x.module",
    "elm_jax.t5x_door.optimizers": "elm_jax.t5x.optimizers",
    "elm_jax.t5x_door.registry": {"registered": "elm_jax.t5x.registry.register_with_seqio"},
}
PACKAGES = ("elm_jax.runs", "elm_jax.t5x_door")


class OldNames:
    """Finds modules under their old names, and warns whoever asks for them."""

    def find_spec(self, name: str, path: object, target: ModuleType | None = None) -> ModuleSpec | None:
        """Returns how to load a module that has moved; None for all others."""
        del path, target
        if name not in MOVED and name not in PACKAGES:
            return None
        return ModuleSpec(name, self, is_package=name in PACKAGES)  # pyright: ignore[reportArgumentType]

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
