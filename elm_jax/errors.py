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
