"""PromptSource's templates come out of its archive into the cache, whole or not at all."""

import functools
import hashlib
import io
import json
import tarfile

import pytest

from elm_jax import cli
from elm_jax.errors import UserError
from elm_jax.prompting import archive as prompts
from elm_jax.prompting import package_index, promptsource
from elm_jax.tasks import specs, task_templates

TEMPLATES = """templates:
  x: !Template
    answer_choices: yes ||| no
    id: x
    jinja: '{{text}} ||| {{answer_choices[label]}}'
    name: first
  y: !Template
    answer_choices: null
    id: y
    jinja: '{{text}} ||| more'
    name: second
"""
TOP = "promptsource-0.2.3"
MEMBERS = {
    f"{TOP}/LICENSE": "the licence",
    f"{TOP}/promptsource/templates/imdb/templates.yaml": TEMPLATES,
    f"{TOP}/promptsource/templates/glue/mrpc/templates.yaml": TEMPLATES,
    f"{TOP}/promptsource/templates.py": "raise SystemExit('code that nobody runs')",
    f"{TOP}/setup.py": "raise SystemExit('a build that nobody starts')",
}


def archive(members, links=()):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as made:
        for name, text in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            made.addfile(member, io.BytesIO(text.encode()))
        for name in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            made.addfile(member)
    return content.getvalue()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index in a folder; pip is not asked."""
    monkeypatch.setattr(package_index, "pip_settings", dict)
    monkeypatch.setenv("ELM_JAX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "index" / "promptsource").mkdir(parents=True)
    return tmp_path / "index"


def fetch(index, content, **options):
    (index / "promptsource" / promptsource.ARCHIVE).write_bytes(content)
    return prompts.fetch(index=str(index), sha256=hashlib.sha256(content).hexdigest(), **options)


def test_templates_and_licence_come_into_the_cache_and_nothing_else(index, tmp_path):
    fetched = fetch(index, archive(MEMBERS))
    release = tmp_path / "cache" / "promptsource" / "0.2.3"
    assert (str(fetched.directory), fetched.datasets, fetched.new) == (str(release / "templates"), 2, True)
    there = {str(file.relative_to(release)) for file in release.rglob("*") if file.is_file()}
    assert there == {"LICENSE", "templates/imdb/templates.yaml", "templates/glue/mrpc/templates.yaml"}
    assert (release / "templates/imdb/templates.yaml").read_text() == TEMPLATES
    assert [file.name for file in release.parent.iterdir()] == ["0.2.3"]


def test_a_second_time_nothing_is_asked_for(index):
    first = fetch(index, archive(MEMBERS))
    (index / "promptsource" / promptsource.ARCHIVE).unlink()
    again = prompts.fetch(index=str(index))
    assert (again.directory, again.datasets, again.new) == (first.directory, 2, False)


def test_another_cache_can_be_named(index, tmp_path):
    fetched = fetch(index, archive(MEMBERS), cache=tmp_path / "mine")
    assert str(fetched.directory) == str(tmp_path / "mine" / "promptsource" / "0.2.3" / "templates")


def test_fetched_templates_are_the_tasks_own(index):
    members = MEMBERS | {
        f"{TOP}/promptsource/templates/imdb/templates.yaml": TEMPLATES.replace("first", "Reviewer Enjoyment")
    }
    spec = specs.find_task("imdb/Reviewer Enjoyment")
    with pytest.raises(UserError, match="elm prompts fetch"):
        task_templates.template_for(spec)
    fetch(index, archive(members))
    assert task_templates.template_for(spec).fixed_choices == ("yes", "no")


def test_an_archive_with_another_checksum_leaves_nothing(index, tmp_path):
    (index / "promptsource" / promptsource.ARCHIVE).write_bytes(archive(MEMBERS))
    with pytest.raises(UserError, match="its SHA-256 differs"):
        prompts.fetch(index=str(index))
    assert not (tmp_path / "cache" / "promptsource" / "0.2.3").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no archive", "cannot be unpacked"),
        (archive(MEMBERS)[:-40], "cannot be unpacked"),
        (archive({}), "should hold a licence and templates"),
        (archive({f"{TOP}/LICENSE": "x"}), "should hold a licence and templates"),
        (
            archive({f"{TOP}/promptsource/templates/../../../../out/templates.yaml": "x"} | MEMBERS),
            "no plain file",
        ),
        (archive(MEMBERS, [f"{TOP}/promptsource/templates/evil/templates.yaml"]), "no plain file"),
        (
            archive(MEMBERS | {f"{TOP}/promptsource/templates/x/templates.yaml": "x" * 5_000_000}),
            "no plain file",
        ),
    ],
    ids=["text", "cut off", "empty", "no templates", "outside", "link", "huge"],
)
def test_an_archive_of_another_kind_is_refused_and_leaves_nothing(index, tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        fetch(index, content)
    assert not list((tmp_path / "cache" / "promptsource").iterdir())
    assert not (tmp_path / "out").exists()


def test_members_outside_the_archives_top_are_never_written(index, tmp_path):
    members = MEMBERS | {"/etc/templates.yaml": "x", "../templates.yaml": "x", "LICENSE": "x", "": "x"}
    fetch(index, archive(members))
    assert (tmp_path / "cache/promptsource/0.2.3/LICENSE").read_text() == "the licence"
    assert not (tmp_path / "cache" / "templates.yaml").exists()


def test_a_failure_halfway_leaves_nothing(index, tmp_path, monkeypatch):
    def full(where, content):
        if "mrpc" in str(where):
            raise UserError("No space.")
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_bytes(content)

    monkeypatch.setattr(prompts.storage, "write_bytes", full)
    with pytest.raises(UserError, match="No space"):
        fetch(index, archive(MEMBERS))
    assert not list((tmp_path / "cache" / "promptsource").iterdir())


def said(capsys, *arguments):
    """Runs a command that should go well; returns what it printed."""
    with pytest.raises(SystemExit) as stop:
        cli.main(["prompts", *arguments])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_fetched_templates_are_listed(index, capsys):
    fetch(index, archive(MEMBERS))
    assert json.loads(said(capsys, "list", "--json")) == {"glue/mrpc": 2, "imdb": 2}
    named = {"first": "yes ||| no", "second": None}
    assert json.loads(said(capsys, "list", "glue/mrpc", "--json")) == named
    assert said(capsys, "list").split() == ["glue/mrpc", "2", "imdb", "2"]


@pytest.mark.parametrize("arguments", [["list"], ["list", "imdb"]])
def test_listing_before_fetching_says_what_to_do(index, capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(["prompts", *arguments])
    assert stop.value.code == 2
    assert "Run `elm prompts fetch`" in capsys.readouterr().err


def test_the_command_says_where_they_are(index, tmp_path, capsys, monkeypatch):
    content = archive(MEMBERS)
    (index / "promptsource" / promptsource.ARCHIVE).write_bytes(content)
    known = functools.partial(prompts.fetch, sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(prompts, "fetch", known)
    assert said(capsys, "fetch", "--index", str(index)).startswith("Templates of 2 datasets are now at")
    assert json.loads(said(capsys, "fetch", "--index", str(index), "--json")) == {
        "directory": str(tmp_path / "cache/promptsource/0.2.3/templates"),
        "new": False,
    }
