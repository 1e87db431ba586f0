"""An `elm train` that trains nothing: it puts empty experts into the library, or ends as `$FATES` says.

`$FATES` is a directory; the first file in it, taken away, holds how this start ends: `killed`, `half` (half
of the experts, then killed), `stopped` (well, with nothing trained), `waits` (the same, when told to), or
an exit code.
"""

import ast
import contextlib
import os
import signal
import sys
from pathlib import Path
from urllib.parse import quote

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
print("ran", sys.argv[1:], flush=True)
given = {
    word[6:].partition("=")[0]: word.partition("=")[2] for word in sys.argv[1:] if word.startswith("--gin.")
}
tasks = ast.literal_eval(given["MIXTURE_OR_TASK_NAME"])
fate = ""
for file in sorted(Path(os.environ["FATES"]).iterdir()):
    with contextlib.suppress(FileNotFoundError):
        fate = file.read_text()
        file.unlink()
        break
if fate == "waits":
    signal.sigwait({signal.SIGTERM})
    print("saved")
if fate in ("stopped", "waits", "killed") or fate.isdigit():
    tasks = ()
if fate == "half":
    tasks = tasks[: len(tasks) // 2]
for task in tasks:
    dataset, _, prompt = task.partition("/")
    if "dataset_expert" in " ".join(sys.argv):
        prompt = "all"
    place = (
        Path(ast.literal_eval(given["MODEL_DIR"]))
        / "library"
        / quote(dataset, safe="")
        / quote(prompt, safe="")
    )
    place.mkdir(parents=True, exist_ok=True)
    (place / "expert.json").write_text("{}")
if fate in ("killed", "half"):
    os.kill(os.getpid(), signal.SIGKILL)
if fate.isdigit():
    print("elm: the recipe does not read.")
    sys.exit(int(fate))
