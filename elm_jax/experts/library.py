"""Store: a library is a directory of experts, each complete in itself.

    <root>/<dataset>/<prompt>/expert.json  params.safetensors  keys.safetensors

Adding, replacing or removing one expert touches no other, and at every instant each is whole or absent
(`swap`), so any number of processes may read and write one library.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from etils import epath

from elm_jax import hub, names, storage
from elm_jax.errors import UserError
from elm_jax.experts import atomic_dir, compatibility, files, published_library
from elm_jax.models import paths
from elm_jax.records import Expert, ExpertSpec, Keys

T = TypeVar("T")


@dataclass(frozen=True)
class LibraryProblem:
    """Something wrong in a library, and what to do about it."""

    expert: str
    problem: str


@dataclass(frozen=True)
class ExpertSize:
    """How large an expert is."""

    parameters: int
    bytes: int  # of all its files


@dataclass(frozen=True)
class Library:
    """A directory of experts, each complete in itself; `Library.open(path)` makes one.

    It holds nothing but its `root`, a path: what it returns is what is there now. Any number of processes may
    read and write one library at once. One of the hub has its `address` too: it lies in the hub's cache, and
    is only read.
    """

    root: epath.Path
    address: str | None = None  # hf:owner/name or hf:owner/name@revision, where it was fetched from

    @classmethod
    def open(cls, path: storage.PathLike, *, create: bool = False) -> "Library":
        """Opens the library in a directory; with `create` an absent directory is made.

        `hf:owner/name` or `hf:owner/name@revision` is a library of the hub, which is fetched where the hub's
        cache lacks it.

        Raises a UserError if there is no such directory or library, or if the directory cannot be made.
        """
        if str(path).startswith(hub.HUB):
            return cls(published_library.fetch_library(str(path)), str(path))
        if create:
            return cls(storage.writable_directory(path))
        remedy = "Train experts into it with `elm train`, or give the directory of another library."
        return cls(storage.existing_directory(path, what="A library of experts", remedy=remedy))

    def ids(self) -> tuple[str, ...]:
        """Returns the ids of all experts, sorted; what a killed writer left unfinished is not among them."""
        return tuple(
            sorted(
                f"{names.from_directory_name(dataset.name)}/{names.from_directory_name(name)}"
                for dataset in self._datasets()
                for name in atomic_dir.list_complete(dataset, files.SPEC_FILE)
                if names.directory_name(names.from_directory_name(name)) == name
            )
        )

    def __contains__(self, identifier: str) -> bool:
        """Says whether there is an expert of that id."""
        try:
            return atomic_dir.locate(self._home(identifier), files.SPEC_FILE) is not None
        except UserError:
            return False  # what can be no id

    def spec(self, identifier: str) -> ExpertSpec:
        """Returns an expert's spec without reading its parameters; a UserError if there is no such expert."""
        return self.describe(identifier).spec

    def describe(self, identifier: str) -> files.ExpertDescription:
        """Returns an expert's spec and the shapes of its parameters, which are not read."""
        return self._read(identifier, files.read_description)

    def expert(self, identifier: str, *, base: str | None = None) -> Expert:
        """Returns an expert with its parameters as NumPy arrays.

        Raises a UserError if there is no such expert, if its files are damaged, or, before any parameter is
        read, if it was not trained on `base`.
        """
        _require_base([self.describe(identifier)], base)
        description, flat = self.read(identifier)
        return Expert(description.spec, paths.unflatten(flat))

    def read(self, identifier: str) -> tuple[files.ExpertDescription, dict[str, np.ndarray]]:
        """Returns what `describe` does, and path -> parameter of the same writing.

        Raises a UserError if there is no such expert, or if its files are damaged.
        """
        return self._read(identifier, _read_params)

    def has_keys(self, identifier: str) -> bool:
        """Says whether an expert's keys have been embedded."""
        return self._read(identifier, lambda place: (place / files.KEYS_FILE).exists())

    def keys(self, identifier: str) -> Keys:
        """Returns an expert's keys; a UserError if it has none, or if they are damaged."""
        if not self.has_keys(identifier):
            raise UserError(f"Expert {identifier!r} has no keys yet. Run `elm index` to embed them.")
        return self._read(identifier, lambda place: files.read_keys(place, identifier))

    def load(self, identifiers: Sequence[str], *, base: str | None = None) -> dict[str, Any]:
        """Returns the parameters of several experts stacked, every array [E, …] in the order of the ids.

        Raises a UserError, before any parameter is read, if an expert is unknown, was not trained on `base`,
        or does not fit the first one in kind, base, paths or shapes; and if its files are damaged. What is
        to be loaded again and again is better taken from a `shelf.Shelf`, which keeps what fits.
        """
        descriptions = [self.describe(identifier) for identifier in identifiers]
        _require_base(descriptions, base)
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
            description, flat = self.read(identifier)
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
        """Puts an expert into the library, whole or not at all; its owner is the user without another.

        Raises a UserError if an expert of that id is there already and `replace` was not asked for, if spec
        and parameters differ, or if the files cannot be written.
        """

        def fill(directory: epath.Path) -> None:
            files.write(directory, expert, keys, owner)

        self._write(expert.spec.id, fill, replace=replace)

    def add_copy(self, directory: storage.PathLike, *, replace: bool = False) -> str:
        """Copies an expert's directory into the library byte by byte, whole or not at all; returns its id.

        Raises a UserError if its files are damaged, or if an expert of that id is there already and `replace`
        was not asked for.
        """
        source = storage.path(directory)
        identifier = files.read_description(source).spec.id
        for problem in files.find_problems(source, identifier, None):
            raise UserError(problem)
        self._write(identifier, lambda place: files.copy(source, place), replace=replace)
        return identifier

    def copy(self, identifier: str, directory: storage.PathLike) -> None:
        """Copies an expert's files byte by byte into a directory that has no others; they belong together.

        Raises a UserError if there is no such expert.
        """
        self._read(identifier, lambda place: files.copy(place, storage.path(directory)))

    def remove(self, identifier: str) -> None:
        """Takes an expert out of the library; a UserError if there is none of that id."""
        self._require_writable()
        home = self._home(identifier)
        if atomic_dir.locate(home, files.SPEC_FILE) is None:
            raise self._unknown(identifier)
        atomic_dir.remove(home)

    def write_keys(self, identifier: str, keys: Keys) -> None:
        """Writes an expert's keys, in place of those it had; its other files stay as they are."""
        self._require_writable()
        self._read(identifier, lambda place: files.write_keys(place, identifier, keys))

    def sizes(self, identifiers: Iterable[str] | None = None) -> dict[str, ExpertSize]:
        """Returns how large experts are, without reading their parameters."""

        def size(place: epath.Path) -> ExpertSize:
            shapes = files.read_description(place).shapes
            parameters = sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes.values())
            return ExpertSize(parameters, sum(_file_bytes(place / name) for name in files.FILE_NAMES))

        return {
            identifier: self._read(identifier, size)
            for identifier in (self.ids() if identifiers is None else identifiers)
        }

    def verify(
        self, identifiers: Iterable[str] | None = None, *, base: str | None = None
    ) -> list[LibraryProblem]:
        """Reads everything and returns what is wrong; nothing if all is sound.

        Looked into are unreadable files, checksums of parameters and keys, missing, unknown and misshapen
        parameters, and, where `base` is given, the base's fingerprint. Without ids it reads the whole
        library, what killed writers left behind included.
        """
        found = [] if identifiers is not None else self._leftovers()
        for identifier in self.ids() if identifiers is None else identifiers:
            # Not by way of `_read`, which would raise what is to be reported.
            place = atomic_dir.locate(self._home(identifier), files.SPEC_FILE)
            if place is None:
                raise self._unknown(identifier)
            problems = files.find_problems(place, identifier, base)
            found += [LibraryProblem(identifier, problem) for problem in problems]
        return found

    def _leftovers(self) -> list[LibraryProblem]:
        return [
            LibraryProblem(
                f"{names.from_directory_name(dataset.name)}/{names.from_directory_name(name)}",
                f"{remains!s} was left behind by a writer that did not finish. If none is at work now, add "
                "the expert anew if it is missing, and delete that directory.",
            )
            for dataset in self._datasets()
            for name, remains in atomic_dir.list_unfinished(dataset, files.SPEC_FILE)
        ]

    def _datasets(self) -> list[epath.Path]:
        return [entry for entry in atomic_dir.list_directories(self.root) if not entry.name.startswith(".")]

    def _home(self, identifier: str) -> epath.Path:
        dataset, prompt = names.split_id(identifier)
        return self.root / names.directory_name(dataset) / names.directory_name(prompt)

    def _write(self, identifier: str, fill: Callable[[epath.Path], None], *, replace: bool) -> None:
        self._require_writable()
        try:
            atomic_dir.write(self._home(identifier), files.SPEC_FILE, fill, replace=replace)
        except FileExistsError:
            raise UserError(
                f"The library at {self.root!s} should have no expert {identifier!r} yet, but it has. Ask for "
                "it to be replaced, or remove it first."
            ) from None

    def _require_writable(self) -> None:
        if self.address is not None:
            raise UserError(
                f"Expected a directory as a library to write to, got {self.address!r}, which is only read. "
                "Fix: bring it into a run with `elm experts pull`, and put experts back with `elm experts "
                "push`."
            )

    def _read(self, identifier: str, reader: Callable[[epath.Path], T]) -> T:
        try:
            return atomic_dir.read(self._home(identifier), files.SPEC_FILE, reader)
        except FileNotFoundError:
            raise self._unknown(identifier) from None

    def _unknown(self, identifier: str) -> UserError:
        try:
            names.resolve(identifier, self.ids(), kind="expert", where=f"the library at {self.root!s}")
        except UserError as error:
            return error
        return UserError(f"Expert {identifier!r} was written by another while it was looked for. Try again.")


def _file_bytes(file: epath.Path) -> int:
    """Returns the bytes of a file, 0 if it is absent; epath's `stat` fails where the owner has no name."""
    if not file.exists():
        return 0
    with file.open("rb") as stream:
        return stream.seek(0, os.SEEK_END) or stream.tell()


def _read_params(place: epath.Path) -> tuple[files.ExpertDescription, dict[str, np.ndarray]]:
    description = files.read_description(place)
    return description, files.read_params(place, description)


def _require_base(descriptions: Iterable[files.ExpertDescription], base: str | None) -> None:
    for description in descriptions:
        if base is not None and description.spec.base != base:
            raise UserError(files.other_base(description.spec, base))
