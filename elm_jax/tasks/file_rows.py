"""File rows: the rows of files, each read when it is asked for, so that memory does not grow with a file."""

import bisect
import itertools
import os
from array import array
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from io import IOBase
from typing import IO, Any, TypeVar

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.tasks.unpacked_files import UTF_8, unpack_file

FileRow = dict[str, Any]
AnyRows = TypeVar("AnyRows", bound=Sized)


@dataclass(frozen=True, eq=False)
class FileRows:
    """The rows of files.

    Attributes:
        size: Number of rows.
        take: Yields the rows of some numbers, from 0, in the order of the numbers.
    """

    size: int
    take: Callable[[Sequence[int]], Iterator[FileRow]]

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[FileRow]:
        return self.take(range(self.size))


class RecordIndex:
    """Where the records of a text file begin, in bytes and lines; `rows` reads them one by one."""

    def __init__(self, file: storage.PathLike, encoding: str = UTF_8) -> None:
        self.file, self.encoding = file, encoding
        self._places, self._lines = array("q"), array("q")

    def add(self, place: int, line: int) -> None:
        """Adds a record that begins at a byte of the file, in a line that counts from 1."""
        self._places.append(place)
        self._lines.append(line)

    def rows(self, end: int, parse: Callable[[str, str], FileRow]) -> FileRows:
        """Returns the rows of the records that were added.

        Args:
            end: The byte after the last record.
            parse: Makes a row of a record's text and its place, for errors.

        Raises:
            UserError: If no record was added.
        """
        file, encoding, lines = self.file, self.encoding, self._lines
        edges = self._places + array("q", [end])

        def take(numbers: Sequence[int]) -> Iterator[FileRow]:
            with open_file(file, encoding) as stream:
                for number in numbers:
                    where = f"{str(file)!r}, line {lines[number]}"
                    stream.seek(edges[number])
                    yield parse(decode(stream.read(edges[number + 1] - edges[number]), where), where)

        return require_rows(FileRows(len(lines), take), file)


def hold_rows_in_memory(rows: Sequence[FileRow]) -> FileRows:
    """Returns rows that are in memory."""
    return FileRows(len(rows), lambda numbers: (rows[number] for number in numbers))


def join_rows(parts: Sequence[FileRows]) -> FileRows:
    """Returns the rows of several files, one file after the other."""
    if len(parts) == 1:
        return parts[0]
    edges = list(itertools.accumulate(map(len, parts), initial=0))

    def part_of(number: int) -> int:
        return bisect.bisect_right(edges, number) - 1

    def take(numbers: Sequence[int]) -> Iterator[FileRow]:
        for part, chosen in itertools.groupby(numbers, part_of):
            yield from parts[part].take([number - edges[part] for number in chosen])

    return FileRows(edges[-1], take)


def open_file(file: storage.PathLike, encoding: str = UTF_8) -> IO[bytes] | IOBase:
    """Opens a file of rows to read its bytes, as UTF-8; one that ends with .gz or .zst is unpacked.

    Raises:
        UserError: If it is missing or cannot be read.
    """
    path = storage.path(file)
    try:
        if path.suffix in (".gz", ".zst") or encoding != UTF_8:
            return open(unpack_file(os.fspath(path), encoding, file_version(path)).name, "rb")
        return path.open("rb")
    except OSError as error:
        raise UserError(
            f"Expected rows in {str(file)!r}, got: {error.strerror or error}. Fix: correct the path."
        ) from error


def file_version(file: storage.PathLike) -> tuple[int, int]:
    """Returns the size of a file and when it was written; of a file that is missing, zeros."""
    where = storage.path(file)
    if not where.exists():  # the reader raises the error
        return 0, 0
    if "://" in os.fspath(where):
        stat = where.stat()
        return stat.length, int(stat.mtime)
    stat = os.stat(where)
    return stat.st_size, stat.st_mtime_ns


def decode(content: bytes, where: str) -> str:
    """Returns the text of UTF-8 bytes that have no NUL; `where` names their place in errors."""
    if b"\0" in content:
        raise UserError(f"{where}: expected text, got a NUL byte. Fix: remove it.")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: expected UTF-8, got other bytes. Fix: save the file as UTF-8.") from error


def require_rows(rows: AnyRows, file: storage.PathLike) -> AnyRows:
    """Returns a file's rows; raises if there are none."""
    if not rows:
        raise UserError(f"Expected rows in {str(file)!r}, got none. Fix: name another file.")
    return rows
