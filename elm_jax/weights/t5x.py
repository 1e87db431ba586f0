"""T5X's checkpoints, read and written without T5X: Orbax's, and the legacy ones of msgpack and zarr.

Parameters lie below `target`, by names that are this package's too. T5X's scanned network has the layers of a
stack together, on axis 1, as `encoder/encoder/...` and `decoder/decoder/...`. A checkpoint carries no
configuration; names and shapes tell it, and the gin file beside it where there is one.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from etils import epath

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.models import paths
from elm_jax.weights import base_model, msgpack, stores, t5x_gin, tensors
from elm_jax.weights.base_model import Checkpoint
from elm_jax.weights.tensors import Tensor, tensor_from_array

TARGET = "target"
STEP_DIRECTORY = re.compile(r"checkpoint_(\d+)")
LEGACY, STATE = "checkpoint", "state"
UNFINISHED = re.compile(r"\.orbax-checkpoint-tmp|\.tmp-\d+$")
_EMBEDDING = "token_embedder/embedding"
_ORBAX_FILES = (stores.MANIFEST, "_METADATA")
_POSITION_TABLE = re.compile(rf"(encoder|decoder)/{paths.LAYER_STACK}(_\d+)?/relpos_bias/rel_embedding")


def find_checkpoint(directory: epath.Path) -> tuple[str, epath.Path] | None:
    """Returns how a T5X checkpoint is kept and where; None if the directory is none.

    A directory of several, `checkpoint_1000` and so on, stands for the latest.
    """
    if UNFINISHED.search(directory.name):
        raise _unfinished_error(directory)
    if (directory / LEGACY).exists() and not any((directory / name).exists() for name in _ORBAX_FILES):
        return "legacy", directory
    for place in (directory, directory / STATE, directory / "default"):
        if _is_orbax(place):
            return "orbax", place
    entries = list(directory.iterdir())
    steps = [entry for entry in entries if STEP_DIRECTORY.fullmatch(entry.name)]
    if steps:
        return find_checkpoint(max(steps, key=lambda entry: int(entry.name.partition("_")[2])))
    for entry in entries:
        if UNFINISHED.search(entry.name):
            raise _unfinished_error(entry)
    if STEP_DIRECTORY.fullmatch(directory.name) or (directory / STATE).is_dir():
        raise UserError(
            f"Expected a T5X checkpoint in {str(directory)!r}, as {STATE}/{stores.MANIFEST} or {LEGACY}, got "
            "neither: it is half written, or half copied. Fix: copy it again, or name an earlier one."
        )
    return None


def open_checkpoint(
    where: storage.PathLike, *, dtype: str | None = None, ignore: Collection[str] = ()
) -> Checkpoint:
    """Returns what a checkpoint holds, its parameters unread, and the shape that they and gin's file tell."""
    found = list_parameters(where)
    named = str(storage.path(where))
    place = find_checkpoint(storage.path(where))
    from_gin = t5x_gin.read_network_fields(place[1], ignore=ignore) if place else {}
    return Checkpoint(
        base_model.parse_config(_infer_fields(found, dtype, named) | from_gin, where=named),
        found,
        named,
        lambda path, shape: (f"{TARGET}/{path}", shape),
    )


def list_parameters(where: storage.PathLike) -> dict[str, Tensor]:
    """Returns the parameters of a checkpoint by T5X's names, unread; a scanned stack has its layers first."""
    directory = storage.path(where)
    kept = find_checkpoint(directory) if directory.is_dir() else None
    if kept is None:
        raise UserError(
            f"Expected a T5X checkpoint at {str(directory)!r}, got none. Fix: name another directory."
        )
    kind, place = kept
    found = _list_orbax(place) if kind == "orbax" else _list_msgpack_tensors(place)
    if not found:
        raise UserError(
            f"Expected parameters below {TARGET!r} in {str(place)!r}, got none. Fix: name another checkpoint."
        )
    return _join_position_tables(dict(map(_to_native, found, found.values())), str(place))


def _unfinished_error(directory: epath.Path) -> UserError:
    return UserError(
        f"Expected a finished checkpoint in {str(directory)!r}, got one whose writer was stopped. Fix: name "
        "an earlier one."
    )


def _is_orbax(directory: epath.Path) -> bool:
    if not directory.is_dir():
        return False
    return any(
        (directory / name).exists() for name in (*_ORBAX_FILES, f"{TARGET}.{_EMBEDDING.replace('/', '.')}")
    )


def _list_orbax(directory: epath.Path) -> dict[str, Tensor]:
    if not (directory / stores.MANIFEST).exists() and not any(directory.glob(f"{TARGET}.*")):
        raise UserError(
            f"Expected arrays in {str(directory)!r}, as {stores.MANIFEST} or as {TARGET}.*, got neither: it "
            "is half written, or half copied. Fix: copy it again, or name an earlier checkpoint."
        )
    below = {
        name: driver
        for name, driver in stores.list_array_drivers(directory).items()
        if name.startswith(f"{TARGET}.")
    }
    return _select_target(stores.list_tensors(directory, below), ".")


def _list_msgpack_tensors(directory: epath.Path) -> dict[str, Tensor]:
    """Reads the index, which has small arrays in itself and says of the others where they lie."""
    file = directory / LEGACY
    with tensors.open_file(file) as stream:
        if stream.read(21) == b"model_checkpoint_path":
            raise UserError(
                f"Expected a T5X checkpoint, got {str(file)!r} of a TensorFlow checkpoint. Fix: convert it "
                "with T5X's scripts/convert_tf_checkpoint.py, or get the model from the hub."
            )
    tree = msgpack.list_tensors(file)
    state = tree.get("optimizer", tree)
    target = state.get(TARGET) if isinstance(state, dict) else None
    if not isinstance(target, dict):
        raise UserError(
            f"Expected parameters below 'optimizer/{TARGET}' in {str(file)!r}, got none. Fix: name another "
            "checkpoint."
        )
    inline, drivers, shapes, names = {}, {}, {}, {}
    for path, leaf in _leaves(target):
        if isinstance(leaf, Tensor):
            inline[path] = replace(leaf, name=f"{TARGET}/{path}")
            continue
        folder, shape = _parse_leaf(leaf, f"{TARGET}/{path}", file)
        names[folder], drivers[folder], shapes[folder] = path, "zarr", shape
    found = stores.list_tensors(directory, drivers, shapes)
    return inline | {path: found[folder] for folder, path in names.items()}


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict) and "kvstore" not in value:
            yield from _leaves(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def _parse_leaf(leaf: Any, name: str, file: epath.Path) -> tuple[str, tuple[int, ...]]:
    """Returns the folder and the shape that the index gives an array."""
    try:
        folder = (leaf["kvstore"].get("path") or leaf["path"]).strip("/")
        shape = tuple(leaf["metadata"]["shape"])
    except (TypeError, KeyError, AttributeError):
        folder, shape = "", ()
    if not folder or "/" in folder or folder.startswith(".") or not all(type(n) is int for n in shape):
        raise UserError(
            f"Expected the folder and the shape of {name!r} in {str(file)!r}, got neither. Fix: copy it "
            "again."
        )
    return folder, shape


def _select_target(found: Mapping[str, Tensor], separator: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(f"{TARGET}{separator}").replace(separator, "/"): tensor
        for name, tensor in found.items()
    }


def _to_native(path: str, tensor: Tensor) -> tuple[str, Tensor]:
    """Returns a parameter's name and axes as this package has them; only T5X's scanned ones differ.

    Their heads stand apart, too: [embed, layers, heads, width] and, where they lead out, [heads, layers,
    width, embed].
    """
    scanned = re.fullmatch(r"(encoder/encoder|decoder/decoder)/(.+)", path)
    if scanned and len(tensor.shape) > 1:
        stack = scanned.group(1).partition("/")[0]
        path = f"{stack}/{paths.LAYER_STACK}/{scanned.group(2)}"
        tensor = replace(tensor, axes=(1, 0, *range(2, len(tensor.shape))))
    heads = re.search(r"/(query|key|value|out)/kernel$", path)
    stacked = path.count(f"/{paths.LAYER_STACK}/")
    if heads and len(tensor.shape) == 3 + stacked:
        tensor = replace(tensor, joined_axis=stacked + (heads.group(1) != "out"))
    return path, tensor


def _join_position_tables(found: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """Returns the tensors with one table of relative positions a stack, if the layers of all share theirs.

    T5X's scanned network has a table in every layer, and where they differ they stay as they are.
    """
    tables = {path: found.pop(path) for path in list(found) if _POSITION_TABLE.fullmatch(path)}
    read = {path: tensor.read() for path, tensor in tables.items()}
    shared = {}
    for path, value in sorted(read.items()):
        stack = path.partition("/")[0]
        for table in value if f"/{paths.LAYER_STACK}/" in path else [value]:
            own = tensor_from_array(tables[path].name, where, table)
            first = shared.setdefault(f"{stack}/relpos_bias/rel_embedding", own)
            if first.read().tobytes() != table.tobytes():
                return found | tables
    return found | shared


def _infer_fields(found: Mapping[str, Tensor], dtype: str | None, where: str) -> dict[str, Any]:
    """Returns what names and shapes tell of the network."""

    def shape(*names: str) -> tuple[int, ...]:
        for name in names:
            if name in found and len(found[name].network_shape) == 2 + name.count(f"/{paths.LAYER_STACK}/"):
                return found[name].network_shape[-2:]
        raise UserError(
            f"Expected '{TARGET}/{names[0]}' of two axes in {where!r}, as a T5 has it, got none. Fix: name "
            "another checkpoint."
        )

    def layer(stack: str, name: str) -> tuple[int, ...]:
        return shape(f"{stack}/{paths.LAYER_STACK}_0/{name}", f"{stack}/{paths.LAYER_STACK}/{name}")

    vocabulary, width = shape(_EMBEDDING)
    table = "relpos_bias/rel_embedding"
    heads, buckets = shape(f"encoder/{table}", f"encoder/layers/{table}", f"encoder/layers_0/{table}")
    joined = layer("encoder", "attention/query/kernel")[1]
    if joined % heads:
        raise UserError(
            f"Expected query columns in {where!r} that the {heads} heads of its table of relative positions "
            f"divide, got {joined}. Fix: name another checkpoint."
        )
    single = any(re.fullmatch(r"encoder/layers(_0)?/mlp/wi/kernel", name) for name in found)
    return {
        "vocab_size": vocabulary,
        "emb_dim": width,
        "num_heads": heads,
        "head_dim": joined // heads,
        "num_encoder_layers": _count_layers(found, "encoder"),
        "num_decoder_layers": _count_layers(found, "decoder"),
        "mlp_dim": layer("encoder", "mlp/wo/kernel")[0],
        "mlp_activations": ("relu",) if single else ("gelu", "linear"),
        "logits_via_embedding": "decoder/logits_dense/kernel" not in found,
        "relpos_buckets": buckets,
        "relpos_per_layer": f"encoder/{table}" not in found,
        "dtype": base_model.choose_compute_dtype(found, dtype),
    }


def _count_layers(found: Mapping[str, Tensor], stack: str) -> int:
    apart = {int(layer.group(1)) for name in found if (layer := re.match(rf"{stack}/layers_(\d+)/", name))}
    stacked = [tensor for name, tensor in found.items() if name.startswith(f"{stack}/{paths.LAYER_STACK}/")]
    return len(apart) or min((tensor.network_shape[0] for tensor in stacked), default=0)
