"""Gate files: an expert's gates in its directory, `gates.safetensors`, with their description and checksum.

They belong to the expert's very parameters, and are refused beside others.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from etils import epath

from elm_jax import schema, storage
from elm_jax.errors import UserError
from elm_jax.records import Gates

GATES_FILE = "gates.safetensors"
MAX_ABOUT_BYTES = 2**20  # of their description
MAX_HEADER_BYTES_PER_PATH = 2**10
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class _GatesForm(schema.Form):
    expert: schema.Text
    params: schema.Text
    checksum: schema.Text
    recipe: Mapping[str, Any] = field(default_factory=dict)


def gate_shapes(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Returns path of a projection -> [L, I] of an expert's gates, by the shapes of its parameters.

    An expert that has anything but LoRA's factors, such as DoRA, has none.

    >>> gate_shapes({"mlp/wo/lora_a": (2, 8, 4), "mlp/wo/lora_b": (2, 4, 3)})
    {'mlp/wo': (2, 8)}
    """
    if not all(path.endswith(("/lora_a", "/lora_b")) for path in shapes):
        return {}
    owned = {path.removesuffix("/lora_a"): shape for path, shape in shapes.items() if path[-7:] == "/lora_a"}
    return {path: tuple(shape[:2]) for path, shape in owned.items()}


def max_gates_bytes(shapes: Shapes) -> int:
    """Returns how many bytes the file of an expert's gates has at most."""
    own = gate_shapes(shapes).values()
    return sum(4 * layers * inputs + MAX_HEADER_BYTES_PER_PATH for layers, inputs in own) + MAX_ABOUT_BYTES


def write_gates(directory: epath.Path, identifier: str, shapes: Shapes, gates: Gates) -> None:
    """Writes an expert's gates completely or not at all.

    Raises:
        UserError: If there is not one finite gate for every projection of the expert.
    """
    vectors = {path: np.asarray(value, np.float32) for path, value in gates.vectors.items()}
    _require_fit(f"gates of {identifier!r}", vectors, shapes, "train them again")
    about: dict[str, Any] = {"expert": identifier, "params": gates.checksum, "recipe": dict(gates.recipe)}
    about["checksum"] = _checksum(vectors, about)
    text = np.frombuffer(json.dumps(about, ensure_ascii=False).encode(), np.uint8)
    storage.write_arrays(directory / GATES_FILE, {**vectors, "about": text})


def read_gates(directory: epath.Path, identifier: str, checksum: str, shapes: Shapes) -> Gates:
    """Reads an expert's gates.

    Args:
        directory: The expert's directory.
        identifier: Its id.
        checksum: That of its parameters.
        shapes: Theirs.

    Raises:
        UserError: If they are damaged, or belong to another expert.
    """
    fix = f"train the gates of {identifier!r} again with `elm train --gates --restart`"
    where = directory / GATES_FILE
    try:
        arrays = storage.read_arrays(where, what="An expert's gates", most=max_gates_bytes(shapes))
    except UserError as error:
        raise UserError(f"{error} Fix: {fix}.") from None
    content = arrays.pop("about").tobytes() if "about" in arrays else b""
    told = schema.parse(content, _GatesForm, what=f"gates and their description in {str(where)!r}", fix=fix)
    _require_fit(f"gates in {str(where)!r}", arrays, shapes, fix)
    about = json.loads(content)
    if about.pop("checksum") != _checksum(arrays, about):
        raise UserError(
            f"Expected {str(where)!r} with the checksum {told.checksum}, got another. Fix: {fix}."
        )
    if (told.expert, told.params) != (identifier, checksum):
        raise UserError(
            f"Expected gates of {identifier!r} with the parameters {checksum} in {str(where)!r}, got those "
            f"of {told.expert!r} with {told.params}. Fix: {fix}."
        )
    return Gates(arrays, told.params, about["recipe"])


def _require_fit(what: str, vectors: Mapping[str, np.ndarray], shapes: Shapes, fix: str) -> None:
    wanted = gate_shapes(shapes)
    if not wanted or {path: value.shape for path, value in vectors.items()} != wanted:
        odd = sorted(set(wanted).symmetric_difference(vectors)) or sorted(wanted) or ["no projection"]
        raise UserError(
            f"Expected {what} to be one of [layers, inputs] for every projection of a LoRA expert, got "
            f"others, as at {odd[0]!r}. Fix: {fix}."
        )
    if not all(value.dtype == np.float32 and np.isfinite(value).all() for value in vectors.values()):
        raise UserError(f"Expected finite float32 numbers as {what}, got others. Fix: {fix}.")


def _checksum(vectors: Mapping[str, np.ndarray], about: Mapping[str, object]) -> str:
    return storage.fingerprint({**about, "vectors": storage.array_fingerprint(dict(vectors))})
