"""Files of one expert: what its directory holds, and how that is written, read and checked.

`expert.json` has the spec, the owner, the shape and type of every parameter, and the checksum of
`params.safetensors`. `keys.safetensors` is optional and has its own description and checksum, so that keys
can be written again without touching the other two.
"""

import getpass
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath

from elm_jax import names, storage
from elm_jax.errors import UserError
from elm_jax.experts import compatibility
from elm_jax.models import paths
from elm_jax.records import Expert, ExpertSpec, Keys

SPEC_FILE, PARAMS_FILE, KEYS_FILE = FILE_NAMES = "expert.json", "params.safetensors", "keys.safetensors"

UNKNOWN_OWNER = "unknown"


@dataclass(frozen=True)
class ExpertDescription:
    """What `expert.json` holds.

    Attributes:
        spec: The expert's spec.
        shapes: Parameter path -> shape.
        dtypes: Parameter path -> type, as NumPy names it.
        checksum: The checksum of the file of parameters.
        owner: The user who put the expert into its first library.
    """

    spec: ExpertSpec
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    checksum: str
    owner: str = UNKNOWN_OWNER


def relative_directory(identifier: str) -> str:
    """Returns the directory of an expert, relative to its library.

    >>> relative_directory("dream/baseline so far")
    'dream/baseline%20so%20far'
    """
    return "/".join(map(names.directory_name, names.split_id(identifier)))


def write(directory: epath.Path, expert: Expert, keys: Keys | None, owner: str | None = None) -> None:
    """Writes all files of an expert.

    Args:
        directory: A directory that no other process uses yet.
        expert: The expert.
        keys: Its keys, if it has them.
        owner: The owner's name; default: the user of this process.
    """
    spec, flat = expert.spec, paths.flatten(expert.params)
    compatibility.require_compatible([(spec, compatibility.shapes_by_path(expert.params))])
    storage.write_arrays(directory / PARAMS_FILE, flat)
    if keys is not None:
        write_keys(directory, spec.id, keys)
    storage.write_json(
        directory / SPEC_FILE,
        {
            "id": spec.id,
            "kind": spec.kind,
            "base": spec.base,
            "datasets": list(spec.datasets),
            "steps": spec.steps,
            "recipe": dict(spec.recipe),
            "parameters": {
                path: {"shape": list(flat[path].shape), "dtype": str(flat[path].dtype)} for path in spec.paths
            },
            "checksum": storage.file_fingerprint(directory / PARAMS_FILE),
            "owner": owner or _user_name(),
        },
    )


def copy(source: epath.Path, directory: epath.Path) -> None:
    """Copies an expert's files byte by byte, and deletes those that the source lacks."""
    for name in reversed(FILE_NAMES):  # the description last: its presence means that all files exist
        if (source / name).exists():
            storage.write_bytes(directory / name, (source / name).read_bytes())
        elif (directory / name).exists():
            (directory / name).unlink()


def read_description(directory: epath.Path) -> ExpertDescription:
    """Reads `expert.json`.

    Raises:
        UserError: If it is absent, is no JSON, has another format or lacks a field.
    """
    where = directory / SPEC_FILE
    value = storage.read_json(where, what="An expert's description")
    try:
        parameters = value["parameters"]
        spec = ExpertSpec(
            id=value["id"],
            kind=value["kind"],
            base=value["base"],
            paths=tuple(parameters),
            datasets=tuple(value["datasets"]),
            steps=value["steps"],
            recipe=value["recipe"],
        )
        return ExpertDescription(
            spec,
            {path: tuple(about["shape"]) for path, about in parameters.items()},
            {path: about["dtype"] for path, about in parameters.items()},
            value["checksum"],
            value.get("owner", UNKNOWN_OWNER),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"Expected an expert's spec, parameters and checksum in {where!s}, got {type(error).__name__}: "
            f"{error}. Fix: add the expert again."
        ) from None


def read_params(directory: epath.Path, description: ExpertDescription) -> dict[str, np.ndarray]:
    """Reads the parameters of an expert by path.

    Raises:
        UserError: If a parameter is missing, unknown or of another shape, or if the file was changed.
    """
    flat = storage.read_arrays(directory / PARAMS_FILE, what=f"Expert {description.spec.id!r}")
    for path in sorted(set(description.shapes) | set(flat)):
        expected = description.shapes.get(path)
        actual = flat[path].shape if path in flat else None
        if expected != actual:
            raise UserError(
                f"Expected {path} of expert {description.spec.id!r} as {_shape(expected)}, got "
                f"{_shape(actual)} in its file. Fix: add the expert again."
            )
    if storage.file_fingerprint(directory / PARAMS_FILE) != description.checksum:
        raise UserError(
            f"Expected {directory / PARAMS_FILE!s} with the checksum {description.checksum}, got another. "
            "Fix: add the expert again."
        )
    return flat


def write_keys(directory: epath.Path, identifier: str, keys: Keys) -> None:
    """Writes an expert's keys completely or not at all.

    Raises:
        UserError: If there is not one finite vector for every text.
    """
    vectors = np.asarray(keys.vectors, np.float32)
    if vectors.ndim != 2 or len(vectors) == 0 or len(vectors) != len(keys.texts):
        raise UserError(
            f"Expected one vector for each key of {identifier!r}, and at least one, got {len(keys.texts)} "
            f"texts and vectors of shape {vectors.shape}. Fix: embed every text."
        )
    if not np.isfinite(vectors).all():
        raise UserError(
            f"Expected finite numbers as keys of {identifier!r}, got others from {keys.embedder!r}. Fix: "
            "check the embedder's weights."
        )
    about: dict[str, Any] = {
        "expert": identifier,
        "embedder": keys.embedder,
        "text_format": keys.text_format,
        "texts": list(keys.texts),
    }
    if keys.made_of:
        about["made_of"] = dict(keys.made_of)
    about["checksum"] = _keys_checksum(vectors, about)
    text = json.dumps(about, ensure_ascii=False).encode()
    # Texts are in the file of the vectors, so that no reader pairs those of two writers.
    storage.write_arrays(directory / KEYS_FILE, {"vectors": vectors, "about": np.frombuffer(text, np.uint8)})


def read_keys(directory: epath.Path, identifier: str) -> Keys:
    """Reads an expert's keys.

    Raises:
        UserError: If they are damaged, or belong to another expert.
    """
    fix = f"Fix: embed the keys of {identifier!r} again with `elm index --rebuild`."
    try:
        arrays = storage.read_arrays(directory / KEYS_FILE, what="An expert's keys")
        about = json.loads(arrays["about"].tobytes())
        checksum = about.pop("checksum")
        vectors, texts = arrays["vectors"], tuple(about["texts"])
        keys = Keys(vectors, texts, about["embedder"], about["text_format"], about.get("made_of", {}))
        owner = about["expert"]
    except UserError as error:
        raise UserError(f"{error} {fix}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"Expected keys and their description in {directory / KEYS_FILE!s}, got {type(error).__name__}: "
            f"{error}. {fix}"
        ) from None
    if checksum != _keys_checksum(vectors, about):
        raise UserError(
            f"Expected {directory / KEYS_FILE!s} with the checksum {checksum}, got another. {fix}"
        )
    if owner != identifier:
        raise UserError(
            f"Expected keys of {identifier!r} in {directory / KEYS_FILE!s}, got those of {owner!r}. {fix}"
        )
    return keys


def find_problems(directory: epath.Path, identifier: str, base: str | None) -> list[str]:
    """Returns what is wrong with an expert's files, one sentence for each problem.

    Args:
        directory: The expert's directory.
        identifier: The id that the expert should have.
        base: The fingerprint of the base that it should have; None for any.
    """
    try:
        description = read_description(directory)
    except (UserError, OSError) as error:
        return [str(error)]
    found = []
    if description.spec.id != identifier:
        found.append(
            f"Expected expert {identifier!r} in its directory, got {description.spec.id!r}. Fix: add it "
            "again under its own id."
        )
    try:
        require_base(description.spec, base)
    except UserError as error:
        found.append(str(error))
    try:
        read_params(directory, description)
    except (UserError, OSError) as error:
        found.append(str(error))
    try:
        if (directory / KEYS_FILE).exists():
            read_keys(directory, identifier)
    except (UserError, OSError) as error:
        found.append(str(error))
    return found


def require_base(spec: ExpertSpec, base: str | None) -> None:
    """Checks that an expert was trained on the base of that fingerprint; None allows any.

    Raises:
        UserError: If it was trained on another one.
    """
    if base is not None and spec.base != base:
        raise UserError(
            f"Expected an expert of base {base!r}, got {spec.id!r}, which was trained on base {spec.base!r}. "
            "Fix: load its own base, or train the expert on this one."
        )


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # the user of a container may have no name
        return UNKNOWN_OWNER


def _shape(shape: tuple[int, ...] | None) -> str:
    return "nothing" if shape is None else str(shape)


def _keys_checksum(vectors: np.ndarray, about: Mapping[str, object]) -> str:
    return storage.fingerprint({**about, "vectors": storage.array_fingerprint({"vectors": vectors})})
