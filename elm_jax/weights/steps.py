"""Steps: what makes a vector of a text in sentence-transformers' layout, as `modules.json` lists it.

A prompt may stand before every text. A network comes first, then how its tokens are pooled, any number of
projections, and perhaps length 1. Every step has a directory, and there a `config.json`.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from etils import epath

from elm_jax import names
from elm_jax.errors import UserError
from elm_jax.models import pooling
from elm_jax.weights import step_fields

MODEL = "config_sentence_transformers.json"
PACKAGE = "sentence_transformers."
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
    prompt: str = ""  # what stands before every text


def read(root: epath.Path, told: str | None, *, ignore: Collection[str] = ()) -> Steps:
    """Returns the steps of a directory; those of one without `modules.json` when its pooling is told.

    Args:
        root: The directory.
        told: The pooling, for one without `modules.json`.
        ignore: Fields that are not looked at, of whatever file.

    Raises:
        UserError: If a file is missing, a field is not understood, or a step is unknown or out of order.
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
    for step in listed:
        step_fields.MODULES.require(step, where=str(file), ignore=ignore)
        if not step["type"].startswith(PACKAGE):
            raise UserError(
                f"Expected steps of {str(file)!r} to be classes of sentence_transformers, got "
                f"{step['type']!r:.100}. Fix: use another encoder; a repository's own code is not run."
            )
    kinds = [step["type"].rpartition(".")[2] for step in listed]
    ordered = sorted(kinds, key=lambda kind: _KINDS.index(kind) if kind in _KINDS else -1)
    if kinds != ordered or kinds[:2] != ["Transformer", "Pooling"] or kinds.count("Pooling") > 1:
        raise UserError(
            f"{str(file)!r} should list one Transformer, one Pooling, then any Dense, then Normalize or "
            f"nothing, but lists {', '.join(kinds) or 'nothing'}."
        )
    places = [root / step["path"] for step in listed]
    projections = tuple(place for kind, place in zip(kinds, places, strict=True) if kind == "Dense")
    last = places[-1] / CONFIG
    if kinds[-1] == "Normalize" and last.exists():
        step_fields.NORMALIZE.require(object_of(last), where=str(last), ignore=ignore)
    pooled, includes_prompt = _pooling(places[1] / CONFIG, ignore)
    prompt = _prompt(root / MODEL, ignore)
    if prompt and not includes_prompt:
        raise UserError(
            f"Expected the default prompt of {str(root / MODEL)!r} to be pooled like the text, got "
            f"include_prompt false in {str(places[1] / CONFIG)!r}. Fix: use another encoder."
        )
    return Steps(places[0], pooled, projections, "Normalize" in kinds, prompt)


def activation(directory: epath.Path, ignore: Collection[str] = ()) -> str:
    """Returns what follows the projection that a directory has."""
    file = directory / CONFIG
    told = object_of(file)
    step_fields.DENSE.require(told, where=str(file), ignore=ignore)
    named = str(told.get("activation_function", "torch.nn.modules.activation.Tanh"))
    kind = named.rpartition(".")[2]
    if kind not in _ACTIVATIONS or not named.startswith("torch.nn."):
        raise UserError(
            f"{str(file)!r} should have PyTorch's {', '.join(_ACTIVATIONS)} as its activation_function, but "
            f"has {named!r:.100}."
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


def _prompt(file: epath.Path, ignore: Collection[str]) -> str:
    """Returns what stands before every text that is embedded without a prompt being named."""
    if not file.exists():
        return ""
    told = object_of(file)
    step_fields.MODEL.require(told, where=str(file), ignore=ignore)
    name = told.get("default_prompt_name")
    if name is None:
        return ""
    prompts = told.get("prompts")
    prompt = prompts.get(name) if isinstance(prompts, dict) else None
    if not isinstance(prompt, str):
        raise UserError(
            f"Expected 'prompts' in {str(file)!r} to have a text for its default_prompt_name, {name!r:.50}, "
            f"got {prompt!r:.50}. Fix: download the file again."
        )
    return prompt


def _pooling(file: epath.Path, ignore: Collection[str]) -> tuple[str, bool]:
    """Returns how tokens are pooled, and whether those of a prompt are among them."""
    told = object_of(file)
    step_fields.POOLING.require(told, where=str(file), ignore=ignore)
    modes = told.get("pooling_mode")
    if modes is None:
        on = [name.removeprefix("pooling_mode_") for name in told if told[name] is True]
        modes = [_MODES.get(name, name) for name in on if f"pooling_mode_{name}" in told]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or len(modes) != 1 or modes[0] not in pooling.POOLINGS:
        raise UserError(
            f"{str(file)!r} should pool by one of {', '.join(pooling.POOLINGS)}, but says {modes!r:.100}."
        )
    return modes[0], told.get("include_prompt") is not False


def _is_step(step: Any) -> bool:
    return isinstance(step, dict) and all(isinstance(step.get(name), str) for name in ("type", "path"))
