"""A run that was moved, is met through a link and may not be written: commands that read work as before."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.run_fixtures import TRAINED, UNSEEN

VERBS = (
    ["experts", "list", "--scores"],
    ["experts", "list", "--composites"],
    ["experts", "show", TRAINED[0]],
    ["experts", "verify"],
    ["experts", "export", TRAINED[0], "{out}"],
    ["report"],
    ["route", UNSEEN],
    ["evaluate", UNSEEN, "--method", "roe", "--dry-run"],
)
SCRIPT = """
import json, sys
from elm_jax import cli
for words in json.loads(sys.argv[1]):
    try:
        cli.main(words)
    except SystemExit as end:
        print(words, end.code, file=sys.stderr)
"""


@pytest.fixture(scope="module")
def moved(make_run, tmp_path_factory):
    """A link to a run that was evaluated, moved and made read-only, and what it had before."""
    from elm_jax.evaluation import evaluate
    from elm_jax.evaluation.config import EvaluationConfig

    run, home = make_run(), tmp_path_factory.mktemp("moved")
    evaluate.evaluate(run, [UNSEEN], EvaluationConfig(methods=["uniform"], queries=4))
    root = shutil.move(run.workspace.root, home / "elsewhere")
    (home / "link").symlink_to(root)
    places = [root, *root.rglob("*")]
    for place in places:
        place.chmod(place.stat().st_mode & ~0o222)
    yield home
    for place in places:
        place.chmod(place.stat().st_mode | 0o200)


def contents(root):
    return {file: file.read_bytes() for file in root.rglob("*") if file.is_file()}


def test_commands_that_read_end_well_and_write_nothing(moved):
    before = contents(moved / "elsewhere")
    words = [
        [word.format(out=moved / "exported") for word in verb] + ["--run", str(moved / "link")]
        for verb in VERBS
    ]
    # Who is root may write what is read-only, unless the right to do so is given up.
    plain = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    if plain and shutil.which("setpriv") is None:
        pytest.skip("root may write everything here")
    done = subprocess.run(
        [*plain, sys.executable, "-c", SCRIPT, json.dumps(words)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=600,
        check=False,
    )
    ends = [line for line in done.stderr.splitlines() if line.startswith("[")]
    assert [line.rpartition(" ")[2] for line in ends] == ["0"] * len(VERBS), done.stderr
    assert "Traceback" not in done.stderr
    assert contents(moved / "elsewhere") == before
    assert (moved / "exported" / "expert.json").exists()
