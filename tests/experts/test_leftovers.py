"""Leftovers: what killed commands leave in a run is deleted, what others write now is not."""

import uuid

import pytest

from elm_jax import locks
from elm_jax.experts import lookup
from elm_jax.session.workspace import Workspace

PLACES = {
    ".evaluate.lock": ["scores/a/b.jsonl", "generated/a.jsonl", "report/report.json", "choices.json"],
    ".index.lock": ["embedder.json"],
    ".run.lock": ["base/config.json"],
    ".run.json.lock": ["run.json"],
    "logs/.train.lock": ["logs/journal.jsonl"],
    "prepared/.lock": ["prepared/a/b.safetensors"],
    "selections/.lock": ["selections/roe.json"],
    "statistics/.lock": ["statistics/a/b/fisher.safetensors"],
    "checkpoints/.0123.lock": ["checkpoints/0123/identity.json"],
    "library/a/.b.lock": ["library/a/b/keys.safetensors"],
    "composites/merged/.x.lock": ["composites/merged/x/expert.json"],
}


def write(root, name):
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("{}")
    return file


@pytest.fixture
def run(tmp_path):
    """A run in which every command was killed while it wrote; returns what is whole in it, too."""
    kept = {write(tmp_path, "library/a/b/expert.json"), write(tmp_path, "composites/merged/x/expert.json")}
    for lock, files in PLACES.items():
        write(tmp_path, lock)
        for name in files:
            file = write(tmp_path, name)
            write(tmp_path, str(file.with_name(f".{file.name}.{uuid.uuid4().hex}.tmp").relative_to(tmp_path)))
            kept.add(file)
    write(tmp_path, f".probe-{uuid.uuid4().hex}")
    write(tmp_path, f"library/a/.c.{uuid.uuid4().hex}.tmp/params.safetensors")
    return tmp_path, kept


def files_of(root):
    return {file for file in root.rglob("*") if file.is_file()}


def test_after_all_were_killed_only_whole_files_are_left(run):
    root, kept = run
    lookup.remove_leftovers(Workspace.open(root))
    assert files_of(root) == kept


@pytest.mark.parametrize("lock", PLACES)
def test_what_a_live_process_writes_stays(run, lock):
    root, kept = run
    with locks.hold(root / lock, "a test"):
        lookup.remove_leftovers(Workspace.open(root))
        left = files_of(root) - kept
    names = {file.name.split(".")[1] if file.suffix == ".tmp" else file.name for file in left}
    wanted = {name.rpartition("/")[2].split(".")[0] for name in PLACES[lock]}
    assert names == wanted | {lock.rpartition("/")[2]}
