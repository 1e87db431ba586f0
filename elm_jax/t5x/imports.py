"""T5X's imports: its package, with stand-ins for two that it imports and that no package index has to give.

T5X cannot be imported without `airio`, whose `core` it asks whether a dataset is one of airio's, and without
`jestimator`, whose optimizer Amos it lists among its own. airio is not on the package index and jestimator's
release there is older than today's JAX. Where they are not installed, modules that hold the few names T5X
looks up stand in for them, which is enough for all that does not use airio or Amos; to use these is an error
that says so. What is installed is never replaced.
"""

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from types import ModuleType

from elm_jax.errors import UserError

STAND_INS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "airio": {"airio.core": ("AirIODatasetIterator", "DatasetProviderBase", "Task", "Mixture")},
    "jestimator": {
        "jestimator.amos": ("ScaleByAmosState", "amos"),
        "jestimator.amos_helper": ("state_partition_rule",),
    },
}
"""Package -> its modules that T5X imports -> the names that T5X looks up in them."""

HOW = (
    "Run `pip install fiddle cached_property tensorboard` and `pip install --no-deps "
    "git+https://github.com/google-research/t5x`, or clone that repository and put it on PYTHONPATH."
)


def load() -> ModuleType:
    """Imports T5X, which may take half a minute, and returns its package; its stand-ins stay importable.

    Raises `UserError` where T5X, or something else that it imports, is absent or cannot be imported.
    """
    if importlib.util.find_spec("t5x") is None:
        raise UserError(f"T5X is wanted, but it is not installed, and it is not on the package index. {HOW}")
    stand_in()
    try:
        return importlib.import_module("t5x")
    except ImportError as error:
        raise UserError(f"T5X is installed, but cannot be imported: {error}. {HOW}") from error


def stand_in() -> list[str]:
    """Puts modules in the place of those that T5X imports and that are absent; returns these packages."""
    absent = [package for package in STAND_INS if importlib.util.find_spec(package) is None]
    for package in absent:
        _install(package)
        for name, found in STAND_INS[package].items():
            module = _install(name)
            for each in found:
                setattr(module, each, _unusable(package, each))
            setattr(sys.modules[package], name.removeprefix(f"{package}."), module)
    return absent


def _install(name: str) -> ModuleType:
    module = ModuleType(name, f"A stand-in, by elm_jax, for what T5X imports of {name}.")
    module.__spec__ = ModuleSpec(name, None, is_package="." not in name)
    module.__path__ = []  # there is nothing else to find below it
    sys.modules[name] = module
    return module


def _unusable(package: str, name: str) -> type:
    """A class that can be named and that nothing is an instance of."""

    def refuse(*arguments: object, **options: object) -> None:
        raise UserError(f"{name} of {package!r} was asked for, which is not installed. Install it to use it.")

    return type(name, (), {"__new__": refuse, "__module__": package})
