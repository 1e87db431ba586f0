"""Examples that are not run: a page says why, and they are right all the same, as far as that can be told.

Verbs and their flags, recipes and macros, methods, extras, modules and what is imported of elm_jax exist.
"""

import ast
import importlib
import importlib.util
import itertools
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer
import yaml

from elm_jax import cli
from elm_jax.errors import UserError
from elm_jax.evaluation import methods
from elm_jax.launch import recipes
from elm_jax.merging import table as merging
from elm_jax.tasks import user_tasks

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
LANGUAGES = ("bash", "gin", "html", "ini", "json", "python", "text", "toml", "yaml")
T5X_READS = {
    "CHECKPOINT_PATH",
    "EVAL_OUTPUT_DIR",
    "INFER_OUTPUT_DIR",
    "INITIAL_CHECKPOINT_PATH",
    "MODEL_DIR",
    "USE_CACHED_TASKS",
}
"""Macros that T5X's own gin files read, which are not here."""
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_an_example_that_is_not_run_is_right_all_the_same(page, directory, examples):
    for block in examples.blocks(page):
        assert block.language in LANGUAGES, f"{block.where}: {block.language!r} is no language of ours"
        if block.title and block.title != "Output":
            (directory / block.title).write_text(block.text)
        if block.language == "yaml":
            yaml.safe_load(block.text)
        elif block.language == "python":
            check_code(block.text, block.where)
        elif block.language == "bash":
            for command in examples.commands(block.text):
                check_command(command, block.where)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_command_within_a_sentence_or_a_table_is_right(page):
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for found in re.findall(r"`((?:elm|python -m elm_jax\S*) [^`]+)`", prose):
        command = " ".join(found.split())
        try:
            if "VERB" not in command:
                check_command(command, page.name)
        except pytest.fail.Exception as unread:  # a sentence may name a verb or a flag alone
            if not re.search("Missing parameter|requires an argument", str(unread)):
                raise


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("elm trian mini", "elm has no verb 'trian'"),
        ("elm experts shwo a/b", "elm experts has no verb 'shwo'"),
        ("elm train mini --stepz 3", "--stepz"),
        ("elm route mini --experts many", "valid integer"),
        ("srun elm train --gin_file=gin/recipes/none.gin", "gin/recipes/none.gin"),
        ("elm train --gin_file=gin/recipes/prompt_expert.gin --gin.STEPZ=3", "no macro 'STEPZ'"),
        ("elm evaluate mini --method reo", "No router named 'reo'"),
        ("elm evaluate mini --method 'roe+tise'", "No merging method named 'tise'"),
        ("elm merge a/b c/d --method tise", "No merging method named 'tise'"),
        ('xpk create --command="elm trian"', "elm has no verb 'trian'"),
        ("mkdir a && elm trian", "elm has no verb 'trian'"),
        ("pip install '.[nope]'", "no extra for one of ['nope']"),
        ("python -m elm_jax.nope", "no module elm_jax.nope"),
        ("python scripts/none.py", "no script scripts/none.py"),
        ("sky jobs launch scripts/sky/none.yaml", "no task file scripts/sky/none.yaml"),
        ("sky jobs launch scripts/sky/train.yaml --env RECEIPT=a", "declares no RECEIPT"),
    ],
)
def test_a_command_that_is_not_there_is_found(examples, text, said):
    (command,) = examples.commands(f"# as a reader would\n{text}\n")
    with pytest.raises((AssertionError, UserError, pytest.fail.Exception), match=re.escape(said)):
        check_command(command, "a page")


@pytest.mark.parametrize(
    "text", ["import elm_jax.nope", "from elm_jax import nope", "def f():\n    from elm_jax.runs import nope"]
)
def test_an_import_that_is_not_there_is_found(text):
    with pytest.raises((AssertionError, ImportError), match="nope"):
        check_code(text, "a page")


def check_code(text, where):
    """Holds that Python compiles and that what it imports of elm_jax is there."""
    for node in ast.walk(ast.parse(text, where)):
        if isinstance(node, ast.Import):
            places = [(name.name, None) for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            places = [(node.module or "", name.name) for name in node.names]
        else:
            continue
        for module, name in places:
            if not module.startswith("elm_jax"):
                continue
            found = importlib.import_module(module)
            inside = name is None or hasattr(found, name) or importlib.util.find_spec(f"{module}.{name}")
            assert inside, f"{where}: {module} has no {name}"


def check_command(command, where):
    """Holds that a command exists and takes its flags, as far as it is one of ours."""
    for part in re.split(r" (?:&&|\|\||\||;) ", command):
        words = shlex.split(part, comments=True)
        for word in words:
            inner = re.fullmatch(r"--command=(elm .*)", word, re.DOTALL)
            if inner:
                check_command(inner[1], where)
        while words and (words[0] in ("srun", "sudo", "time") or re.match(r"[A-Z_]+=", words[0])):
            words.pop(0)
        tool = Path(words[0]).name if words else ""
        if tool == "elm":
            check_elm(words[1:], where)
        elif tool == "pip":
            extras = [
                name
                for word in words
                for named in re.findall(r"^(?:elm_jax.*|\.)\[([\w,-]+)\]", word)
                for name in named.split(",")
            ]
            assert set(extras) <= set(EXTRAS), f"{where}: no extra for one of {extras}"
        elif tool.startswith("python") and words[1:2] == ["-m"]:
            if words[2].startswith("elm_jax"):
                assert importlib.util.find_spec(words[2]), f"{where}: no module {words[2]}"
            check_recipes(words[3:], where)
        elif tool.startswith("python") and words[1].endswith(".py"):
            check_script(words[1], words[2:], where)
        elif tool == "sky":
            check_sky(words, where)


def check_elm(words, where):
    """Holds that a verb of elm takes its flags, and that recipes, macros and methods exist."""
    partial = "…" in words
    words = [word for word in cli.expand_gin_flags(words) if word != "…"]
    command, path = typer.main.get_command(cli.app), "elm"
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"{where}: {path} has no verb {words[0]!r}"
        path, command = f"{path} {words[0]}", command.commands[words.pop(0)]
    if "--help" in words or hasattr(command, "commands"):
        return
    try:
        given = command.make_context(path, words, resilient_parsing=partial).params
    except Exception as error:  # click's, of which there are two: its own, and the one within typer
        pytest.fail(f"{where}: `{path}` does not read: {error}")
    require_macros(given.get("gin_file") or [], given.get("gin_bindings") or [], where)
    for file in given.get("tasks") or []:
        if file.endswith(".py") and Path(file).is_file():
            user_tasks.load_tasks(file)  # it may register routers and merges
    if path == "elm evaluate":
        methods.parse_methods(given["method"] or [])
    if path == "elm merge" and given["experts"]:
        merging.find_merge(given["method"])


def check_recipes(words, where):
    """Holds that the recipes and macros among a script's flags exist."""
    files = [word.partition("=")[2] for word in words if word.startswith("--gin_file=")]
    bound = [word.removeprefix("--gin.") for word in words if word.startswith("--gin.")]
    require_macros(files, bound, where)


def require_macros(files, bindings, where):
    """Holds that recipes are there and that one of them names each macro."""
    known = set().union(*(_macros(file) for file in files))
    for binding in bindings:
        name = binding.partition("=")[0].strip()
        there = not files or "." in name or name in known
        assert there, f"{where}: no macro {name!r} in {', '.join(files)}"


def _macros(file):
    """Returns the macros that a recipe reads, what it includes among them."""
    text = re.sub(r"#.*", "", recipes.find(file).read_text())
    known = set(re.findall(r"%([A-Z][A-Z0-9_]*)", text))
    for inside in re.findall(r"^include '(.+?)'", text, re.MULTILINE):
        known |= T5X_READS if inside.startswith("t5x/") else _macros(inside)
    return known


def check_script(script, words, where):
    """Holds that a script takes its flags, and elm what follows them."""
    file = ROOT / script
    assert file.is_file(), f"{where}: no script {script}"
    check_recipes(words, where)


def check_sky(words, where):
    """Holds that SkyPilot's task files exist and declare the values that are given."""
    for name in [word for word in words if word.endswith(".yaml")]:
        file = ROOT / name
        assert file.is_file(), f"{where}: no task file {name}"
        declared = yaml.safe_load(file.read_text())["envs"]
        for flag, value in itertools.pairwise(words):
            if flag == "--env":
                key = value.partition("=")[0]
                assert key in declared, f"{where}: {name} declares no {key}"
                if key == "RECIPE":
                    check_recipes([f"--gin_file={value.partition('=')[2]}"], where)
