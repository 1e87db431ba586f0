"""Converting weights: a model, or an expert, from the format it has to another, whole or not at all."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from etils import epath

from elm_jax import names, storage
from elm_jax.errors import UserError
from elm_jax.library import files, swap
from elm_jax.models import paths
from elm_jax.records import Params
from elm_jax.runs import adopt
from elm_jax.weights import elm, hf_config, huggingface, load, peft, t5x_write
from elm_jax.weights.base import Base

WRITERS: Mapping[str, tuple[str, Callable[[storage.PathLike, Base], None]]] = {
    # Format: the file whose presence says that all is there, and the writer.
    "hf": (hf_config.FILE, huggingface.save),
    "t5x": (t5x_write.DIRECTORY, t5x_write.save),
    "elm": (elm.CONFIG, elm.save),
}
# What a directory's SentencePiece model is called, by the format that asks for it.
VOCABULARY = {"elm": "vocabulary.model", "hf": "spiece.model"}


@dataclass(frozen=True)
class Converted:
    """What was written."""

    what: str  # "model", or "expert" and its kind
    format: str
    directory: str
    parameters: int
    fingerprint: str  # the model's; the base's of an expert, empty where it goes without


def convert(
    src: storage.PathLike,
    dst: storage.PathLike,
    to: str,
    *,
    dtype: str | None = None,
    base: storage.PathLike | None = None,
    kind: str | None = None,
) -> Converted:
    """Writes what `src` holds to the new directory `dst`, as `hf`, `t5x` or `elm`, or an expert as `peft`.

    A model is whatever `load_model` reads; `dtype` converts it, without it values are the same to the bit. A
    PEFT adapter becomes an expert of a library, `dst` being LIBRARY/DATASET/PROMPT, beside the `base` that it
    was trained on, and an expert's directory becomes an adapter. With `kind` an expert is taken out of a
    T5X checkpoint that holds the base too.

    Raises a UserError if `dst` holds anything, or if `src` does not hold what is asked for.
    """
    home = storage.path(dst)
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        raise UserError(f"A new directory is wanted at {str(home)!r}, but something is there. Name another.")
    source = storage.path(src)
    if kind is not None or (source / peft.CONFIG).exists():
        names.resolve(to, ["elm"], kind="format of an expert", where="elm convert")
        return _expert_in(source, home, base, kind)
    if (source / files.SPEC).exists():
        names.resolve(to, ["peft"], kind="format of an expert", where="elm convert")
        return _expert_out(source, home)
    names.resolve(to, WRITERS, kind="format of a model", where="elm convert")
    directory = load.find(src)
    model = load.read(directory, dtype=dtype)
    marker, write = WRITERS[to]

    def fill(place: epath.Path) -> None:
        write(place, model)
        _copy_vocabulary(directory, place, to)

    _written(home, marker, fill)
    return Converted("model", to, str(home), _size(model.params), model.fingerprint)


def _expert_in(
    source: epath.Path, home: epath.Path, base: storage.PathLike | None, kind: str | None
) -> Converted:
    """Puts an expert from PEFT or T5X where a library keeps it."""
    if base is None:
        raise UserError(
            f"The expert at {str(source)!r} needs the base that it was trained on. Name it with --base."
        )
    identifier = f"{names.from_directory_name(home.parent.name)}/{names.from_directory_name(home.name)}"
    if names.directory_name(names.from_directory_name(home.name)) != home.name:
        raise UserError(
            f"An expert's directory is LIBRARY/DATASET/PROMPT in a file system's letters, but {home.name!r} "
            f"came. Name it {names.directory_name(names.from_directory_name(home.name))!r}."
        )
    model = load.read(base)
    expert = adopt.made_elsewhere(source, model, identifier, kind=kind)
    _written(home, files.SPEC, lambda place: files.write(place, expert, None))
    what = f"expert of kind {expert.spec.kind}"
    return Converted(what, "elm", str(home), _size(expert.params), model.fingerprint)


def _expert_out(source: epath.Path, home: epath.Path) -> Converted:
    """Writes a library's expert as an adapter of PEFT's."""
    told = files.describe(source)
    tree = paths.unflatten(files.read_params(source, told))
    _written(home, peft.CONFIG, lambda place: peft.save(place, told.spec.kind, tree))
    return Converted(f"expert of kind {told.spec.kind}", "peft", str(home), _size(tree), told.spec.base)


def _written(home: epath.Path, marker: str, fill: Callable[[epath.Path], Any]) -> None:
    try:
        swap.write(home, marker, fill)
    except FileExistsError:
        raise UserError(
            f"A new directory is wanted at {str(home)!r}, but another was written there."
        ) from None


def _copy_vocabulary(source: epath.Path, place: epath.Path, to: str) -> None:
    """Brings the SentencePiece model along under the name that the format has for it."""
    for name in VOCABULARY.values():
        if to in VOCABULARY and (source / name).exists():
            storage.write_bytes(place / VOCABULARY[to], (source / name).read_bytes())
            return


def _size(params: Params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))
