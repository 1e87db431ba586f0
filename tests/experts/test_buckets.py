"""Directories and libraries in a bucket: all of the old or all of the new, as on a disk."""

import subprocess
import sys

import pytest

from elm_jax import locks, storage
from elm_jax.errors import UserError
from elm_jax.experts import atomic_dir, files, versions
from elm_jax.experts.library import Library
from tests.experts.test_library_processes import NAME, plain, start
from tests.s3_server import objects

MARK = "expert.json"


def filler(text):
    """Writes the marker last of three files that all hold one text."""

    def fill(directory):
        for name in ("first", "second", MARK):
            storage.write_bytes(directory / name, text.encode())

    return fill


def text_of(home):
    def reader(directory):
        return {(directory / name).read_text() for name in ("first", "second", MARK)}

    (text,) = atomic_dir.read(home, MARK, reader)
    return text


@pytest.fixture
def home(bucket):
    return bucket / "set" / "home"


def test_a_directory_is_one_version_and_a_pointer_that_names_it(home):
    atomic_dir.write(home, MARK, filler("old"))
    assert text_of(home) == "old"
    pointer, *files = objects(home)
    named = storage.read_json(home / pointer, what="A pointer")["directory"]
    assert pointer == versions.POINTER_FILE
    assert named.startswith("expert-")
    assert files == [f"{named}/{name}" for name in (MARK, "first", "second")]


def test_replacing_leaves_only_the_new_and_removing_leaves_nothing(home):
    atomic_dir.write(home, MARK, filler("old"))
    with pytest.raises(FileExistsError):
        atomic_dir.write(home, MARK, filler("new"))
    assert text_of(home) == "old"
    atomic_dir.write(home, MARK, filler("new"), replace=True)
    assert text_of(home) == "new"
    assert len(objects(home)) == 4
    assert atomic_dir.list_complete(home.parent, MARK) == ["home"]
    atomic_dir.remove(home)
    assert objects(home) == []
    assert atomic_dir.list_complete(home.parent, MARK) == []
    with pytest.raises(FileNotFoundError):
        text_of(home)


def test_a_copy_of_a_directory_of_a_disk_is_read_replaced_and_removed(home):
    filler("disk")(home)
    assert text_of(home) == "disk"
    assert atomic_dir.list_complete(home.parent, MARK) == ["home"]
    assert atomic_dir.list_unfinished(home.parent, MARK) == []
    atomic_dir.write(home, MARK, filler("new"), replace=True)
    assert text_of(home) == "new"
    assert len(objects(home)) == 4


def test_a_copy_of_a_directory_of_a_bucket_is_read_and_replaced_on_a_disk(home, tmp_path):
    atomic_dir.write(home, MARK, filler("bucket"))
    here = storage.path(tmp_path) / "set" / "home"
    for name in objects(home):
        storage.copy_file(home / name, here / name)
    assert text_of(here) == "bucket"
    assert atomic_dir.list_complete(here.parent, MARK) == ["home"]
    assert atomic_dir.list_unfinished(here.parent, MARK) == []
    atomic_dir.write(here, MARK, filler("new"), replace=True)
    assert text_of(here) == "new"
    assert sorted(file.name for file in here.iterdir()) == [MARK, "first", "second"]


def test_of_two_who_add_at_once_one_is_told_that_it_came_second(home):
    def fill(directory):
        filler("slow")(directory)
        atomic_dir.write(home, MARK, filler("quick"))

    with pytest.raises(FileExistsError):
        atomic_dir.write(home, MARK, fill)
    assert text_of(home) == "quick"
    assert len(objects(home)) == 4


def test_what_another_writes_meanwhile_is_not_deleted(home):
    """Not even without a lock: each deletes what was there before it began."""
    atomic_dir.write(home, MARK, filler("old"))

    def fill(directory):
        atomic_dir.write(home, MARK, filler("other"), replace=True)
        filler("mine")(directory)

    atomic_dir.write(home, MARK, fill, replace=True)
    assert text_of(home) == "mine"


def test_a_reader_whose_version_is_deleted_reads_the_next(home):
    atomic_dir.write(home, MARK, filler("old"))
    seen = []

    def reader(directory):
        seen.append((directory / "first").read_text())
        if len(seen) == 1:
            atomic_dir.write(home, MARK, filler("new"), replace=True)
        return (directory / "second").read_text()

    assert atomic_dir.read(home, MARK, reader) == "new"
    assert seen == ["old", "new"]


def test_a_directory_for_other_programs_has_no_versions(home):
    atomic_dir.write_new(home, MARK, filler("all"))
    assert objects(home) == [MARK, "first", "second"]
    with pytest.raises(UserError, match=str(home)):
        atomic_dir.write_new(home, MARK, filler("again"))


@pytest.mark.parametrize("content", [b"{", b'{"format": 1, "directory": "../expert"}', b'{"format": 99}'])
def test_a_damaged_pointer_is_named(home, content):
    atomic_dir.write(home, MARK, filler("old"))
    storage.write_bytes(home / versions.POINTER_FILE, content)
    with pytest.raises(UserError, match=versions.POINTER_FILE):
        atomic_dir.locate(home, MARK)


KILLED = f"""
import sys, time
from elm_jax import storage
from elm_jax.experts import atomic_dir

def fill(directory):
    for name in sys.argv[2].split():
        storage.write_bytes(directory / name, b"new")
    print("filled", flush=True)
    time.sleep(60)

home = storage.path(sys.argv[1])
with atomic_dir.lock(home):
    atomic_dir.write(home, {MARK!r}, fill, replace=True)
"""


@pytest.mark.parametrize("written", ["first", f"first second {MARK}"])
def test_a_writer_killed_in_the_middle_leaves_the_old_and_what_it_left_is_deleted(home, written, monkeypatch):
    atomic_dir.write(home, MARK, filler("old"))
    before = objects(home)
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(home), written], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "filled\n"
        writer.kill()
    assert text_of(home) == "old"
    assert objects(home) != before
    ((name, left),) = atomic_dir.list_unfinished(home.parent, MARK)
    assert name == "home"
    assert left.name.startswith("expert-")
    with locks.attempt(atomic_dir.lock_file(home), "a test") as held:
        assert not held  # its lock is young
    monkeypatch.setattr(locks, "EXPIRY_SECONDS", 0.0)
    with atomic_dir.lock(home):
        atomic_dir.recover(home, MARK)
    assert objects(home.parent) == [f"home/{each}" for each in before]


def test_two_writers_and_a_reader_beside_them_never_meet_half_an_expert(bucket):
    library = Library.open(bucket / "library", create=True)
    library.add(plain(NAME, 0))
    library.add(plain("dream/quiet", 7))
    writers = [start(library, first, 5) for first in (1, 2)]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        assert library.ids() == ("dream/quiet", NAME)
        found = library.load_expert(NAME)
        assert set(map(float, found.params["w"])) == {float(found.spec.steps)}
        assert set(map(float, found.params["z"])) == {float(found.spec.steps)}
        keys = library.load_keys(NAME) if library.has_keys(NAME) else None
        assert keys is None or len(set(map(float, keys.vectors.ravel()))) == 1
        seen.add(found.spec.steps)
    for writer in writers:
        _, told = writer.communicate()
        assert writer.returncode == 0, told
    assert len(seen) > 1
    assert library.verify() == []
    assert len(objects(library.root)) == 7


def test_experts_keys_and_sizes_are_as_on_a_disk(bucket, library):
    there = Library.open(bucket / "library", create=True)
    for each in (library, there):
        each.add(plain(NAME, 3))
    assert there.fingerprint(NAME) == library.fingerprint(NAME)
    assert there.sizes() == library.sizes()
    there.remove(NAME)
    assert there.ids() == ()
    there.add_copy(library.root / files.relative_directory(NAME))
    library.add_copy(there.root / files.relative_directory(NAME), replace=True)
    assert there.fingerprint(NAME) == library.fingerprint(NAME)
    there.remove(NAME)
    assert objects(bucket) == []
