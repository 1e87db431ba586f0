"""Steps: what makes a vector of a text in sentence-transformers' layout, as `modules.json` lists it.

A network comes first, then how its tokens are pooled, any number of projections, and perhaps length 1. Every
step but the last has a directory, and there a `config.json`.
"""

import json
from dataclasses import dataclass
from typing import Any

from etils import epath

from elm_jax import names
from elm_jax.errors import UserError
from elm_jax.models import pooling

MODULES = "modules.json"
CONFIG = "config.json"
POOLINGS = (*pooling.POOLINGS, "pooler")
_KINDS = ("Transformer", "Pooling", "Dense", "Normalize")
_MODES = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max"}  # as written before version 6
# PyTorch's modules after a projection.
_ACTIVATIONS = {"Identity": "identity", "Tanh": "tanh", "ReLU": "relu", "GELU": "gelu"}


@dataclass(frozen=True)
class Steps:
    """What a text goes through, and where each part is kept."""

    network: epath.Path
    pooling: str  # one of `POOLINGS`
    projections: tuple[epath.Path, ...]
    normalized: bool


def read(root: epath.Path, told: str | None) -> Steps:
    """Returns the steps of a directory; those of one without `modules.json` when its pooling is told.

    Raises a UserError that names the file, and the step that is unknown or out of order.
    """
    if told is not None:
        names.resolve(told, POOLINGS, kind="pooling", where="elm_jax")
    file = root / MODULES
    if not file.exists():
        if told is None:
            raise UserError(
                f"{str(root)!r} should say in {MODULES} how the tokens of a text are pooled, but has no such "
                f"file. Say it with pooling, one of {', '.join(POOLINGS)}, or save the model with "
                "sentence-transformers."
            )
        return Steps(root, told, (), False)
    if told is not None:
        raise UserError(f"Pooling was told to be {told!r}, but {str(file)!r} says how it is. Leave it out.")
    listed = json_of(file)
    if not isinstance(listed, list) or not all(_is_step(step) for step in listed):
        raise UserError(f"{str(file)!r} should list steps with type and path, but holds {listed!r:.200}.")
    kinds = [step["type"].rpartition(".")[2] for step in listed]
    ordered = sorted(kinds, key=lambda kind: _KINDS.index(kind) if kind in _KINDS else -1)
    if kinds != ordered or kinds[:2] != ["Transformer", "Pooling"] or kinds.count("Pooling") > 1:
        raise UserError(
            f"{str(file)!r} should list one Transformer, one Pooling, then any Dense, then Normalize or "
            f"nothing, but lists {', '.join(kinds) or 'nothing'}."
        )
    places = [root / step["path"] for step in listed]
    projections = tuple(place for kind, place in zip(kinds, places, strict=True) if kind == "Dense")
    return Steps(places[0], _pooling(places[1] / CONFIG), projections, "Normalize" in kinds)


def activation(directory: epath.Path) -> str:
    """Returns what follows the projection that a directory has."""
    file = directory / CONFIG
    told = object_of(file)
    kind = str(told.get("activation_function", "Tanh")).rpartition(".")[2]
    residual = bool(told.get("use_residual"))
    if kind not in _ACTIVATIONS or residual:
        raise UserError(
            f"{str(file)!r} should have an activation_function of {', '.join(_ACTIVATIONS)} and no residual, "
            f"but has {kind!r:.50}{' and one' if residual else ''}."
        )
    return _ACTIVATIONS[kind]


def json_of(file: epath.Path) -> Any:
    """Returns what a file of JSON holds; a UserError if it is absent or none."""
    try:
        return json.loads(file.read_bytes())
    except OSError:
        raise UserError(
            f"A sentence encoder has {file.name!r} in {str(file.parent)!r}, but no such file is there to "
            "read. Download it too."
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{str(file)!r} is no JSON ({type(error).__name__}). Download it again.") from None


def object_of(file: epath.Path) -> dict[str, Any]:
    """Returns the object that a file of JSON holds."""
    told = json_of(file)
    if not isinstance(told, dict):
        raise UserError(f"{str(file)!r} should hold a JSON object, but a {type(told).__name__} came.")
    return told


def _pooling(file: epath.Path) -> str:
    told = object_of(file)
    modes = told.get("pooling_mode")
    if modes is None:
        on = [name.removeprefix("pooling_mode_") for name in told if told[name] is True]
        modes = [_MODES.get(name, name) for name in on if f"pooling_mode_{name}" in told]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or len(modes) != 1 or modes[0] not in pooling.POOLINGS:
        raise UserError(
            f"{str(file)!r} should pool by one of {', '.join(pooling.POOLINGS)}, but says {modes!r:.100}."
        )
    return modes[0]


def _is_step(step: Any) -> bool:
    return isinstance(step, dict) and all(isinstance(step.get(name), str) for name in ("type", "path"))
