"""`elm experts push` and `pull`: copies experts from a run to a repository of the hub, and back."""

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
from etils import epath

from elm_jax import hub, storage
from elm_jax.errors import UserError
from elm_jax.experts import files, model_card, published_library
from elm_jax.experts.library import Library
from elm_jax.experts.lookup import library_finder, remove_leftovers
from elm_jax.models import paths
from elm_jax.session import settings
from elm_jax.session.workspace import DEFAULT_RUN, Workspace
from elm_jax.weights import load
from elm_jax.weights.base_model import Base
from elm_jax.weights.t5x_experts import require_matching_shapes

_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


@dataclass(frozen=True)
class PushResult:
    """What a push did.

    Attributes:
        repository: `owner/name`.
        commit: The commit that was made.
        experts: The ids of the experts that were pushed.
        unchanged: Those of them whose parameters the repository had already.
        every: The ids of all experts that the repository has now.
    """

    repository: str
    commit: str
    experts: tuple[str, ...]
    unchanged: tuple[str, ...]
    every: tuple[str, ...]


@dataclass(frozen=True)
class PullResult:
    """What a pull did.

    Attributes:
        repository: `owner/name`.
        commit: The commit that was read.
        experts: The ids of the experts that were selected.
        unchanged: Those of them that the library had already.
    """

    repository: str
    commit: str
    experts: tuple[str, ...]
    unchanged: tuple[str, ...]


def push(
    repository: str,
    experts: Sequence[str] = (),
    *,
    run: storage.PathLike = DEFAULT_RUN,
    licence: str | None = None,
    replace: bool = False,
    private: bool = False,
) -> PushResult:
    """Writes experts of a run, and a model card of all experts, to a repository in one commit.

    Args:
        repository: `owner/name` or `owner/name@branch`, with or without `hf:`. It is created if it is absent.
        experts: Ids, of merged experts too; default: the whole library.
        run: The run's directory.
        licence: The card's licence, as the hub spells it; default: that of the card in the repository.
        replace: Whether an expert of the repository that has the same id is replaced.
        private: Whether a repository that is created is private.

    Returns:
        What was pushed and what the repository has now.

    Raises:
        UserError: If an expert is unknown, damaged or of another base than the run's or the repository's; if
            the repository holds other files, or another expert of that id; if the hub refuses.
    """
    name, branch = hub.parse_address(repository)
    if licence is not None and not _LICENCE.fullmatch(licence):
        raise UserError(
            f"Expected a licence as the hub spells it, such as apache-2.0, got {licence!r}. Fix: take the "
            "identifier from the hub's list of licences."
        )
    workspace, base, directory = _open_run(run)
    library_of = library_finder(workspace)
    selected = tuple(dict.fromkeys(experts)) or Library.open(workspace.library).ids()
    if not selected:
        raise UserError(
            f"Expected experts in the library at {workspace.library!s}, got none. Fix: train some with "
            "`elm train`."
        )
    with tempfile.TemporaryDirectory() as temporary:
        stage = storage.path(temporary)
        own: dict[str, files.ExpertDescription] = {}
        scores: dict[str, Sequence[model_card.CardScore]] = {}
        for expert in selected:
            library, place = library_of(expert), stage / files.relative_directory(expert)
            library.copy(expert, place)
            for problem in files.find_problems(place, expert, base.fingerprint):
                raise UserError(problem)
            own[expert], scores[expert] = (
                files.read_description(place),
                model_card.collect_scores(workspace, library, expert),
            )
        repo = _find_or_create(name, branch, private=private)
        there = published_library.file_sizes_by_expert(repo)
        record = published_library.fetch_record(repo) or {}
        if record.get("base", base.fingerprint) != base.fingerprint:
            raise UserError(
                f"Expected a library of base {base.fingerprint} in {name!r}, got one of base "
                f"{record['base']}. Fix: push to another repository."
            )
        old = published_library.fetch_descriptions(repo, there, there, base=base.fingerprint) if there else {}
        same = tuple(expert for expert in selected if expert in old and _are_same(old[expert], own[expert]))
        _require_free(name, [e for e in selected if e in old and e not in same], replace=replace)
        card = model_card.ModelCard(
            name,
            _complete_base_reference(model_card.identify_base(directory, base.fingerprint), record),
            {**old, **own},
            {**model_card.parse_scores(record.get("scores", {})), **scores},
            licence or _text_or_none(record.get("licence")),
        )
        storage.write_json(stage / published_library.RECORD_FILE, model_card.to_record(card))
        storage.write_bytes(stage / published_library.CARD_FILE, model_card.render_card(card).encode())
        added = {
            file: stage / file
            for file in (
                published_library.CARD_FILE,
                published_library.RECORD_FILE,
                *(
                    f"{files.relative_directory(expert)}/{part}"
                    for expert in selected
                    for part in files.FILE_NAMES
                ),
            )
            if (stage / file).exists()
        }
        stale = [  # keys and gates of an expert that is replaced by one without
            f"{files.relative_directory(expert)}/{file}"
            for expert in selected
            for file in files.ADDED_FILES
            if expert not in same and file in there.get(expert, {})
        ]
        stale = [file for file in stale if file not in added]
        message = f"Push {selected[0] if len(selected) == 1 else f'{len(selected)} experts'}"
        commit = hub.commit_files(repo, added, delete=stale, branch=branch, message=message)
    return PushResult(name, commit, selected, same, tuple(sorted(card.experts)))


def pull(
    repository: str,
    *,
    only: str | None = None,
    run: storage.PathLike = DEFAULT_RUN,
    replace: bool = False,
) -> PullResult:
    """Copies experts of a repository into a run's library, byte for byte, each completely or not at all.

    The repository is checked before its files are fetched: it may hold only the files of a library, nothing
    is unpickled, and no file may be larger than its description says.

    Args:
        repository: `owner/name` or `owner/name@revision`, with or without `hf:`.
        only: An id, or a pattern of ids as in file names; default: all.
        run: The run's directory.
        replace: Whether an expert of the library that has the same id is replaced.

    Returns:
        What was pulled.

    Raises:
        UserError: If an expert has another base, is damaged, or clashes with another one of its id; if the
            repository holds a pickle or another file that does not belong to a library; if the hub refuses.
    """
    name, revision = hub.parse_address(repository)
    workspace, base, _ = _open_run(run)
    repo = hub.list_files(name, revision, cached=published_library.FILE_PATTERNS)
    there = published_library.file_sizes_by_expert(repo)
    selected = tuple(published_library.select_experts(repo, there, only))
    described = published_library.fetch_descriptions(repo, there, selected, base=base.fingerprint)
    for expert, description in described.items():
        _require_fit(name, expert, description, base)
    remove_leftovers(workspace)
    library = Library.open(workspace.library, create=True)
    old = {expert: library.describe(expert) for expert in selected if expert in library}
    same = [expert for expert in old if _are_same(old[expert], described[expert])]
    _require_free(str(library.root), [expert for expert in old if expert not in same], replace=replace)
    # Keys and gates may come later than the expert.
    added = {expert: set(files.ADDED_FILES) & set(there[expert]) for expert in same}
    whole = [expert for expert in same if added[expert] <= library.added_files(expert)]
    missing = [expert for expert in selected if expert not in whole]
    if missing:
        source = published_library.fetch_experts(repo, there, missing)
        for expert in missing:
            place = source / files.relative_directory(expert)
            if expert in same:
                library.add_missing_files(expert, place)
            else:
                _add_copy(library, place, name, expert, replace=expert in old)
    return PullResult(name, repo.commit, selected, tuple(whole))


def _open_run(run: storage.PathLike) -> tuple[Workspace, Base, str]:
    """Returns a run's directories, its base, and the base's directory."""
    workspace = Workspace.open(run)
    directory = str(settings.base_directory(workspace))
    return workspace, load.load_base(directory), directory


def _find_or_create(name: str, branch: str | None, *, private: bool) -> hub.RepositoryFiles:
    """Returns the files of a repository, which is created if it is absent."""
    try:
        return hub.list_files(name, branch)
    except hub.RepositoryNotFoundError:
        if branch is not None:
            raise
    hub.create_repository(name, private=private)
    return hub.list_files(name)


def _complete_base_reference(
    found: model_card.BaseReference, record: Mapping[str, object]
) -> model_card.BaseReference:
    """Returns the base with its repository, that of the old card if this run does not know it."""
    repository, revision = _text_or_none(record.get("base_model")), _text_or_none(record.get("base_revision"))
    if found.repository or not repository:
        return found
    return model_card.BaseReference(found.fingerprint, repository, revision)


def _add_copy(library: Library, place: epath.Path, name: str, expert: str, *, replace: bool) -> None:
    try:
        library.add_copy(place, replace=replace)
    except UserError as error:
        raise UserError(
            f"Expected sound files of expert {expert!r} in {name!r}, got damaged ones ({error}) Fix: push it "
            "again."
        ) from None


def _require_fit(name: str, expert: str, description: files.ExpertDescription, base: Base) -> None:
    """Checks that the base has a place for the parameters of an expert, by their names and shapes."""
    shapes = {path: jax.ShapeDtypeStruct(shape, "float32") for path, shape in description.shapes.items()}
    what = f"Expert {expert!r} of {name!r}"
    require_matching_shapes(paths.unflatten(shapes), base.config, what=what, kind=description.spec.kind)


def _require_free(where: str, clashing: Sequence[str], *, replace: bool) -> None:
    if clashing and not replace:
        raise UserError(
            f"Expected no other expert {clashing[0]!r} in {where!r}, got one with other parameters "
            f"({len(clashing)} in all). Fix: replace it with --replace, or leave it out."
        )


def _are_same(one: files.ExpertDescription, other: files.ExpertDescription) -> bool:
    return (one.checksum, one.spec.base, one.spec.kind) == (other.checksum, other.spec.base, other.spec.kind)


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
