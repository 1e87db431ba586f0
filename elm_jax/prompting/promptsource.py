"""PromptSource: the release whose templates the catalogue uses, and its directory in the cache."""

from etils import epath

from elm_jax import cache as caches
from elm_jax import storage

VERSION = "0.2.3"  # the last release; the paper's prompt names are all in it
PACKAGE = "promptsource"
ARCHIVE = f"{PACKAGE}-{VERSION}.tar.gz"
SHA256 = "f106c889778a0fe5590e7183904bf964e1a01691c8a29451e44f3df5ddef05f5"


def cache_directory(cache: storage.PathLike | None = None) -> epath.Path:
    """Returns the directory of downloaded files: `cache`, or the usual one."""
    return storage.path(cache or caches.directory())


def release_directory(cache: storage.PathLike | None = None) -> epath.Path:
    """Returns the release's directory in the cache, which has its LICENSE and its folder of templates."""
    return cache_directory(cache) / PACKAGE / VERSION


def templates_directory(cache: storage.PathLike | None = None) -> epath.Path | None:
    """Returns the folder of templates if `elm prompts fetch` has downloaded it, else None."""
    directory = release_directory(cache) / "templates"
    return directory if directory.is_dir() else None
