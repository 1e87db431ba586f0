"""The launch path against a gcloud that records its calls, keeps slices as directories and can fail."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts" / "tpu"

ASKED = ["--accelerator-type=v4-32", "--runtime-version=R"]
GCLOUD = ["compute", "tpus"]
AT = ["--zone=z", "--project=p"]


@pytest.fixture
def wheel(tmp_path):
    file = tmp_path / "elm_jax-0.1.0-py3-none-any.whl"
    file.write_text("a wheel")
    return file


@pytest.fixture
def slice_there(cloud, wheel):
    """A slice `a` that is installed on; its calls so far are forgotten."""
    assert cloud.script("pod", "create", "a", *ASKED)[0] == 0
    assert cloud.script("pod", "install", "a", f"--wheel={wheel}")[0] == 0
    (cloud.root / "calls.jsonl").unlink()
    return cloud


@pytest.mark.parametrize("spot", [[], ["--spot"]])
def test_create_asks_for_a_queued_resource_with_one_node_of_its_name(cloud, spot):
    code, out, _ = cloud.script("pod", "create", "a", *AT, *ASKED, *spot, "--create-flag=--network=n")
    assert code == 0
    flags = ["--node-id=a", "--accelerator-type=v4-32", "--runtime-version=R", *spot, "--network=n", *AT]
    assert cloud.calls() == [[*GCLOUD, "queued-resources", "create", "a", *flags]]
    assert out == f"$ gcloud compute tpus queued-resources create a {' '.join(flags)}\n"


def test_create_waits_until_the_slice_is_there(cloud):
    states = ["WAITING_FOR_RESOURCES", "PROVISIONING"]
    cloud.answer(*({"at": ["describe"], "out": state} for state in states))
    assert cloud.script("pod", "create", "a", *ASKED, "--wait", "--every=0")[0] == 0
    assert cloud.verbs() == ["create a", "describe a", "describe a", "describe a"]
    assert cloud.calls()[1] == [*GCLOUD, "queued-resources", "describe", "a", "--format=value(state.state)"]


def test_a_request_that_fails_in_the_queue_is_told(cloud):
    cloud.answer({"at": ["describe"], "out": "FAILED"})
    code, _, err = cloud.script("pod", "create", "a", *ASKED, "--wait", "--every=0")
    assert code == 1
    assert err == "pod: A slice a was wanted, but it is FAILED. Ask again with `pod.py resume`.\n"


def test_patience_ends(cloud):
    cloud.answer(*({"at": ["describe"], "out": "WAITING_FOR_RESOURCES"} for _ in range(9)))
    code, _, err = cloud.script("pod", "create", "a", *ASKED, "--wait", "--every=0.1", "--patience=0")
    assert code == 1
    assert "still WAITING_FOR_RESOURCES. It stays in the queue" in err


def test_install_copies_the_files_and_makes_an_environment_on_every_worker(cloud, wheel, tmp_path):
    recipe = tmp_path / "own.gin"
    recipe.write_text("TRAIN_STEPS = 1")
    cloud.script("pod", "create", "a", *ASKED)
    code, _, err = cloud.script("pod", "install", "a", *AT, f"--wheel={wheel}", f"--send={recipe}")
    assert code == 0, err
    _, home, sent, installed = cloud.calls()
    assert home == [*GCLOUD, "tpu-vm", "ssh", "a", "--worker=all", '--command=mkdir -p "$HOME/elm"', *AT]
    assert sent == [
        *GCLOUD,
        "tpu-vm",
        "scp",
        str(wheel),
        str(recipe),
        "a:elm/",
        "--recurse",
        "--worker=all",
        *AT,
    ]
    assert installed[:6] == [*GCLOUD, "tpu-vm", "ssh", "a", "--worker=all"]
    assert cloud.both("a", "elm/own.gin") == ["TRAIN_STEPS = 1"] * 2
    name = "./elm_jax-0.1.0-py3-none-any.whl"
    expected = [
        "-m pip install --quiet --user uv",
        "-m uv venv --quiet --seed --python 3.12 venv",
        f"-m pip install --quiet {name}[tpu]",
        f"-m pip install --quiet --no-deps --force-reinstall {name}",
    ]
    assert [said.splitlines() for said in cloud.both("a", "python_calls")] == [expected, expected]


def test_install_takes_a_repository_and_exact_versions(cloud, tmp_path):
    versions = tmp_path / "constraints.txt"
    versions.write_text("")
    cloud.script("pod", "create", "a", *ASKED)
    source = "https://example.org/elm_jax.git@v1"
    code, _, err = cloud.script("pod", "install", "a", f"--git={source}", f"--constraints={versions}")
    assert code == 0, err
    said = cloud.both("a", "python_calls")[1].splitlines()
    assert said[2] == f"-m pip install --quiet -c constraints.txt elm_jax[tpu] @ git+{source}"


def test_run_starts_one_job_on_all_workers_with_the_very_words_given(slice_there):
    odd = "--gin.MIXTURE_OR_TASK_NAME=('a/it\\'s \"so\" $HOME…', 'b/ c ')"
    code, _, err = slice_there.script("pod", "run", "a", "--", "train", "--gin_file=f.gin", odd)
    assert code == 0, err
    assert slice_there.script("pod", "wait", "a", "--every=0.1")[0] == 0
    assert slice_there.both("a", "elm_calls") == [f"<train><--gin_file=f.gin><{odd}><--multiprocess>"] * 2
    assert slice_there.both("a", "elm/elm.log") == ["trains\n"] * 2


@pytest.fixture
def held(slice_there):
    """A job that goes on until it is told to end."""
    for worker in (0, 1):
        (slice_there.home("a", worker) / "hold").touch()
    assert slice_there.script("pod", "run", "a", "--", "train", "one")[0] == 0
    for worker in (0, 1):
        log = slice_there.home("a", worker) / "elm" / "elm.log"
        for _ in range(600):
            if log.exists() and "trains" in log.read_text():
                break
            time.sleep(0.05)
    yield slice_there
    for worker in (0, 1):
        (slice_there.home("a", worker) / "hold").unlink(missing_ok=True)


def test_the_exit_code_of_wait_is_the_jobs(held):
    for worker in (0, 1):
        (held.home("a", worker) / "code").write_text("7")
        (held.home("a", worker) / "hold").unlink()
    assert held.script("pod", "wait", "a", "--every=0.1")[0] == 7


def test_a_job_that_runs_already_is_left_alone(held):
    code, out, _ = held.script("pod", "run", "a", "--", "train", "one")
    assert code == 0
    assert sum(line.endswith("runs this job already") for line in out.splitlines()) == 2
    assert held.both("a", "elm_calls") == ["<train><one><--multiprocess>"] * 2


def test_a_job_that_noted_its_exit_code_is_over_though_its_process_is_still_there(slice_there):
    job = "venv/bin/elm train one --multiprocess"
    with subprocess.Popen(["sleep", "60"]) as lingering:
        for worker in (0, 1):
            there = slice_there.home("a", worker) / "elm"
            for name, told in (("exit", "3"), ("pid", str(lingering.pid)), ("job", job)):
                (there / name).write_text(told)
        assert slice_there.script("pod", "wait", "a", "--every=0.1")[0] == 3
        code, out, _ = slice_there.script("pod", "run", "a", "--", "train", "one")
        lingering.kill()
    assert code == 0
    assert not any(line.endswith("runs this job already") for line in out.splitlines())
    assert slice_there.script("pod", "wait", "a", "--every=0.1")[0] == 0
    assert slice_there.both("a", "elm_calls") == ["<train><one><--multiprocess>"] * 2


def test_another_job_is_not_started_beside_one_that_runs(held):
    code, _, err = held.script("pod", "run", "a", "--", "train", "two")
    assert code == 1
    assert "runs another job" in err
    assert (
        "ended with exit code 4. `pod.py install` comes first, and `pod.py stop` where another job runs."
        in err
    )


def test_status_tells_of_slice_and_job(held):
    assert held.script("pod", "status", "a")[1].endswith("a: ACTIVE; its job: running\n")
    assert held.script("pod", "status", "b")[1].endswith("b: ABSENT; its job: unknown\n")


def test_stop_lets_the_job_save_and_end_well(held):
    assert held.script("pod", "stop", "a")[0] == 0
    assert held.script("pod", "wait", "a", "--every=0.1")[0] == 0
    assert all(said.endswith("saved\n") for said in held.both("a", "elm/elm.log"))


def test_wait_tells_that_the_slice_is_gone(held):
    held.answer(
        {"at": ["ssh"], "code": 255, "states": {"a": "SUSPENDED"}, "err": "connection lost"},
    )
    code, _, err = held.script("pod", "wait", "a", "--every=0.1")
    assert code == 1
    assert "did not come to its end: slice or job are gone" in err
    assert "comes back with `pod.py resume`" in err


def test_wait_bears_a_worker_out_of_reach_while_the_slice_is_there(held):
    held.answer(*({"at": ["ssh"], "code": 255} for _ in range(3)))
    for worker in (0, 1):
        (held.home("a", worker) / "hold").unlink()
    assert held.script("pod", "wait", "a", "--every=0.1")[0] == 0


def test_logs_follows_the_log_of_one_worker(slice_there):
    slice_there.answer({"at": ["ssh"], "out": "a line"})
    code, out, _ = slice_there.script("pod", "logs", "a", *AT, "--worker=1", "--lines=5")
    assert code == 0
    assert out.endswith("a line\n")
    command = '--command=tail -n 5 -F "$HOME/elm/elm.log"'
    assert slice_there.calls() == [[*GCLOUD, "tpu-vm", "ssh", "a", "--worker=1", command, *AT]]


def resume(cloud, wheel, name="a"):
    flags = ["--spot", f"--wheel={wheel}", "--every=0.1"]
    return cloud.script("pod", "resume", name, *ASKED, *flags, "--", "train", "one")


@pytest.mark.parametrize("state", ["SUSPENDED", "FAILED"])
def test_resume_after_preemption_makes_the_slice_anew_and_gives_the_same_command(slice_there, wheel, state):
    (slice_there.root / "states" / "a").write_text(state)
    code, _, err = resume(slice_there, wheel)
    assert code == 0, err
    verbs = ["describe", "delete", "create", "describe", "ssh", "scp", "ssh", "ssh"]
    assert slice_there.verbs() == [f"{verb} {wheel if verb == 'scp' else 'a'}" for verb in verbs]
    assert slice_there.calls()[1] == [*GCLOUD, "queued-resources", "delete", "a", "--force", "--quiet"]
    assert slice_there.calls()[2][5:] == ["--node-id=a", *ASKED, "--spot"]
    assert slice_there.script("pod", "wait", "a", "--every=0.1")[0] == 0
    assert slice_there.both("a", "elm_calls") == ["<train><one><--multiprocess>"] * 2


def test_resume_waits_for_a_slice_that_is_being_taken_away(slice_there, wheel):
    slice_there.answer({"at": ["describe"], "out": "SUSPENDING", "states": {"a": "SUSPENDED"}})
    assert resume(slice_there, wheel)[0] == 0
    assert slice_there.verbs()[:4] == ["describe a", "describe a", "delete a", "create a"]


def test_resume_makes_a_slice_that_never_was(cloud, wheel):
    assert resume(cloud, wheel)[0] == 0
    assert cloud.verbs()[:3] == ["describe a", "create a", "describe a"]


def test_resume_on_a_slice_that_is_there_installs_nothing_again(slice_there, wheel):
    before = slice_there.both("a", "python_calls")
    assert resume(slice_there, wheel)[0] == 0
    assert slice_there.both("a", "python_calls") == before
    assert not {"create a", "delete a"} & set(slice_there.verbs())


def test_fetch_copies_from_a_worker_or_a_bucket(slice_there, tmp_path):
    results = slice_there.home("a", 1) / "elm" / "out"
    results.mkdir()
    (results / "report.html").write_text("all well")
    there = tmp_path / "there"
    assert slice_there.script("pod", "fetch", "a", "out", str(there), "--worker=1", *AT)[0] == 0
    assert (there / "report.html").read_text() == "all well"
    assert slice_there.script("pod", "fetch", "a", "gs://b/out", "here")[0] == 0
    scp = [*GCLOUD, "tpu-vm", "scp", "a:elm/out", str(there), "--recurse", "--worker=1", *AT]
    assert slice_there.calls() == [scp, ["storage", "cp", "--recursive", "gs://b/out", "here"]]


def test_delete_deletes_slice_and_request(slice_there):
    assert slice_there.script("pod", "delete", "a", *AT)[0] == 0
    assert slice_there.calls() == [[*GCLOUD, "queued-resources", "delete", "a", "--force", "--quiet", *AT]]
    assert list((slice_there.root / "states").iterdir()) == []


EVERY = {
    "create": ["a", *ASKED, "--wait"],
    "status": ["a"],
    "install": ["a", "--wheel=w.whl"],
    "run": ["a", "--", "train"],
    "wait": ["a"],
    "logs": ["a"],
    "resume": ["a", *ASKED, "--wheel=w.whl", "--", "train"],
    "stop": ["a"],
    "fetch": ["a", "out", "here"],
    "delete": ["a"],
}


@pytest.mark.parametrize("command", EVERY)
def test_a_dry_run_prints_commands_and_runs_none(cloud, command):
    name, *words = EVERY[command]
    code, out, err = cloud.script("pod", command, name, "--dry-run", *words)
    assert (code, err) == (0, "")
    assert "$ gcloud compute tpus " in out
    assert cloud.calls() == []


ADVICE = {
    "create": "accelerator-types list",
    "status": "gcloud auth login",
    "install": "pod.py status",
    "run": "pod.py install",
    "logs": "pod.py resume",
    "resume": "gcloud auth login",
    "stop": "pod.py status",
    "fetch": "gs://",
    "delete": "queued-resources list",
}


@pytest.mark.parametrize("command", ADVICE)
def test_a_failure_tells_the_command_and_what_to_do_next(cloud, command):
    cloud.answer({"at": [], "code": 3, "err": "ERROR: (gcloud) PERMISSION_DENIED"})
    code, out, err = cloud.script("pod", command, *EVERY[command])
    assert code == 1
    told = next(line for line in err.splitlines() if line.startswith("pod: "))
    asked = next(line for line in out.splitlines() if line.startswith("$ "))
    assert told.startswith(f"pod: `{asked[2:]}` ended with exit code 3")
    assert ADVICE[command] in told
    assert "PERMISSION_DENIED" in err
    assert len(cloud.calls()) == 1


def test_a_later_step_that_fails_ends_the_command_there(cloud, wheel):
    cloud.script("pod", "create", "a", *ASKED)
    cloud.answer({"at": ["scp"], "code": 1, "err": "no space"})
    code, _, err = cloud.script("pod", "install", "a", f"--wheel={wheel}")
    assert code == 1
    assert "The files must be there" in err
    assert cloud.verbs()[1:] == ["ssh a", f"scp {wheel}"]


def test_where_gcloud_is_absent_it_is_said_how_to_get_it(cloud, tmp_path):
    cloud.environment["PATH"] = str(tmp_path)
    code, _, err = cloud.script("pod", "delete", "a")
    assert code == 1
    assert err.startswith("pod: `gcloud` is wanted on the PATH")
    assert "gcloud auth login" in err


def test_run_wants_a_verb(cloud):
    code, _, err = cloud.script("pod", "run", "a")
    assert code == 1
    assert "A verb of elm is wanted after --" in err


def test_flags_may_stand_in_a_file(cloud, tmp_path):
    file = tmp_path / "flags"
    file.write_text("\n".join([*ASKED, "--spot", "--zone=z"]))
    assert cloud.script("pod", "create", "a", f"@{file}")[0] == 0
    assert cloud.calls()[0][5:] == ["--node-id=a", *ASKED, "--spot", "--zone=z"]


def test_the_commands_want_nothing_but_python():
    for file in ("pod.py", "gcloud.py"):
        names = set()
        for node in ast.walk(ast.parse((SCRIPTS / file).read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module)
        assert {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) <= {"gcloud"}
