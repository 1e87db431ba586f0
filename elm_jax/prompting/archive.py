"""`elm prompts fetch`, `elm prompts list`: downloads PromptSource's templates into the cache, and lists them.

They are in PromptSource's source archive, which is only read: it is never built, imported or installed.
"""

import io
import re
import tarfile
import uuid
import zlib
from dataclasses import dataclass
from pathlib import PurePosixPath

from etils import epath

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.prompting import package_index, promptsource
from elm_jax.prompting.template_files import list_folders, load_templates
from elm_jax.prompting.templates import Template

MAX_FILE_BYTES = 4_000_000  # of one file in the archive; the largest has a fortieth of this


@dataclass(frozen=True)
class FetchedTemplates:
    """The templates in the cache.

    Attributes:
        directory: Their directory, laid out as PromptSource's.
        datasets: Number of files of templates.
        new: Whether they were downloaded now.
    """

    directory: epath.Path
    datasets: int
    new: bool


def fetch_templates(
    *, cache: storage.PathLike | None = None, index: str | None = None, sha256: str = promptsource.SHA256
) -> FetchedTemplates:
    """Downloads the templates and PromptSource's licence into the cache, unless they are there.

    The release's directory appears whole or not at all.

    Args:
        cache: The cache's directory; default: the usual one.
        index: Address or folder of a package index; default: those that pip is configured with.
        sha256: SHA-256 that the archive must have.

    Raises:
        UserError: If the archive cannot be downloaded, has another SHA-256, or cannot be unpacked.
    """
    release = promptsource.release_directory(cache)
    new = not release.is_dir()
    if new:
        storage.writable_directory(release.parent)
        content = package_index.fetch_archive(
            promptsource.PACKAGE, promptsource.ARCHIVE, sha256=sha256, index=index
        )
        _write_release(_extract(content), release)
    directory = release / "templates"
    return FetchedTemplates(directory, len(list(_list_files(directory))), new)


def count_templates(templates_dir: storage.PathLike | None = None) -> dict[str, int]:
    """Returns the number of templates by dataset folder."""
    directory = _require_directory(templates_dir)
    return {
        "/".join(file.parent.relative_to(directory).parts): len(
            re.findall(r": !Template\s", file.read_text())
        )
        for file in _list_files(directory)
    }


def load_cached_templates(dataset: str, templates_dir: storage.PathLike | None = None) -> dict[str, Template]:
    """Returns the templates of a folder, such as "dataset" or "dataset/config", by name."""
    return load_templates(_require_directory(templates_dir), dataset)


def _require_directory(templates_dir: storage.PathLike | None) -> epath.Path:
    remedy = "Run `elm prompts fetch`, or give a directory of templates."
    where = templates_dir or promptsource.release_directory() / "templates"
    return storage.existing_directory(where, what="A directory of templates", remedy=remedy)


def _list_files(directory: epath.Path) -> list[epath.Path]:
    return [directory / folder / "templates.yaml" for folder in list_folders(directory)]


def _extract(content: bytes) -> dict[PurePosixPath, bytes]:
    """Returns the licence and the templates of an archive by their paths in the release's directory."""
    files: dict[PurePosixPath, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            for member in archive:
                path = _get_release_path(member.name)
                if path is None:
                    continue
                file = archive.extractfile(member) if member.isreg() else None
                if file is None or member.size > MAX_FILE_BYTES or ".." in path.parts:
                    raise UserError(
                        f"Expected plain files in {promptsource.ARCHIVE!r}, got {member.name!r}. Fix: use "
                        "another index."
                    )
                files[path] = file.read()
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise UserError(
            f"Expected {promptsource.ARCHIVE!r} to be an archive, got {error}. Fix: fetch it again."
        ) from error
    if len(files) < 2:
        raise UserError(
            f"Expected a licence and templates in {promptsource.ARCHIVE!r}, got neither. Fix: use another "
            "index."
        )
    return files


def _get_release_path(name: str) -> PurePosixPath | None:
    top, *parts = PurePosixPath(name).parts or ("",)
    if top != promptsource.ARCHIVE.removesuffix(".tar.gz"):
        return None
    if parts == ["LICENSE"]:
        return PurePosixPath("LICENSE")
    if parts[:2] == ["promptsource", "templates"] and parts[-1] == "templates.yaml":
        return PurePosixPath(*parts[1:])
    return None


def _write_release(files: dict[PurePosixPath, bytes], release: epath.Path) -> None:
    temporary = release.parent / f".{release.name}.{uuid.uuid4().hex}.tmp"
    try:
        for path, content in files.items():
            storage.write_bytes(temporary / path, content)
        temporary.rename(release)
    except OSError as error:
        if not release.is_dir():  # otherwise another process was faster
            raise UserError(
                f"Expected to write {str(release)!r}, got {error.strerror or error}. Fix: free space there."
            ) from error
    finally:
        if temporary.is_dir():
            temporary.rmtree()
