"""Loading a model: from a directory of whatever format, or by name from the hub's cache."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from etils import epath
from numpy.typing import DTypeLike

from elm_jax import storage
from elm_jax.axes import Array
from elm_jax.errors import UserError
from elm_jax.models import paths
from elm_jax.models.sharding import sharding_by_path
from elm_jax.weights import base_model, downloads, elm, hf_config, huggingface, published_models, t5x
from elm_jax.weights.base_model import Base, Checkpoint, Placement

Sharding = (
    jax.sharding.Mesh | jax.sharding.Sharding | Callable[[str, tuple[int, ...]], Any] | Mapping[str, Any]
)
FORMATS: Mapping[str, Callable[..., Checkpoint]] = {
    "elm": elm.open_checkpoint,
    "hf": huggingface.open_checkpoint,
    "t5x": t5x.open_checkpoint,
}
PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".bin", ".joblib")


def load_model(
    path_or_name: storage.PathLike,
    dtype: DTypeLike | None = None,
    sharding: Sharding | None = None,
    *,
    ignore: Collection[str] = (),
) -> Base:
    """Returns a T5 of a directory or of a published name: shape, parameters, fingerprint.

    Parameters are JAX arrays under T5X's names, the layers of a stack in one array. The fingerprint stands
    for the parameters as returned, whatever file they came from. No more than one parameter at a time is in
    the host's memory beside them.

    Args:
        path_or_name: A directory, local or `gs://`, or a name. A directory holds Hugging Face's safetensors,
            `flax_model.msgpack` or `pytorch_model.bin` with `config.json`, a T5X checkpoint (Orbax's or
            legacy, scanned or not), or a base of our own. A name is one of
            `elm_jax.weights.published_models`, such as `t5-v1_1-xl-lm-adapt`, or any id of the hub.
        dtype: float32 or bfloat16, that parameters are converted to and the network computes in; default: as
            stored (float16 becomes float32).
        sharding: Where parameters go: a mesh of `elm_jax.models.meshes`, one sharding for all, a function of
            path and shape, or a tree of the parameters' form; default: the default device.
        ignore: Fields of the configuration that were looked at and do not change what the network computes.
            Any other field is understood or refused.

    Raises:
        UserError: If anything is missing, cut short or of another shape; it names file and tensor.
    """
    return load_base(path_or_name, dtype=dtype, place=_make_placement(sharding), ignore=ignore)


def load_base(
    path_or_name: storage.PathLike,
    *,
    dtype: DTypeLike | None = None,
    place: Placement = base_model.keep_on_host,
    ignore: Collection[str] = (),
    as_stored: bool = False,
) -> Base:
    """Loads a T5 as `load_model` does, with its parameters where `place` puts them.

    Args:
        path_or_name: As for `load_model`.
        dtype: As for `load_model`.
        place: Moves each parameter to its devices.
        ignore: As for `load_model`.
        as_stored: Whether the fingerprint is that of the parameters before they are converted to `dtype`,
            which is that of the model that experts were trained on.

    Raises:
        UserError: As `load_model`.
    """
    dtype = base_model.dtype_name(dtype)
    directory = find_checkpoint(path_or_name)
    try:
        kind = detect_format(directory)
        found = FORMATS[kind](directory, dtype=dtype, ignore=ignore)
        base = base_model.read_base(found, dtype=dtype, place=place, as_stored=as_stored)
    except OSError as error:
        raise UserError(
            f"Expected to read the model at {str(directory)!r}, got {error}. Fix: check who may read there."
        ) from error
    if kind == "elm" and (dtype is None or as_stored):
        elm.require_fingerprint(base, directory)
    return replace(base, origin=str(path_or_name))


def find_stored_dtype(path_or_name: storage.PathLike) -> str:
    """Returns the type that a model computes in by default, without reading parameters."""
    directory = find_checkpoint(path_or_name)
    return FORMATS[detect_format(directory)](directory).config.dtype


def find_checkpoint(path_or_name: storage.PathLike) -> epath.Path:
    """Returns the directory of a model by path or name, downloaded from the hub if necessary.

    Raises:
        UserError: If there is no such model.
    """
    text = str(path_or_name)
    where = storage.path(path_or_name)
    try:
        there, inside = where.exists(), where.is_dir()
    except Exception as error:  # a bucket's client raises errors of its own
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"Expected a model at {text!r}, got no answer ({why:.200}). Fix: check the network and who may "
            "read there, or copy it to a directory."
        ) from None
    if inside:
        return where
    if there:
        if where.suffix in PICKLES and where.name != huggingface.TORCH:
            raise _pickle_error(where)
        return where.parent
    if text.startswith(("/", ".", "~")) or "://" in text or not text:
        raise UserError(
            f"Expected a model at {text!r}, got no directory. Fix: name the directory of a checkpoint, or a "
            "model such as 't5-v1_1-xl-lm-adapt'."
        )
    return downloads.fetch_model(published_models.find_model(text))


def detect_format(directory: epath.Path) -> str:
    """Returns the format of a checkpoint's directory: elm, hf or t5x.

    Raises:
        UserError: If it holds something else.
    """
    if (directory / elm.PARAMS_FILE).exists() and (directory / elm.CONFIG_FILE).exists():
        return "elm"
    if huggingface.find_weights(directory):
        return "hf"
    if t5x.find_checkpoint(directory):
        return "t5x"
    entries = sorted(directory.iterdir(), key=lambda entry: entry.name)
    for entry in entries:
        if entry.suffix in PICKLES:
            raise _pickle_error(entry)
    there = ", ".join(entry.name for entry in entries[:6]) or "nothing"
    if (directory / hf_config.CONFIG_FILE).exists():
        there += ": a configuration without its weights"
    elif (directory / "adapter_config.json").exists() or (directory / "expert.json").exists():
        there += ": an expert, which `elm convert` reads, but no model"
    raise UserError(
        f"Expected a model in {str(directory)!r} (safetensors or msgpack with {hf_config.CONFIG_FILE}, a T5X "
        f"checkpoint, or {elm.PARAMS_FILE} with {elm.CONFIG_FILE}), got {there}. Fix: name another directory."
    )


def _make_placement(sharding: Sharding | None) -> Placement:
    """Returns the function that moves each parameter to its devices."""
    if isinstance(sharding, jax.sharding.Mesh):
        sharding = sharding_by_path(sharding)
    tree = paths.flatten(sharding) if isinstance(sharding, Mapping) else None

    def place(path: str, value: np.ndarray) -> Array:
        wanted: Any = sharding
        if tree is not None:
            wanted = tree.get(path)
        elif callable(sharding):
            wanted = sharding(path, value.shape)
        if wanted is None:
            return jax.device_put(value).block_until_ready()
        made = jax.make_array_from_callback(value.shape, wanted, lambda index: value[index])
        return made.block_until_ready()

    return place


def _pickle_error(where: epath.Path) -> UserError:
    return UserError(
        f"Expected safetensors, Flax's msgpack, a T5X checkpoint or a hub model's {huggingface.TORCH}, got "
        f"the pickle {str(where)!r}, which may run any program and is never opened. Fix: convert it first."
    )
