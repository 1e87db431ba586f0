"""`elm experts add` and `export`: an expert made elsewhere into a run's library, and one out of it."""

import re
from collections.abc import Collection, Sequence

from etils import epath

from elm_jax import names, storage
from elm_jax.errors import UserError
from elm_jax.experts import atomic_dir, files
from elm_jax.experts.library import Library
from elm_jax.experts.lookup import homes
from elm_jax.models import paths
from elm_jax.records import Expert, ExpertSpec, Keys, Params
from elm_jax.session import settings
from elm_jax.session.workspace import DEFAULT, Workspace
from elm_jax.weights import experts, hub, load, peft, t5x
from elm_jax.weights.base import Base


def add(
    src: storage.PathLike,
    *,
    id: str | None = None,
    kind: str | None = None,
    datasets: Sequence[str] = (),
    run: storage.PathLike = DEFAULT,
    replace: bool = False,
    ignore: Collection[str] = (),
) -> ExpertSpec:
    """Puts an expert into a run's library, whole or not at all, and returns its spec.

    `src` is a checkpoint that T5X wrote, or a directory of several of which the last is taken; an expert's
    directory of another library; or an adapter of PEFT's. What T5X wrote holds the base too, which must be
    the run's to the bit. `kind` is told by the names of the parameters where it is not given. `datasets` are
    what the expert was trained on, and where it is never zero-shot; without any it is the one that `id`
    begins with. An expert of a library brings its own id, datasets, owner and keys along. `ignore` names
    fields of PEFT's configuration that were looked at and do not change what the expert computes.

    Raises a UserError for what is none of these, another base, and an expert of that id that is there.
    """
    source, workspace = hub.expert(src), Workspace.open(run)
    base = load.read(settings.base_of(workspace))
    if not source.is_dir():
        raise UserError(f"An expert's directory is wanted at {str(source)!r}, but no directory is there.")
    expert, keys, owner = None, None, None
    if (source / files.SPEC).exists():
        expert, keys, owner = _of_library(source, base, id)
    else:
        if id is None:
            raise UserError(f"The expert at {str(source)!r} needs an id: --id DATASET/PROMPT.")
        expert = made_elsewhere(source, base, id, kind=kind, datasets=datasets, ignore=ignore)
    Library.open(workspace.library, create=True).add(expert, keys, replace=replace, owner=owner)
    return expert.spec


def export(id: str, dst: storage.PathLike, *, run: storage.PathLike = DEFAULT) -> epath.Path:
    """Copies an expert of a run, merged ones too, to a new directory, its keys included, for `add` to take.

    Raises a UserError if there is no such expert, or if anything is there.
    """
    home = storage.path(dst)
    library = homes(Workspace.open(run))(id)
    expert, owner = library.expert(id), library.describe(id).owner
    keys = library.keys(id) if library.has_keys(id) else None
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        raise UserError(f"A new directory is wanted at {str(home)!r}, but something is there. Name another.")
    atomic_dir.write(home, files.SPEC, lambda place: files.write(place, expert, keys, owner))
    return home


def kind_of(found: Params, base: Base) -> str:
    """Returns what kind of expert T5X trained, by the names that its checkpoint has beside the base's."""
    added = {re.sub(r"/layers_\d+/", "/layers/", path) for path in found} - set(paths.flatten(base.params))
    if not added:
        return "full"
    for kind, owned in experts.OWNED.items():
        if kind != "full" and all(owned.fullmatch(path) for path in added):
            return kind
    raise UserError(
        f"Beside the base an expert of one kind is wanted, {', '.join(experts.OWNED)}, but "
        f"{sorted(added)[0]!r} came. Give the base that it was trained on, or name the kind with --kind."
    )


def _of_library(source: epath.Path, base: Base, id: str | None) -> tuple[Expert, Keys | None, str]:
    told = files.describe(source)
    for problem in files.problems(source, told.spec.id, base.fingerprint):
        raise UserError(problem)
    if id not in (None, told.spec.id):
        raise UserError(f"The expert at {str(source)!r} is {told.spec.id!r}; it cannot become {id!r}.")
    tree = paths.unflatten(files.read_params(source, told))
    keys = files.read_keys(source, told.spec.id) if (source / files.KEYS).exists() else None
    return Expert(told.spec, tree), keys, told.owner


def made_elsewhere(
    source: epath.Path,
    base: Base,
    id: str,
    *,
    kind: str | None = None,
    datasets: Sequence[str] = (),
    ignore: Collection[str] = (),
) -> Expert:
    """Returns the expert that PEFT or T5X wrote into a directory; what else is given is as for `add`."""
    if (source / peft.CONFIG).exists():
        kind, tree = peft.load(source, base.config, ignore=ignore)
    else:
        kind = kind or kind_of(t5x.parameters(source), base)
        tree = experts.from_t5x(source, base, kind)
    spec = ExpertSpec(
        id=id,
        kind=kind,
        base=base.fingerprint,
        paths=tuple(paths.flatten(tree)),
        datasets=tuple(datasets) or (names.split_id(id)[0],),
        steps=_steps(source),
        recipe={"made elsewhere": str(source)},
    )
    return Expert(spec, tree)


def _steps(source: epath.Path) -> int:
    """Returns the number of the checkpoint, or of the last in the directory; 0 where there are no numbers."""
    inside = [source.name, *(entry.name for entry in source.iterdir())]
    steps = [int(found.group(1)) for name in inside if (found := t5x.STEP.fullmatch(name))]
    return max(steps, default=0)
