"""T5X's imports: what is absent gets a stand-in, what is installed is left alone, and one sentence says more.

A package of the name t5x, which imports what T5X does, stands for it here; test_tasks.py runs the real one.
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


def test_t5x_that_is_absent_is_one_sentence_that_says_how_to_get_it(place):
    with pytest.raises(UserError, match=r"not on the package index\. Run .* or clone that repository"):
        imports.load()
    assert not any(name in sys.modules for name in OURS)


def test_what_t5x_imports_and_lacks_gets_a_stand_in(place):
    (place / "t5x.py").write_text(T5X)
    loaded = imports.load()
    assert loaded is sys.modules["t5x"]
    assert not loaded.foreign
    with pytest.raises(UserError, match="amos of 'jestimator' was asked for, which is not installed"):
        loaded.optimizer(learning_rate=1.0)
    with pytest.raises(UserError, match="Task of 'airio' was asked for"):
        sys.modules["airio.core"].Task("name")


def test_loading_twice_gives_the_same(place):
    (place / "t5x.py").write_text(T5X)
    loaded, core = imports.load(), sys.modules["airio.core"]
    assert imports.load() is loaded
    assert sys.modules["airio.core"] is core
    assert imports.stand_in() == []


def test_what_is_installed_is_never_replaced(place):
    (place / "airio").mkdir()
    (place / "airio" / "__init__.py").touch()
    (place / "airio" / "core.py").write_text("class Task: installed = True\n")
    (place / "t5x.py").write_text("import airio.core\nfrom jestimator import amos\n")
    imports.load()
    assert sys.modules["airio.core"].Task.installed
    assert sys.modules["airio"].__file__


def test_what_else_t5x_lacks_is_named(place):
    (place / "t5x.py").write_text("import a_module_that_nobody_has\n")
    with pytest.raises(
        UserError, match=r"cannot be imported: No module named 'a_module_that_nobody_has'\. Run"
    ):
        imports.load()


def test_importing_the_room_imports_nothing_of_t5x():
    code = "import sys, elm_jax.t5x.imports; print({'t5x', 'airio', 'jax'} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "set()"
