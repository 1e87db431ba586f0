"""Buckets: objects on S3 and Google's storage, which are written whole, and what their clients raise."""

import functools
import importlib.util
import os
from collections.abc import Iterable

from etils import epath
from etils.epath import backend, gpath

from elm_jax.errors import UserError

CHUNK_BYTES = 1 << 24
"""Bytes that are sent or read at once."""
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}
PathLike = str | os.PathLike[str]


class BucketPath(gpath.PosixGPath):
    """A path in a bucket, through fsspec; etils prefers TensorFlow, whose wheel has no S3."""

    @property
    def _backend(self) -> backend.Backend:
        return backend.fsspec_backend

    def read_bytes(self) -> bytes:
        """Reads the object in one request: opened as a file, one that is replaced meanwhile is an error."""
        from fsspec.core import url_to_fs

        filesystem, place = url_to_fs(os.fspath(self))
        return filesystem.cat_file(place)


@functools.cache
def reach(scheme: str) -> None:
    """Lets etils, and who else uses it, speak to buckets of one kind."""
    if scheme not in _PACKAGES:
        known = ", ".join(f"{each}://" for each in _PACKAGES)
        raise UserError(
            f"Expected a path on a disk or in a bucket ({known}), got {scheme}://. Fix: correct it."
        )
    package = _PACKAGES[scheme]
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"Expected the package {package} for {scheme}://, got none. Fix: pip install {package}."
        )
    from fsspec.config import conf

    epath.register_path_cls(f"{scheme}://")(BucketPath)
    # Lists that are kept hide what other processes write.
    conf.setdefault(scheme, {}).setdefault("use_listings_cache", False)


def is_bucket(where: PathLike) -> bool:
    """Returns whether a path lies in a bucket, where objects are written whole and nothing is renamed."""
    return "://" in os.fspath(where)


def write_object(target: epath.Path, parts: Iterable[bytes]) -> None:
    """Writes an object of a bucket, which is there when its last part is."""
    import fsspec

    system, name = fsspec.url_to_fs(os.fspath(target))
    following, first = iter(parts), b""
    while len(first) < CHUNK_BYTES and (part := next(following, None)) is not None:
        first += part
    try:
        if len(first) < CHUNK_BYTES:  # in one request
            system.pipe_file(name, first)
            return
        stream = system.open(name, "wb", autocommit=False)
        try:
            stream.write(first)
            for part in following:
                stream.write(part)
            stream.close()
        except BaseException:
            stream.discard()
            raise
        stream.commit()
    except client_errors(target) as error:
        raise write_error(target, error) from error


def create_object(where: PathLike, content: bytes) -> bool:
    """Writes an object of a bucket if there is none of its name, and returns whether it did."""
    import fsspec

    system, name = fsspec.url_to_fs(os.fspath(where))
    try:
        system.pipe_file(name, content, mode="create")
    except FileExistsError:
        return False
    except client_errors(where) as error:
        raise write_error(where, error) from error
    return True


def client_errors(where: PathLike) -> type[Exception]:
    """Returns what reading or writing may raise: a bucket's client has errors of its own."""
    return Exception if is_bucket(where) else OSError


def describe_error(error: Exception) -> str:
    return getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]


def write_error(where: PathLike, error: Exception) -> UserError:
    return UserError(
        f"Expected to write {os.fspath(where)!r}, got {describe_error(error)}. Fix: free space there, or "
        "choose another output directory."
    )
