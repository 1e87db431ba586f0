"""Imports T5X, with stand-ins for two packages that it imports and that the package index lacks.

T5X does not import without `airio`, whose `core` it asks whether a dataset is airio's, and without
`jestimator`, whose optimizer Amos it lists. airio is not on the package index, and jestimator's release
there is older than today's JAX. If they are not installed, modules with the few names that T5X looks up stand
in for them. That is enough for everything that does not use airio or Amos; whoever uses these gets an error
that says so. Installed packages are never replaced.
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
"""Names that T5X looks up, by package and module."""

INSTALL = (
    "run `pip install fiddle cached_property tensorboard` and `pip install --no-deps "
    "git+https://github.com/google-research/t5x`, or clone that repository and put it on PYTHONPATH."
)


def import_t5x() -> ModuleType:
    """Imports T5X, which may take half a minute, and returns its package.

    Raises:
        UserError: If T5X, or another package that it imports, is missing or fails to import.
    """
    require_t5x()
    install_stand_ins()
    try:
        return importlib.import_module("t5x")
    except ImportError as error:
        raise UserError(f"Expected T5X to import, got {error}. Fix: {INSTALL}") from error


def require_t5x() -> None:
    """Raises a UserError if there is no T5X, without importing it."""
    if importlib.util.find_spec("t5x") is None:
        raise UserError(f"Expected T5X, got no package t5x. It is not on the package index. Fix: {INSTALL}")


def install_stand_ins() -> list[str]:
    """Installs stand-ins for those packages of `STAND_INS` that are missing, and returns their names."""
    absent = [package for package in STAND_INS if importlib.util.find_spec(package) is None]
    for package in absent:
        _install_module(package)
        for name, attributes in STAND_INS[package].items():
            module = _install_module(name)
            for attribute in attributes:
                setattr(module, attribute, _unusable_class(package, attribute))
            setattr(sys.modules[package], name.removeprefix(f"{package}."), module)
    return absent


def _install_module(name: str) -> ModuleType:
    module = ModuleType(name, f"elm_jax's stand-in for what T5X imports from {name}.")
    module.__spec__ = ModuleSpec(name, None, is_package="." not in name)
    module.__path__ = []  # it has no other modules
    sys.modules[name] = module
    return module


def _unusable_class(package: str, name: str) -> type:
    """Returns a class without instances, whose call is an error."""

    def refuse(*arguments: object, **options: object) -> None:
        raise UserError(f"Expected {package!r} for {name}, got no such package. Fix: install {package!r}.")

    return type(name, (), {"__new__": refuse, "__module__": package})
