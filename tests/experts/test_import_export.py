"""Adopting experts: what T5X, PEFT or another library made, beside the very base, whole or not at all."""

import jax
import numpy as np
import pytest

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.experts import files, gate_files, import_export
from elm_jax.experts.library import Library
from elm_jax.models import expert_layers as ex
from elm_jax.models import paths
from elm_jax.models.sizes import find_config
from elm_jax.records import Expert, ExpertSpec, Gates, Keys
from elm_jax.session.workspace import Workspace
from elm_jax.weights import base_model, elm, peft, t5x_write

KINDS = ("bottleneck", "lora", "dora", "vera", "ia3", "prompt", "full")


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    config = find_config(
        "tiny", vocab_size=24, emb_dim=8, num_heads=2, head_dim=5, mlp_dim=14, dropout_rate=0.1
    )
    flat = {
        path: rng.normal(size=shape).astype(np.float32)
        for path, shape in base_model.param_shapes(config).items()
    }
    return base_model.make_base(config, paths.unflatten(flat))


@pytest.fixture(scope="module")
def trees(model):
    rng = np.random.default_rng(1)

    def drawn(kind):
        tree = ex.init_expert(kind, jax.random.key(0), model.params)
        return jax.tree.map(lambda leaf: np.asarray(leaf + rng.normal(size=leaf.shape), np.float32), tree)

    return {kind: drawn(kind) for kind in KINDS}


@pytest.fixture
def run(model, tmp_path):
    workspace = Workspace.open(tmp_path / "run", create=True)
    elm.save(workspace.base, model)
    return workspace


@pytest.fixture(scope="module")
def trained(model, trees, tmp_path_factory):
    """Checkpoints as T5X writes them, of the base and an expert of every kind: two steps, 3 and 30."""
    places = {}
    for kind, tree in trees.items():
        places[kind] = tmp_path_factory.mktemp(kind)
        last = {**paths.flatten(model.params), **paths.flatten(tree)}
        first = {
            path: value if path not in paths.flatten(tree) else value * 0 for path, value in last.items()
        }
        for step, flat in ((3, first), (30, last)):
            state = {"target": paths.unflatten(paths.unstack_layers(flat)), "state": {"step": np.int32(step)}}
            alone = tmp_path_factory.mktemp("alone")
            t5x_write._write(storage.path(alone).resolve(), state)
            (alone / "checkpoint_0").rename(places[kind] / f"checkpoint_{step}")
    return places


def bits(tree):
    return {path: value.tobytes() for path, value in paths.flatten(tree).items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["", "checkpoint_30"])
def test_the_names_in_a_checkpoint_tell_the_kind_of_its_expert(
    kind, where, trained, trees, run, model, tmp_path
):
    made = import_export.import_expert(trained[kind] / where, id="dream/baseline", run=run.root)
    assert (made.kind, made.steps, made.datasets) == (kind, 30, ("dream",))
    found = Library.open(run.library).load_expert("dream/baseline", base=model.fingerprint)
    assert found.spec == made
    assert bits(found.params) == bits(trees[kind])


def test_an_earlier_checkpoint_is_another_expert_with_its_own_step(trained, run):
    made = import_export.import_expert(
        trained["lora"] / "checkpoint_3", id="a/b", run=run.root, kind="lora", datasets=["a", "c"]
    )
    assert (made.steps, made.datasets) == (3, ("a", "c"))
    found = Library.open(run.library).load_expert("a/b")
    assert not any(value.any() for value in paths.flatten(found.params).values())


def test_an_expert_that_is_there_is_replaced_only_when_asked(trained, run):
    first = import_export.import_expert(trained["lora"], id="a/b", run=run.root)
    with pytest.raises(UserError, match="no expert 'a/b' in"):
        import_export.import_expert(trained["ia3"], id="a/b", run=run.root)
    assert Library.open(run.library).spec("a/b") == first
    import_export.import_expert(trained["ia3"], id="a/b", run=run.root, replace=True)
    assert Library.open(run.library).spec("a/b").kind == "ia3"


def test_an_adapter_of_peft_goes_into_a_library(trees, run, tmp_path):
    peft.save(storage.writable_directory(tmp_path / "adapter"), "lora", trees["lora"])
    assert import_export.import_expert(tmp_path / "adapter", id="a/b", run=run.root).kind == "lora"
    assert bits(Library.open(run.library).load_expert("a/b").params) == bits(trees["lora"])


@pytest.fixture
def exported(run, model, trees, tmp_path):
    """An expert with keys, in one run's library and exported from it."""
    tree = trees["lora"]
    keys = Keys(np.ones((1, 4), np.float32), ("a text",), "t5", "instance")
    spec = ExpertSpec("a/b c", "lora", model.fingerprint, tuple(paths.flatten(tree)), ("a", "x"), 7, {"r": 1})
    library = Library.open(run.library, create=True)
    library.add(Expert(spec, tree), keys)
    about = library.describe("a/b c")
    shapes = gate_files.gate_shapes(about.shapes)
    gates = {path: np.full(shape, 0.5, np.float32) for path, shape in shapes.items()}
    library.write_gates("a/b c", Gates(gates, about.checksum))
    return import_export.export_expert("a/b c", tmp_path / "out", run=run.root)


def test_an_exported_expert_is_the_same_in_another_library(exported, run, model, tmp_path):
    other = Workspace.open(tmp_path / "other", create=True)
    elm.save(other.base, model)
    import_export.import_expert(exported, run=other.root)
    there, here = Library.open(other.library), Library.open(run.library)
    assert there.spec("a/b c") == here.spec("a/b c")
    assert bits(there.load_expert("a/b c").params) == bits(here.load_expert("a/b c").params)
    assert there.load_keys("a/b c").texts == ("a text",)
    assert bits(there.load_gates("a/b c").vectors) == bits(here.load_gates("a/b c").vectors)
    assert there.verify(base=model.fingerprint) == []


def test_an_exported_expert_keeps_its_id(exported, run):
    with pytest.raises(UserError, match=r"'a/b c'.*got 'x/y'"):
        import_export.import_expert(exported, id="x/y", run=run.root, replace=True)


def test_a_damaged_expert_is_refused(exported, run):
    file = exported / files.PARAMS_FILE
    changed = bytearray(file.read_bytes())
    changed[-1] ^= 1
    file.write_bytes(changed)
    Library.open(run.library).remove("a/b c")
    with pytest.raises(UserError, match=files.PARAMS_FILE):
        import_export.import_expert(exported, run=run.root)
    assert Library.open(run.library).ids() == ()


def test_nothing_is_exported_over_what_is_there(exported, run):
    with pytest.raises(UserError, match="/out'"):
        import_export.export_expert("a/b c", exported, run=run.root)
    with pytest.raises(UserError, match="Did you mean 'a/b c'"):
        import_export.export_expert("a/bc", exported.parent / "elsewhere", run=run.root)


def test_an_expert_of_another_base_is_refused(exported, trained, model, tmp_path):
    other = Workspace.open(tmp_path / "other", create=True)
    elm.save(
        other.base,
        base_model.make_base(model.config, jax.tree.map(lambda leaf: leaf + 1, dict(model.params))),
    )
    with pytest.raises(UserError, match=f"'a/b c'.*{model.fingerprint!r}"):
        import_export.import_expert(exported, run=other.root)
    with pytest.raises(UserError, match="got other values"):
        import_export.import_expert(trained["lora"], id="a/b", run=other.root)
    assert not other.library.exists()


def test_what_is_no_expert_is_one_sentence(run, tmp_path, trained):
    with pytest.raises(UserError, match="--id DATASET/PROMPT"):
        import_export.import_expert(trained["lora"], run=run.root)
    with pytest.raises(UserError, match="/none'"):
        import_export.import_expert(tmp_path / "none", id="a/b", run=run.root)
    with pytest.raises(UserError, match="/run'"):
        import_export.import_expert(run.root, id="a/b", run=run.root)


def test_parameters_of_no_known_kind_are_named(model):
    found = {**paths.unstack_layers(paths.flatten(model.params)), "encoder/layers_0/prefix": 0}
    with pytest.raises(UserError, match="'encoder/layers/prefix'"):
        import_export.infer_kind(found, model)
