"""The README as a package index shows it: links into the repository are whole addresses.

Hatchling runs this when it builds the metadata. The repository's address is $ELM_JAX_REPOSITORY, or that of
the GitHub workflow that builds; without one links stay as they are, which is right in a checkout.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(!?)(\[[^\[\]]*\])\((?!https?:|#|mailto:)([^()\s]+)\)")
BADGE = re.compile(r"\[(!\[[^\[\]]*\]\([^()\s]+\))\]\((?!https?:)([^()\s]+)\)")


class ReadmeHook(MetadataHookInterface):
    """Sets the long description, and the addresses of the project."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Sets what `pyproject.toml` calls dynamic."""
        repository = find_repository(os.environ)
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": make_links_whole(text, repository)}
        metadata["urls"] = {"Paper": "https://arxiv.org/abs/2302.03202"}
        if repository:
            metadata["urls"] |= {"Source": repository, "Changelog": f"{repository}/blob/main/CHANGELOG.md"}


def find_repository(environment: Mapping[str, str]) -> str | None:
    """Returns the address of the repository, without a slash at its end; None if nothing tells it."""
    server, name = environment.get("GITHUB_SERVER_URL"), environment.get("GITHUB_REPOSITORY")
    found = environment.get("ELM_JAX_REPOSITORY") or (f"{server}/{name}" if server and name else None)
    return found.rstrip("/") if found else None


def make_links_whole(text: str, repository: str | None) -> str:
    """Returns Markdown whose relative links are addresses of a repository; unchanged if there is none."""
    if repository is None:
        return text

    def complete(path: str, *, image: bool) -> str:
        if path.startswith("../../"):  # what the host itself makes, such as the badge of a workflow
            return f"{repository}/{path.removeprefix('../../')}"
        return f"{repository}/{'raw' if image else 'blob'}/main/{path}"

    text = BADGE.sub(lambda found: f"[{found[1]}]({complete(found[2], image=False)})", text)
    return LINK.sub(lambda found: f"{found[1]}{found[2]}({complete(found[3], image=bool(found[1]))})", text)
