"""Importing T5X: missing packages get stand-ins, installed ones are left alone, errors are one sentence.

A package named t5x, which imports what T5X does, stands for it here; test_tasks.py runs the real one.
"""

import importlib
import subprocess
import sys

import pytest

from elm_jax.errors import UserError
from elm_jax.t5x import imports

OURS = ("t5x", *imports.STAND_INS)
# What T5X's own modules do with these, in its order: at import, classes are named and told from others.
T5X = """\
import dataclasses, functools, typing
import airio.core as airio
from jestimator import amos, amos_helper

rules = {amos.ScaleByAmosState: amos_helper.state_partition_rule}
optimizer = functools.wraps(amos.amos)(lambda **options: amos.amos(**options))
foreign = isinstance("task", (airio.Task, airio.Mixture, airio.DatasetProviderBase))


@dataclasses.dataclass
class Config:
    task: typing.Union[str, airio.Task]
    rows: airio.AirIODatasetIterator
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory to import from, with nothing of these names installed beside it."""
    kept = {name: module for name, module in sys.modules.items() if name.split(".")[0] in OURS}
    for name in kept:
        del sys.modules[name]
    find = importlib.util.find_spec

    def here(name, package=None):
        if name in OURS and name not in sys.modules and not list(tmp_path.glob(f"{name}*")):
            return None
        return find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", here)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] in OURS]:
        del sys.modules[name]
    sys.modules.update(kept)


def test_a_missing_t5x_is_one_sentence_with_the_command_that_installs_it(place):
    with pytest.raises(UserError, match=r"pip install .*github.com/google-research/t5x"):
        imports.import_t5x()
    assert not any(name in sys.modules for name in OURS)


def test_missing_packages_that_t5x_imports_get_stand_ins(place):
    (place / "t5x.py").write_text(T5X)
    loaded = imports.import_t5x()
    assert loaded is sys.modules["t5x"]
    assert not loaded.foreign
    with pytest.raises(UserError, match="'jestimator' for amos"):
        loaded.optimizer(learning_rate=1.0)
    with pytest.raises(UserError, match="'airio' for Task"):
        sys.modules["airio.core"].Task("name")


def test_importing_twice_gives_the_same_modules(place):
    (place / "t5x.py").write_text(T5X)
    loaded, core = imports.import_t5x(), sys.modules["airio.core"]
    assert imports.import_t5x() is loaded
    assert sys.modules["airio.core"] is core
    assert imports.install_stand_ins() == []


def test_an_installed_package_is_never_replaced(place):
    (place / "airio").mkdir()
    (place / "airio" / "__init__.py").touch()
    (place / "airio" / "core.py").write_text("class Task: installed = True\n")
    (place / "t5x.py").write_text("import airio.core\nfrom jestimator import amos\n")
    imports.import_t5x()
    assert sys.modules["airio.core"].Task.installed
    assert sys.modules["airio"].__file__


def test_another_package_that_t5x_lacks_is_named(place):
    (place / "t5x.py").write_text("import a_module_that_nobody_has\n")
    with pytest.raises(UserError, match="'a_module_that_nobody_has'"):
        imports.import_t5x()


def test_importing_our_module_does_not_import_t5x():
    code = "import sys, elm_jax.t5x.imports; print({'t5x', 'airio', 'jax'} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "set()"
