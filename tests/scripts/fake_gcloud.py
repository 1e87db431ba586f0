"""A gcloud without a cloud: records its calls, keeps slices as directories, and runs `ssh` in a local bash.

`$FAKE` holds `calls.jsonl`; `answers.json`, what the next call that holds certain words says instead of being
done; `states/NAME`; and `workers/NAME-0` and `-1`, the home directories of a slice's two workers.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(os.environ["FAKE"])
WORKERS = ("0", "1")


def main(words):
    answer = recorded(words)
    if answer is not None:
        for name, state in answer.get("states", {}).items():
            (HERE / "states" / name).write_text(state)
        print(answer.get("out", ""))
        print(answer.get("err", ""), file=sys.stderr)
        return answer.get("code", 0)
    if words[:1] == ["storage"]:
        return 0
    (group, verb, name), rest = words[2:5], words[5:]
    flags = dict(
        word.removeprefix("--").split("=", 1) for word in rest if word.startswith("--") and "=" in word
    )
    if group == "queued-resources":
        return requested(verb, name)
    workers = WORKERS if flags.get("worker") == "all" else (flags["worker"],)
    if verb == "ssh":
        codes = [shell(HERE / "workers" / f"{name}-{worker}", flags["command"]) for worker in workers]
        return max(codes)
    copied([word for word in words[4:] if not word.startswith("--")], workers)
    return 0


def recorded(words):
    with (HERE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with (HERE / "calls.jsonl").open("a") as calls:
            print(json.dumps(words), file=calls)
        answers = json.loads((HERE / "answers.json").read_text())
        for at, answer in enumerate(answers):
            if all(part in " ".join(words) for part in answer["at"]):
                del answers[at]
                (HERE / "answers.json").write_text(json.dumps(answers))
                return answer
    return None


def requested(verb, name):
    state = HERE / "states" / name
    if verb == "create":
        if state.exists():
            print("ERROR: ALREADY_EXISTS", file=sys.stderr)
            return 1
        state.write_text("ACTIVE")
        for worker in WORKERS:
            (HERE / "workers" / f"{name}-{worker}").mkdir()
    elif not state.exists():
        print(f"ERROR: (gcloud) NOT_FOUND: {name}", file=sys.stderr)
        return 1
    elif verb == "delete":
        for worker in WORKERS:
            switched_off(HERE / "workers" / f"{name}-{worker}")
        state.unlink()
    else:
        print(state.read_text())
    return 0


def switched_off(home):
    """Ends what runs on a worker, which would write into its home, and takes the home away."""
    mine = f"HOME={home}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile, or is not ours
            if mine in (process / "environ").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGKILL)
    home.rename(HERE / f"deleted-{time.monotonic_ns()}")


def shell(home, script):
    path = f"{HERE / 'bin_of_workers'}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-c", script], env={**os.environ, "HOME": str(home), "PATH": path}
    ).returncode


def copied(places, workers):
    *sources, destination = places
    if ":" in destination:
        name, _, below = destination.partition(":")
        for worker in workers:
            for source in sources:
                shutil.copy(source, HERE / "workers" / f"{name}-{worker}" / below)
    else:
        name, _, below = sources[0].partition(":")
        shutil.copytree(HERE / "workers" / f"{name}-{workers[0]}" / below, destination)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
