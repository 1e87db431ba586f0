"""Whatever happens to a writer, a directory is all of the old or all of the new."""

import os
import threading

import pytest

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.experts import atomic_dir, versions

MARK = "mark"


@pytest.fixture
def home(tmp_path):
    return storage.path(tmp_path) / "set" / "home"


def filler(text):
    """Writes the marker last of three files that all hold one text."""

    def fill(directory):
        for name in ("first", "second", MARK):
            storage.write_bytes(directory / name, text.encode())

    return fill


def text_of(home):
    def reader(directory):
        found = {name: (directory / name).read_text() for name in ("first", "second", MARK)}
        return set(found.values())

    (text,) = atomic_dir.read(home, MARK, reader)
    return text


class Killed(BaseException):
    """Stands for a signal: nothing but a finally clause runs after it."""


def kill_at_rename(monkeypatch, home, number):
    """Lets a writer die just before the `number`th renaming of a directory, with no chance to tidy up."""
    rename, seen = type(home).replace, []

    def dying(self, target):
        if self.is_dir():
            seen.append(self)
            if len(seen) >= number:
                raise Killed
        return rename(self, target)

    monkeypatch.setattr(type(home), "replace", dying)
    monkeypatch.setattr(versions, "delete", lambda directory: None)


def test_what_was_written_is_read_and_nothing_else_is_left(home):
    atomic_dir.write(home, MARK, filler("old"))
    assert text_of(home) == "old"
    assert os.listdir(home.parent) == ["home"]


def test_a_directory_that_is_there_is_not_written_over_unasked(home):
    atomic_dir.write(home, MARK, filler("old"))
    with pytest.raises(FileExistsError):
        atomic_dir.write(home, MARK, filler("new"))
    assert text_of(home) == "old"


def test_replacing_leaves_only_the_new(home):
    atomic_dir.write(home, MARK, filler("old"))
    atomic_dir.write(home, MARK, filler("new"), replace=True)
    assert text_of(home) == "new"
    assert os.listdir(home.parent) == ["home"]


def test_a_filler_that_fails_leaves_the_old_and_no_rubbish(home):
    atomic_dir.write(home, MARK, filler("old"))

    def fail(directory):
        filler("half")(directory)
        raise UserError("No space left on device.")

    with pytest.raises(UserError, match="No space"):
        atomic_dir.write(home, MARK, fail, replace=True)
    assert text_of(home) == "old"
    assert os.listdir(home.parent) == ["home"]


# Renaming the new onto the old is tried (1), the old is moved aside (2), the new is moved in (3), the old is
# put away (4).
@pytest.mark.parametrize(("number", "found"), [(1, "old"), (2, "old"), (3, "old"), (4, "new")])
def test_a_writer_killed_at_any_renaming_leaves_the_old_or_the_new(home, monkeypatch, number, found):
    atomic_dir.write(home, MARK, filler("old"))
    with monkeypatch.context() as patch:
        kill_at_rename(patch, home, number)
        with pytest.raises(Killed):
            atomic_dir.write(home, MARK, filler("new"), replace=True)
    assert text_of(home) == found
    assert atomic_dir.list_complete(home.parent, MARK) == ["home"]
    assert {name for name, _ in atomic_dir.list_unfinished(home.parent, MARK)} == {"home"}


def test_the_next_writer_takes_the_place_of_what_a_killed_one_moved_aside(home, monkeypatch):
    atomic_dir.write(home, MARK, filler("old"))
    with monkeypatch.context() as patch:
        kill_at_rename(patch, home, 3)
        with pytest.raises(Killed):
            atomic_dir.write(home, MARK, filler("lost"), replace=True)
    with pytest.raises(FileExistsError):
        atomic_dir.write(home, MARK, filler("new"))
    atomic_dir.write(home, MARK, filler("new"), replace=True)
    assert text_of(home) == "new"
    assert not [name for name in os.listdir(home.parent) if name.endswith(".old")]


def test_removing_takes_what_a_killed_writer_moved_aside_too(home, monkeypatch):
    atomic_dir.write(home, MARK, filler("old"))
    with monkeypatch.context() as patch:
        kill_at_rename(patch, home, 3)
        with pytest.raises(Killed):
            atomic_dir.write(home, MARK, filler("lost"), replace=True)
    atomic_dir.remove(home)
    assert atomic_dir.locate(home, MARK) is None


def test_a_directory_without_its_marker_is_absent_and_gives_way(home):
    (home / "rest").mkdir(parents=True)
    assert atomic_dir.locate(home, MARK) is None
    assert [name for name, _ in atomic_dir.list_unfinished(home.parent, MARK)] == ["home"]
    atomic_dir.write(home, MARK, filler("new"))
    assert text_of(home) == "new"


def test_reading_or_listing_what_was_never_there(home):
    assert atomic_dir.list_complete(home.parent, MARK) == []
    with pytest.raises(FileNotFoundError):
        text_of(home)


def test_a_reader_that_fails_for_another_writer_reads_again(home):
    atomic_dir.write(home, MARK, filler("old"))
    seen = []

    def reader(directory):
        text = (directory / MARK).read_text()
        seen.append(text)
        if len(seen) == 1:
            atomic_dir.write(home, MARK, filler("new"), replace=True)
            raise UserError("What was being read went away.")
        return text

    assert atomic_dir.read(home, MARK, reader) == "new"
    assert seen == ["old", "new"]


def test_a_reader_that_fails_with_nobody_else_about_is_believed(home):
    atomic_dir.write(home, MARK, filler("old"))

    def reader(directory):
        raise UserError("Truly broken.")

    with pytest.raises(UserError, match="Truly broken"):
        atomic_dir.read(home, MARK, reader)


def test_a_directory_that_changes_without_end_is_given_up(home, monkeypatch):
    atomic_dir.write(home, MARK, filler("0"))
    monkeypatch.setattr(atomic_dir, "ATTEMPTS", 5)
    counter = iter(range(1, 100))
    with pytest.raises(UserError, match=str(home)):
        atomic_dir.read(
            home,
            MARK,
            lambda directory: atomic_dir.write(home, MARK, filler(str(next(counter))), replace=True),
        )


def test_writers_at_once_and_readers_between_them_never_meet_a_torn_directory(home):
    atomic_dir.write(home, MARK, filler("start"))
    done, failures = threading.Event(), []

    def work(task):
        try:
            task()
        except BaseException as error:
            failures.append(error)

    def write(name):
        for number in range(40):
            atomic_dir.write(home, MARK, filler(f"{name}{number}"), replace=True)

    def read():
        while not done.is_set():
            text_of(home)

    writers = [threading.Thread(target=work, args=(lambda name=name: write(name),)) for name in "ab"]
    readers = [threading.Thread(target=work, args=(read,)) for _ in range(2)]
    for thread in writers + readers:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in readers:
        thread.join()
    assert failures == []
    assert text_of(home) in ("a39", "b39")
    assert os.listdir(home.parent) == ["home"]


def test_a_directory_in_use_is_no_new_one(home):
    home.mkdir(parents=True)
    atomic_dir.write_new(home, MARK, filler("old"))
    with pytest.raises(UserError, match=str(home)):
        atomic_dir.write_new(home, MARK, filler("new"))
    assert text_of(home) == "old"


def test_of_two_who_add_at_once_one_is_told_that_it_came_second(home):
    def fill(directory):
        filler("slow")(directory)
        atomic_dir.write(home, MARK, filler("quick"))

    with pytest.raises(FileExistsError):
        atomic_dir.write(home, MARK, fill)
    assert text_of(home) == "quick"
    assert os.listdir(home.parent) == ["home"]


def test_a_place_that_the_system_refuses_is_named(home):
    home.parent.mkdir(parents=True)
    home.write_text("a file is in the way")
    with pytest.raises(UserError, match=str(home)):
        atomic_dir.write(home, MARK, filler("new"))
    assert os.listdir(home.parent) == ["home"]
