"""The error a person can mend: it says what was wanted, what came and what to do.

Everything a user can get wrong (a name, a path, a file, a macro) raises `UserError`; the command line
prints its text alone and exits with code 2. Any other exception is a defect of ours and keeps its traceback.
"""

from collections.abc import Sequence

from elm_jax.controls import escape_controls


class UserError(Exception):
    """What was wanted, what came and what to do, in one clear sentence without control characters."""

    def __init__(self, message: str = "") -> None:
        super().__init__(escape_controls(message))


class ContaminationError(UserError):
    """An expert was about to be scored as zero-shot on a dataset it was trained on."""


class OutOfMemoryError(UserError):
    """Not even the smallest group and batch fit a device's memory."""


class UntrustedCodeError(UserError):
    """Code that somebody else may have written was about to run.

    Attributes:
        files: The files.
    """

    def __init__(self, message: str, files: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.files = tuple(files)
