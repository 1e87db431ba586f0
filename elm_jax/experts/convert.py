"""Convert: writes a model or an expert in another format, completely or not at all."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import jax
from etils import epath

from elm_jax import names, storage
from elm_jax.errors import UserError
from elm_jax.experts import atomic_dir, files, import_export, versions
from elm_jax.frames import Record
from elm_jax.models import paths
from elm_jax.records import ExpertSpec, Params
from elm_jax.session import opening
from elm_jax.weights import adapters, downloads, elm, fold, hf_config, huggingface, load, peft, t5x_write
from elm_jax.weights.base_model import DTYPES, Base, dtype_name, make_base

BASE_DIRECTORY = "base"  # next to an adapter: the model that it is loaded onto
# Format -> the file that is written last.
MARKERS: Mapping[str, str] = {
    "hf": hf_config.CONFIG_FILE,
    "t5x": t5x_write.DIRECTORY,
    "elm": elm.CONFIG_FILE,
}


@dataclass(frozen=True)
class ConversionResult(Record):
    """What a conversion wrote.

    Attributes:
        what: "model", or "expert of kind …".
        format: The format.
        directory: The new directory.
        parameters: How many numbers were written.
        fingerprint: That of the model, or of the base of an expert.
    """

    what: str
    format: str
    directory: str
    parameters: int
    fingerprint: str


def convert(
    src: storage.PathLike,
    dst: storage.PathLike,
    to: str,
    *,
    dtype: str | None = None,
    base: storage.PathLike | None = None,
    kind: str | None = None,
    ignore: Collection[str] = (),
) -> ConversionResult:
    """Writes the model or expert in `src` to the new directory `dst` in another format.

    A model is written as `hf`, `t5x` or `elm`, with its tokenizer, `generation_config.json` and token ids as
    they are. An adapter of PEFT becomes an expert of a library. An expert of a library, also a merged one, is
    written as `peft` (LoRA, (IA)³), in the layout of the `adapters` library (bottleneck), as `hf`, folded
    into its base (LoRA, (IA)³, full), or as `t5x`, beside its base, for T5X to score and to train on.

    Args:
        src: A directory or a name that `load_model` accepts, an adapter, or an expert; on the hub as
            `hf:owner/name@revision`.
        dst: A new or empty directory; LIBRARY/DATASET/PROMPT for an expert that is imported.
        to: The format.
        dtype: The type of a model's parameters; default: values stay the same bit for bit, but an expert
            folded into a bfloat16 base gives a float32 model.
        base: The base that an expert was trained on.
        kind: The kind of an expert that is in a T5X checkpoint together with its base.
        ignore: Fields of foreign configurations, of an expert's base too, that do not change what is
            computed. A model is written without them.

    Returns:
        What was written.

    Raises:
        UserError: If `dst` is not empty, or `src` does not hold what is asked for.
    """
    target = storage.path(dst)
    atomic_dir.require_new(target)
    source = downloads.fetch_expert(src, required=False)
    source = (
        versions.find_current_version(source, files.SPEC_FILE) or source
    )  # of a library in a bucket, or a copy
    if kind is not None or (source / peft.CONFIG).exists():
        names.resolve(to, ["elm"], kind="format of an expert", where="elm convert")
        return _import_expert(source, target, base, kind, ignore)
    if (source / files.SPEC_FILE).exists():
        names.resolve(to, ["peft", "adapters", "hf", "t5x"], kind="format of an expert", where="elm convert")
        return _export_expert(source, target, to, base, dtype_name(dtype), ignore)
    if to in ("peft", "adapters"):
        got = "no expert" if source.exists() else "nothing"
        raise UserError(
            f"Expected an expert in {src}, since only experts are written as {to}, got {got} there. Fix: "
            "name its directory, such as my_run/library/DATASET/PROMPT, where a space in an id is %20."
        )
    names.resolve(to, MARKERS, kind="format of a model", where="elm convert")
    directory = load.find_checkpoint(src)
    model = load.load_base(directory, dtype=dtype, ignore=ignore)
    atomic_dir.write_new(target, MARKERS[to], lambda place: _write_model(place, model, directory, to, ignore))
    return ConversionResult("model", to, str(target), _count_params(model.params), model.fingerprint)


def _write_model(
    place: epath.Path, model: Base, source: epath.Path, to: str, ignore: Collection[str]
) -> None:
    """Writes a model and, if the format has a place for them, the other files of its source."""
    if to == "t5x":
        t5x_write.save(place, model)
        return
    for name in (*huggingface.OTHER_FILES, opening.VOCABULARY_FILE):
        if (source / name).exists():
            content = storage.read_content(source / name, what="A model's file")
            if name == hf_config.GENERATION_CONFIG_FILE:
                content = _drop_fields(content, ignore)
            storage.write_bytes(place / name, content)
    of_hf = source / (elm.HF_CONFIG if (source / elm.PARAMS_FILE).exists() else hf_config.CONFIG_FILE)
    like = (
        _drop_fields(storage.read_content(of_hf, what="A configuration"), ignore) if of_hf.exists() else None
    )
    if to == "hf":
        if (place / opening.VOCABULARY_FILE).exists():
            (place / opening.VOCABULARY_FILE).rename(place / opening.HUB_VOCABULARY_FILE)
            tokenizer = {"tokenizer_class": "T5Tokenizer", "extra_ids": opening.EXTRA_IDS}
            storage.write_bytes(place / "tokenizer_config.json", json.dumps(tokenizer, indent=2).encode())
        huggingface.save(place, model, like=json.loads(like) if like else None)
        return
    if like is not None:
        storage.write_bytes(place / elm.HF_CONFIG, like)
    elm.save(place, model)


def _drop_fields(content: bytes, ignore: Collection[str]) -> bytes:
    """Returns a JSON file without the ignored fields, or unchanged if it has none of them."""
    if not ignore:
        return content
    fields = json.loads(content)
    rest = {name: value for name, value in fields.items() if name not in ignore}
    return content if rest == fields else (json.dumps(rest, indent=2) + "\n").encode()


def _import_expert(
    source: epath.Path,
    target: epath.Path,
    base: storage.PathLike | None,
    kind: str | None,
    ignore: Collection[str],
) -> ConversionResult:
    """Writes an expert of PEFT or T5X as one of a library, LIBRARY/DATASET/PROMPT."""
    if base is None:
        raise _no_base_error(source)
    identifier = f"{names.from_directory_name(target.parent.name)}/{names.from_directory_name(target.name)}"
    escaped = names.directory_name(names.from_directory_name(target.name))
    if escaped != target.name:
        raise UserError(
            "Expected the directory of an expert as LIBRARY/DATASET/PROMPT with escaped characters, got "
            f"{target.name!r}. Fix: name it {escaped!r}."
        )
    model = load.load_base(base, ignore=ignore)
    expert = import_export.load_foreign_expert(source, model, identifier, kind=kind, ignore=ignore)
    atomic_dir.write_new(target, files.SPEC_FILE, lambda place: files.write(place, expert, None))
    what = f"expert of kind {expert.spec.kind}"
    return ConversionResult(what, "elm", str(target), _count_params(expert.params), model.fingerprint)


def _export_expert(
    source: epath.Path,
    target: epath.Path,
    to: str,
    base: storage.PathLike | None,
    dtype: str | None,
    ignore: Collection[str],
) -> ConversionResult:
    """Writes an expert of a library as an adapter of PEFT or `adapters`, folded into or beside its base."""
    description = files.read_description(source)
    spec, tree = description.spec, paths.unflatten(files.read_params(source, description))
    kind = spec.kind
    what = f"expert of kind {kind}"
    if to == "peft":
        atomic_dir.write_new(target, peft.CONFIG, lambda place: peft.save(place, kind, tree))
        return ConversionResult(what, to, str(target), _count_params(tree), spec.base)
    if to == "adapters" and kind != "bottleneck":
        raise UserError(
            f"Expected an expert of kind 'bottleneck' for the adapters library, got {kind!r}. Fix: write it "
            "with --to peft or --to hf."
        )
    directory, model = _load_base_of(spec, source, base, ignore)
    if to == "adapters":

        def fill(place: epath.Path) -> None:
            normed = fold.fold_expert(model, kind, paths.unflatten(adapters.select_norms(tree)))
            _write_model(place / BASE_DIRECTORY, normed, directory, "hf", ignore)
            adapters.save(place, tree, family=_model_type(place / BASE_DIRECTORY))

        atomic_dir.write_new(target, adapters.CONFIG, fill)
        return ConversionResult(what, to, str(target), _count_params(tree), model.fingerprint)
    beside = to == "t5x" and kind != "full"
    whole = model if beside else fold.fold_expert(model, kind, tree)
    if dtype is not None:
        whole = make_base(
            whole.config, jax.tree.map(lambda leaf: leaf.astype(DTYPES[dtype]), dict(whole.params))
        )
    if to == "t5x":
        added = tree if beside else None
        atomic_dir.write_new(target, MARKERS[to], lambda place: t5x_write.save(place, whole, added))
        return ConversionResult(what, to, str(target), _count_params(tree), model.fingerprint)
    atomic_dir.write_new(
        target, MARKERS["hf"], lambda place: _write_model(place, whole, directory, "hf", ignore)
    )
    return ConversionResult("model", to, str(target), _count_params(whole.params), whole.fingerprint)


def _load_base_of(
    spec: ExpertSpec, source: epath.Path, base: storage.PathLike | None, ignore: Collection[str]
) -> tuple[epath.Path, Base]:
    """Returns the directory of the base of an expert, and the base."""
    if base is None:
        raise _no_base_error(source)
    directory = load.find_checkpoint(base)
    model = load.load_base(directory, ignore=ignore)
    if model.fingerprint != spec.base:
        raise UserError(
            f"Expected the base {spec.base} that the expert at {str(source)!r} was trained on, got "
            f"{model.fingerprint}. Fix: name its own base with --base."
        )
    return directory, model


def _no_base_error(source: epath.Path) -> UserError:
    return UserError(
        f"Expected the base that the expert at {str(source)!r} was trained on, got none. Fix: name it with "
        "--base."
    )


def _model_type(directory: epath.Path) -> str:
    file = directory / hf_config.CONFIG_FILE
    return storage.read_json_value(file, what="A model's configuration")["model_type"]


def _count_params(params: Params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))
