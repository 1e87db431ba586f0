"""`elm experts push` and `pull`: experts of a run into a repository of the hub, and from one into a run."""

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
from etils import epath

from elm_jax import hub, storage
from elm_jax.errors import UserError
from elm_jax.experts import files, hub_layout, model_card
from elm_jax.experts.library import Library
from elm_jax.experts.lookup import homes
from elm_jax.models import paths
from elm_jax.session import settings
from elm_jax.session.workspace import DEFAULT, Workspace
from elm_jax.weights import load
from elm_jax.weights.base import Base
from elm_jax.weights.experts import require_fit

_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


@dataclass(frozen=True)
class Pushed:
    """What a push left in a repository."""

    repository: str
    commit: str
    experts: tuple[str, ...]  # those that were pushed
    unchanged: tuple[str, ...]  # of them those whose parameters were there already
    every: tuple[str, ...]  # all that the repository has now


@dataclass(frozen=True)
class Pulled:
    """What a pull brought into a run's library."""

    repository: str
    commit: str
    experts: tuple[str, ...]
    unchanged: tuple[str, ...]  # of them those that were there already


def push(
    repository: str,
    experts: Sequence[str] = (),
    *,
    run: storage.PathLike = DEFAULT,
    licence: str | None = None,
    replace: bool = False,
    private: bool = False,
) -> Pushed:
    """Puts experts of a run, and a model card of all that are there then, into a repository in one commit.

    Args:
        repository: `owner/name` or `owner/name@branch`, with or without `hf:`. It is made if it is absent.
        experts: Ids, of merged experts too; default: the whole library.
        run: The run's directory.
        licence: The card's licence, as the hub spells it; default: the one that the repository has.
        replace: Whether an expert may take the place of another one of its id.
        private: Whether a repository that is made is private.

    Returns:
        What the repository has.

    Raises:
        UserError: If an expert is unknown, damaged or of another base than the run's or the repository's; if
            the repository holds what no library does, or another expert of that id; if the hub refuses.
    """
    name, branch = hub.address(repository)
    if licence is not None and not _LICENCE.fullmatch(licence):
        raise UserError(
            f"Expected a licence as the hub spells it, such as apache-2.0, got {licence!r}. Fix: take the "
            "identifier from the hub's list of licences."
        )
    workspace, base, directory = _opened(run)
    home_of = homes(workspace)
    wanted = tuple(dict.fromkeys(experts)) or Library.open(workspace.library).ids()
    if not wanted:
        raise UserError(
            f"Expected experts in the library at {workspace.library!s}, got none. Fix: train some with "
            "`elm train`."
        )
    with tempfile.TemporaryDirectory() as temporary:
        stage = storage.path(temporary)
        own: dict[str, files.Description] = {}
        scores: dict[str, Sequence[model_card.Score]] = {}
        for expert in wanted:
            library, place = home_of(expert), stage / hub_layout.where(expert)
            library.copy(expert, place)
            for problem in files.problems(place, expert, base.fingerprint):
                raise UserError(problem)
            own[expert], scores[expert] = (
                files.describe(place),
                model_card.scores_of(workspace, library, expert),
            )
        held = _held(name, branch, private=private)
        there = hub_layout.layout(held)
        record = hub_layout.record(held) or {}
        if record.get("base", base.fingerprint) != base.fingerprint:
            raise UserError(
                f"Expected a library of base {base.fingerprint} in {name!r}, got one of base "
                f"{record['base']}. Fix: push to another repository."
            )
        old = hub_layout.describe(held, there, there, base=base.fingerprint) if there else {}
        same = tuple(expert for expert in wanted if expert in old and _are_same(old[expert], own[expert]))
        _require_free(name, [e for e in wanted if e in old and e not in same], replace=replace)
        card = model_card.Card(
            name,
            _base_model(model_card.base_of(directory, base.fingerprint), record),
            {**old, **own},
            {**model_card.read_scores(record.get("scores", {})), **scores},
            licence or _text(record.get("licence")),
        )
        storage.write_json(stage / hub_layout.RECORD, model_card.record(card))
        storage.write_bytes(stage / hub_layout.CARD, model_card.markdown(card).encode())
        added = {
            file: stage / file
            for file in (
                hub_layout.CARD,
                hub_layout.RECORD,
                *(f"{hub_layout.where(expert)}/{part}" for expert in wanted for part in files.NAMES),
            )
            if (stage / file).exists()
        }
        stale = [  # keys of an expert that is replaced by one without
            f"{hub_layout.where(expert)}/{files.KEYS}"
            for expert in wanted
            if expert not in same and files.KEYS in there.get(expert, {})
        ]
        stale = [file for file in stale if file not in added]
        message = f"Push {wanted[0] if len(wanted) == 1 else f'{len(wanted)} experts'}"
        commit = hub.commit(held, added, delete=stale, branch=branch, message=message)
    return Pushed(name, commit, wanted, same, tuple(sorted(card.experts)))


def pull(
    repository: str,
    *,
    only: str | None = None,
    run: storage.PathLike = DEFAULT,
    replace: bool = False,
) -> Pulled:
    """Puts experts of a repository into a run's library, byte for byte, each whole or not at all.

    What the repository holds is looked at before it is fetched: nothing but a library's files is taken,
    nothing is unpickled, and no file may be larger than its description says.

    Args:
        repository: `owner/name` or `owner/name@revision`, with or without `hf:`.
        only: An id, or a pattern of ids as file names have them; default: all.
        run: The run's directory.
        replace: Whether an expert may take the place of another one of its id.

    Returns:
        What the library has of it.

    Raises:
        UserError: If an expert is of another base, damaged, or another one of that id is there; if the
            repository holds a pickle or another file that is no library's; if the hub refuses.
    """
    name, revision = hub.address(repository)
    workspace, base, _ = _opened(run)
    held = hub.contents(name, revision, cached=hub_layout.PATTERNS)
    there = hub_layout.layout(held)
    wanted = tuple(hub_layout.choose(held, there, only))
    told = hub_layout.describe(held, there, wanted, base=base.fingerprint)
    for expert, description in told.items():
        _require_fit(name, expert, description, base)
    library = Library.open(workspace.library, create=True)
    old = {expert: library.describe(expert) for expert in wanted if expert in library}
    same = [expert for expert in old if _are_same(old[expert], told[expert])]
    _require_free(str(library.root), [expert for expert in old if expert not in same], replace=replace)
    # Keys may come later than the expert.
    whole = [e for e in same if files.KEYS not in there[e] or library.has_keys(e)]
    missing = [expert for expert in wanted if expert not in whole]
    if missing:
        source = hub_layout.fetch(held, there, missing)
        for expert in missing:
            _add(library, source / hub_layout.where(expert), name, expert, replace=expert in old)
    return Pulled(name, held.commit, wanted, tuple(whole))


def _opened(run: storage.PathLike) -> tuple[Workspace, Base, str]:
    """Returns a run's places, its base, and where that lies."""
    workspace = Workspace.open(run)
    directory = str(settings.base_of(workspace))
    return workspace, load.read(directory), directory


def _held(name: str, branch: str | None, *, private: bool) -> hub.Contents:
    """Returns what a repository holds; one that is absent is made."""
    try:
        return hub.contents(name, branch)
    except hub.Absent:
        if branch is not None:
            raise
    hub.create(name, private=private)
    return hub.contents(name)


def _base_model(found: model_card.BaseModel, record: Mapping[str, object]) -> model_card.BaseModel:
    """Returns the base with its repository, as the card before named it where this run does not know."""
    repository, revision = _text(record.get("base_model")), _text(record.get("base_revision"))
    if found.repository or not repository:
        return found
    return model_card.BaseModel(found.fingerprint, repository, revision)


def _add(library: Library, place: epath.Path, name: str, expert: str, *, replace: bool) -> None:
    try:
        library.add_copy(place, replace=replace)
    except UserError as error:
        raise UserError(
            f"Expected expert {expert!r} of {name!r} as it was written, got other files ({error}) Fix: push "
            "it again."
        ) from None


def _require_fit(name: str, expert: str, description: files.Description, base: Base) -> None:
    """Refuses an expert whose parameters, by their names and shapes, the base has no place for."""
    shapes = {path: jax.ShapeDtypeStruct(shape, "float32") for path, shape in description.shapes.items()}
    require_fit(paths.unflatten(shapes), base.config, what=f"Expert {expert!r} of {name!r}")


def _require_free(where: str, clashing: Sequence[str], *, replace: bool) -> None:
    if clashing and not replace:
        raise UserError(
            f"Expected no other expert {clashing[0]!r} in {where!r}, got one with other parameters "
            f"({len(clashing)} in all). Fix: replace what is there with --replace, or leave it out."
        )


def _are_same(one: files.Description, other: files.Description) -> bool:
    return (one.checksum, one.spec.base, one.spec.kind) == (other.checksum, other.spec.base, other.spec.kind)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
