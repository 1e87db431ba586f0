"""Reference: what the site reads off the code is all there, and tables that people wrote say the same."""

import inspect
import re
from pathlib import Path

import pytest
import typer

import elm_jax
from elm_jax import cli
from elm_jax.evaluation import methods
from elm_jax.merging import table as merging
from elm_jax.routing import table as routing
from elm_jax.routing.registry import ARGUMENTS

ROOT = Path(__file__).parents[2]


def verbs(command, path="elm"):
    """Every verb with how it is called, found another way than the site finds it."""
    for name, each in command.commands.items():
        if hasattr(each, "commands"):
            yield from verbs(each, f"{path} {name}")
        else:
            yield f"{path} {name}", each


@pytest.mark.parametrize(
    ("path", "verb"), [pytest.param(*each, id=each[0]) for each in verbs(typer.main.get_command(cli.app))]
)
def test_a_verb_is_listed_with_all_of_its_options(reference, path, verb):
    sections = reference.commands().split("\n## ")
    (section,) = [part for part in sections if part.removeprefix("## ").startswith(f"{path}\n")]
    names = [name for option in verb.params for name in option.opts if option.param_type_name == "option"]
    assert [name for name in names if not re.search(rf"{name}\b", section)] in ([], ["--help"])
    assert " ".join((verb.help or "").split()) in section


def test_an_option_stands_with_its_default_and_an_argument_with_its_name(reference):
    told = reference.commands()
    assert "| `--queries <int>` | Inputs of each task that vote. | `32` |" in told.replace("INTEGER", "<int>")
    assert re.search(r"\| `.*dst.*` \| New directory; .* \| required \|", told, re.IGNORECASE)


def test_every_recipe_that_can_be_run_is_listed_with_its_command(reference):
    told = reference.recipes()
    for file in sorted((ROOT / "gin").rglob("*.gin")):
        listed = f"### {file.relative_to(ROOT)}\n" in told
        assert listed == ("\n# Run " in file.read_text())
    assert "--gin.INITIAL_CHECKPOINT_PATH=t5-xl-lm-adapt --gin.DATA_DIR=data\n```" in told


def test_a_table_of_macros_has_values_comments_and_what_is_needed(reference):
    told = reference.macros("gin/runs/train.gin")
    assert "| `MIXTURE_OR_TASK_NAME` | required |  |" in told
    assert "| `EPOCHS` | `None` | instead of steps |" in told
    assert "| **How the machine is used** |  |  |\n| `PLACES` | `None` |" in told
    defined = re.findall(r"^([A-Z][A-Z0-9_]*) =", (ROOT / "gin/runs/train.gin").read_text(), re.MULTILINE)
    assert re.findall(r"^\| `(\w+)`", told, re.MULTILINE) == defined


def test_the_table_of_merges_has_every_method_with_its_options(reference):
    rows = [line.split(" | ") for line in reference.merges().splitlines()[2:]]
    assert {row[0].strip("| `"): set(re.findall(r"`(\w+)`", row[2])) for row in rows} == {
        name: set(method.options) for name, method in merging.MERGES.items()
    }


def test_every_public_name_is_documented(reference):
    names = set(re.findall(r"^::: elm_jax\.(\w+)$", reference.api(), re.MULTILINE))
    assert names == set(elm_jax.__all__) - {"__version__"}


def test_every_module_has_a_page_of_its_own_and_is_listed(reference):
    modules = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for file in (ROOT / "elm_jax").glob("**/[!_]*.py")
    }
    pages = reference.module_pages()
    assert set(pages) == {f"modules/{name}.md" for name in modules}
    assert all(re.search(f"^::: {name}$", pages[f"modules/{name}.md"], re.MULTILINE) for name in modules)
    assert set(re.findall(r"\((modules/\S+)\)", reference.modules())) == set(pages)


def test_a_mark_gives_way_to_its_part_and_an_unknown_one_ends_the_build(reference):
    page = reference.on_page_markdown("before\n\n<!-- generated: merges -->\n\nafter", page=None)
    assert page.startswith("before\n\n| merge |")
    assert page.endswith(" |\n\nafter")
    with pytest.raises(ValueError, match="'comands'"):
        reference.on_page_markdown("<!-- generated: comands -->")


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_no_mark_of_a_page_is_left_as_it_stands(reference, page):
    assert "<!-- generated" not in reference.on_page_markdown(page.read_text())


def test_the_table_of_routers_has_every_router_with_its_options_and_their_defaults():
    section = (ROOT / "docs" / "evaluation.md").read_text().partition("### Routers")[2].partition("###")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    written = {row[0].strip("`"): row[2].strip("| ") if len(row) > 2 else "" for row in rows}
    assert set(written) == {*routing.ROUTERS, *methods.SPECIAL_ROUTERS}
    given = set(ARGUMENTS)
    for name, router in routing.ROUTERS.items():
        taken = {
            option: each.default
            for option, each in inspect.signature(router.route).parameters.items()
            if option not in given
        }
        told = dict(re.findall(r"`(\w+)`(?: \(([\w.]+)\))?", written[name]))
        assert told == {
            option: "" if default is inspect.Parameter.empty else str(default).replace("False", "false")
            for option, default in taken.items()
        }
