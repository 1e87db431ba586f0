"""Stores: arrays that TensorStore reads, as T5X and Orbax leave them, local or in a bucket.

Either every array is a directory of zarr chunks, or all of them share one OCDBT database.
"""

import os
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import tensorstore as ts
from etils import epath

from elm_jax.errors import UserError
from elm_jax.weights.tensors import Tensor

MANIFEST = "manifest.ocdbt"
_METADATA_FILES = {".zarray": "zarr", "zarr.json": "zarr3"}
_FIX = "Fix: copy it again, or name another checkpoint."


def list_array_drivers(directory: epath.Path) -> dict[str, str]:
    """Returns the arrays of a directory by name, each with TensorStore's driver for it."""
    if (directory / MANIFEST).exists():
        try:
            keys = [key.decode() for key in ts.KvStore.open(_database(directory)).result().list().result()]
        except Exception as error:  # TensorStore raises what its parts raise
            raise UserError(
                f"Expected a database of arrays in {str(directory)!r}, got one that does not open "
                f"({_reason(error)}). {_FIX}"
            ) from None
    else:
        keys = [
            f"{entry.name}/{name}"
            for entry in directory.iterdir()
            for name in _METADATA_FILES
            if (entry / name).exists()
        ]
    split = (key.rpartition("/") for key in keys)
    return {name: _METADATA_FILES[last] for name, _, last in split if last in _METADATA_FILES and name}


def list_tensors(
    directory: epath.Path, names: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, Tensor]:
    """Returns arrays of a directory by name, without reading them.

    Args:
        directory: The directory.
        names: Name -> TensorStore's driver.
        shapes: Name -> the shape that an index promises.

    Raises:
        UserError: If an array does not open, or has another shape.
    """
    inside = _database(directory) if (directory / MANIFEST).exists() else None
    context = ts.Context()  # one for all, so that the database's nodes are read once
    opening = {
        name: ts.open(
            {
                "driver": driver,
                "kvstore": {**inside, "path": f"{name}/"} if inside else make_store_spec(directory / name),
                # A chunk that is absent would be read as zeros.
                "fill_missing_data_reads": False,
            },
            open=True,
            read=True,
            context=context,
        )
        for name, driver in names.items()
    }
    found = {}
    for name, promise in opening.items():
        try:
            store = promise.result()
        except Exception as error:  # TensorStore raises what its parts raise
            raise UserError(
                f"Expected the array {name!r} in {str(directory)!r}, got one that does not open "
                f"({_reason(error)}). {_FIX}"
            ) from None
        wanted = (shapes or {}).get(name, store.shape)
        if tuple(store.shape) != tuple(wanted):
            raise UserError(
                f"Expected {name!r} in {str(directory)!r} as {tuple(wanted)}, as its index says, got "
                f"{tuple(store.shape)}. {_FIX}"
            )
        found[name] = _make_tensor(name, str(directory), store)
    return found


def make_store_spec(directory: epath.Path) -> dict[str, Any]:
    """Returns TensorStore's description of a directory, local or in a bucket."""
    text = str(directory)
    if text.startswith("gs://"):
        bucket, _, inside = text.removeprefix("gs://").partition("/")
        return {"driver": "gcs", "bucket": bucket, "path": f"{inside}/"}
    return {"driver": "file", "path": f"{os.path.abspath(text)}/"}  # it refuses a path with ..


def _make_tensor(name: str, file: str, store: ts.TensorStore) -> Tensor:
    try:
        dtype = np.dtype(store.dtype.numpy_dtype)
    except (TypeError, ValueError):
        dtype = np.dtype(object)
    return Tensor(name, file, tuple(store.shape), dtype, partial(_read, name, file, store))


def _read(name: str, file: str, store: ts.TensorStore, out: np.ndarray) -> None:
    try:
        # Written by TensorStore itself, a chunk at a time and converted, with no copy between.
        target = ts.array(out, copy=False, write=True)
        target.write(ts.cast(store, target.dtype)).result()
    except Exception as error:  # TensorStore raises what its parts raise
        raise UserError(
            f"Expected the whole array {name!r} in {file!r}, got a part that cannot be read "
            f"({_reason(error)}). {_FIX}"
        ) from None


def _database(directory: epath.Path) -> dict[str, Any]:
    return {"driver": "ocdbt", "base": make_store_spec(directory)}


def _reason(error: Exception) -> str:
    """Returns the first words of TensorStore's message, which goes on with places in its own source."""
    return str(error).split(" [", 1)[0][:200]
