"""Package index: downloads a source archive from the package index that pip is configured with.

Nothing is built, run or installed. pip downloads no source archive without running its build, so only pip's
configuration is used (`pip config list`), and the index is read through its simple API (PEP 503).
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
MAX_BYTES = 32_000_000

Settings = Mapping[str, str]  # pip's option -> its value


def fetch_archive(package: str, archive: str, *, sha256: str, index: str | None = None) -> bytes:
    """Returns the content of a package's source archive.

    Args:
        package: Name of the package.
        archive: Name of the archive's file.
        sha256: SHA-256 that the archive must have.
        index: Address or folder of a simple index; default: pip's find-links and indexes, with its
            certificate, proxy and trusted hosts.

    Raises:
        UserError: If no index has the archive; the message names each with the reason, without passwords.
    """
    settings = read_pip_settings()
    reasons = []
    for page in [_project_page(index, package)] if index else _list_pages(settings, package):
        try:
            link = _find_link(page, archive, settings)
            content = None if link is None else _read(link, settings)[0]
        except (OSError, ValueError, http.client.HTTPException) as error:
            reasons.append(f"{_hide_password(page)} cannot be read ({error})")
            continue
        if content is None:
            reasons.append(f"{_hide_password(page)} does not list it")
        elif hashlib.sha256(content).hexdigest() != sha256:
            reasons.append(f"{_hide_password(page)} has another file of that name: its SHA-256 differs")
        else:
            return content
    reason = "; ".join(reasons) or "pip is missing or configured with no index"
    raise UserError(f"Expected {archive!r} from the package index, got none: {reason}. Fix: name an index.")


def read_pip_settings() -> dict[str, str]:
    """Returns pip's configuration, with pip's default index if it names none."""
    found: dict[str, dict[str, str]] = {}
    for line in _run_pip("config", "list").splitlines():
        if match := re.fullmatch(r"(\S+?)\.([\w-]+)=(.*)", line.strip()):
            with contextlib.suppress(ValueError, SyntaxError):
                found.setdefault(match[1], {})[match[2]] = str(ast.literal_eval(match[3]))
    settings: dict[str, str] = {}
    for section in ("global", "download", ":env:"):  # as pip does for `pip download`, the last one wins
        settings |= found.get(section, {})
    no_index = settings.get("no-index", "").lower() in ("1", "true", "yes", "on")
    if "index-url" not in settings and not no_index:
        # The option's help names pip's default index.
        own = re.search(
            r"--index-url.*?\(default\s+(\w+://\S+?)\)", _run_pip("download", "--help"), re.DOTALL
        )
        settings |= {"index-url": own[1]} if own else {}
    return settings


def _run_pip(*arguments: str) -> str:
    environment = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "COLUMNS": "1000"}
    done = subprocess.run(
        [sys.executable, "-m", "pip", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout


def _list_pages(settings: Settings, package: str) -> list[str]:
    links = settings.get("find-links", "").split()
    names = ("index-url", "extra-index-url")
    indexes = [address for name in names for address in settings.get(name, "").split()]
    return links + [_project_page(address, package) for address in indexes]


def _project_page(index: str, package: str) -> str:
    return f"{index.rstrip('/')}/{package}/"


def _find_link(page: str, archive: str, settings: Settings) -> str | None:
    """Returns the address of an archive that a page or folder lists; None if it lists none."""
    folder = _local_path(page)
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
    """Returns the content of an address, and the address after redirections."""
    local = _local_path(address)
    if local is not None:
        with local.open("rb") as file:
            return _read_bounded(file), local.absolute().as_uri()
    parts = urlsplit(address)
    host = parts.netloc.rpartition("@")[2]
    request = urllib.request.Request(urlunsplit(parts._replace(netloc=host, fragment="")))
    request.add_header("Accept", "text/html, */*;q=0.1")
    if parts.username:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        # Not sent to the target of a redirection.
        request.add_unredirected_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
    handlers: list[urllib.request.BaseHandler] = [
        urllib.request.HTTPSHandler(context=_make_ssl_context(host, settings))
    ]
    if "proxy" in settings:
        handlers.append(urllib.request.ProxyHandler(dict.fromkeys(("http", "https"), settings["proxy"])))
    with urllib.request.build_opener(*handlers).open(request, timeout=TIMEOUT) as response:
        return _read_bounded(response), response.geturl()


def _make_ssl_context(host: str, settings: Settings) -> ssl.SSLContext:
    trusted = settings.get("trusted-host", "").split()
    if {host, host.partition(":")[0]} & set(trusted):
        context = ssl.create_default_context()  # the SHA-256 vouches for the file
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context
    context = ssl.create_default_context()
    with contextlib.suppress(ImportError):  # Python has no certificates on some systems
        import certifi

        context.load_verify_locations(certifi.where())
    if "cert" in settings:
        context.load_verify_locations(os.path.expanduser(settings["cert"]))
    return context


def _read_bounded(file: BufferedIOBase) -> bytes:
    content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
    return content


def _local_path(address: str) -> Path | None:
    parts = urlsplit(address)
    if parts.scheme == "file":
        return Path(urllib.request.url2pathname(parts.path))
    return Path(address).expanduser() if "://" not in address else None


def _hide_password(address: str) -> str:
    """Returns an address without its user name and password."""
    parts = urlsplit(address)
    return repr(urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])))
