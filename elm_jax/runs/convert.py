"""Converting weights: a model, or an expert, from the format it has to another, whole or not at all."""

import json
from collections.abc import Callable, Collection, Mapping
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
from elm_jax.runs import base as bases
from elm_jax.weights import elm, hf_config, huggingface, load, peft, t5x_write
from elm_jax.weights.base import Base

# Format: the file whose presence says that all is there.
MARKERS: Mapping[str, str] = {
    "hf": hf_config.FILE,
    "t5x": t5x_write.DIRECTORY,
    "elm": elm.CONFIG,
}


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
    ignore: Collection[str] = (),
) -> Converted:
    """Writes what `src` holds to the new directory `dst`, as `hf`, `t5x` or `elm`, or an expert as `peft`.

    A model is whatever `load_model` reads; `dtype` converts it, without it values are the same to the bit. A
    PEFT adapter becomes an expert of a library, `dst` being LIBRARY/DATASET/PROMPT, beside the `base` that it
    was trained on, and an expert's directory becomes an adapter. With `kind` an expert is taken out of a
    T5X checkpoint that holds the base too. `ignore` names fields of a foreign configuration that were looked
    at and do not change what is computed.

    Tokenizer, `generation_config.json` and token ids come out as they went in, by way of our format too.

    Raises a UserError if `dst` holds anything, or if `src` does not hold what is asked for.
    """
    home = storage.path(dst)
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        raise UserError(f"A new directory is wanted at {str(home)!r}, but something is there. Name another.")
    source = storage.path(src)
    if kind is not None or (source / peft.CONFIG).exists():
        names.resolve(to, ["elm"], kind="format of an expert", where="elm convert")
        return _expert_in(source, home, base, kind, ignore)
    if (source / files.SPEC).exists():
        names.resolve(to, ["peft"], kind="format of an expert", where="elm convert")
        return _expert_out(source, home)
    names.resolve(to, MARKERS, kind="format of a model", where="elm convert")
    directory = load.find(src)
    model = load.read(directory, dtype=dtype, ignore=ignore)
    _written(home, MARKERS[to], lambda place: _write_model(place, model, directory, to))
    return Converted("model", to, str(home), _size(model.params), model.fingerprint)


def _write_model(place: epath.Path, model: Base, source: epath.Path, to: str) -> None:
    """Writes a model and, where the format has room for it, what lay beside its weights."""
    if to == "t5x":
        t5x_write.save(place, model)
        return
    for name in (*huggingface.BESIDE, bases.VOCABULARY):
        if (source / name).exists():
            storage.write_bytes(place / name, (source / name).read_bytes())
    of_hf = source / (elm.HF_CONFIG if (source / elm.PARAMS).exists() else hf_config.FILE)
    like = of_hf.read_bytes() if of_hf.exists() else None
    if to == "hf":
        if (place / bases.VOCABULARY).exists():
            (place / bases.VOCABULARY).rename(place / bases.PUBLISHED)
            told = {"tokenizer_class": "T5Tokenizer", "extra_ids": bases.SENTINELS}
            storage.write_bytes(place / "tokenizer_config.json", json.dumps(told, indent=2).encode())
        huggingface.save(place, model, like=json.loads(like) if like else None)
        return
    if like is not None:
        storage.write_bytes(place / elm.HF_CONFIG, like)
    elm.save(place, model)


def _expert_in(
    source: epath.Path,
    home: epath.Path,
    base: storage.PathLike | None,
    kind: str | None,
    ignore: Collection[str],
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
    expert = adopt.made_elsewhere(source, model, identifier, kind=kind, ignore=ignore)
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


def _size(params: Params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))
