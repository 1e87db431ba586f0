"""Files for Kubernetes and Slurm: their own formats read them, and their commands are elm's."""

import os
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from elm_jax.launch import recipes
from tests.scripts import slurm_cluster

ROOT = Path(__file__).parents[2]
JOBSET = ROOT / "scripts" / "gke" / "jobset.yaml"
SLURM = sorted((ROOT / "scripts" / "slurm").glob("*.sbatch"))
STUBS = {
    "srun": """#!/bin/bash
while [[ $1 == -* ]]; do shift; done
exec "$@"
""",
    "elm": """#!/bin/bash
printf '<%s>' elm "$@" >> "$HOME/called"
exit $CODE
""",
    "scontrol": """#!/bin/bash
printf '<%s>' scontrol "$@" >> "$HOME/called"
""",
}


def read_jobset(document):
    """Returns what the model of the kind knows of a document: what it does not know it leaves out."""
    models = pytest.importorskip("kubeflow_trainer_api.models")
    read = models.JobsetV1alpha2JobSet.from_dict(document)
    assert read is not None
    return read.to_dict()


def test_a_jobset_has_the_fields_of_its_kind_and_no_others():
    document = yaml.safe_load(JOBSET.read_text())
    assert read_jobset(document) == document


def test_xpk_writes_such_a_jobset_of_the_documented_command(tmp_path):
    xpk = os.environ.get("XPK") or shutil.which("xpk")
    if xpk is None:
        pytest.skip("needs XPK; the variable XPK may name the program of another environment")
    page = (ROOT / "docs" / "launching_gke.md").read_text()
    (words,) = re.findall(r"^xpk (workload create .*?)\n```", page, re.MULTILINE | re.DOTALL)
    command = shlex.split(words.replace("CLUSTER", "mine").replace("\\\n", ""))
    written = tmp_path / "jobset.yaml"
    more = ["--dry-run", "--skip-validation", "--project=p", "--zone=us-central2-b"]
    more += [f"--output-manifest-file={written}"]
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run([xpk, *command, *more], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    ours, theirs = (
        read_jobset(yaml.safe_load(JOBSET.read_text())),
        read_jobset(yaml.safe_load(written.read_text())),
    )
    (our_job,), (their_job,) = (each["spec"]["replicatedJobs"] for each in (ours, theirs))
    our_job, their_job = our_job["template"]["spec"], their_job["template"]["spec"]
    assert their_job["parallelism"] == our_job["parallelism"]
    our_pod, their_pod = our_job["template"]["spec"], their_job["template"]["spec"]
    assert their_pod["nodeSelector"].items() >= our_pod["nodeSelector"].items()
    assert their_pod["terminationGracePeriodSeconds"] == our_pod["terminationGracePeriodSeconds"]
    assert "(elm train --multiprocess --wait " in their_pod["containers"][0]["command"][-1]
    # Both end at once where the command is wrong, and begin again where a Pod was told to stop.
    of_rule = ["action", "onJobFailureReasons"]
    found = [
        [rule[key] for key in of_rule]
        for each in (ours, theirs)
        for rule in each["spec"]["failurePolicy"]["rules"]
    ]
    assert found == [["FailJobSet", ["PodFailurePolicy"]]] * 2
    (rule,) = their_job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["operator"] == "NotIn"
    assert 143 in rule["onExitCodes"]["values"]
    assert 2 not in rule["onExitCodes"]["values"]


def test_a_wrong_command_ends_a_jobset_and_any_other_end_starts_it_again():
    spec = yaml.safe_load(JOBSET.read_text())["spec"]
    (job,) = spec["replicatedJobs"]
    policy = job["template"]["spec"]["podFailurePolicy"]
    assert [(rule["action"], rule["onExitCodes"]["values"]) for rule in policy["rules"]] == [("FailJob", [2])]
    rules = spec["failurePolicy"]["rules"]  # Kubernetes calls a Job that such a rule ended so
    assert [(rule["action"], rule["onJobFailureReasons"]) for rule in rules] == [
        ("FailJobSet", ["PodFailurePolicy"])
    ]
    assert job["template"]["spec"]["backoffLimit"] == 0  # of a Job alone, so that all start together


def test_a_jobsets_pods_are_as_many_as_the_slice_has_hosts():
    (job,) = yaml.safe_load(JOBSET.read_text())["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert spec["parallelism"] == spec["completions"] == rows * columns / chips
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    program, verb, flag, waits, file, *macros = container["command"]
    assert (program, verb, flag, waits) == ("elm", "train", "--multiprocess", "--wait")
    known = recipes.macros_in([file.removeprefix("--gin_file=")])
    assert {re.match(r"--gin\.(\w+)=", word)[1] for word in macros} <= known


def start(file, home, *words, code=0, **environment):
    """Runs a batch script as Slurm would, with stand-ins for its programs and for elm."""
    for name, text in STUBS.items():
        (home / name).write_text(text)
        (home / name).chmod(0o755)
    own = {"HOME": str(home), "PATH": f"{home}:{os.environ['PATH']}", "ELM": "elm", "CODE": str(code)}
    done = subprocess.run(["bash", file, *words], env={**own, "SLURM_JOB_ID": "7", **environment}, cwd=ROOT)
    return done.returncode, (home / "called").read_text()


def test_slurm_starts_a_training_with_its_macros(tmp_path):
    file = ROOT / "scripts/slurm/train.sbatch"
    code, said = start(file, tmp_path, "gin/recipes/prompt_expert.gin", "/r", "/b", "/d", "--gin.A=1")
    assert code == 0
    assert said == (
        "<elm><train><--multiprocess><--wait><--gin_file=gin/recipes/prompt_expert.gin><--gin.MODEL_DIR='/r'>"
        "<--gin.INITIAL_CHECKPOINT_PATH='/b'><--gin.DATA_DIR='/d'><--gin.A=1>"
    )


def test_slurm_trains_a_part_of_a_sweep_for_each_task_of_an_array(tmp_path):
    file, array = (
        ROOT / "scripts/slurm/sweep.sbatch",
        {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8"},
    )
    code, said = start(file, tmp_path, "a.gin", "train", "/r", "/b", "/d", **array)
    assert code == 0
    assert said == (
        "<elm><train><--wait><--gin_file=a.gin><--part=3/8><--gin.MIXTURE_OR_TASK_NAME='train'><--gin.MODEL_DIR='/r'>"
        "<--gin.INITIAL_CHECKPOINT_PATH='/b'><--gin.DATA_DIR='/d'>"
    )


@pytest.mark.parametrize("file", SLURM, ids=lambda file: file.stem)
@pytest.mark.parametrize(("code", "again"), [(0, False), (2, False), (143, True)])
def test_slurm_starts_a_job_again_whose_time_was_over_and_no_other(tmp_path, file, code, again):
    array = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "1"}
    ended, said = start(file, tmp_path, "a.gin", "b", "c", "d", "e", code=code, **array)
    assert ended == code
    assert said.endswith("<scontrol><requeue><7>") == again
    options = re.findall(r"^#SBATCH --([\w-]+)", file.read_text(), re.MULTILINE)
    assert {"requeue", "signal", "time"} <= set(options)


SLURM_STUB = """#!/bin/bash
file={home}/called.$SLURM_JOB_ID.$SLURM_PROCID
echo "$SLURM_PROCID of $SLURM_NTASKS, gpus $CUDA_VISIBLE_DEVICES: $*" >> "$file"
exit {code}
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The variables that Slurm's programs want."""
    if not slurm_cluster.is_installed():
        pytest.skip("needs Slurm and root: apt-get install slurmctld slurmd slurm-client munge")
    with slurm_cluster.serve(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


def submit(slurm, home, file, *words, code=0):
    """Submits a script of eight processes; returns its jobs' states, and what stand-ins for elm said."""
    (home / "elm").write_text(SLURM_STUB.format(home=home, code=code))
    (home / "elm").chmod(0o755)
    environment = {**slurm, "ELM": str(home / "elm")}
    said = subprocess.run(
        ["sbatch", "--parsable", file, *words], env=environment, cwd=home, capture_output=True, text=True
    )
    assert said.returncode == 0, said.stderr
    job, states = said.stdout.strip(), "RUNNING"
    for _ in range(300):
        time.sleep(0.2)
        ask = ["squeue", "-h", "-j", job, "-t", "all", "-o", "%T"]
        states = set(subprocess.run(ask, env=slurm, capture_output=True, text=True).stdout.split())
        all_called = len(list(home.glob("called.*"))) == 8
        if all_called and not states & {"RUNNING", "COMPLETING", "CONFIGURING"}:
            break
    subprocess.run(["scancel", job], env=slurm, check=True)
    return states, sorted(line for each in home.glob("called.*") for line in each.read_text().splitlines())


@pytest.mark.parametrize("file", SLURM, ids=lambda file: file.stem)
def test_slurm_itself_would_start_a_batch_script(slurm, file):
    command = ["sbatch", "--test-only", file, "a.gin", "b", "c", "d", "e"]
    said = subprocess.run(command, env=slurm, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert "to start at" in said.stderr


def test_slurm_itself_starts_a_training_on_eight_gpus_and_again_when_its_time_was_over(slurm, tmp_path):
    states, said = submit(
        slurm, tmp_path, ROOT / "scripts/slurm/train.sbatch", "a.gin", "/r", "/b", "/d", code=143
    )
    assert states == {"PENDING"}  # again
    assert [line.partition(":")[0] for line in said] == [
        f"{each} of 8, gpus 0,1,2,3,4,5,6,7" for each in range(8)
    ]
    assert all(line.endswith("--gin.DATA_DIR='/d'") for line in said)


def test_slurm_itself_trains_every_part_of_a_sweep_on_one_gpu(slurm, tmp_path):
    states, said = submit(
        slurm, tmp_path, ROOT / "scripts/slurm/sweep.sbatch", "a.gin", "train", "/r", "/b", "/d"
    )
    assert states == {"COMPLETED"}
    assert len(said) == 8
    assert {re.search(r"--part=(\d)/8 ", line)[1] for line in said} == set("12345678")
    assert all(re.match(r"0 of 1, gpus \d: ", line) for line in said)
