"""Library: a directory of experts, each in a directory of its own.

    <root>/<dataset>/<prompt>/expert.json  params.safetensors  keys.safetensors  gates.safetensors

Adding, replacing or removing one expert touches no other. At every instant each is complete or absent
(`atomic_dir`), so any number of processes may read and write one library. Of those that write one expert,
each waits for the one before.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from etils import epath

from elm_jax import hub, locks, names, storage
from elm_jax.errors import UserError
from elm_jax.experts import atomic_dir, compatibility, files, gate_files, published_library, versions
from elm_jax.frames import to_frame
from elm_jax.models import paths
from elm_jax.records import Expert, ExpertSpec, Gates, Keys
from elm_jax.session.run_directory import Workspace

T = TypeVar("T")
_LOCK_NAME = re.compile(r"\.(.+)\.lock")


def _existing_library(path: storage.PathLike) -> epath.Path:
    remedy = "Train experts into it with `elm train`, or name another directory."
    return storage.existing_directory(path, what="A library of experts", remedy=remedy)


@dataclass(frozen=True)
class LibraryProblem:
    """A problem that `Library.verify` found.

    Attributes:
        expert: The expert's id.
        problem: What is wrong and how to fix it.
    """

    expert: str
    problem: str


@dataclass(frozen=True)
class ExpertSize:
    """How large an expert is.

    Attributes:
        parameters: How many numbers it has.
        bytes: The bytes of all its files.
    """

    parameters: int
    bytes: int


# Plain at run time: a checker of types would load an expert to see whether the values are experts.
_ExpertMapping = Mapping[str, Expert] if TYPE_CHECKING else Mapping


@dataclass(frozen=True, init=False, eq=False)
class Library(_ExpertMapping):
    """A directory of experts: a mapping from their ids, which loads one when it is asked for.

    It reads files at every call and caches nothing. Any number of processes may read and write one library.

    Attributes:
        root: The directory.
        address: For a library of the Hugging Face hub, `hf:owner/name` or `hf:owner/name@revision`. It is in
            the hub's cache and read-only.
    """

    root: epath.Path
    address: str | None = None

    def __init__(self, root: Any, address: str | None = None) -> None:
        """Opens a library.

        Args:
            root: A directory, `hf:owner/name` or `hf:owner/name@revision`, or an open run.
            address: Where the directory was fetched from.

        Raises:
            UserError: If there is no such directory or library.
        """
        workspace = getattr(root, "workspace", None)  # of an open run, whose class imports the network
        if isinstance(workspace, Workspace):
            root = workspace.library
        elif isinstance(root, str) and root.startswith(hub.HUB_PREFIX):
            address, root = root, published_library.fetch_library(root)
        elif not isinstance(root, epath.Path):  # our own rooms name directories that need not exist yet
            root = _existing_library(root)
        object.__setattr__(self, "root", root)
        object.__setattr__(self, "address", address)

    @classmethod
    def open(cls, path: storage.PathLike, *, create: bool = False) -> "Library":
        """Opens the library in a directory, or fetches one of the hub.

        Args:
            path: A directory, or `hf:owner/name` or `hf:owner/name@revision` for a library of the hub.
            create: Whether a missing directory is created.

        Raises:
            UserError: If there is no such directory or library, or if the directory cannot be created.
        """
        if str(path).startswith(hub.HUB_PREFIX):
            return cls(published_library.fetch_library(str(path)), str(path))
        return cls(storage.writable_directory(path) if create else _existing_library(path))

    def __repr__(self) -> str:
        return f"Library({self.address or str(self.root)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Library) and (self.root, self.address) == (other.root, other.address)

    def __hash__(self) -> int:
        return hash((self.root, self.address))

    def __len__(self) -> int:
        return len(self.ids())

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids())

    def __getitem__(self, identifier: str) -> Expert:
        return self.load_expert(identifier)

    def get(self, identifier: str, default: Any = None) -> Any:
        """Returns an expert, or the default if there is none of that id."""
        return self.load_expert(identifier) if identifier in self else default

    def to_pandas(self) -> Any:
        """Returns a DataFrame with a line for each expert: id, kind, steps, datasets, parameters, bytes."""
        lines = []
        for description, size, _ in map(self.summarize, self.ids()):
            spec = description.spec
            about = {name: getattr(spec, name) for name in ("id", "kind", "steps", "datasets", "base")}
            lines.append({**about, "parameters": size.parameters, "bytes": size.bytes})
        return to_frame(lines)

    def ids(self) -> tuple[str, ...]:
        """Returns the ids of all experts, sorted; what killed writers left is not among them."""
        return tuple(
            sorted(
                f"{names.from_directory_name(dataset.name)}/{names.from_directory_name(name)}"
                for dataset in self._datasets()
                for name in atomic_dir.list_complete(dataset, files.SPEC_FILE)
                if names.is_directory_name(name)
            )
        )

    def __contains__(self, identifier: object) -> bool:
        """Returns whether there is an expert with that id."""
        if not isinstance(identifier, str):
            return False
        try:
            return atomic_dir.locate(self._directory(identifier), files.SPEC_FILE) is not None
        except UserError:
            return False  # it has not the form of an id

    def spec(self, identifier: str) -> ExpertSpec:
        """Returns an expert's spec without reading its parameters.

        Raises:
            UserError: If there is no such expert.
        """
        return self.describe(identifier).spec

    def describe(self, identifier: str) -> files.ExpertDescription:
        """Returns an expert's description without reading its parameters.

        Raises:
            UserError: If there is no such expert.
        """
        return self._read(identifier, files.read_description)

    def load_expert(self, identifier: str, *, base: str | None = None) -> Expert:
        """Loads an expert, with its parameters as NumPy arrays.

        Args:
            identifier: The expert's id.
            base: The fingerprint of the base that it must have been trained on; default: any.

        Raises:
            UserError: If there is no such expert, its files are damaged, or it was trained on another base,
                which is checked before any parameter is read.
        """
        files.require_base(self.spec(identifier), base)
        description, flat = self.read_params(identifier)
        return Expert(description.spec, paths.unflatten(flat))

    def read_params(self, identifier: str) -> tuple[files.ExpertDescription, dict[str, np.ndarray]]:
        """Returns an expert's description, and the parameters by path that belong to it.

        Raises:
            UserError: If there is no such expert, or its files are damaged.
        """

        def read(directory: epath.Path) -> tuple[files.ExpertDescription, dict[str, np.ndarray]]:
            description = files.read_description(directory)
            return description, files.read_params(directory, description)

        return self._read(identifier, read)

    def has_keys(self, identifier: str) -> bool:
        """Returns whether an expert has keys."""
        return self._read(identifier, lambda directory: (directory / files.KEYS_FILE).exists())

    def load_keys(self, identifier: str) -> Keys:
        """Loads an expert's keys.

        Raises:
            UserError: If it has none, or they are damaged.
        """
        if not self.has_keys(identifier):
            raise UserError(
                f"Expected keys of expert {identifier!r}, got none. Fix: embed them with `elm index`."
            )
        return self._read(identifier, lambda directory: files.read_keys(directory, identifier))

    def has_gates(self, identifier: str) -> bool:
        """Returns whether an expert has gates."""
        return self._read(identifier, lambda directory: (directory / gate_files.GATES_FILE).exists())

    def load_gates(self, identifier: str) -> Gates:
        """Loads an expert's gates.

        Raises:
            UserError: If it has none, or they are damaged.
        """
        if not self.has_gates(identifier):
            raise UserError(
                f"Expected gates of expert {identifier!r}, got none. Fix: train them with `elm train "
                "--gates`."
            )

        def read(directory: epath.Path) -> Gates:
            about = files.read_description(directory)
            return gate_files.read_gates(directory, identifier, about.checksum, about.shapes)

        return self._read(identifier, read)

    def load_stack(self, identifiers: Sequence[str], *, base: str | None = None) -> dict[str, Any]:
        """Loads several experts into one tree, with arrays [E, …] in the order of the ids.

        To load experts again and again, use an `expert_cache.ExpertCache`.

        Args:
            identifiers: The ids of experts of one kind and shape.
            base: The fingerprint of the base that they must have been trained on; default: any.

        Raises:
            UserError: If an expert is unknown, was trained on another base, or differs from the first in
                kind, base, paths or shapes, which is checked before any parameter is read; if its files are
                damaged.
        """
        descriptions = [self.describe(identifier) for identifier in identifiers]
        for description in descriptions:
            files.require_base(description.spec, base)
        compatibility.require_compatible(
            [(description.spec, description.shapes) for description in descriptions]
        )
        first = descriptions[0]
        stacked = {
            path: np.empty(
                (len(identifiers), *shape),
                np.result_type(*{np.dtype(description.dtypes[path]) for description in descriptions}),
            )
            for path, shape in first.shapes.items()
        }
        for position, identifier in enumerate(identifiers):
            description, flat = self.read_params(identifier)
            # Another writer may have replaced the expert since it was described.
            compatibility.require_compatible(
                [(first.spec, first.shapes), (description.spec, description.shapes)]
            )
            for path, value in flat.items():
                stacked[path][position] = value
        return paths.unflatten(stacked)

    def add(
        self, expert: Expert, keys: Keys | None = None, *, replace: bool = False, owner: str | None = None
    ) -> None:
        """Adds an expert to the library, completely or not at all.

        Args:
            expert: The expert.
            keys: Its keys, if it has them.
            replace: Whether an expert of that id is replaced.
            owner: The owner's name; default: the user of this process.

        Raises:
            UserError: If there is an expert of that id and `replace` is False, if spec and parameters differ,
                or if the files cannot be written.
        """

        def fill(directory: epath.Path) -> None:
            files.write(directory, expert, keys, owner)

        self._write(expert.spec.id, fill, replace=replace)

    def add_copy(self, directory: storage.PathLike, *, replace: bool = False) -> str:
        """Copies an expert's directory into the library byte by byte, completely or not at all.

        Args:
            directory: The directory of an expert.
            replace: Whether an expert of that id is replaced.

        Returns:
            The expert's id.

        Raises:
            UserError: If its files are damaged, or if there is an expert of that id and `replace` is False.
        """
        source = storage.path(directory)
        source = versions.find_current_version(source, files.SPEC_FILE) or source
        identifier = files.read_description(source).spec.id
        for problem in files.find_problems(source, identifier, None):
            raise UserError(problem)
        self._write(identifier, lambda place: files.copy(source, place), replace=replace)
        return identifier

    def added_files(self, identifier: str) -> set[str]:
        """Returns which of `files.ADDED_FILES` an expert has."""
        return self._read(
            identifier, lambda place: {name for name in files.ADDED_FILES if (place / name).exists()}
        )

    def add_missing_files(self, identifier: str, directory: storage.PathLike) -> None:
        """Adds the keys and gates that an expert lacks, from the directory of the same expert elsewhere.

        Raises:
            UserError: If they are damaged, or the other expert has other parameters.
        """
        source, own = storage.path(directory), self.added_files(identifier)
        for problem in files.find_problems(source, identifier, None):
            raise UserError(problem)
        about = files.read_description(source)
        if files.KEYS_FILE not in own and (source / files.KEYS_FILE).exists():
            self.write_keys(identifier, files.read_keys(source, identifier))
        if gate_files.GATES_FILE not in own and (source / gate_files.GATES_FILE).exists():
            gates = gate_files.read_gates(source, identifier, about.checksum, about.shapes)
            self.write_gates(identifier, gates)

    def copy(self, identifier: str, directory: storage.PathLike) -> None:
        """Copies an expert's files byte by byte, all of one state, into a directory without other files.

        Raises:
            UserError: If there is no such expert.
        """
        self._read(identifier, lambda place: files.copy(place, storage.path(directory)))

    def remove(self, identifier: str) -> None:
        """Removes an expert from the library.

        Raises:
            UserError: If there is no such expert.
        """
        self._require_writable()
        directory = self._directory(identifier)
        if atomic_dir.locate(directory, files.SPEC_FILE) is None:
            raise self._unknown_error(identifier)
        with self._lock(identifier):
            atomic_dir.remove(directory)

    def remove_all(self, identifiers: Iterable[str]) -> None:
        """Removes those of the experts that are in the library."""
        for identifier in identifiers:
            if identifier in self:
                self.remove(identifier)

    def write_keys(self, identifier: str, keys: Keys) -> None:
        """Writes or replaces an expert's keys; its other files stay as they are.

        Raises:
            UserError: If there is no such expert.
        """
        self._require_writable()
        if identifier not in self:
            raise self._unknown_error(identifier)
        with self._lock(identifier):
            self._read(identifier, lambda place: files.write_keys(place, identifier, keys))

    def write_gates(self, identifier: str, gates: Gates) -> None:
        """Writes or replaces an expert's gates; its other files stay as they are.

        Raises:
            UserError: If there is no such expert, or it has other parameters than the gates were trained for.
        """
        self._require_writable()
        if identifier not in self:
            raise self._unknown_error(identifier)

        def write(place: epath.Path) -> None:
            about = files.read_description(place)
            if gates.checksum != about.checksum:
                raise UserError(
                    f"Expected gates of {identifier!r} with the parameters {about.checksum}, got those of "
                    f"{gates.checksum}. Fix: train them again with `elm train --gates`."
                )
            gate_files.write_gates(place, identifier, about.shapes, gates)

        with self._lock(identifier):
            self._read(identifier, write)

    def remove_gates(self, identifier: str) -> None:
        """Removes an expert's gates; its other files stay as they are."""
        self._require_writable()
        with self._lock(identifier):
            self._read(identifier, lambda place: (place / gate_files.GATES_FILE).unlink(missing_ok=True))

    def remove_unfinished(self) -> None:
        """Deletes what killed writers left, and puts back what they set aside to replace it."""
        for dataset in self._datasets():
            left = [name for name, _ in atomic_dir.list_unfinished(dataset, files.SPEC_FILE)]
            entries = [entry.name for entry in dataset.iterdir()]
            left += [match[1] for match in map(_LOCK_NAME.fullmatch, entries) if match]  # of a killed writer
            for name in sorted(set(left)):
                with locks.attempt(atomic_dir.lock_file(dataset / name), "elm experts") as held:
                    if held:  # otherwise its writer is alive
                        atomic_dir.recover(dataset / name, files.SPEC_FILE)

    def fingerprint(self, identifier: str) -> str:
        """Returns what stands for all of an expert: its description, parameters, keys and gates.

        Raises:
            UserError: If there is no such expert.
        """

        def read(place: epath.Path) -> str:
            # The description has the checksum of the parameters.
            parts = [place / name for name in (files.SPEC_FILE, *files.ADDED_FILES)]
            return storage.fingerprint([storage.file_fingerprint(part) for part in parts if part.exists()])

        return self._read(identifier, read)

    def summarize(self, identifier: str) -> tuple[files.ExpertDescription, ExpertSize, bool]:
        """Returns an expert's description, its size, and whether it has keys; parameters are not read.

        Raises:
            UserError: If there is no such expert, or its description cannot be read.
        """

        def read(place: epath.Path) -> tuple[files.ExpertDescription, ExpertSize, bool]:
            description = files.read_description(place)
            sizes = {name: storage.file_size(place / name) for name in files.FILE_NAMES}
            parameters = sum(math.prod(shape) for shape in description.shapes.values())
            return description, ExpertSize(parameters, sum(sizes.values())), sizes[files.KEYS_FILE] > 0

        return self._read(identifier, read)

    def sizes(self, identifiers: Iterable[str] | None = None) -> dict[str, ExpertSize]:
        """Returns the size of experts by id, without reading their parameters; default: of all."""
        return {
            identifier: self.summarize(identifier)[1]
            for identifier in (self.ids() if identifiers is None else identifiers)
        }

    def verify(
        self, identifiers: Iterable[str] | None = None, *, base: str | None = None
    ) -> list[LibraryProblem]:
        """Reads experts completely and returns what is wrong.

        It finds files that cannot be read, wrong checksums of parameters, keys and gates, and parameters
        that are missing, unknown or of another shape.

        Args:
            identifiers: The ids of experts; default: all, and what killed writers left.
            base: The fingerprint of the base that experts should have; default: any.

        Returns:
            The problems; none if all is sound.
        """
        found = [] if identifiers is not None else self._find_unfinished()
        for identifier in self.ids() if identifiers is None else identifiers:
            # Not with `_read`, which would raise the errors that are to be returned.
            place = atomic_dir.locate(self._directory(identifier), files.SPEC_FILE)
            if place is None:
                raise self._unknown_error(identifier)
            problems = files.find_problems(place, identifier, base)
            found += [LibraryProblem(identifier, problem) for problem in problems]
        return found

    def _find_unfinished(self) -> list[LibraryProblem]:
        return [
            LibraryProblem(
                f"{names.from_directory_name(dataset.name)}/{names.from_directory_name(name)}",
                f"Expected no unfinished expert, got {remains!s}, which a killed writer left. Fix: if no "
                "writer is at work, delete that directory, and add the expert again if it is missing.",
            )
            for dataset in self._datasets()
            for name, remains in atomic_dir.list_unfinished(dataset, files.SPEC_FILE)
        ]

    def _datasets(self) -> list[epath.Path]:
        return [entry for entry in atomic_dir.list_directories(self.root) if not entry.name.startswith(".")]

    def _directory(self, identifier: str) -> epath.Path:
        return self.root / files.relative_directory(identifier)

    def _write(self, identifier: str, fill: Callable[[epath.Path], None], *, replace: bool) -> None:
        self._require_writable()
        try:
            with self._lock(identifier):
                atomic_dir.write(self._directory(identifier), files.SPEC_FILE, fill, replace=replace)
        except FileExistsError:
            raise UserError(
                f"Expected no expert {identifier!r} in the library at {self.root!s}, got one. Fix: replace "
                "it (--replace), or remove it first."
            ) from None

    def _lock(self, identifier: str) -> AbstractContextManager[None]:
        """Holds an expert against other writers."""
        return atomic_dir.lock(self._directory(identifier))

    def _require_writable(self) -> None:
        if self.address is not None:
            raise UserError(
                f"Expected a directory as a library to write to, got {self.address!r}, which is only read. "
                "Fix: pull it into a run with `elm experts pull`, and push experts with `elm experts push`."
            )

    def _read(self, identifier: str, reader: Callable[[epath.Path], T]) -> T:
        try:
            return atomic_dir.read(self._directory(identifier), files.SPEC_FILE, reader)
        except FileNotFoundError:
            raise self._unknown_error(identifier) from None

    def _unknown_error(self, identifier: str) -> UserError:
        try:
            names.resolve(identifier, self.ids(), kind="expert", where=f"the library at {self.root!s}")
        except UserError as error:
            return error
        return UserError(
            f"Expected expert {identifier!r} to stay as it is while it is read, got another writer. Fix: try "
            "again."
        )
