"""An archive comes from the index that pip is set up with, and only with the right content."""

import base64
import functools
import hashlib
import http.server
import threading

import pytest

from elm_jax.errors import UserError
from elm_jax.prompting import package_index

CONTENT = b"the archive"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAME = "thing-1.0.tar.gz"


@pytest.fixture
def index(tmp_path):
    """A simple index in a folder: a page a project, and a folder of files."""
    (tmp_path / "simple" / "thing").mkdir(parents=True)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / NAME).write_bytes(CONTENT)
    (tmp_path / "simple" / "thing" / "index.html").write_text(
        '<a href="../../files/thing-0.9.tar.gz">old</a>\n'
        f'<a data-x="1" HREF="../../files/{NAME}#sha256=0">{NAME}</a>'
    )
    return tmp_path / "simple"


@pytest.fixture
def served(tmp_path):
    """The same behind HTTP on this machine, with the requests that came."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers.get("Authorization")))
            if self.path.startswith("/moved/"):
                self.send_response(302)
                self.send_header("Location", self.path.replace("/moved/", "/simple/"))
                self.end_headers()
                return
            super().do_GET()

        def log_message(self, *_):
            pass

    handler = functools.partial(Handler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


def set_up(monkeypatch, *lines, own=""):
    """Makes pip say that it is set up so."""
    said = {"config": "\n".join(lines), "download": own}
    monkeypatch.setattr(package_index, "_run_pip", lambda verb, *_: said[verb])


def fetch(**options):
    return package_index.fetch_archive("thing", NAME, sha256=SHA256, **options)


def test_an_archive_comes_from_a_folder_laid_out_as_an_index(index, monkeypatch):
    set_up(monkeypatch)
    for address in (str(index), index.as_uri(), index.as_uri() + "/"):
        assert fetch(index=address) == CONTENT


def test_an_archive_comes_over_http_and_after_a_redirection(index, served, monkeypatch):
    set_up(monkeypatch)
    host, asked = served
    assert fetch(index=f"http://{host}/simple") == CONTENT
    assert fetch(index=f"http://{host}/moved") == CONTENT
    assert asked[0] == ("/simple/thing/", None)


def test_a_password_in_the_address_is_sent_and_never_shown(index, served, monkeypatch):
    set_up(monkeypatch)
    host, asked = served
    assert fetch(index=f"http://me:my%20word@{host}/simple") == CONTENT
    assert asked[0][1] == "Basic " + base64.b64encode(b"me:my word").decode()
    with pytest.raises(UserError) as error:
        fetch(index=f"http://me:my%20word@{host}/nothing")
    assert "404" in str(error.value)
    assert "word" not in str(error.value)


def test_pips_places_are_tried_in_turn(index, tmp_path, monkeypatch):
    (tmp_path / "wheels").mkdir()
    set_up(
        monkeypatch,
        f"global.find-links={str(tmp_path / 'wheels')!r}",
        f"global.index-url={str(tmp_path / 'absent')!r}",
        f":env:.extra-index-url='{tmp_path / 'absent2'}\\n{index.as_uri()}'",
    )
    assert fetch() == CONTENT
    (tmp_path / "wheels" / NAME).write_bytes(CONTENT)
    (tmp_path / "files" / NAME).unlink()
    assert fetch() == CONTENT


def test_an_archive_of_another_content_is_passed_over_and_told(index, tmp_path, monkeypatch):
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / NAME).write_bytes(b"something else")
    links = f"global.find-links={str(tmp_path / 'wheels')!r}"
    set_up(monkeypatch, links, f"global.index-url={str(index)!r}")
    assert fetch() == CONTENT
    set_up(monkeypatch, links, "global.no-index='1'")
    with pytest.raises(UserError, match="its SHA-256 differs"):
        fetch()


def test_where_nobody_has_it_every_place_is_named(index, tmp_path, monkeypatch):
    (index / "thing" / "index.html").write_text("<a href='other.tar.gz'>other</a>")
    set_up(monkeypatch, f"global.index-url={str(index)!r}", f"global.extra-index-url='{tmp_path}/absent'")
    with pytest.raises(
        UserError, match=r"thing-1.0.tar.gz.*simple/thing/' does not list it; .*absent.* cannot be"
    ):
        fetch()
    set_up(monkeypatch)
    with pytest.raises(UserError, match="pip is missing or configured with no index"):
        fetch()


def test_a_server_that_is_not_there_is_one_sentence(monkeypatch, served):
    set_up(monkeypatch)
    with pytest.raises(UserError, match="cannot be read"):
        fetch(index="http://127.0.0.1:9/simple")


def test_an_endless_file_is_refused(index, monkeypatch):
    set_up(monkeypatch)
    monkeypatch.setattr(package_index, "MAX_BYTES", 5)
    with pytest.raises(UserError, match="more than 5 bytes"):
        fetch(index=str(index))


def test_the_environment_goes_before_pips_files_and_the_default_comes_last(monkeypatch):
    set_up(
        monkeypatch,
        "global.timeout='60'",
        "global.index-url='a'",
        "download.index-url='b'",
        ":env:.cert='/c'",
        "install.index-url='not for downloads'",
        "some warning",
        own="--index-url <url> Base URL (default https://own/simple).",
    )
    assert package_index.read_pip_settings() == {"timeout": "60", "index-url": "b", "cert": "/c"}
    own = "  -i, --index-url <url>  Base URL\n      (default https://own/simple). More (default 5)."
    set_up(monkeypatch, own=own)
    assert package_index.read_pip_settings() == {"index-url": "https://own/simple"}
    set_up(monkeypatch, ":env:.no-index='yes'", own=own)
    assert package_index.read_pip_settings() == {"no-index": "yes"}


def test_pip_itself_is_asked(monkeypatch):
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "https://me:word@index.example/simple")
    assert package_index.read_pip_settings()["index-url"] == "https://me:word@index.example/simple"
    monkeypatch.delenv("PIP_INDEX_URL")
    assert package_index.read_pip_settings()["index-url"].startswith("https://")
