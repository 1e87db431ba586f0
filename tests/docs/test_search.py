"""Search of the site that is opened from a disk, in a real browser without a network."""

import html
import os
import re
from pathlib import Path

import pytest
import yaml

from tests.browser import chromium, wants_browser

pytestmark = wants_browser
ROOT = Path(__file__).parents[2]
PAGES = {
    "index.md": "# Start\n\nNothing of the kind.\n",
    "routers.md": "# Routers\n\n## Retrieval\n\nQueries vote for the expert of the nearest key.\n",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site that ELM_DOCS_SITE names, else two pages with the settings of ours."""
    if "ELM_DOCS_SITE" in os.environ:
        return Path(os.environ["ELM_DOCS_SITE"])
    pytest.importorskip("material", reason="the extra docs is not here")
    from mkdocs.commands import build
    from mkdocs.config import load_config

    directory = tmp_path_factory.mktemp("docs")
    for name, text in PAGES.items():
        (directory / name).write_text(text)
    (directory / "assets").symlink_to(ROOT / "docs" / "assets")
    settings = yaml.load((ROOT / "mkdocs.yml").read_text(), yaml.BaseLoader)
    kept = {"site_name", "use_directory_urls", "theme", "extra"}
    settings = {name: value for name, value in settings.items() if name in kept}
    settings |= {"docs_dir": str(directory), "use_directory_urls": False, "plugins": ["search", "offline"]}
    settings["theme"]["font"], settings["extra"]["generator"] = False, False
    file = directory.parent / "mkdocs.yml"
    file.write_text(yaml.safe_dump(settings))
    site = tmp_path_factory.mktemp("site")
    build.build(load_config(str(file), site_dir=str(site)))
    return site


@pytest.mark.parametrize(("words", "found"), [("nearest key", True), ("qwertzuiop", False)])
def test_search_finds_pages_of_a_site_on_a_disk(site, tmp_path, words, found):
    query = f"?q={words.replace(' ', '+')}"
    drawn, complaints = chromium(
        site / "index.html", "--dump-dom", f"--user-data-dir={tmp_path}", query=query
    )
    results = re.findall(r'<a href="([^"]*)" class="md-search-result__link"', html.unescape(drawn))
    assert complaints == []
    assert bool(results) == found
    assert all(result.startswith("file://") or ".html" in result for result in results)
