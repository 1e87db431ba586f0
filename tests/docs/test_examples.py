"""Examples of the documentation: what a page shows runs as it stands.

The blocks of a page are taken in order, in one directory where `elm_out` is as the quickstart leaves it.
`scripts/docs/examples.py` says how blocks are marked; `test_skipped.py` checks those that are not run.
"""

import contextlib
import importlib
import io
import os
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import gin
import pytest

from elm_jax import cli

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
TOOLS = ("cat", "cp", "elm", "grep", "head", "ls", "mkdir", "python", "tail", "wc")
"""What a page may run here: nothing that installs, deletes or asks a network."""
PAGE = """\
Text.

```yaml title="a.yaml"
a:
  b: 1
```

<!-- not run: no time -->

    elm x

    elm y

- a list

      is no block

Python:

    from a import b

<!-- not run below: all the rest -->

More text.

```bash
elm z
```
"""


def run_command(command):
    """Runs one command, elm's own within this process; returns what it printed."""
    words = shlex.split(command, comments=True)
    assert words[0] in TOOLS, f"`{command}` is not run here: put <!-- not run: WHY --> before it"
    if words[0] == "elm" and not set(words) & {"|", ">", ">>", "&&", "||", ";"}:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), pytest.raises(SystemExit) as end:
            cli.main(words[1:])
        gin.clear_config()
        assert end.value.code in (0, None), f"{command}\nended with {end.value.code}:\n{said.getvalue()}"
        return said.getvalue()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\nended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


def run_code(text, names, where):
    """Runs Python in a page's names; returns what it printed."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(text, where, "exec"), names)
    return said.getvalue()


def require_output(wanted, said, where):
    """Holds that every line of what a page shows was printed; `…` stands for anything."""
    printed = [" ".join(line.split()) for line in said.splitlines()]
    for line in filter(None, (" ".join(line.split()) for line in wanted.splitlines())):
        form = ".*".join(re.escape(part) for part in line.split("…"))
        assert any(re.fullmatch(form, each) for each in printed), f"{where}: no line {line!r} in\n{said}"


@pytest.fixture(scope="module", autouse=True)
def _imported_quietly():
    """TensorFlow warns when it is imported, which is an error where everything else runs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("seqio")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_of_a_page_run_as_they_stand(page, directory, examples):
    (directory / "scripts").symlink_to(ROOT / "scripts")  # as in a checkout
    names, said = {"__name__": "__main__"}, ""
    for block in examples.blocks(page):
        if block.title == "Output":
            require_output(block.text, said, block.where)
        elif block.title:
            (directory / block.title).write_text(block.text)
        elif block.reason:
            continue
        elif block.language == "bash":
            said = "".join(run_command(command) for command in examples.commands(block.text))
        elif block.language == "python":
            said = run_code(block.text, names, block.where)


def test_blocks_are_fenced_or_indented_and_bear_their_titles_and_reasons(examples, tmp_path):
    (tmp_path / "page.md").write_text(PAGE)
    found = [
        (each.language, each.title, each.text, each.reason) for each in examples.blocks(tmp_path / "page.md")
    ]
    assert found == [
        ("yaml", "a.yaml", "a:\n  b: 1\n", ""),
        ("bash", "", "elm x\n\nelm y\n", "no time"),
        ("python", "", "from a import b\n", ""),
        ("bash", "", "elm z\n", "all the rest"),
    ]


def test_output_that_was_not_printed_is_found():
    require_output("  two   words\nnumber … of 3", "no\ntwo words \nnumber 2 of 3\n", "a page")
    with pytest.raises(AssertionError, match="no line 'number … of 3'"):
        require_output("number … of 3", "number 2 of 30\n", "a page")
