"""Result files: the headers of kept scores and answers, which say how an expert did."""

from typing import Any

from etils import epath

from elm_jax import storage
from elm_jax.errors import DamagedResultsError


def read_header(file: epath.Path) -> dict[str, Any] | None:
    """Returns the header of a file of scores or answers; None if it is another file.

    Files of the first versions have no checksum, and are believed.

    Raises:
        DamagedResultsError: If the file was changed after it was written.
    """
    header, _, is_whole = storage.read_sealed_lines(file)
    if is_whole is False and header is not None:
        raise damaged_results(file)
    return header


def damaged_results(file: epath.Path) -> DamagedResultsError:
    """Returns the error of a file of scores or answers that is not as it was written."""
    return DamagedResultsError(
        f"Expected results as they were written in {str(file)!r}, got a file that was changed or damaged. "
        "Fix: delete it, and run `elm evaluate` again."
    )
