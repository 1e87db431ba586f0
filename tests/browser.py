"""A real browser without a network, for tests of pages; they skip where none is on the path."""

import shutil
import subprocess

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PROGRAM = next(filter(None, map(shutil.which, NAMES)), None)
wants_browser = pytest.mark.skipif(
    PROGRAM is None, reason=f"a browser is wanted on the path, one of {', '.join(NAMES)}, and none is there"
)
"""Marks a test, or a module's tests as `pytestmark`."""


def chromium(where, *options, query=""):
    """Runs the browser on a file, every host name unknown to it; returns what it prints and complains of."""
    command = [
        PROGRAM,
        "--headless=new",
        "--no-sandbox",  # a container's root has none
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--virtual-time-budget=5000",
        "--enable-logging=stderr",
        f"--user-data-dir={where.parent / 'profile'}",
        *options,
        where.as_uri() + query,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
