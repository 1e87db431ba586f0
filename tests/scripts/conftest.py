"""A fake gcloud on the PATH, and how the launching scripts are run beside it."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts" / "tpu"
HERE = Path(__file__).parent

# What a worker's Python does as far as it is asked to: environments, and an `elm` where pip installs one.
PYTHON = """#!/bin/bash
echo "$*" >> "$HOME/python_calls"
case "$*" in
  *"uv venv"*) mkdir -p venv/bin; cp "$0" venv/bin/python;;
  *"pip install"*elm_jax*) cp "$FAKE/elm" venv/bin/elm;;
esac
"""
# It runs as long as `hold` is there, and ends as `code` says; what it was called with stands in `elm_calls`.
ELM = """#!/bin/bash
if [ "$1" = --help ]; then exit 0; fi
printf '<%s>' "$@" >> "$HOME/elm_calls"
trap 'echo saved; exit 0' TERM
echo "trains"
while [ -f "$HOME/hold" ]; do sleep 0.05; done
exit "$(cat "$HOME/code" 2> /dev/null || echo 0)"
"""


@dataclass
class Cloud:
    """What the fake gcloud sees and says."""

    root: Path
    environment: dict[str, str]

    def script(self, name, *words):
        """Runs a script; returns its exit code, output and errors."""
        done = subprocess.run(
            [sys.executable, SCRIPTS / f"{name}.py", *words],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        return done.returncode, done.stdout, done.stderr

    def calls(self):
        file = self.root / "calls.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def verbs(self):
        """Of every call its verb and what it acts on: `create a`."""
        return [" ".join(words[3:5]) for words in self.calls()]

    def answer(self, *answers):
        (self.root / "answers.json").write_text(json.dumps(answers))

    def home(self, name, worker=0):
        return self.root / "workers" / f"{name}-{worker}"

    def both(self, name, file):
        """What a file holds in the homes of both workers."""
        return [(self.home(name, worker) / file).read_text() for worker in (0, 1)]


def executable(file, text):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)


@pytest.fixture
def cloud(tmp_path):
    root = tmp_path / "cloud"
    for name in ("states", "workers", "fates"):
        (root / name).mkdir(parents=True)
    executable(root / "bin" / "gcloud", f'#!/bin/sh\nexec {sys.executable} {HERE / "fake_gcloud.py"} "$@"\n')
    executable(root / "bin_of_workers" / "python3", PYTHON)
    executable(root / "elm", ELM)
    own = {"FAKE": str(root), "FATES": str(root / "fates"), "PATH": f"{root / 'bin'}:{os.environ['PATH']}"}
    made = Cloud(root, {**os.environ, **own})
    made.answer()
    return made
