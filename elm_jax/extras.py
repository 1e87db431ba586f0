"""Extras: the commands that install what only some uses need, such as `hub`, `track` or `tpu`."""

import re
from importlib import metadata
from pathlib import Path

_EXTRA = re.compile(r"""\s*(?:and\s+)?extra\s*==\s*['"]([\w-]+)['"]""")


def install_command(extra: str) -> str:
    """Returns the command that installs the packages of an extra.

    It names the packages themselves, so that it works wherever elm_jax came from: a checkout, a wheel, or
    an index.
    """
    found = []
    for requirement in _requirements():
        package, _, condition = requirement.partition(";")
        named = _EXTRA.search(condition)
        if named and named[1].replace("_", "-") == extra.replace("_", "-"):
            rest = _EXTRA.sub("", condition).strip(" ()").replace("'", '"')
            found.append(f"'{package.strip()}{f'; {rest}' if rest else ''}'")
    if not found:  # a checkout on the path that was never installed, or not since it has this extra
        found = ["-e", f"'{Path(__file__).parents[1]}[{extra}]'"]
    return f"pip install {' '.join(found)}"


def _requirements() -> list[str]:
    try:
        return metadata.requires("elm_jax") or []
    except metadata.PackageNotFoundError:
        return []
