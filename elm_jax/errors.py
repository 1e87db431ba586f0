"""The error a person can mend: it says what was expected, what was given and what to do.

Everything a user can get wrong (a name, a path, a file, a macro) raises `UserError`; the command line
prints its text alone and exits with code 2. `TrainingStopped` is no error. Any other exception is a defect of
ours and keeps its traceback.
"""

import re
from collections.abc import Sequence
from typing import Literal

from elm_jax.controls import escape_controls

RowReason = Literal[
    "does not apply",
    "no element",
    "outside choices",
    "empty input",
    "empty target",
    "label",
    "missing value",
    "too long",
    "unstable text",
    "rendering fails",
]
"""Why a row cannot be used.

does not apply   the template gives no target for it
no element       the template looks up what a mapping or a list of the row does not have
outside choices  the target is none of the choices
empty input      the input is empty
empty target     the target is empty
label            the label is negative, too large, or withheld
missing value    a value that the template reads is null, NaN or empty
too long         a text is longer than a template can take
unstable text    the text would be another in another process: a set, a method, the address of an object
rendering fails  the template raises any other error
"""


_LONG_WORD = re.compile(r"(\S{800})\S{200,}(\S{200})")


class UserError(Exception):
    """What was expected, what was given and what to do, in one sentence without control characters.

    What was given may be of any size: a word of more than 1,200 characters is cut in its middle.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(escape_controls(_LONG_WORD.sub(r"\1…\2", message)))


class TrainingStopped(Exception):
    """A training that was asked to stop, and has saved its state.

    Attributes:
        batch: after which it stopped.
    """

    def __init__(self, batch: int) -> None:
        super().__init__(f"Stopped after batch {batch}. Give the same command to go on from there.")
        self.batch = batch


class ContaminationError(UserError):
    """An expert was about to be scored as zero-shot on a dataset it was trained on."""


class OutOfMemoryError(UserError):
    """Not even the smallest group and batch fit a device's memory."""


class MissingDatasetRowsError(UserError):
    """Rows of a dataset that are not here; of a group the other datasets are evaluated."""


class DamagedResultsError(UserError):
    """A file of results that was changed after it was written; what it holds is computed again."""


class RowError(UserError):
    """A row that cannot be used.

    Attributes:
        reason: Why.
        column: The column that the row lacks, if that is why.
    """

    def __init__(self, message: str, reason: RowReason, column: str | None = None) -> None:
        super().__init__(message)
        self.reason: RowReason = reason
        self.column = column


class UntrustedCodeError(UserError):
    """Code that somebody else may have written was about to run.

    Attributes:
        files: The files.
    """

    def __init__(self, message: str, files: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.files = tuple(files)


_EXHAUSTED = (
    "RESOURCE_EXHAUSTED",
    "bad_alloc",
    "Cannot allocate memory",
    "failed to map segment",
    "can't start new thread",
)


def describe_lack_of_memory(error: BaseException | None) -> str | None:
    """Returns a sentence if an error, or what it came from, is that memory ran out; None otherwise.

    Programs, allocators and the system each say it in a way of their own.
    """
    while error is not None:
        if isinstance(error, MemoryError) or any(text in str(error) for text in _EXHAUSTED):
            said = (str(error).splitlines() or [""])[0][:200]
            return (
                f"Expected enough memory, got none left ({said or type(error).__name__}). Fix: free memory, "
                "raise the limit of this process, or take smaller batches; the same command goes on then."
            )
        error = error.__cause__ or error.__context__
    return None
