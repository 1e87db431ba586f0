"""Steps: what makes a vector of a text in sentence-transformers' layout, as `modules.json` lists it.

A prompt may stand before every text. A network comes first, then how its tokens are pooled, any number of
projections, and perhaps length 1. Every step has a directory, and there a `config.json`.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from etils import epath

from elm_jax import names, storage
from elm_jax.errors import UserError
from elm_jax.models import pooling
from elm_jax.weights import step_fields

MODEL_FILE = "config_sentence_transformers.json"
PACKAGE_PREFIX = "sentence_transformers."
MODULES_FILE = "modules.json"
CONFIG_FILE = "config.json"
POOLINGS = (*pooling.POOLINGS, "pooler")
_KINDS = ("Transformer", "Pooling", "Dense", "Normalize")
_MODES = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max"}  # as written before version 6
# PyTorch's modules after a projection.
_ACTIVATIONS = {"Identity": "identity", "Tanh": "tanh", "ReLU": "relu", "GELU": "gelu"}


@dataclass(frozen=True)
class EncoderSteps:
    """What a text goes through, and where each part is kept."""

    network: epath.Path
    pooling: str  # one of `POOLINGS`
    projections: tuple[epath.Path, ...]
    normalized: bool
    prompt: str = ""  # what stands before every text


def read_steps(root: epath.Path, pooling_mode: str | None, *, ignore: Collection[str] = ()) -> EncoderSteps:
    """Returns the steps of a directory; those of one without `modules.json` whose pooling is named.

    Args:
        root: The directory.
        pooling_mode: The pooling, for one without `modules.json`.
        ignore: Fields that are not looked at, of whatever file.

    Raises:
        UserError: If a file is missing, a field is not understood, or a step is unknown or out of order.
    """
    if pooling_mode is not None:
        names.resolve(pooling_mode, POOLINGS, kind="pooling", where="elm_jax")
    file = root / MODULES_FILE
    if not file.exists():
        if pooling_mode is None:
            raise UserError(
                f"Expected {MODULES_FILE} in {str(root)!r}, which says how tokens are pooled, got none. "
                "Fix: name "
                f"the pooling, one of {', '.join(POOLINGS)}, or save the model with sentence-transformers."
            )
        return EncoderSteps(root, pooling_mode, (), False)
    if pooling_mode is not None:
        raise UserError(f"Expected the pooling of {str(file)!r}, got {pooling_mode!r}. Fix: leave it out.")
    listed = read_json_file(file)
    if not isinstance(listed, list) or not all(_is_step(step) for step in listed):
        raise UserError(
            f"Expected steps with type and path in {str(file)!r}, got {listed!r:.200}. Fix: download it "
            "again."
        )
    for step in listed:
        step_fields.MODULES_FIELDS.require_known_fields(step, where=str(file), ignore=ignore)
        if not step["type"].startswith(PACKAGE_PREFIX):
            raise UserError(
                f"Expected steps of {str(file)!r} to be classes of sentence_transformers, got "
                f"{step['type']!r:.100}. Fix: use another encoder; a repository's own code is not run."
            )
    kinds = [step["type"].rpartition(".")[2] for step in listed]
    ordered = sorted(kinds, key=lambda kind: _KINDS.index(kind) if kind in _KINDS else -1)
    if kinds != ordered or kinds[:2] != ["Transformer", "Pooling"] or kinds.count("Pooling") > 1:
        raise UserError(
            f"Expected one Transformer, one Pooling, any Dense and at most one Normalize in {str(file)!r}, "
            f"in this order, got {', '.join(kinds) or 'nothing'}. Fix: use another encoder."
        )
    places = [root / step["path"] for step in listed]
    projections = tuple(place for kind, place in zip(kinds, places, strict=True) if kind == "Dense")
    last = places[-1] / CONFIG_FILE
    if kinds[-1] == "Normalize" and last.exists():
        step_fields.NORMALIZE_FIELDS.require_known_fields(
            read_json_object(last), where=str(last), ignore=ignore
        )
    pooled, includes_prompt = _read_pooling(places[1] / CONFIG_FILE, ignore)
    prompt = _read_default_prompt(root / MODEL_FILE, ignore)
    if prompt and not includes_prompt:
        raise UserError(
            f"Expected the default prompt of {str(root / MODEL_FILE)!r} to be pooled like the text, got "
            f"include_prompt false in {str(places[1] / CONFIG_FILE)!r}. Fix: use another encoder."
        )
    return EncoderSteps(places[0], pooled, projections, "Normalize" in kinds, prompt)


def read_activation(directory: epath.Path, ignore: Collection[str] = ()) -> str:
    """Returns what follows the projection that a directory has."""
    file = directory / CONFIG_FILE
    raw = read_json_object(file)
    step_fields.DENSE_FIELDS.require_known_fields(raw, where=str(file), ignore=ignore)
    named = str(raw.get("activation_function", "torch.nn.modules.activation.Tanh"))
    kind = named.rpartition(".")[2]
    if kind not in _ACTIVATIONS or not named.startswith("torch.nn."):
        raise UserError(
            f"Expected PyTorch's {', '.join(_ACTIVATIONS)} as activation_function in {str(file)!r}, got "
            f"{named!r:.100}. Fix: use another encoder."
        )
    return _ACTIVATIONS[kind]


def read_json_file(file: epath.Path) -> Any:
    """Returns what a file of JSON holds; a UserError if it is absent or none."""
    if not file.exists():
        raise UserError(
            f"Expected {file.name!r} of a sentence encoder in {str(file.parent)!r}, got none. Fix: download "
            "it."
        )
    return storage.read_json_value(file, what="A sentence encoder's file")


def read_json_object(file: epath.Path) -> dict[str, Any]:
    """Returns the object that a file of JSON holds."""
    raw = read_json_file(file)
    if not isinstance(raw, dict):
        raise UserError(
            f"Expected a JSON object in {str(file)!r}, got a {type(raw).__name__}. Fix: download it again."
        )
    return raw


def _read_default_prompt(file: epath.Path, ignore: Collection[str]) -> str:
    """Returns what stands before every text that is embedded without a prompt being named."""
    if not file.exists():
        return ""
    raw = read_json_object(file)
    step_fields.MODEL_FIELDS.require_known_fields(raw, where=str(file), ignore=ignore)
    name = raw.get("default_prompt_name")
    if name is None:
        return ""
    prompts = raw.get("prompts")
    prompt = prompts.get(name) if isinstance(prompts, dict) else None
    if not isinstance(prompt, str):
        raise UserError(
            f"Expected 'prompts' in {str(file)!r} to have a text for its default_prompt_name, {name!r:.50}, "
            f"got {prompt!r:.50}. Fix: download the file again."
        )
    return prompt


def _read_pooling(file: epath.Path, ignore: Collection[str]) -> tuple[str, bool]:
    """Returns how tokens are pooled, and whether those of a prompt are among them."""
    raw = read_json_object(file)
    step_fields.POOLING_FIELDS.require_known_fields(raw, where=str(file), ignore=ignore)
    modes = raw.get("pooling_mode")
    if modes is None:
        on = [name.removeprefix("pooling_mode_") for name in raw if raw[name] is True]
        modes = [_MODES.get(name, name) for name in on if f"pooling_mode_{name}" in raw]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or len(modes) != 1 or modes[0] not in pooling.POOLINGS:
        raise UserError(
            f"Expected one pooling of {', '.join(pooling.POOLINGS)} in {str(file)!r}, got {modes!r:.100}. "
            "Fix: use another encoder."
        )
    return modes[0], raw.get("include_prompt") is not False


def _is_step(step: Any) -> bool:
    return isinstance(step, dict) and all(isinstance(step.get(name), str) for name in ("type", "path"))
