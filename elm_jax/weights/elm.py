"""Our own format of a base: `config.json` has its shape and fingerprint, `params.safetensors` T5X's names."""

from dataclasses import asdict, dataclass, fields

import jax
import numpy as np

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.models import paths
from elm_jax.models.sizes import T5Config
from elm_jax.models.t5 import init_params
from elm_jax.records import Params

CONFIG = "config.json"
PARAMS = "params.safetensors"


@dataclass(frozen=True)
class Base:
    """A frozen base: the shape of the network, its parameters, and what stands for them."""

    config: T5Config
    params: Params
    fingerprint: str


def of(config: T5Config, params: Params) -> Base:
    """Returns the base with its fingerprint, which stands for names, shapes, types and bytes."""
    return Base(config, params, storage.array_fingerprint(paths.flatten(params)))


def save(where: storage.PathLike, base: Base) -> None:
    """Writes a base; `config.json` comes last, so that a directory that has it is whole."""
    directory = storage.writable_directory(where)
    storage.write_arrays(directory / PARAMS, paths.unstack_layers(paths.flatten(base.params)))
    storage.write_json(directory / CONFIG, {"network": asdict(base.config), "fingerprint": base.fingerprint})


def load(where: storage.PathLike) -> Base:
    """Reads a base and checks it: every tensor there, none too many, shapes and fingerprint as written."""
    remedy = "Train one with `elm quickstart`, or name the directory of one."
    directory = storage.existing_directory(where, what="A base model", remedy=remedy)
    told = storage.read_json(directory / CONFIG, what="A base model's configuration")
    for name in ("network", "fingerprint"):
        if name not in told:
            raise UserError(
                f"{str(directory / CONFIG)!r} lacks {name!r}. Restore it, or train the base again."
            )
    known = {field.name for field in fields(T5Config)}
    try:
        config = T5Config(**{name: value for name, value in told["network"].items() if name in known})
    except ValueError as error:
        raise UserError(f"{str(directory / CONFIG)!r} describes no network: {error}") from None
    file = directory / PARAMS
    apart = storage.read_arrays(file, what="A base model's parameters")
    check(apart, config, where=str(file))
    base = of(config, paths.unflatten(paths.stack_layers(apart)))
    if base.fingerprint != told["fingerprint"]:
        raise UserError(
            f"The base at {str(directory)!r} should have fingerprint {told['fingerprint']}, but has "
            f"{base.fingerprint}: it was changed after it was written. Restore it, or train it again."
        )
    return base


def check(flat: dict[str, np.ndarray], config: T5Config, *, where: str) -> None:
    """Refuses parameters, named layer by layer, whose names or shapes are not those of the network."""
    wanted = jax.eval_shape(
        lambda: paths.unstack_layers(paths.flatten(init_params(jax.random.key(0), config)))
    )
    for path, leaf in wanted.items():
        if path not in flat:
            raise UserError(f"{where!r} should hold {path!r} of shape {leaf.shape}, but lacks it.")
        if flat[path].shape != leaf.shape:
            raise UserError(
                f"{where!r} holds {path!r} as {flat[path].shape}; the network wants {leaf.shape}."
            )
    extra = sorted(set(flat) - set(wanted))
    if extra:
        raise UserError(f"{where!r} holds {extra[0]!r}, which the network does not have.")
