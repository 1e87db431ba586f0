"""`elm experts add` and `export`: imports experts into a run's library, and exports them."""

import re
from collections.abc import Collection, Sequence

import numpy as np
from etils import epath

from elm_jax import hub, names, storage
from elm_jax.errors import UserError
from elm_jax.experts import atomic_dir, files, lookup, versions
from elm_jax.experts.library import Library
from elm_jax.models import paths
from elm_jax.records import Expert, ExpertSpec, Params
from elm_jax.session import settings
from elm_jax.session.workspace import DEFAULT_RUN, Workspace
from elm_jax.weights import downloads, load, peft, t5x, t5x_experts
from elm_jax.weights.base_model import Base


def import_expert(
    src: storage.PathLike,
    *,
    id: str | None = None,
    kind: str | None = None,
    datasets: Sequence[str] = (),
    run: storage.PathLike = DEFAULT_RUN,
    replace: bool = False,
    ignore: Collection[str] = (),
) -> ExpertSpec:
    """Adds an expert that was made elsewhere to a run's library, completely or not at all.

    Args:
        src: A checkpoint of T5X, or a directory of several, of which the last is read; the directory of an
            expert of another library; or an adapter of PEFT. A T5X checkpoint holds the base too, which must
            equal the run's bit for bit.
        id: DATASET/PROMPT; an expert of a library has its own.
        kind: The kind of the expert; default: inferred from the names of its parameters.
        datasets: What the expert was trained on, where it is never zero-shot; default: the dataset of `id`.
            An expert of a library has its own.
        run: The run's directory.
        replace: Whether an expert of that id is replaced.
        ignore: Fields of PEFT's configuration that do not change what is computed.

    Returns:
        The expert's spec.

    Raises:
        UserError: If `src` is none of these, the expert has another base, or there is an expert of that id.
    """
    source, workspace = _find_expert_directory(src), Workspace.open(run)
    base = load.load_base(settings.base_directory(workspace))
    of_library = (source / files.SPEC_FILE).exists()
    if of_library:
        expert = _load_library_expert(source, base, id)
    else:
        if id is None:
            raise UserError(
                f"Expected an id for the expert at {str(source)!r}, got none. Fix: give --id DATASET/PROMPT."
            )
        expert = load_foreign_expert(source, base, id, kind=kind, datasets=datasets, ignore=ignore)
    lookup.remove_leftovers(workspace)
    library = Library.open(workspace.library, create=True)
    if of_library:
        library.add_copy(source, replace=replace)
    else:
        library.add(expert, replace=replace)
    return expert.spec


def find_id(src: storage.PathLike) -> str | None:
    """Returns the id that an expert of a library has; None for one that was made elsewhere.

    Raises:
        UserError: If there is no directory, or its description cannot be read.
    """
    source = _find_expert_directory(src)
    return files.read_description(source).spec.id if (source / files.SPEC_FILE).exists() else None


def export_expert(id: str, dst: storage.PathLike, *, run: storage.PathLike = DEFAULT_RUN) -> epath.Path:
    """Copies an expert of a run with its keys and gates to a new directory, which `import_expert` can read.

    Args:
        id: The expert's id, also of a merged one.
        dst: A new or empty directory.
        run: The run's directory.

    Returns:
        The directory.

    Raises:
        UserError: If there is no such expert, or the directory is not empty.
    """
    target = storage.path(dst)
    library = lookup.library_finder(Workspace.open(run))(id)

    def fill(directory: epath.Path) -> None:
        library.copy(id, directory)
        for problem in files.find_problems(directory, id, None):
            raise UserError(problem)

    atomic_dir.write_new(target, files.SPEC_FILE, fill)
    return target


def infer_kind(found: Params, base: Base) -> str:
    """Returns the kind of the expert in a T5X checkpoint, by the parameters that its base lacks."""
    added = {re.sub(r"/layers_\d+/", "/layers/", path) for path in found} - set(paths.flatten(base.params))
    if not added:
        return "full"
    for kind, owned in t5x_experts.OWNED_PARAMS.items():
        if kind != "full" and all(owned.fullmatch(path) for path in added):
            return kind
    raise UserError(
        "Expected parameters of an expert besides the base's, of one kind of "
        f" {', '.join(t5x_experts.OWNED_PARAMS)}, got {sorted(added)[0]!r}. Fix: name the base that it was "
        "trained on, or the kind with --kind."
    )


def _find_expert_directory(src: storage.PathLike) -> epath.Path:
    """Returns the directory with an expert's files."""
    source = downloads.fetch_expert(src)
    if not source.is_dir():
        raise UserError(
            f"Expected the directory of an expert at {str(source)!r}, got none. Fix: correct the path."
        )
    return (
        versions.find_current_version(source, files.SPEC_FILE) or source
    )  # of a library in a bucket, or a copy


def _load_library_expert(source: epath.Path, base: Base, id: str | None) -> Expert:
    description = files.read_description(source)
    spec = description.spec
    for problem in files.find_problems(source, spec.id, base.fingerprint):
        raise UserError(problem)
    if id not in (None, spec.id):
        raise UserError(
            f"Expected the id {spec.id!r} that the expert at {str(source)!r} has, got {id!r}. Fix: leave "
            "--id out."
        )
    flat = files.read_params(source, description)
    for path, value in flat.items():
        if not np.isfinite(value.astype(np.float32)).all():
            raise UserError(
                f"Expected finite parameters of {spec.id!r}, got NaN or infinity in {path!r}. Fix: train it "
                "again."
            )
    tree = paths.unflatten(flat)
    t5x_experts.require_matching_shapes(tree, base.config, what=f"Expert {spec.id!r}", kind=spec.kind)
    return Expert(spec, tree)


def load_foreign_expert(
    source: epath.Path,
    base: Base,
    id: str,
    *,
    kind: str | None = None,
    datasets: Sequence[str] = (),
    ignore: Collection[str] = (),
) -> Expert:
    """Loads an expert that PEFT or T5X wrote.

    Args:
        source: The directory of the adapter or of the checkpoint.
        base: The base that it was trained on.
        id: The id that it gets.
        kind: Its kind; default: inferred from the names of its parameters.
        datasets: What it was trained on; default: the dataset of `id`.
        ignore: Fields of PEFT's configuration that do not change what is computed.

    Raises:
        UserError: If there is no expert of that kind, or it has another base.
    """
    if (source / peft.CONFIG).exists():
        kind, tree = peft.load(source, base.config, ignore=ignore)
    else:
        kind = kind or infer_kind(t5x.list_parameters(source), base)
        tree = t5x_experts.load_t5x_expert(source, base, kind)
    spec = ExpertSpec(
        id=id,
        kind=kind,
        base=base.fingerprint,
        paths=tuple(paths.flatten(tree)),
        datasets=tuple(datasets) or (names.split_id(id)[0],),
        steps=_infer_steps(source),
        recipe={"made elsewhere": _address(source)},
    )
    return Expert(spec, tree)


def _address(source: epath.Path) -> str:
    """Returns where an expert comes from: an address on the hub, or a directory."""
    found = hub.find_repository(str(source))
    return f"{hub.HUB_PREFIX}{found[0]}@{found[1]}" if found else str(source)


def _infer_steps(source: epath.Path) -> int:
    """Returns the step of the checkpoint, or of the last one in the directory; 0 if there is none."""
    inside = [source.name, *(entry.name for entry in source.iterdir())]
    steps = [int(found.group(1)) for name in inside if (found := t5x.STEP_DIRECTORY.fullmatch(name))]
    return max(steps, default=0)
