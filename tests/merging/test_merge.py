"""`elm merge`: experts of a run become one of its composites, or are refused before a weight is read."""

import json
import math

import jax
import numpy as np
import pytest

from elm_jax import cli, storage
from elm_jax.experts import files
from elm_jax.experts.library import Library
from elm_jax.models import expert_layers, paths
from elm_jax.models.sizes import find_config
from elm_jax.models.t5 import init_params
from elm_jax.records import Expert, ExpertSpec
from elm_jax.session import opening, settings
from elm_jax.session.workspace import Workspace
from elm_jax.tasks.data_source import Lengths, Source
from elm_jax.tokenizers import sentencepiece
from elm_jax.weights import base_model, elm

QUERY = "encoder/layers/attention/query"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A run with a base, two experts of every kind but full, and one full expert."""
    out = tmp_path_factory.mktemp("run")
    workspace = Workspace.open(out, create=True)
    config = find_config("tiny", vocab_size=64, emb_dim=8, head_dim=4, mlp_dim=12)
    shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), config))
    rng = np.random.default_rng(0)

    def numbers(tree):
        return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), tree)

    base = base_model.make_base(config, numbers(shapes))
    elm.save(workspace.base, base)
    words = [f"word{number}" for number in range(30)]
    sentencepiece.train(
        words, workspace.base / opening.VOCABULARY_FILE, 64, kind="word", extra_ids=opening.EXTRA_IDS
    )
    settings.save_run_settings(workspace, None, Source(), Lengths())
    library = Library.open(workspace.library, create=True)
    for kind in ("bottleneck", "lora", "full"):
        fresh = jax.eval_shape(
            lambda tree, kind=kind: expert_layers.init_expert(kind, jax.random.key(0), tree), shapes
        )
        for name in ("one", "two"):
            tree = numbers(fresh)
            spec = ExpertSpec(
                f"{name}/{kind}", kind, base.fingerprint, tuple(paths.flatten(tree)), (name,), 5
            )
            library.add(Expert(spec, tree))
    return workspace, base


@pytest.fixture
def merge(prepared, capsys):
    """Runs the verb and returns what it printed, and to which channel."""
    workspace, _ = prepared

    def run(*arguments, fails=False):
        with pytest.raises(SystemExit) as stop:
            cli.main(["merge", *arguments, "--run", str(workspace.root)])
        assert stop.value.code == (2 if fails else 0)
        printed = capsys.readouterr()
        return printed.err if fails else printed.out

    return run


def flat(library, name):
    return paths.flatten(library.load_expert(name).params)


def test_experts_are_averaged_into_a_composite_that_no_router_finds(prepared, merge):
    workspace, _ = prepared
    said = merge("one/bottleneck", "two/bottleneck").splitlines()
    made = said[0]
    assert made.startswith("merged/average-")
    assert "two factors of every adapter were averaged" in said[1]
    library, composites = Library.open(workspace.library), Library.open(workspace.composites)
    assert made in composites.ids()
    assert made not in library.ids()
    assert composites.verify([made]) == []
    one, two = flat(library, "one/bottleneck"), flat(library, "two/bottleneck")
    for path, value in flat(composites, made).items():
        np.testing.assert_allclose(value, (one[path] + two[path]) / 2, rtol=1e-6, atol=1e-6)


def test_method_weights_options_and_name_reach_the_merge(prepared, merge):
    workspace, _ = prepared
    how = ["--method", "task_arithmetic", "--weights", "1,-2", "--option", "scale=0.5", "--id", "mine/both"]
    told = json.loads(merge("one/lora", "two/lora", *how, "--json"))
    assert told["id"] == "mine/both"
    assert told["datasets"] == ["one", "two"]
    assert told["recipe"]["weights"] == [1.0, -2.0]
    assert told["recipe"]["options"] == {"scale": 0.5}
    library = Library.open(workspace.library)

    def change(of):
        return of[f"{QUERY}/lora_a"] @ of[f"{QUERY}/lora_b"]

    wanted = 0.5 * change(flat(library, "one/lora")) - change(flat(library, "two/lora"))
    got = change(flat(Library.open(workspace.composites), "mine/both"))
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4)


def test_full_experts_are_merged_by_what_they_change_in_the_run_s_base(prepared, merge):
    workspace, base = prepared
    made = merge("one/full", "two/full", "--method", "task_arithmetic", "--option", "scale=1").split()[0]
    library, path = Library.open(workspace.library), f"{QUERY}/kernel"
    wanted = flat(library, "one/full")[path] + flat(library, "two/full")[path]
    wanted = wanted - paths.flatten(base.params)[path]
    np.testing.assert_allclose(flat(Library.open(workspace.composites), made)[path], wanted, atol=1e-5)


def test_statistics_come_from_files(prepared, merge, tmp_path):
    workspace, _ = prepared
    names = []
    of = flat(Library.open(workspace.library), "one/lora")
    for name, share in (("one", 1.0), ("two", 3.0)):
        kernels = {
            path.replace("lora_a", "kernel"): np.full(
                (*value.shape[:-1], of[path.replace("lora_a", "lora_b")].shape[-1]), share, np.float32
            )
            for path, value in of.items()
            if path.endswith("lora_a")
        }
        names += ["--statistics", str(tmp_path / name)]
        storage.write_arrays(tmp_path / name, kernels)
    made = merge("one/lora", "two/lora", "--method", "fisher", *names).split()[0]
    recipe = Library.open(workspace.composites).spec(made).recipe
    assert len(recipe["statistics"]) == 2
    assert math.isclose(recipe["error"], 0.0, abs_tol=1e-5)


def test_a_composite_can_be_merged_again(prepared, merge):
    made = merge("one/lora", "two/lora", "--method", "average").split()[0]
    merge("one/lora", made, "--id", "again/lora")
    workspace, _ = prepared
    assert Library.open(workspace.composites).spec("again/lora").recipe["merged_from"] == ["one/lora", made]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["one/lora", "two/lora", "--method", "tise"], "'ties'"),
        (["one/lora", "two/lore"], "'two/lora'"),
        (["one/lora", "two/lora", "--method", "ties", "--option", "density=2"], "'density', got 2.0"),
        (["one/lora", "two/lora", "--method", "ties", "--option", "desnity=0.2"], "'density'"),
        (["one/lora", "two/lora", "--option", "density"], "got 'density'"),
        (["one/lora", "two/lora", "--option", "method=ties"], "'method'"),
        (["one/lora", "two/lora", "--weights", "1,x"], "got 'x'"),
        (["one/lora", "two/lora", "--weights", "1"], "2 experts, got 1"),
        (["one/lora", "two/full"], "'two/full'"),
        (["one/bottleneck", "two/bottleneck", "--method", "ties"], "average or concatenate."),
        (
            ["one/lora", "two/lora", "--method", "fisher"],
            "'one/lora'. No task",
        ),
        (["one/lora", "two/lora", "--id", "both"], "dataset/prompt, got 'both'"),
        ([], "expert"),
    ],
)
def test_a_plan_that_makes_no_sense_is_one_sentence_before_any_weight_is_read(
    merge, monkeypatch, arguments, said
):
    def never(*arguments, **options):
        raise AssertionError("weights were read")

    monkeypatch.setattr(files, "read_params", never)
    monkeypatch.setattr(elm, "load", never)
    told = merge(*arguments, fails=True)
    assert said in told
    assert told.count("\n") == 1


def test_the_methods_are_listed_with_their_options(merge):
    said = merge("--methods")
    assert "ties" in said
    assert "density: share of values kept" in said
    told = {method["name"]: method for method in json.loads(merge("--methods", "--json"))}
    assert told["fisher"]["statistics"]
    assert not told["slerp"]["symmetric"]
