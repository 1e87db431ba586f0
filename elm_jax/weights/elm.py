"""Our own format of a base: `config.json` has its shape and fingerprint, `params.safetensors` T5X's names."""

from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from etils import epath

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.weights import base_model, safetensors
from elm_jax.weights.base_model import Base, Checkpoint

CONFIG_FILE = "config.json"
PARAMS_FILE = "params.safetensors"
HF_CONFIG = "hf_config.json"  # the `config.json` of transformers that a converted base came with


def save(where: storage.PathLike, base: Base) -> None:
    """Writes a base; `config.json` comes last, so that a directory that has it is whole."""
    directory = storage.writable_directory(where)
    safetensors.write(
        directory / PARAMS_FILE, base_model.params_by_layer(base), {"format": str(storage.FORMAT)}
    )
    storage.write_json(
        directory / CONFIG_FILE, {"network": asdict(base.config), "fingerprint": base.fingerprint}
    )


def load(where: storage.PathLike) -> Base:
    """Reads a base and checks it: every tensor there, none too many, shapes and fingerprint as written."""
    found = open_checkpoint(where)
    base = base_model.read_base(found, dtype=None, place=base_model.keep_on_host)
    require_fingerprint(base, where)
    return base


def open_checkpoint(
    where: storage.PathLike, *, dtype: str | None = None, ignore: Collection[str] = ()
) -> Checkpoint:
    """Returns what a base's directory holds, its parameters unread; the network computes in `dtype`."""
    del ignore  # all fields of our own format are known
    remedy = "Train one with `elm quickstart`, or name the directory of one."
    directory = storage.existing_directory(where, what="A base model", remedy=remedy)
    raw = _read_config(directory)
    if not isinstance(raw["network"], dict):
        raise UserError(
            f"Expected an object as 'network' in {str(directory / CONFIG_FILE)!r}, got another value. Fix: "
            "restore it, or train the base again."
        )
    network = raw["network"] | ({"dtype": dtype} if dtype else {})
    config = base_model.parse_config(network, where=str(directory / CONFIG_FILE))
    file = directory / PARAMS_FILE
    return Checkpoint(config, safetensors.list_tensors(file), str(file))


def require_fingerprint(base: Base, where: storage.PathLike) -> None:
    """Refuses parameters that are not those that were written."""
    wanted = _read_config(storage.path(where))["fingerprint"]
    if base.fingerprint != wanted:
        raise UserError(
            f"Expected fingerprint {wanted} of the base at {str(storage.path(where))!r}, got "
            f"{base.fingerprint}: it was changed after it was written. Fix: restore it, or train it again."
        )


def _read_config(directory: epath.Path) -> dict[str, Any]:
    raw = storage.read_json(directory / CONFIG_FILE, what="A base model's configuration")
    for name in ("network", "fingerprint"):
        if name not in raw:
            raise UserError(
                f"Expected {name!r} in {str(directory / CONFIG_FILE)!r}, got none. Fix: restore it, or "
                "train the "
                "base again."
            )
    return raw
