"""Unpacked files: what packed files of rows hold, and those that are not UTF-8, in temporary files."""

import codecs
import functools
import gzip
import shutil
import tempfile
import zlib
from io import IOBase
from typing import IO, Any

from elm_jax import storage
from elm_jax.errors import UserError

UTF_8 = "utf-8"


# What was unpacked is used as long as the process lasts, and goes with it.
@functools.cache
def unpack_file(file: str, encoding: str, version: tuple[int, int]) -> Any:
    """Returns a temporary file with the bytes of one that ends with .gz or .zst, or has another encoding.

    Args:
        file: The file.
        encoding: Its encoding, as Python names it; the temporary file is UTF-8.
        version: Tells apart what a file held at different times.

    Raises:
        UserError: If the file is damaged, or has another encoding.
    """
    made = tempfile.NamedTemporaryFile(prefix="elm_jax_rows_")  # noqa: SIM115, it lasts as long as the process
    suffix = storage.path(file).suffix
    with storage.path(file).open("rb") as packed:
        try:
            with _decompress(packed, suffix) as content:
                if encoding == UTF_8:
                    shutil.copyfileobj(content, made)
                else:
                    shutil.copyfileobj(codecs.getreader(encoding)(content), codecs.getwriter(UTF_8)(made))
        except (EOFError, zlib.error, OSError) as error:
            raise UserError(
                f"Expected a whole {suffix} file at {str(file)!r}, got a damaged one ({error}). Fix: make it "
                "again."
            ) from error
        except (LookupError, UnicodeError) as error:
            raise UserError(
                f"Expected text in the encoding {encoding!r} at {str(file)!r}, got: {error}. Fix: name "
                "another one as `encoding`."
            ) from error
    made.flush()
    return made


def _decompress(packed: IO[bytes] | IOBase, suffix: str) -> Any:
    if suffix == ".gz":
        return gzip.open(packed)
    if suffix == ".zst":
        import pyarrow as arrow  # comes with tensorflow-datasets

        return arrow.CompressedInputStream(packed, "zstd")
    return packed
