"""The compilers' environment, and a skip where the TPU's is absent."""

import importlib.util
import os
from pathlib import Path

import pytest

from elm_jax.aot import slices

# libtpu reads these when it is loaded, which is after the first import of JAX.
for name, value in slices.ENVIRONMENT.items():
    if name.startswith(("TPU_", "ALLOW_", "TF_")):
        os.environ.setdefault(name, value)


def pytest_collection_modifyitems(items):
    if importlib.util.find_spec("libtpu") is None:
        for item in items:
            if item.get_closest_marker("aot"):
                item.add_marker(pytest.mark.skip(reason="libtpu, of the extra plan, is absent"))


@pytest.fixture
def small_programs(monkeypatch, tmp_path):
    """What the compiler's child needs to import `small_programs`, and a cache of its own."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setenv("ELM_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ELM_COMPILATION_CACHE", raising=False)
    return {"width": 512, "rows": 1024, "layers": 5}
