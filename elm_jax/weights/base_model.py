"""The base: a network's shape with its parameters, put together from the tensors of a checkpoint.

One stacked parameter at a time is filled, layer by layer, hashed and handed to its devices, so that beside
the parameters no more than the largest of them is ever in memory.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np
from ml_dtypes import bfloat16
from numpy.typing import DTypeLike

from elm_jax import storage
from elm_jax.axes import Array
from elm_jax.errors import UserError
from elm_jax.models import paths
from elm_jax.models.sizes import T5Config
from elm_jax.models.t5 import init_params
from elm_jax.records import Params
from elm_jax.weights import tensors
from elm_jax.weights.tensors import Tensor

READ_THREADS = 8  # layers of a parameter that are read at once
MAX_SIZE, MAX_LAYERS = 2**24, 2**10  # a size beyond these is a mistake, and would take forever to find out
DTYPES: Mapping[str, np.dtype] = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(bfloat16)}
Placement = Callable[[str, np.ndarray], Array]


@dataclass(frozen=True)
class Base:
    """A frozen base.

    Attributes:
        config: The shape of the network.
        params: Its parameters, with the layers of a stack in one array.
        fingerprint: The fingerprint of the parameters.
        origin: The directory or name that it was loaded from; None if it was made.
    """

    config: T5Config
    params: Params
    fingerprint: str
    origin: str | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        config, count = self.config, sum(leaf.size for leaf in jax.tree.leaves(dict(self.params)))
        layers = f"{config.num_encoder_layers}+{config.num_decoder_layers} layers"
        return f"Base({self.fingerprint!r}, {count:,} parameters, {layers}, {config.dtype})"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds before it is read: the network's shape, and its tensors by T5X's names.

    The layers of a stack may be apart, `encoder/layers_0/mlp/wo/kernel`, or together,
    `encoder/layers/mlp/wo/kernel` of [L, F, D].
    """

    config: T5Config
    tensors: Mapping[str, Tensor]
    where: str
    # The name and the shape that a parameter of the network which is missing would have in the file.
    locate_missing: Callable[[str, tuple[int, ...]], tuple[str, tuple[int, ...]]] = lambda path, shape: (
        path,
        shape,
    )


def make_base(config: T5Config, params: Params) -> Base:
    """Returns the base with its fingerprint, which stands for names, shapes, types and bytes."""
    return Base(config, params, storage.array_fingerprint(paths.flatten(params)))


def match_parameters(checkpoint: Checkpoint) -> dict[str, tuple[tuple[int, ...], list[Tensor]]]:
    """Returns shape and tensors of every parameter of the network, one tensor or one a layer.

    Raises:
        UserError: If a tensor is missing, of a wrong shape or type, or too many; it is named.
    """
    found, used = {}, set()
    for path, shape in param_shapes(checkpoint.config).items():
        before, stacked, after = path.partition(f"/{paths.LAYER_STACK}/")
        together = not stacked or path in checkpoint.tensors
        names = [path] if together else [f"{before}/layers_{layer}/{after}" for layer in range(shape[0])]
        wanted = shape if together else shape[1:]
        for name in names:
            _require_tensor(checkpoint, name, wanted)
        used |= set(names)
        found[path] = shape, [checkpoint.tensors[name] for name in names]
    for name in sorted(set(checkpoint.tensors) - used):
        tensor = checkpoint.tensors[name]
        raise UserError(
            f"Expected only tensors of a T5 of {checkpoint.config.num_encoder_layers} and "
            f"{checkpoint.config.num_decoder_layers} layers in {tensor.file!r}, got {tensor.name!r}. Fix: "
            "name another checkpoint, or correct its configuration."
        )
    return found


def read_base(
    checkpoint: Checkpoint, *, dtype: str | None, place: Placement, as_stored: bool = False
) -> Base:
    """Reads a checkpoint whose tensors are those of its network.

    Args:
        checkpoint: The checkpoint.
        dtype: What every parameter is converted to; without it float32 and bfloat16 stay as they are, and
            other floating types become float32.
        place: Moves each parameter to its devices.
        as_stored: Whether the fingerprint stands for the parameters as they would be without `dtype`, not as
            they are returned.

    Raises:
        UserError: If a tensor is missing, misshapen or too many; it is named.
    """
    digest = storage.ArrayDigest()
    params = {}
    with ThreadPoolExecutor(READ_THREADS) as pool:
        for path, (shape, layers) in sorted(match_parameters(checkpoint).items()):
            stored = _common_dtype({layer.dtype for layer in layers})
            whole = np.empty(shape, DTYPES[dtype] if dtype else stored)
            parts = [whole] if layers[0].network_shape == shape else list(whole)
            if as_stored and whole.dtype != stored:
                digest.begin(path, stored, shape)
                for start in range(0, len(parts), READ_THREADS):
                    some = slice(start, start + READ_THREADS)
                    for read, part in zip(
                        pool.map(partial(_read_as, dtype=stored), layers[some]), parts[some], strict=True
                    ):
                        digest.add_part(read)
                        part[...] = read
                        del read
            else:
                list(pool.map(Tensor.read_into, layers, parts))
                digest.add(path, whole)
            params[path] = place(path, whole)
            del whole, parts
    return Base(checkpoint.config, paths.unflatten(params), digest.fingerprint())


def _read_as(tensor: Tensor, dtype: np.dtype) -> np.ndarray:
    out = np.empty(tensor.network_shape, dtype)
    tensor.read_into(out)
    return out


@lru_cache(maxsize=8)
def param_shapes(config: T5Config) -> Mapping[str, tuple[int, ...]]:
    """Returns the shape of every parameter of the network, stacked, by path."""
    made = jax.eval_shape(lambda: init_params(jax.random.key(0), config))
    return {path: leaf.shape for path, leaf in paths.flatten(made).items()}


def parse_config(
    raw: Mapping[str, Any], *, where: str, names_in_file: Mapping[str, str] | None = None
) -> T5Config:
    """Returns the network that a configuration describes.

    Args:
        raw: The configuration by our fields' names; other names are passed over, and fields that are absent
            have their defaults.
        where: What errors call the file.
        names_in_file: What the file calls a field.

    Raises:
        UserError: If a value cannot be; its field is named.
    """
    known: dict[str, Any] = {field.name: field.default for field in fields(T5Config) if field.name in raw}
    for name, default in known.items():
        value = raw[name]
        if not _is_valid(value, default):
            raise UserError(
                f"Expected a valid {(names_in_file or {}).get(name, name)} in {where!r}, got {value!r:.100}. "
                "Fix: restore it, or name another checkpoint."
            )
    try:
        # JSON has lists for tuples, and 0 for 0.0.
        config = T5Config(**{name: type(default)(raw[name]) for name, default in known.items()})
    except ValueError as error:
        raise UserError(f"Expected a network in {where!r}, got: {error}") from None
    if max(config.num_encoder_layers, config.num_decoder_layers) > MAX_LAYERS:
        raise UserError(
            f"Expected at most {MAX_LAYERS} layers in each stack in {where!r}, got "
            f"{config.num_encoder_layers} and {config.num_decoder_layers}. Fix: correct the configuration."
        )
    if config.relpos_buckets < 4 or config.relpos_max_distance <= config.relpos_buckets // 2:
        raise UserError(
            f"Expected at least 4 buckets of relative positions in {where!r}, half of them below the "
            f"largest distance, got {config.relpos_buckets} up to distance {config.relpos_max_distance}. "
            "Fix: correct the configuration."
        )
    return config


def choose_compute_dtype(found: Mapping[str, Tensor], dtype: str | None) -> str:
    """Returns what to compute in: what was asked for, or bfloat16 where the whole checkpoint is that."""
    narrow = bool(found) and {tensor.dtype for tensor in found.values()} == {DTYPES["bfloat16"]}
    return dtype or ("bfloat16" if narrow else "float32")


def dtype_name(dtype: DTypeLike | None) -> str | None:
    """Returns the name of a type that parameters may have; None stands for what is stored."""
    if dtype is None:
        return None
    try:
        name = np.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in DTYPES:
        raise UserError(
            f"Expected dtype float32 or bfloat16, got {name!r}. Fix: name one of them; float16 overflows in "
            "T5."
        )
    return name


def keep_on_host(path: str, value: np.ndarray) -> Array:
    """Leaves a parameter where it was read."""
    del path
    return value


def _require_tensor(checkpoint: Checkpoint, name: str, wanted: tuple[int, ...]) -> None:
    tensor = checkpoint.tensors.get(name)
    if tensor is None:
        name_in_file, shape = checkpoint.locate_missing(name, wanted)
        raise UserError(
            f"Expected {name_in_file!r} of shape {shape} in {checkpoint.where!r}, got none. Fix: name "
            "another checkpoint."
        )
    if tensor.network_shape != wanted:
        raise UserError(
            f"Expected {tensor.name!r} in {tensor.file!r} as {tensor.shape_in_file(wanted)}, got "
            f"{tensor.shape}. Fix: name another checkpoint, or correct its configuration."
        )
    if tensor.dtype not in tensors.FLOATS:
        raise UserError(
            f"Expected {tensor.name!r} in {tensor.file!r} as floating-point numbers, got {tensor.dtype}. "
            "Fix: convert it first."
        )


def _is_valid(value: Any, default: Any) -> bool:
    """Says whether a value may be that of a field with this default; sizes are positive."""
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, int):
        return type(value) is int and 0 < value < MAX_SIZE
    if isinstance(default, float):
        return type(value) in (int, float) and 0 <= value < 1
    if isinstance(default, tuple):
        return isinstance(value, (list, tuple)) and all(isinstance(entry, str) for entry in value)
    return isinstance(value, type(default))


def _common_dtype(found: set[np.dtype]) -> np.dtype:
    return found.pop() if len(found) == 1 and found <= set(DTYPES.values()) else DTYPES["float32"]


def params_by_layer(base: Base) -> dict[str, Any]:
    """Returns the parameters of a base layer by layer under T5X's names; arrays on the host stay views."""
    return paths.unstack_layers({path: np.asarray(leaf) for path, leaf in paths.flatten(base.params).items()})
