"""Converting weights: a model, or an expert, from the format it has to another, whole or not at all."""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from etils import epath

from elm_jax import names, storage
from elm_jax.errors import UserError
from elm_jax.experts import atomic_dir, files, import_export
from elm_jax.models import paths
from elm_jax.records import ExpertSpec, Params
from elm_jax.session import opening
from elm_jax.weights import adapters, elm, fold, hf_config, hub, huggingface, load, peft, t5x_write
from elm_jax.weights.base import DTYPES, Base, dtype_name
from elm_jax.weights.base import of as base_of

BASE = "base"  # beside an adapter: the model that it is loaded onto
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
    """Writes what `src` holds to the new directory `dst` in another format, whole or not at all.

    A model goes to `hf`, `t5x` or `elm`; its tokenizer, `generation_config.json` and token ids come out as
    they went in, by way of our format too. An adapter of PEFT's becomes an expert of a library. An expert of
    a library, a merged one too, goes to `peft` (LoRA, (IA)³), to the layout of the `adapters` library
    (bottleneck), or to `hf`, as the whole model that it makes of its base (LoRA, (IA)³, full).

    Args:
        src: A directory or a name as `load_model` takes it, an adapter, or an expert; on the hub too, as
            `hf:owner/name@revision`.
        dst: A new or empty directory; LIBRARY/DATASET/PROMPT for an expert that comes in.
        to: The format.
        dtype: Converts a model; without it values are the same to the bit, but that an expert folded into a
            bfloat16 base makes a float32 model.
        base: The base that an expert was trained on.
        kind: Takes an expert of that kind out of a T5X checkpoint that holds the base too.
        ignore: Fields of foreign configurations, of an expert's base too, that do not change what is
            computed. A model is written without them.

    Returns:
        What was written.

    Raises:
        UserError: If `dst` holds anything, or `src` does not hold what is asked for.
    """
    home = storage.path(dst)
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        raise UserError(f"A new directory is wanted at {str(home)!r}, but something is there. Name another.")
    source = hub.expert(src, required=False)
    if kind is not None or (source / peft.CONFIG).exists():
        names.resolve(to, ["elm"], kind="format of an expert", where="elm convert")
        return _expert_in(source, home, base, kind, ignore)
    if (source / files.SPEC).exists():
        names.resolve(to, ["peft", "adapters", "hf"], kind="format of an expert", where="elm convert")
        return _expert_out(source, home, to, base, dtype_name(dtype), ignore)
    names.resolve(to, MARKERS, kind="format of a model", where="elm convert")
    directory = load.find(src)
    model = load.read(directory, dtype=dtype, ignore=ignore)
    _written(home, MARKERS[to], lambda place: _write_model(place, model, directory, to, ignore))
    return Converted("model", to, str(home), _size(model.params), model.fingerprint)


def _write_model(
    place: epath.Path, model: Base, source: epath.Path, to: str, ignore: Collection[str] = ()
) -> None:
    """Writes a model and, where the format has room for it, what lay beside its weights."""
    if to == "t5x":
        t5x_write.save(place, model)
        return
    for name in (*huggingface.BESIDE, opening.VOCABULARY):
        if (source / name).exists():
            content = (source / name).read_bytes()
            storage.write_bytes(
                place / name, _without(content, ignore) if name == hf_config.GENERATION else content
            )
    of_hf = source / (elm.HF_CONFIG if (source / elm.PARAMS).exists() else hf_config.FILE)
    like = _without(of_hf.read_bytes(), ignore) if of_hf.exists() else None
    if to == "hf":
        if (place / opening.VOCABULARY).exists():
            (place / opening.VOCABULARY).rename(place / opening.PUBLISHED)
            told = {"tokenizer_class": "T5Tokenizer", "extra_ids": opening.SENTINELS}
            storage.write_bytes(place / "tokenizer_config.json", json.dumps(told, indent=2).encode())
        huggingface.save(place, model, like=json.loads(like) if like else None)
        return
    if like is not None:
        storage.write_bytes(place / elm.HF_CONFIG, like)
    elm.save(place, model)


def _without(content: bytes, ignore: Collection[str]) -> bytes:
    """Returns a file of JSON without the fields that are ignored; as it was where it has none of them."""
    if not ignore:
        return content
    told = json.loads(content)
    kept = {name: value for name, value in told.items() if name not in ignore}
    return content if kept == told else (json.dumps(kept, indent=2) + "\n").encode()


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
    model = load.read(base, ignore=ignore)
    expert = import_export.made_elsewhere(source, model, identifier, kind=kind, ignore=ignore)
    _written(home, files.SPEC, lambda place: files.write(place, expert, None))
    what = f"expert of kind {expert.spec.kind}"
    return Converted(what, "elm", str(home), _size(expert.params), model.fingerprint)


def _expert_out(
    source: epath.Path,
    home: epath.Path,
    to: str,
    base: storage.PathLike | None,
    dtype: str | None,
    ignore: Collection[str],
) -> Converted:
    """Writes a library's expert as an adapter of PEFT's or `adapters`', or as the model that it makes."""
    told = files.describe(source)
    kind, tree = told.spec.kind, paths.unflatten(files.read_params(source, told))
    what = f"expert of kind {kind}"
    if to == "peft":
        _written(home, peft.CONFIG, lambda place: peft.save(place, kind, tree))
        return Converted(what, to, str(home), _size(tree), told.spec.base)
    if to == "adapters" and kind != "bottleneck":
        raise UserError(
            f"Expected an expert of kind 'bottleneck' for the adapters library, got {kind!r}. Fix: write it "
            "with --to peft or --to hf."
        )
    directory, model = _own_base(told.spec, source, base, ignore)
    if to == "adapters":

        def fill(place: epath.Path) -> None:
            normed = fold.folded(model, kind, paths.unflatten(adapters.norms(tree)))
            _write_model(place / BASE, normed, directory, "hf", ignore)
            adapters.save(place, tree, family=_family(place / BASE))

        _written(home, adapters.CONFIG, fill)
        return Converted(what, to, str(home), _size(tree), model.fingerprint)
    whole = fold.folded(model, kind, tree)
    if dtype is not None:
        whole = base_of(
            whole.config, jax.tree.map(lambda leaf: leaf.astype(DTYPES[dtype]), dict(whole.params))
        )
    _written(home, MARKERS["hf"], lambda place: _write_model(place, whole, directory, "hf", ignore))
    return Converted("model", to, str(home), _size(whole.params), whole.fingerprint)


def _own_base(
    spec: ExpertSpec, source: epath.Path, base: storage.PathLike | None, ignore: Collection[str]
) -> tuple[epath.Path, Base]:
    """Returns where the base of an expert lies, and the base."""
    if base is None:
        raise UserError(
            f"Expected the base that the expert at {str(source)!r} was trained on, got none. Fix: name it "
            "with --base."
        )
    directory = load.find(base)
    model = load.read(directory, ignore=ignore)
    if model.fingerprint != spec.base:
        raise UserError(
            f"Expected the base {spec.base} that the expert at {str(source)!r} was trained on, got "
            f"{model.fingerprint}. Fix: name its own base with --base."
        )
    return directory, model


def _family(directory: epath.Path) -> str:
    return json.loads((directory / hf_config.FILE).read_bytes())["model_type"]


def _written(home: epath.Path, marker: str, fill: Callable[[epath.Path], Any]) -> None:
    try:
        atomic_dir.write(home, marker, fill)
    except FileExistsError:
        raise UserError(
            f"A new directory is wanted at {str(home)!r}, but another was written there."
        ) from None


def _size(params: Params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))
