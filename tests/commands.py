"""Commands of the command line in processes of their own, forked from one that has imported what they need.

Importing JAX and the package takes most of a short command's time, so it is done once for all of them. The
hub's client is not imported before, since it reads its environment when it is.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["jax", "safetensors.numpy", "elm_jax.cli.convert", "elm_jax.cli.experts", "elm_jax.weights.load"]
)


class Command:
    """A command that runs.

    Attributes:
        returncode: as subprocess has it; None until `communicate` has returned.
    """

    def __init__(self, arguments, code, environment, directory):
        self._outputs = tempfile.TemporaryDirectory()
        self.returncode = None
        self._process = _FORKS.Process(
            target=_run, args=(code, arguments, environment, directory, self._outputs.name)
        )
        self._process.start()

    def communicate(self):
        """Waits for the end; returns what was printed and what was told beside."""
        self._process.join()
        self.returncode = self._process.exitcode
        return tuple(Path(self._outputs.name, name).read_text() for name in ("1", "2"))

    def kill(self):
        os.kill(self._process.pid, signal.SIGKILL)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.join()
        self._outputs.cleanup()


def _run(code, arguments, environment, directory, outputs):
    """Runs code as `python -c` does, in the forked process."""
    for number in (1, 2):
        os.dup2(os.open(f"{outputs}/{number}", os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    sys.argv = ["-c", *arguments]
    try:
        exec(code, {"__name__": "__main__"})
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
