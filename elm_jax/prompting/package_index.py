"""Packages: a source archive from the package index that pip is set up with, taken as data.

Nothing is built, run or installed. pip itself downloads no source archive without running its build, so pip
is only asked how it is set up (`pip config list`), and the index is read by its simple API (PEP 503).
"""

import ast
import base64
import contextlib
import hashlib
import html
import http.client
import os
import re
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from io import BufferedIOBase
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from elm_jax.errors import UserError

TIMEOUT = 30  # seconds
MOST_BYTES = 32_000_000

Settings = Mapping[str, str]  # pip's option -> its value


def fetch(package: str, archive: str, *, sha256: str, index: str | None = None) -> bytes:
    """Returns the content of a package's source archive, whose SHA-256 must be the one given.

    It is looked for at `index`, the address or folder of a simple index; without one, at the find-links and
    the indexes that pip is set up with, with pip's certificate, proxy and trusted hosts. Raises `UserError`
    where none of them has it, naming each with the reason, but no password that stands in an address.
    """
    settings = pip_settings()
    reasons = []
    for page in [_project(index, package)] if index else _pages(settings, package):
        try:
            link = _find(page, archive, settings)
            content = None if link is None else _read(link, settings)[0]
        except (OSError, ValueError, http.client.HTTPException) as error:
            reasons.append(f"{_shown(page)} cannot be read ({error})")
            continue
        if content is None:
            reasons.append(f"{_shown(page)} does not list it")
        elif hashlib.sha256(content).hexdigest() != sha256:
            reasons.append(f"{_shown(page)} has another file of that name: its SHA-256 differs")
        else:
            return content
    told = "; ".join(reasons) or "pip is set up with no index, or is not there"
    raise UserError(f"{archive!r} is wanted from the package index, but {told}. Give the index to use.")


def pip_settings() -> dict[str, str]:
    """Returns what pip is set up with: its files and environment, and its own index where they name none."""
    found: dict[str, dict[str, str]] = {}
    for line in _pip("config", "list").splitlines():
        if match := re.fullmatch(r"(\S+?)\.([\w-]+)=(.*)", line.strip()):
            with contextlib.suppress(ValueError, SyntaxError):
                found.setdefault(match[1], {})[match[2]] = str(ast.literal_eval(match[3]))
    settings: dict[str, str] = {}
    for section in ("global", "download", ":env:"):  # as pip does for `pip download`, the last one wins
        settings |= found.get(section, {})
    no_index = settings.get("no-index", "").lower() in ("1", "true", "yes", "on")
    if "index-url" not in settings and not no_index:
        # The help of the option names the index that pip goes to by itself.
        own = re.search(r"--index-url.*?\(default\s+(\w+://\S+?)\)", _pip("download", "--help"), re.DOTALL)
        settings |= {"index-url": own[1]} if own else {}
    return settings


def _pip(*arguments: str) -> str:
    environment = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "COLUMNS": "1000"}
    done = subprocess.run(
        [sys.executable, "-m", "pip", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout


def _pages(settings: Settings, package: str) -> list[str]:
    links = settings.get("find-links", "").split()
    names = ("index-url", "extra-index-url")
    indexes = [address for name in names for address in settings.get(name, "").split()]
    return links + [_project(address, package) for address in indexes]


def _project(index: str, package: str) -> str:
    return f"{index.rstrip('/')}/{package}/"


def _find(page: str, archive: str, settings: Settings) -> str | None:
    """Returns the address of the archive that a page or folder lists."""
    folder = _local(page)
    if folder is not None and folder.is_dir() and not (folder / "index.html").is_file():
        return str(folder / archive) if (folder / archive).is_file() else None
    content, address = _read(str(folder / "index.html") if folder and folder.is_dir() else page, settings)
    for link in re.findall(
        r"""<a\b[^>]*?\bhref\s*=\s*["']([^"']+)""", content.decode(errors="replace"), re.I
    ):
        found = urljoin(address, html.unescape(link))
        if unquote(urlsplit(found).path).rpartition("/")[2] == archive:
            return found
    return None


def _read(address: str, settings: Settings) -> tuple[bytes, str]:
    """Returns what an address holds, and the address that it has after redirections."""
    local = _local(address)
    if local is not None:
        with local.open("rb") as file:
            return _bounded(file), local.absolute().as_uri()
    parts = urlsplit(address)
    host = parts.netloc.rpartition("@")[2]
    request = urllib.request.Request(urlunsplit(parts._replace(netloc=host, fragment="")))
    request.add_header("Accept", "text/html, */*;q=0.1")
    if parts.username:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        # Not to be sent on to where a redirection leads.
        request.add_unredirected_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
    handlers: list[urllib.request.BaseHandler] = [urllib.request.HTTPSHandler(context=_trust(host, settings))]
    if "proxy" in settings:
        handlers.append(urllib.request.ProxyHandler(dict.fromkeys(("http", "https"), settings["proxy"])))
    with urllib.request.build_opener(*handlers).open(request, timeout=TIMEOUT) as response:
        return _bounded(response), response.geturl()


def _trust(host: str, settings: Settings) -> ssl.SSLContext:
    trusted = settings.get("trusted-host", "").split()
    if {host, host.partition(":")[0]} & set(trusted):
        context = ssl.create_default_context()  # the SHA-256 vouches for the file
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context
    context = ssl.create_default_context()
    with contextlib.suppress(ImportError):  # some systems' Python knows no certificates of its own
        import certifi

        context.load_verify_locations(certifi.where())
    if "cert" in settings:
        context.load_verify_locations(os.path.expanduser(settings["cert"]))
    return context


def _bounded(file: BufferedIOBase) -> bytes:
    content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
    return content


def _local(address: str) -> Path | None:
    parts = urlsplit(address)
    if parts.scheme == "file":
        return Path(urllib.request.url2pathname(parts.path))
    return Path(address).expanduser() if "://" not in address else None


def _shown(address: str) -> str:
    """Returns an address without the name and password in it."""
    parts = urlsplit(address)
    return repr(urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])))
