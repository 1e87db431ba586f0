"""A package index shows the README with links that lead somewhere."""

import importlib.util
import re
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="the README's links are made whole when a package is built")

ROOT = Path(__file__).parents[2]
HOST = "https://host.example/owner/elm_jax"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("package_readme", ROOT / "scripts" / "package_readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("[tasks](docs/tasks.md)", f"[tasks]({HOST}/blob/main/docs/tasks.md)"),
        ("![page](docs/images/report.png)", f"![page]({HOST}/raw/main/docs/images/report.png)"),
        ("[paper](https://arxiv.org/abs/1)", "[paper](https://arxiv.org/abs/1)"),
        ("[below](#below)", "[below](#below)"),
        (
            "[![CI](../../actions/w/badge.svg)](../../actions/w)",
            f"[![CI]({HOST}/actions/w/badge.svg)]({HOST}/actions/w)",
        ),
        ("[![P](https://badge/p)](LICENSE)", f"[![P](https://badge/p)]({HOST}/blob/main/LICENSE)"),
    ],
)
def test_links_into_the_repository_get_its_address_and_others_stay(script, before, after):
    assert script.make_links_whole(before, HOST) == after
    assert script.make_links_whole(before, None) == before


def test_no_link_of_the_readme_stays_relative_where_the_repository_is_known(script, monkeypatch):
    monkeypatch.setenv("ELM_JAX_REPOSITORY", f"{HOST}/")
    metadata = {}
    script.ReadmeHook(str(ROOT), {}).update(metadata)
    targets = re.findall(r"\]\(([^()\s]+)\)", metadata["readme"]["text"])
    assert len(targets) > 20
    assert all(target.startswith(("https://", "#")) for target in targets)
    assert metadata["urls"]["Source"] == HOST


def test_a_workflow_of_github_tells_the_repository(script):
    told = {"GITHUB_SERVER_URL": "https://host.example", "GITHUB_REPOSITORY": "owner/elm_jax"}
    assert script.find_repository(told) == HOST
    assert script.find_repository({}) is None
