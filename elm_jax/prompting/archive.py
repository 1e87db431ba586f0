"""`elm prompts fetch`, `elm prompts list`: PromptSource's templates, brought into the cache and listed.

They come out of PromptSource's source archive, which is data here: it is never built, imported or installed.
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
from elm_jax.prompting.templates import Template, load_templates

MOST_BYTES = 4_000_000  # of one file in the archive; the largest has a fortieth of that


@dataclass(frozen=True)
class Fetched:
    """Where the templates are."""

    directory: epath.Path  # of templates, laid out as PromptSource's own
    datasets: int  # files of templates
    new: bool  # False where they were there already


def fetch(
    *, cache: storage.PathLike | None = None, index: str | None = None, sha256: str = promptsource.SHA256
) -> Fetched:
    """Brings the templates and PromptSource's licence into the cache, once.

    The archive comes from `index`, or from the package index that pip is set up with, and must have the
    SHA-256 of the release. The release's directory appears whole or not at all. Raises `UserError` where the
    archive cannot be had, is another, or cannot be unpacked.
    """
    release = promptsource.release_directory(cache)
    new = not release.is_dir()
    if new:
        storage.writable_directory(release.parent)
        content = package_index.fetch(promptsource.PACKAGE, promptsource.ARCHIVE, sha256=sha256, index=index)
        _place(_chosen(content), release)
    directory = release / "templates"
    return Fetched(directory, len(list(_files(directory))), new)


def listing(templates_dir: storage.PathLike | None = None) -> dict[str, int]:
    """Returns the folder of every dataset that has templates, with how many."""
    directory = _directory(templates_dir)
    return {
        "/".join(file.parent.relative_to(directory).parts): len(
            re.findall(r": !Template\s", file.read_text())
        )
        for file in _files(directory)
    }


def templates(dataset: str, templates_dir: storage.PathLike | None = None) -> dict[str, Template]:
    """Returns the templates of "dataset" or "dataset/config" by name."""
    return load_templates(_directory(templates_dir), dataset)


def _directory(templates_dir: storage.PathLike | None) -> epath.Path:
    remedy = "Run `elm prompts fetch`, or give a directory of templates."
    where = templates_dir or promptsource.release_directory() / "templates"
    return storage.existing_directory(where, what="A directory of templates", remedy=remedy)


def _files(directory: epath.Path) -> list[epath.Path]:
    return sorted([*directory.glob("*/templates.yaml"), *directory.glob("*/*/templates.yaml")])


def _chosen(content: bytes) -> dict[PurePosixPath, bytes]:
    """Returns the licence and the templates of an archive, by their place in the release's directory."""
    chosen: dict[PurePosixPath, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            for member in archive:
                place = _place_of(member.name)
                if place is None:
                    continue
                file = archive.extractfile(member) if member.isreg() else None
                if file is None or member.size > MOST_BYTES or ".." in place.parts:
                    raise UserError(
                        f"{promptsource.ARCHIVE!r} holds {member.name!r}, which is no plain file."
                    )
                chosen[place] = file.read()
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise UserError(f"{promptsource.ARCHIVE!r} cannot be unpacked ({error}). Fetch it again.") from error
    if len(chosen) < 2:
        raise UserError(f"{promptsource.ARCHIVE!r} should hold a licence and templates, but lacks them.")
    return chosen


def _place_of(name: str) -> PurePosixPath | None:
    top, *parts = PurePosixPath(name).parts or ("",)
    if top != promptsource.ARCHIVE.removesuffix(".tar.gz"):
        return None
    if parts == ["LICENSE"]:
        return PurePosixPath("LICENSE")
    if parts[:2] == ["promptsource", "templates"] and parts[-1] == "templates.yaml":
        return PurePosixPath(*parts[1:])
    return None


def _place(files: dict[PurePosixPath, bytes], release: epath.Path) -> None:
    temporary = release.parent / f".{release.name}.{uuid.uuid4().hex}.tmp"
    try:
        for place, content in files.items():
            storage.write_bytes(temporary / place, content)
        temporary.rename(release)
    except OSError as error:
        if not release.is_dir():  # or else another process was faster
            raise UserError(
                f"{str(release)!r} was to be written, but the system refused ({error.strerror or error})."
            ) from error
    finally:
        if temporary.is_dir():
            temporary.rmtree()
