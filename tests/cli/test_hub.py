"""`elm experts push` and `pull`: the hub's own client against a server of the tests, over HTTP."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

from elm_jax import names, storage
from elm_jax.experts import files, gate_files
from elm_jax.experts.library import Library
from elm_jax.models import expert_layers as ex
from elm_jax.models import paths
from elm_jax.models.sizes import find_config
from elm_jax.models.t5 import init_params
from elm_jax.records import Expert, ExpertSpec, Gates, Keys
from elm_jax.scoring.choices import score_choices
from elm_jax.session.workspace import Workspace
from elm_jax.weights import base_model
from elm_jax.weights import elm as our_weights

RECIPE = {"steps": 7, "rate": 0.1, "options": {"rank": 2}}
FIRST, SECOND, THIRD = "dream/than a dog", "dream/what | now?", "cosmos/é"


@pytest.fixture(scope="module")
def base():
    config = find_config("tiny", vocab_size=24, emb_dim=8, num_heads=2, head_dim=5, mlp_dim=14)
    return base_model.make_base(config, init_params(jax.random.key(0), config))


def add(run, base, identifier, seed, *, keys=False, fingerprint=None):
    """Puts an expert of drawn parameters into a run's library."""
    rng = np.random.default_rng(seed)
    tree = ex.init_expert("lora", jax.random.key(seed), base.params, {"rank": 2})
    tree = jax.tree.map(lambda leaf: (leaf + rng.normal(size=leaf.shape)).astype(np.float32), dict(tree))
    told = {"base": fingerprint or base.fingerprint, "recipe": {**RECIPE, "seed": seed}}
    owned, datasets = tuple(paths.flatten(tree)), (names.split_id(identifier)[0],)
    spec = ExpertSpec(identifier, "lora", paths=owned, datasets=datasets, steps=7, **told)
    vectors = Keys(rng.normal(size=(3, 4)).astype(np.float32), ("a", "b", "c"), "t5", "text")
    Library.open(run / "library", create=True).add(
        Expert(spec, tree), vectors if keys else None, replace=True, owner="ada"
    )


@pytest.fixture(scope="module")
def made(base, tmp_path_factory):
    """Two runs of one base, and one of another; the first has three experts."""
    where = tmp_path_factory.mktemp("made")
    for name in ("one", "two"):
        our_weights.save(Workspace.open(where / name, create=True).base, base)
    other = base_model.make_base(base.config, jax.tree.map(lambda leaf: leaf + 1, base.params))
    our_weights.save(Workspace.open(where / "other", create=True).base, other)
    for seed, identifier in enumerate((FIRST, SECOND, THIRD)):
        add(where / "one", base, identifier, seed, keys=seed < 2)
    return where


@pytest.fixture
def runs(made, tmp_path):
    """A copy of the runs, where the command line is."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def said(text):
    return " ".join(text.split())


def bytes_of(library):
    """Returns the bytes of all files of a library by their names."""
    root = Path(str(library))
    return {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}


def one_sentence(text):
    """Asserts that an error is no traceback: a line that says what to do."""
    lines = [line for line in text.splitlines() if line.strip()]
    assert len([line for line in lines if line.startswith("elm: ")]) == 1
    assert "Traceback" not in text
    return said(lines[-1])


def test_a_library_goes_to_the_hub_and_into_another_run_byte_for_byte(hub, elm, runs, base):
    told = json.loads(elm("experts", "push", "me/experts", "--run", "one", "--json"))
    assert told["experts"] == told["every"] == sorted((FIRST, SECOND, THIRD))
    assert told["commit"] == hub.names["me/experts", "main"]
    held = hub.head("me/experts")
    written = bytes_of(runs / "one" / "library")
    assert {name: held[name] for name in written} == written
    assert held.keys() - written.keys() == {".gitattributes", "README.md", "library.json"}
    assert hub.made[0].get("visibility") is None
    elm("experts", "pull", "me/experts", "--run", "two", cache="another")
    assert bytes_of(runs / "two" / "library") == written
    assert elm("experts", "verify", "--run", "two") == "3 experts are sound.\n"
    rng = np.random.default_rng(0)
    prompts, answers = rng.integers(2, 24, (4, 6)), rng.integers(2, 24, (4, 3, 2))
    for expert in told["every"]:
        found = [
            score_choices(base, prompts, answers, Library.open(runs / run / "library").load_expert(expert))
            for run in ("one", "two")
        ]
        assert found[0].tobytes() == found[1].tobytes()
    assert said(elm("experts", "pull", "me/experts", "--run", "two")).endswith(
        "of which 3 were there already."
    )


@pytest.mark.nightly
def test_gates_go_with_their_expert_and_come_to_one_that_lacks_them(hub, elm, runs):
    one, two = (Library.open(runs / name / "library", create=True) for name in ("one", "two"))
    elm("experts", "push", "me/e", FIRST, "--run", "one")
    elm("experts", "pull", "me/e", "--run", "two")
    about = one.describe(FIRST)
    vectors = {
        path: np.ones(shape, np.float32) for path, shape in gate_files.gate_shapes(about.shapes).items()
    }
    one.write_gates(FIRST, Gates(vectors, about.checksum, {"steps": 1}))
    elm("experts", "push", "me/e", FIRST, "--run", "one")
    assert f"{files.relative_directory(FIRST)}/gates.safetensors" in hub.head("me/e")
    elm("experts", "pull", "me/e", "--run", "two")
    assert two.fingerprint(FIRST) == one.fingerprint(FIRST)
    assert two.load_gates(FIRST).recipe == {"steps": 1}


def test_experts_come_one_by_one_into_a_repository_whose_card_tells_of_all(hub, elm, runs):
    first = json.loads(
        elm("experts", "push", "me/e", FIRST, "--run", "one", "--licence", "cc-by-4.0", "--json")
    )
    both = json.loads(elm("experts", "push", "hf:me/e", THIRD, "--run", "one", "--private", "--json"))
    assert (first["every"], both["every"]) == ([FIRST], [THIRD, FIRST])
    again = json.loads(elm("experts", "push", "me/e", THIRD, "--run", "one", "--json"))
    assert again == {**both, "unchanged": [THIRD]}  # the same commit
    card = hub.head("me/e")["README.md"].decode()
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "cc-by-4.0"
    assert f"| {FIRST} | lora |" in card
    assert f"| {THIRD} | lora |" in card
    # A commit in between stays what it was.
    elm("experts", "pull", f"me/e@{first['commit']}", "--run", "two")
    assert Library.open(runs / "two" / "library").ids() == (FIRST,)
    elm("experts", "pull", "me/e", "--only", "cosmos/*", "--run", "two")
    assert Library.open(runs / "two" / "library").ids() == (THIRD, FIRST)


def test_the_card_tells_scores_with_intervals_base_and_recipe(hub, elm, runs, base, tmp_path):
    cached = tmp_path / "cached" / "models--google--flan-t5-xl" / "snapshots" / ("7" * 40)
    shutil.copytree(runs / "one" / "base", cached)
    storage.write_json(
        runs / "one" / "run.json", {"base": str(cached), "source": {"data_dir": None}, "lengths": {}}
    )
    for task, right in (("dream/new", 8), ("unseen/x", 5)):
        folder = runs / "one" / "scores" / task.replace(" ", "%20")
        head = {"task": task, "expert": FIRST, "stamp": "0", "score": "sum", "rows": 10, "right": right}
        storage.write_jsonl(folder / f"{names.directory_name(FIRST)}.jsonl", [{"format": 1, **head}])
    head = {"task": "sums/y", "expert": FIRST, "stamp": "0", "judging": "x", "measure": "rougeL"}
    head |= {"value": 31.25, "low": 30.0, "high": 33.0}
    place = runs / "one" / "generated" / "sums" / "y" / f"{names.directory_name(FIRST)}.jsonl"
    storage.write_jsonl(place, [{"format": 1, **head}, {"row": "1"}, {"row": "2"}])
    elm("experts", "push", "me/e", "--run", "one", "--licence", "apache-2.0")
    card = hub.head("me/e")["README.md"].decode()
    told = yaml.safe_load(card.split("---\n")[1])
    assert told["base_model"] == "google/flan-t5-xl"
    assert told["license"] == "apache-2.0"
    for part in (
        base.fingerprint,
        "7" * 40,
        f"| {FIRST} | dream/new | accuracy | 80.0 | [49.0, 94.3] | 10 | yes |",
        f"| {FIRST} | unseen/x | accuracy | 50.0 | [23.7, 76.3] | 10 | no |",
        f"| {FIRST} | sums/y | rougeL | 31.2 | [30.0, 33.0] | 2 | no |",
        "| all | options.rank | 2 |",
        f"| {FIRST} | seed | 0 |",
        "dream/what \\| now?",
    ):
        assert part in card
    # The scores of an expert that was replaced are not the new one's.
    add(runs / "one", base, FIRST, 5)
    said_so = elm("experts", "push", "me/e", FIRST, "--run", "one", fails=True)
    assert "Expected no other expert 'dream/than a dog' in 'me/e'" in one_sentence(said_so)
    elm("experts", "push", "me/e", FIRST, "--run", "one", "--replace")
    held = hub.head("me/e")
    assert "accuracy" not in held["README.md"].decode()
    # It has no keys, and those of the one before went with it.
    assert "dream/than%20a%20dog/keys.safetensors" not in held
    assert "dream/what%20%7C%20now%3F/keys.safetensors" in held


@pytest.mark.nightly
def test_a_push_that_is_killed_leaves_the_repository_as_it_was(hub, elm, runs):
    elm("experts", "push", "me/e", FIRST, "--run", "one")
    before = hub.names["me/e", "main"]
    hub.stalls = True
    with elm.start("experts", "push", "me/e", "--run", "one") as process:
        assert hub.stalled.wait(60)
        process.kill()
        process.communicate()
    hub.stalls = False
    hub.ends.set()
    assert hub.names["me/e", "main"] == before
    elm("experts", "pull", "me/e", "--run", "two")
    assert Library.open(runs / "two" / "library").ids() == (FIRST,)
    elm("experts", "push", "me/e", "--run", "one")
    elm("experts", "pull", "me/e", "--run", "two")
    assert bytes_of(runs / "two" / "library") == bytes_of(runs / "one" / "library")


def test_two_that_push_at_once_do_not_mix(hub, elm, runs):
    elm("experts", "push", "me/e", FIRST, "--run", "one")
    another = {**hub.head("me/e"), "LICENSE": b"mine"}
    hub.before_commit = lambda: hub.commit("me/e", another)
    told = one_sentence(elm("experts", "push", "me/e", "--run", "one", fails=True))
    assert "Expected 'me/e' not to change" in told
    assert hub.head("me/e") == another


def test_a_library_of_the_hub_is_opened_by_its_address_and_only_read(hub, elm, runs):
    commit = json.loads(elm("experts", "push", "me/e", "--run", "one", "--json"))["commit"]
    code = "import sys, json, elm_jax; l = elm_jax.Library.open(sys.argv[1]);"
    code += "print(json.dumps([l.ids(), [f.problem for f in l.verify()]])); l.remove(l.ids()[0])"
    for offline in ("0", "1"):
        environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}"}
        environment |= {"HF_HOME": str(runs / "lib"), "HF_HUB_OFFLINE": offline, "HF_HUB_DISABLE_XET": "1"}
        command = [sys.executable, "-c", code, f"hf:me/e@{commit}"]
        told = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=runs)
        assert told.stdout, told.stderr
        assert json.loads(told.stdout) == [sorted((FIRST, SECOND, THIRD)), []]
        assert "Expected a directory as a library to write to, got 'hf:me/e@" in told.stderr


def test_one_expert_of_a_repository_is_named_by_it(hub, elm, runs):
    elm("experts", "push", "me/one", THIRD, "--run", "one")
    elm("experts", "add", "hf:me/one", "--run", "two")
    assert Library.open(runs / "two" / "library").ids() == (THIRD,)
    elm("experts", "push", "me/one", "--run", "one")
    told = one_sentence(elm("experts", "add", "hf:me/one", "--run", "two", fails=True))
    assert "got a library of 3. Fix: run `elm experts pull me/one" in told


def lie(held):
    """Makes a description tell of parameters that are fewer than there are."""
    name = "cosmos/%C3%A9/expert.json"
    told = json.loads(held[name])
    next(iter(told["parameters"].values()))["shape"] = [10**9, 10**9]
    return held | {name: json.dumps(told).encode()}


def changed(held):
    name = "cosmos/%C3%A9/params.safetensors"
    content = bytearray(held[name])
    content[-1] ^= 1
    return held | {name: bytes(content)}


def moved(held):
    other = held["cosmos/%C3%A9/expert.json"]
    return held | {
        "a/b/expert.json": other,
        "a/b/params.safetensors": held["cosmos/%C3%A9/params.safetensors"],
    }


BROKEN = [
    (lambda held: held | {"pytorch_model.bin": b"x"}, "got the pickle 'pytorch_model.bin'"),
    (lambda held: held | {"cosmos/%C3%A9/run.py": b"x"}, "got the file 'cosmos/%C3%A9/run.py'"),
    (lambda held: held | {"../x/expert.json": b"{}"}, "got the file '../x/expert.json'"),
    (lambda held: held | {"a/b/expert.json": b"{}"}, "Expected params.safetensors of expert 'a/b'"),
    (lambda held: {".gitattributes": b""}, "Expected an expert named '[ac]*' in 'me/4', got none of 0"),
    (lie, "bytes of params.safetensors of expert 'cosmos/é' in 'me/5', got"),
    (moved, "Expected expert 'a/b' in its directory of 'me/6', got 'cosmos/é'"),
    (changed, "Expected sound files of expert 'cosmos/é' in 'me/7'"),
]


def test_what_is_no_library_is_refused_before_it_is_taken(hub, elm, runs):
    whole = bytes_of(runs / "one" / "library")
    for number, (change, _) in enumerate(BROKEN):
        hub.commit(f"me/{number}", change(whole))
    every = range(len(BROKEN))
    found = elm.each([("experts", "pull", f"me/{n}", "--only", "[ac]*", "--run", "two") for n in every])
    for text, (_, told) in zip(found, BROKEN, strict=True):
        assert told in one_sentence(text)
    assert not (runs / "two" / "library").exists() or not Library.open(runs / "two" / "library").ids()
    taken = {repository for repository, _, file in hub.fetched if not file.endswith(".json")}
    assert taken == {"me/7"}
    found = elm.each(
        [("experts", "push", "me/0", "--run", "one"), ("experts", "push", "me/3", "--run", "one")]
    )
    assert "got the pickle 'pytorch_model.bin'" in one_sentence(found[0])
    assert "Expected params.safetensors of expert 'a/b'" in one_sentence(found[1])


def test_experts_of_another_base_are_refused_by_name(hub, elm, runs, base):
    elm("experts", "push", "me/e", THIRD, "--run", "one")
    before = hub.head("me/e")
    told = said(elm("experts", "pull", "me/e", "--run", "other", fails=True))
    assert f"'cosmos/é', which was trained on base '{base.fingerprint}'" in told
    assert not [file for _, _, file in hub.fetched if file.endswith(".safetensors")]
    told = said(elm("experts", "push", "me/other", "--run", "other", fails=True))
    assert "Expected a library of experts at" in told
    add(runs / "one", base, "a/b", 3, fingerprint="0123456789abcdef")
    told = said(elm("experts", "push", "me/e", "a/b", "--run", "one", fails=True))
    assert "'a/b', which was trained on base '0123456789abcdef'" in told
    assert hub.head("me/e") == before


PULL, PUSH = ("pull", "me/e", "--run", "two"), ("push", "me/e", FIRST, "--run", "one")
TOKEN = "Expected a valid token for 'me/e'"


@pytest.mark.parametrize(
    ("how", "cases"),
    [
        (
            {},
            [
                (PULL, "Expected the repository 'me/e' on the hub, got none that this token may read"),
                (PUSH, TOKEN),
                (("push", "me", "--run", "one"), "Expected a repository of the hub as hf:owner/name"),
                (("pull", "me/a--b", "--run", "two"), "Expected a repository of the hub as hf:owner/name"),
                ((*PUSH, "--licence", "My own"), "Expected a licence as the hub spells it"),
            ],
        ),
        ({"token": "wrong"}, [(PULL, TOKEN), (PUSH, TOKEN)]),
        (
            {"token": "right"},
            [
                (
                    ("pull", "me/none", "--run", "two"),
                    "Expected the repository 'me/none' on the hub, got none",
                ),
                (("pull", "me/e@v9", "--run", "two"), "Expected a revision of 'me/e' named 'v9', got none"),
                (("push", "me/e@v9", "--run", "one"), "Expected a revision of 'me/e' named 'v9', got none"),
                (("push", "me/none@v9", "--run", "one"), "Expected the repository 'me/none' on the hub"),
                ((*PULL, "--only", "drem/*"), "Expected an expert named 'drem/*' in 'me/e'"),
                (("push", "me/e", "drem/x", "--run", "one"), "No expert named 'drem/x'"),
            ],
        ),
        (
            {"endpoint": "http://127.0.0.1:9"},
            [
                (PULL, "Expected to reach the hub at http://127.0.0.1:9 for 'me/e', got no answer"),
                (PUSH, "Expected to reach the hub at http://127.0.0.1:9 for 'me/e', got no answer"),
            ],
        ),
        ({"offline": True}, [(PULL, "check the network, HF_ENDPOINT and HF_HUB_OFFLINE")]),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(hub, elm, runs, how, cases):
    hub.commit("me/e", bytes_of(runs / "one" / "library"))
    hub.token, hub.private = "right", {"me/e"}
    before = dict(hub.names)
    found = elm.each([("experts", *arguments) for arguments, _ in cases], **how)
    for text, (_, told) in zip(found, cases, strict=True):
        assert told in one_sentence(text)
    assert hub.names == before
    assert not hub.made


def test_a_repository_without_a_card_is_a_library_too(hub, elm, runs):
    hub.token = "right"
    hub.commit("me/e", bytes_of(runs / "one" / "library"))
    elm("experts", "pull", "me/e", "--only", SECOND.replace("?", "[?]"), "--run", "two")
    assert Library.open(runs / "two" / "library").ids() == (SECOND,)
    described = files.read_description(
        files.epath.Path(runs / "two" / "library" / "dream" / "what%20%7C%20now%3F")
    )
    assert described.owner == "ada"
    elm("experts", "push", "me/e", THIRD, "--run", "one", token="right")
    assert hub.head("me/e")["README.md"].count(b"| lora |") == 3
