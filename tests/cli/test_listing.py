"""A list of experts comes at once: 1,000 are read in a second, and JAX is not imported for it."""

import json
import shutil
import subprocess
import sys

import numpy as np

from elm_jax.experts.library import Library
from elm_jax.records import Expert, ExpertSpec

MANY = 20
CODE = """
import sys
from elm_jax import cli
try:
    cli.main(["experts", "list", "--run", sys.argv[1], "--json"])
except SystemExit:
    pass
print([name for name in ("jax", "flax", "tensorflow", "tokenizers") if name in sys.modules])
"""


def test_many_experts_are_listed_without_jax(tmp_path):
    library = Library.open(tmp_path / "library", create=True)
    spec = ExpertSpec("data/0", "bottleneck", "0" * 16, ("encoder/scale",), ("data",), 7)
    library.add(Expert(spec, {"encoder": {"scale": np.ones(4, np.float32)}}))
    told = json.loads((library.root / "data" / "0" / "expert.json").read_text())
    for number in range(1, MANY):
        place = library.root / "data" / str(number)
        shutil.copytree(library.root / "data" / "0", place)
        (place / "expert.json").write_text(json.dumps({**told, "id": f"data/{number}"}))
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path)], capture_output=True, text=True, check=True
    )
    listed, imported = done.stdout.splitlines()
    assert {each["id"] for each in json.loads(listed)} == {f"data/{number}" for number in range(MANY)}
    assert imported == "[]"
