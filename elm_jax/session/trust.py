"""Trust: Python files of tasks that a run names are run only if the user said so.

Opening a run that somebody else made must run nothing of theirs. What the user names (`--tasks`, a `Source`,
a recipe) is the user's word; what `run.json` names is run if the user has named that file before, or has
agreed to it (`elm --trust`, or the answer to a question), with the same content. That is remembered for the
user, outside of any run.
"""

import hashlib
import os
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from elm_jax import cache, schema, storage
from elm_jax.errors import UntrustedCodeError, UserError

TRUSTED_FILE = "trusted.json"


@dataclass(frozen=True)
class _TrustedFilesForm(schema.FileForm):
    files: Mapping[str, str]


def remember(files: Iterable[storage.PathLike]) -> None:
    """Notes that the user trusts these files as they are now; those that are no Python need no trust.

    Where nothing can be noted, they are trusted while this process has them loaded.
    """
    added = {path: digest for path in _python_files(files) if (digest := _digest(path))}
    known = _load()
    if not added.items() <= known.items():
        kept = {path: digest for path, digest in known.items() if os.path.exists(path)}
        with suppress(UserError):
            storage.write_json(_file(), {"files": kept | added})


def require(run: storage.PathLike, files: Iterable[storage.PathLike]) -> None:
    """Checks that the user trusts the files that a run names.

    Raises:
        UntrustedCodeError: If there is Python among them that is not trusted, or was changed since.
    """
    known = _load()
    unknown = [
        path
        for path in _python_files(files)
        if os.path.isfile(path) and known.get(path) != _digest(path) and not _is_imported(path)
    ]
    if unknown:
        raise UntrustedCodeError(
            f"Expected trust in Python that the run at {os.fspath(run)!r} names and that would be run, got "
            f"none for {', '.join(map(repr, unknown))}. Fix: read it; if you want it to run, give --trust to "
            "elm once, or name it with --tasks (`task_files` in Python).",
            unknown,
        )


def _python_files(files: Iterable[storage.PathLike]) -> list[str]:
    return [os.path.realpath(file) for file in files if os.fspath(file).endswith(".py")]


def _is_imported(path: str) -> bool:
    """Returns whether a file has been run in this process already, as the user named it."""
    module = sys.modules.get(Path(path).stem)
    return module is not None and os.path.realpath(getattr(module, "__file__", None) or "") == path


def _digest(path: str) -> str | None:
    with suppress(UserError):
        return hashlib.sha256(storage.read_content(path, what="A file of tasks")).hexdigest()
    return None


def _load() -> Mapping[str, str]:
    with suppress(UserError):
        return schema.read(_file(), _TrustedFilesForm, what="What is trusted", fix="delete it").files
    return {}


def _file() -> str:
    return os.path.join(cache.directory(), TRUSTED_FILE)
