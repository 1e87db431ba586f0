"""The error a person can mend: it says what was wanted, what came and what to do.

Everything a user can get wrong (a name, a path, a file, a macro) raises `UserError`; the command line
prints its text alone and exits with code 2. Any other exception is a defect of ours and keeps its traceback.
"""


class UserError(Exception):
    """What was wanted, what came and what to do, in one clear sentence."""


class ContaminationError(UserError):
    """An expert was about to be scored as zero-shot on a dataset it was trained on."""


class OutOfMemoryError(UserError):
    """Not even the smallest group and batch fit a device's memory."""


class MissingRowsError(UserError):
    """Rows of a dataset that are not here; of a group the other datasets are evaluated."""


class DamagedResultsError(UserError):
    """A file of results that was changed after it was written; what it holds is computed again."""
