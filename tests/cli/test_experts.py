"""`elm experts`: what it tells of them, and out of one run's library and into another's."""

import getpass
import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest

from elm_jax import cli, names, storage
from elm_jax.experts import files
from elm_jax.experts.library import Library
from elm_jax.models import expert_layers as ex
from elm_jax.models import paths
from elm_jax.models.sizes import find_config
from elm_jax.models.t5 import init_params
from elm_jax.records import Expert, ExpertSpec
from elm_jax.session import settings
from elm_jax.session.workspace import Workspace
from elm_jax.weights import base_model, elm


@pytest.fixture
def elm_says(capsys):
    """Runs `elm experts`; returns its exit code, and what it printed to either channel."""

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            cli.main(["experts", *map(str, arguments)])
        said = capsys.readouterr()
        return stop.value.code, said.out, said.err

    return run


@pytest.fixture(scope="module")
def base():
    config = find_config("tiny", vocab_size=24, emb_dim=8, num_heads=2, head_dim=5, mlp_dim=14)
    return base_model.make_base(config, init_params(jax.random.key(0), config))


@pytest.fixture
def runs(base, tmp_path):
    """Two runs of one base; the first has an expert."""
    for name in ("one", "two"):
        elm.save(Workspace.open(tmp_path / name, create=True).base, base)
    tree = jax.tree.map(np.asarray, ex.init_expert("lora", jax.random.key(1), base.params))
    spec = ExpertSpec("a/b", "lora", base.fingerprint, tuple(paths.flatten(tree)), ("a",), 7, {"rate": 0.1})
    Library.open(tmp_path / "one" / "library", create=True).add(Expert(spec, tree))
    return tmp_path


def test_an_expert_goes_from_one_run_to_another(runs, elm_says):
    assert elm_says("export", "a/b", runs / "out", "--run", runs / "one") == (0, f"{runs / 'out'}\n", "")
    code, said, _ = elm_says("add", runs / "out", "--run", runs / "two")
    assert (code, said) == (0, "a/b: lora, 7 steps, trained on a.\n")
    assert Library.open(runs / "two" / "library").ids() == ("a/b",)


def test_a_second_of_its_id_is_refused_unless_it_is_to_replace(runs, elm_says):
    elm_says("export", "a/b", runs / "out", "--run", runs / "one")
    code, said, told = elm_says("add", runs / "out", "--run", runs / "one")
    assert (code, said) == (2, "")
    assert "Expected no expert 'a/b'" in told
    assert elm_says("add", runs / "out", "--run", runs / "one", "--replace")[0] == 0


def test_what_is_no_expert_is_one_sentence(runs, elm_says):
    code, _, told = elm_says("add", runs / "none", "--id", "a/b", "--run", runs / "one")
    assert code == 2
    assert told.count("\n") == 1
    assert f"Expected the directory of an expert at '{runs / 'none'}'" in told


def scored(run, task, expert, right):
    """Writes the scores of an expert on a task, as an evaluation does: a head, then a line a row."""
    lines = [
        {"row": str(row), "label": 1, "prediction": int(good), "scores": [0.0, 1.0]}
        for row, good in enumerate(right)
    ]
    dataset, prompt = task.split("/")
    file = run / "scores" / dataset / prompt / f"{names.directory_name(expert)}.jsonl"
    head = {"format": 1, "task": task, "expert": expert, "stamp": "x"}
    head |= {"rows": len(right), "right": sum(right)}
    storage.write_jsonl(file, [head, *lines])


def test_a_list_has_sizes_owners_and_mean_accuracies(runs, elm_says):
    run = runs / "one"
    scored(run, "a/of", "a/b", [True, True, True, False])
    scored(run, "c/of", "a/b", [True, False])
    code, said, _ = elm_says("list", "--run", run, "--json", "--scores")
    (told,) = json.loads(said)
    size = Library.open(run / "library").sizes()["a/b"]
    assert code == 0
    assert (told["id"], told["parameters"], told["bytes"]) == ("a/b", size.parameters, size.bytes)
    assert told["owner"] == getpass.getuser()
    assert told["accuracies"] == {
        "a/of": {"accuracy": 0.75, "rows": 4},
        "c/of": {"accuracy": 0.5, "rows": 2},
    }
    table = elm_says("list", "--run", run, "--scores")[1]
    assert "62.5 of 2" in table
    assert "each of 2 to 4 rows" in " ".join(table.split())
    assert "62.5" not in elm_says("list", "--run", run)[1]


def test_experts_that_help_a_task_are_listed_best_first(runs, elm_says, base):
    run = runs / "one"
    library = Library.open(run / "library")
    for name in ("d/e", "f/g"):
        library.add(replace(library.load_expert("a/b"), spec=replace(library.spec("a/b"), id=name)))
    scored(run, "t/one", "a/b", [True, False, False, False])
    scored(run, "t/one", "d/e", [True, True, True, False])
    scored(run, "t/two", "d/e", [True, False])
    scored(run, "u/one", "a/b", [True])
    scored(run, "u/one", "f/g", [True])

    def listed(task):
        return json.loads(elm_says("list", "--scores", "--task", task, "--run", run, "--json")[1])

    assert [(one["id"], list(one["accuracies"])) for one in listed("t/one")] == [
        ("d/e", ["t/one"]),
        ("a/b", ["t/one"]),
    ]
    assert [(one["id"], list(one["accuracies"])) for one in listed("t")] == [
        ("d/e", ["t/one", "t/two"]),
        ("a/b", ["t/one"]),
    ]
    assert "62.5 of 2" in elm_says("list", "--scores", "--task", "t", "--run", run)[1]
    code, _, told = elm_says("list", "--scores", "--task", "tt", "--run", run)
    assert (code, told.count("\n")) == (2, 1)
    assert elm_says("list", "--task", "t", "--run", run)[0] == 2


def test_one_expert_is_shown_with_its_recipe_and_where_it_scored(runs, elm_says):
    run = runs / "one"
    scored(run, "a/of", "a/b", [True, True, True, False])
    scored(run, "c/of", "a/other", [True])
    said = elm_says("show", "a/b", "--run", run)[1]
    lines = [line.split(maxsplit=1) for line in said.splitlines()]
    assert ["owner", getpass.getuser()] in lines
    assert ["recipe.rate", "0.1"] in lines
    assert ["accuracy", "75.0 % of 4 rows of a/of, trained on its dataset"] in lines
    assert "c/of" not in said
    owned = Library.open(run / "library").spec("a/b").paths
    assert [value for field, value in lines if field == "owns"] == list(owned)


def test_who_made_an_expert_goes_with_it_and_is_unknown_where_nothing_tells(runs, elm_says, base):
    library = Library.open(runs / "one" / "library")
    library.add(library.load_expert("a/b"), replace=True, owner="ada")
    elm_says("export", "a/b", runs / "out", "--run", runs / "one")
    elm_says("add", runs / "out", "--run", runs / "two")
    other = Library.open(runs / "two" / "library")
    assert other.describe("a/b").owner == "ada"
    file = other.root / "a" / "b" / files.SPEC_FILE
    told = json.loads(file.read_text())
    del told["owner"]
    file.write_text(json.dumps(told))
    assert other.describe("a/b").owner == "unknown"
    assert other.verify(base=base.fingerprint) == []


def test_merged_experts_are_listed_shown_exported_and_removed_too(runs, elm_says):
    run = runs / "one"
    expert = Library.open(run / "library").load_expert("a/b")
    composites = Library.open(run / "composites", create=True)
    composites.add(replace(expert, spec=replace(expert.spec, id="merged/x")))
    assert [one["id"] for one in json.loads(elm_says("list", "--run", run, "--json")[1])] == ["a/b"]
    assert "merged/x" in elm_says("list", "--composites", "--run", run)[1]
    assert elm_says("show", "merged/x", "--run", run)[1].startswith("id ")
    assert elm_says("export", "merged/x", runs / "out", "--run", run)[0] == 0
    assert elm_says("remove", "merged/x", "--run", run)[0] == 0
    assert composites.ids() == ()
    assert Library.open(run / "library").ids() == ("a/b",)


def test_of_two_with_one_id_the_librarys_is_removed_and_the_other_told_of(runs, elm_says):
    run = runs / "one"
    library, composites = Library.open(run / "library"), Library.open(run / "composites", create=True)
    composites.add(library.load_expert("a/b"))
    code, said, _ = elm_says("remove", "a/b", "--run", run)
    assert (code, said) == (
        0,
        f"a/b was removed from {library.root}; another of that id is still in {composites.root}.\n",
    )
    assert (library.ids(), composites.ids()) == ((), ("a/b",))
    said = elm_says("remove", "a/b", "--run", run)[1]
    assert said == f"a/b was removed from {composites.root}.\n"
    assert composites.ids() == ()


def test_a_sound_library_is_verified_and_damage_named(runs, elm_says):
    run = runs / "one"
    assert elm_says("verify", "--run", run)[:2] == (0, "1 experts are sound.\n")
    (run / "library" / "a" / "b" / files.PARAMS_FILE).unlink()
    code, said, _ = elm_says("verify", "--run", run)
    assert code == 1
    assert said.startswith("a/b: ")


def test_a_library_is_verified_against_a_base_that_lies_elsewhere(runs, elm_says, base, tmp_path):
    elm.save(tmp_path / "elsewhere", base)
    run = runs / "one"
    settings.save_run_settings(Workspace.open(run), tmp_path / "elsewhere", None, None)
    shutil.rmtree(run / "base")
    assert elm_says("verify", "--run", run)[0] == 0


@pytest.mark.parametrize("verb", ["show", "remove", "export"])
def test_an_unknown_expert_is_one_sentence_with_the_nearest(runs, elm_says, verb):
    more = [runs / "out"] if verb == "export" else []
    code, said, told = elm_says(verb, "a/bb", *more, "--run", runs / "one")
    assert (code, said, told.count("\n")) == (2, "", 1)
    assert "Did you mean 'a/b'?" in told


def test_several_experts_are_removed_by_ids_and_patterns_or_none_at_all(runs, elm_says):
    library = Library.open(runs / "one" / "library")
    expert = library.load_expert("a/b")
    for name in ("a/c", "x/[b]", "x/y"):
        library.add(replace(expert, spec=replace(expert.spec, id=name)))
    for words in (["a/*", "a/nothing"], ["a/*", "z/*"], ["nothing"]):
        assert elm_says("remove", *words, "--run", runs / "one")[0] == 2
        assert library.ids() == ("a/b", "a/c", "x/[b]", "x/y")
    assert elm_says("remove", "a/?", "x/[b]", "a/b", "--run", runs / "one")[0] == 0
    assert library.ids() == ("x/y",)


def test_commands_that_read_write_nothing(runs, elm_says):
    before = sorted(str(file) for file in runs.rglob("*"))
    elm_says("list", "--scores", "--run", runs / "one")
    elm_says("list", "--composites", "--run", runs / "one")
    elm_says("show", "a/b", "--run", runs / "one")
    elm_says("verify", "--run", runs / "one")
    assert sorted(str(file) for file in runs.rglob("*")) == before
