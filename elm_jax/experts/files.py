"""Files of one expert: what its directory holds, and how that is written, read and checked.

`expert.json` has the spec, the owner, the shape and type of every parameter, and the checksum of
`params.safetensors`. `keys.safetensors` and `gates.safetensors` (`gate_files`) are optional and have their
own descriptions and checksums, so that they can be written again without touching the other two.
"""

import getpass
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import MinLen
from etils import epath

from elm_jax import names, schema, storage
from elm_jax.errors import UserError
from elm_jax.experts import compatibility
from elm_jax.experts.gate_files import GATES_FILE, max_gates_bytes, read_gates
from elm_jax.models import paths
from elm_jax.records import Expert, ExpertSpec, Keys

SPEC_FILE, PARAMS_FILE, KEYS_FILE = "expert.json", "params.safetensors", "keys.safetensors"
FILE_NAMES = (SPEC_FILE, PARAMS_FILE, KEYS_FILE, GATES_FILE)
ADDED_FILES = (KEYS_FILE, GATES_FILE)
"""Files that an expert may get later than the others."""

UNKNOWN_OWNER = "unknown"
MOST_DESCRIPTION = 1 << 24  # bytes of `expert.json`
MAX_KEYS_BYTES = 2**30  # of an expert's keys
# Of a safetensors file besides its numbers, once and for every path.
MAX_HEADER_BYTES, MAX_HEADER_BYTES_PER_PATH = 2**16, 2**10


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


@dataclass(frozen=True)
class _ParameterForm(schema.Form):
    shape: tuple[schema.Size, ...]
    dtype: Literal["float16", "bfloat16", "float32", "float64"]


@dataclass(frozen=True)
class _RecipeForm(schema.Form):
    """What of a recipe is read again later; the rest is shown to people."""

    options: Mapping[str, Any] = field(default_factory=dict)
    tasks: tuple[schema.Text, ...] = ()
    merged_from: tuple[schema.Text, ...] = ()
    weights: tuple[float, ...] | None = None
    shots: int | tuple[str, ...] = ()
    max_prompt: schema.Size = 1
    max_answer: schema.Size = 1


@dataclass(frozen=True)
class _ExpertForm(schema.FileForm):
    id: schema.Text
    kind: Literal["bottleneck", "lora", "dora", "vera", "ia3", "prompt", "full"]
    base: schema.Text
    # Without a dataset it would be zero-shot everywhere.
    datasets: Annotated[tuple[schema.Text, ...], MinLen(1)]
    steps: schema.Count
    parameters: Annotated[Mapping[schema.Text, _ParameterForm], MinLen(1)]
    checksum: schema.Text
    recipe: _RecipeForm = field(default_factory=_RecipeForm)
    owner: str = UNKNOWN_OWNER


@dataclass(frozen=True)
class _KeysForm(schema.Form):
    expert: schema.Text
    embedder: str
    text_format: str
    texts: Annotated[tuple[str, ...], MinLen(1)]
    checksum: schema.Text
    made_of: Mapping[str, Any] = field(default_factory=dict)


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
    names.directory_name(spec.id)  # raises if files of scores could not be named by it
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
            storage.write_bytes(
                directory / name, storage.read_content(source / name, what="A file of an expert")
            )
        elif (directory / name).exists():
            (directory / name).unlink()


def read_description(directory: epath.Path) -> ExpertDescription:
    """Reads `expert.json`.

    Raises:
        UserError: If it is absent, is no JSON, has another format or lacks a field.
    """
    from pydantic_core import from_json  # in half of the time of `json`

    where = directory / SPEC_FILE
    what, fix = "an expert's description", "add the expert again"
    content = storage.read_content(where, what=what, most=MOST_DESCRIPTION)
    told: _ExpertForm = schema.parse(content, _ExpertForm, what=f"{what} at {str(where)!r}", fix=fix)
    names.split_id(told.id)
    nested = _find_nested(told.parameters)
    if nested is not None:
        raise UserError(
            f"Expected parameters beside each other in {str(where)!r}, got {nested!r:.200} inside another. "
            f"Fix: {fix}."
        )
    spec = ExpertSpec(
        id=told.id,
        kind=told.kind,
        base=told.base,
        paths=tuple(told.parameters),
        datasets=told.datasets,
        steps=told.steps,
        recipe=from_json(content).get("recipe", {}),
    )
    return ExpertDescription(
        spec,
        {path: about.shape for path, about in told.parameters.items()},
        {path: about.dtype for path, about in told.parameters.items()},
        told.checksum,
        told.owner,
    )


def _find_nested(known: Collection[str]) -> str | None:
    """Returns a path that lies inside another or has an empty part; None if there is none."""
    outer: set[str] = set()
    for path in known:
        if "//" in f"/{path}/":
            return path
        parent = path.rpartition("/")[0]
        while parent and parent not in outer:
            outer.add(parent)
            parent = parent.rpartition("/")[0]
    around = tuple(f"{path}/" for path in outer.intersection(known))
    return next((path for path in known if path.startswith(around)), None) if around else None


def params_bytes(description: ExpertDescription) -> int:
    """Returns the bytes of all parameters of an expert, by its description."""
    return sum(
        math.prod(shape) * np.dtype(description.dtypes[path]).itemsize
        for path, shape in description.shapes.items()
    )


def max_params_bytes(description: ExpertDescription) -> int:
    """Returns how many bytes the file of an expert's parameters has at most, by its description."""
    return params_bytes(description) + MAX_HEADER_BYTES + MAX_HEADER_BYTES_PER_PATH * len(description.shapes)


def max_added_bytes(description: ExpertDescription, file: str) -> int:
    """Returns how many bytes one of `ADDED_FILES` has at most."""
    return MAX_KEYS_BYTES if file == KEYS_FILE else max_gates_bytes(description.shapes)


def read_params(directory: epath.Path, description: ExpertDescription) -> dict[str, np.ndarray]:
    """Reads the parameters of an expert by path.

    Raises:
        UserError: If a parameter is missing, unknown or of another shape, or if the file was changed.
    """
    what, most = f"Expert {description.spec.id!r}", max_params_bytes(description)
    flat = storage.read_arrays(directory / PARAMS_FILE, what=what, most=most)
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
    where = directory / KEYS_FILE
    try:
        arrays = storage.read_arrays(where, what="An expert's keys", most=MAX_KEYS_BYTES)
    except UserError as error:
        raise UserError(f"{error} {fix}") from None
    content = arrays["about"].tobytes() if "about" in arrays else b""
    told = schema.parse(
        content, _KeysForm, what=f"keys and their description in {str(where)!r}", fix=fix[5:-1]
    )
    vectors = arrays.get("vectors", np.zeros(0))
    if vectors.dtype != np.float32 or vectors.ndim != 2 or len(vectors) != len(told.texts):
        raise UserError(
            f"Expected one vector for each of {len(told.texts)} keys in {str(where)!r}, got "
            f"{vectors.dtype} of shape {vectors.shape}. {fix}"
        )
    if not np.isfinite(vectors).all():
        raise UserError(f"Expected finite numbers as keys in {str(where)!r}, got others. {fix}")
    about = json.loads(content)
    checksum = about.pop("checksum")
    keys = Keys(vectors, told.texts, told.embedder, told.text_format, told.made_of)
    if checksum != _keys_checksum(vectors, about):
        raise UserError(f"Expected {str(where)!r} with the checksum {checksum}, got another. {fix}")
    if told.expert != identifier:
        raise UserError(
            f"Expected keys of {identifier!r} in {str(where)!r}, got those of {told.expert!r}. {fix}"
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
    try:
        if (directory / GATES_FILE).exists():
            read_gates(directory, identifier, description.checksum, description.shapes)
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
