"""Files of one expert: what its directory holds, and how that is written, read back and checked.

`expert.json` has the spec, the owner, the shape and type of every parameter, and the checksum of
`params.safetensors`.
`keys.safetensors`, which may come later or never, carries its own description and checksum, so that keys can
be written again without touching the other two.
"""

import getpass
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from etils import epath

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.experts import compatibility
from elm_jax.models import paths
from elm_jax.records import Expert, ExpertSpec, Keys

SPEC_FILE, PARAMS_FILE, KEYS_FILE = FILE_NAMES = "expert.json", "params.safetensors", "keys.safetensors"

UNKNOWN_OWNER = "unknown"


@dataclass(frozen=True)
class ExpertDescription:
    """What `expert.json` says."""

    spec: ExpertSpec
    shapes: Mapping[str, tuple[int, ...]]  # parameter path -> shape
    dtypes: Mapping[str, str]  # parameter path -> type
    checksum: str  # of the file of parameters
    owner: str = UNKNOWN_OWNER  # who put it into its first library


def write(directory: epath.Path, expert: Expert, keys: Keys | None, owner: str | None = None) -> None:
    """Writes everything of an expert; the directory is taken to be nobody else's yet.

    Without an owner it is the user whose process this is, by the name that the system has for them.
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
    """Copies an expert's files byte by byte, and takes away those that the source lacks."""
    for name in reversed(FILE_NAMES):  # the description last: where it is, all is there
        if (source / name).exists():
            storage.write_bytes(directory / name, (source / name).read_bytes())
        elif (directory / name).exists():
            (directory / name).unlink()


def read_description(directory: epath.Path) -> ExpertDescription:
    """Reads `expert.json`; a UserError if it is absent, no JSON, of another format or lacks something."""
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
            f"An expert's description at {where!s} should hold its spec, parameters and checksum, but it is "
            f"not so ({type(error).__name__}: {error}). Add the expert anew."
        ) from None


def read_params(directory: epath.Path, description: ExpertDescription) -> dict[str, np.ndarray]:
    """Reads path -> parameter.

    A UserError names the first path that is missing, unknown or misshapen, or a file that was changed.
    """
    flat = storage.read_arrays(directory / PARAMS_FILE, what=f"Expert {description.spec.id!r}")
    for path in sorted(set(description.shapes) | set(flat)):
        wanted = description.shapes.get(path)
        came = flat[path].shape if path in flat else None
        if wanted != came:
            raise UserError(
                f"Expert {description.spec.id!r} should hold {path} as {_shape(wanted)}, but its file holds "
                f"{_shape(came)} there. Add the expert anew."
            )
    if storage.file_fingerprint(directory / PARAMS_FILE) != description.checksum:
        raise UserError(
            f"Parameters at {directory / PARAMS_FILE!s} are not as they were written (checksum). "
            "Add the expert anew."
        )
    return flat


def write_keys(directory: epath.Path, identifier: str, keys: Keys) -> None:
    """Writes an expert's keys, whole or not at all."""
    vectors = np.asarray(keys.vectors, np.float32)
    if vectors.ndim != 2 or len(vectors) == 0 or len(vectors) != len(keys.texts):
        raise UserError(
            f"One vector a text is wanted as keys of {identifier!r}, and at least one, but {len(keys.texts)} "
            f"texts came with vectors of shape {vectors.shape}."
        )
    if not np.isfinite(vectors).all():
        raise UserError(
            f"The keys of {identifier!r} should be finite numbers, but {keys.embedder!r} gave others. "
            "Check the embedder's weights."
        )
    about = {
        "expert": identifier,
        "embedder": keys.embedder,
        "text_format": keys.text_format,
        "texts": list(keys.texts),
    }
    about["checksum"] = _keys_checksum(vectors, about)
    text = json.dumps(about, ensure_ascii=False).encode()
    # One file read in one go, so that no reader can pair the vectors of one writer with the texts of another.
    storage.write_arrays(directory / KEYS_FILE, {"vectors": vectors, "about": np.frombuffer(text, np.uint8)})


def read_keys(directory: epath.Path, identifier: str) -> Keys:
    """Reads an expert's keys; a UserError if they are damaged or another expert's."""
    mend = f"Embed the keys of {identifier!r} anew with `elm index --rebuild`."
    try:
        arrays = storage.read_arrays(directory / KEYS_FILE, what="An expert's keys")
        about = json.loads(arrays["about"].tobytes())
        checksum = about.pop("checksum")
        vectors, texts = arrays["vectors"], tuple(about["texts"])
        keys = Keys(vectors, texts, about["embedder"], about["text_format"])
        owner = about["expert"]
    except UserError as error:
        raise UserError(f"{error} {mend}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"Keys at {directory / KEYS_FILE!s} should hold vectors and their description, but it is not so "
            f"({type(error).__name__}: {error}). {mend}"
        ) from None
    if checksum != _keys_checksum(vectors, about):
        raise UserError(f"Keys at {directory / KEYS_FILE!s} are not as they were written (checksum). {mend}")
    if owner != identifier:
        raise UserError(
            f"Keys at {directory / KEYS_FILE!s} should be of {identifier!r}, but are of {owner!r}. {mend}"
        )
    return keys


def find_problems(directory: epath.Path, identifier: str, base: str | None) -> list[str]:
    """Returns what is wrong with an expert's files, one sentence each; nothing if they are sound."""
    try:
        description = read_description(directory)
    except (UserError, OSError) as error:
        return [str(error)]
    found = []
    if description.spec.id != identifier:
        found.append(
            f"The directory is that of {identifier!r}, but its expert calls itself {description.spec.id!r}. "
            "Add it anew under its own name."
        )
    if base is not None and description.spec.base != base:
        found.append(other_base(description.spec, base))
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


def other_base(spec: ExpertSpec, base: str) -> str:
    """Returns the sentence that refuses an expert of another base."""
    return (
        f"An expert of base {base!r} is wanted, but {spec.id!r} was trained on base {spec.base!r}. "
        "Load its own base, or train the expert on this one."
    )


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user need have no name
        return UNKNOWN_OWNER


def _shape(shape: tuple[int, ...] | None) -> str:
    return "nothing" if shape is None else str(shape)


def _keys_checksum(vectors: np.ndarray, about: Mapping[str, object]) -> str:
    return storage.fingerprint({**about, "vectors": storage.array_fingerprint({"vectors": vectors})})
