"""Small programs that the compiler's child builds."""

from pathlib import Path

import pytest


@pytest.fixture
def small_programs(monkeypatch, tmp_path):
    """What the compiler's child needs to import `small_programs`, and a cache of its own."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setenv("ELM_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ELM_COMPILATION_CACHE", raising=False)
    return {"width": 512, "rows": 1024, "layers": 5}
