"""The network for T5X is of the checkpoint's shape, and a checkpoint that does not fit it is refused."""

import sys
import warnings
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from elm_jax.errors import UserError
from elm_jax.models import expert_layers as ex
from elm_jax.models import paths
from elm_jax.models.sizes import find_config
from elm_jax.models.t5 import init_params
from elm_jax.t5x import checkpoints
from elm_jax.weights import base_model, t5x_write

CONFIG = find_config("tiny", vocab_size=512)
OPTIONS = {"bottleneck": {"width": 3}, "lora": {"rank": 2, "projections": ("wo",)}, "ia3": {}}


@pytest.fixture(scope="module")
def base():
    return base_model.make_base(CONFIG, init_params(jax.random.key(0), CONFIG))


@pytest.fixture(scope="module")
def places(base, tmp_path_factory):
    """Checkpoints by what is in them: a base, or a base with an expert of some kind."""
    place = tmp_path_factory.mktemp("checkpoints")
    found = {"base": place / "base"}
    t5x_write.save(found["base"], base)
    for kind, options in OPTIONS.items():
        tree = ex.init_expert(kind, jax.random.key(1), base.params, options)
        params = paths.unflatten({**paths.flatten(base.params), **paths.flatten(tree)})
        found[kind] = place / kind
        t5x_write.save(found[kind], base_model.make_base(CONFIG, jax.tree.map(np.asarray, params)))
    return {name: str(where / "checkpoint_0") for name, where in found.items()}


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_network_to_score_with_has_the_checkpoints_shape_and_expert(places, kind):
    network = checkpoints.make_module(places[kind])
    assert (network.kind, network.config) == (kind, find_config("tiny", vocab_size=512, dropout_rate=0.0))
    assert {**OPTIONS[kind], **network.options} == dict(network.options)


def test_a_training_adds_an_expert_to_a_base_and_goes_on_with_one_that_is_there(places, tmp_path):
    for start, options in (("base", {"width": 5}), ("bottleneck", {})):
        made = checkpoints.make_module(
            places[start], model_dir=tmp_path, kind="bottleneck", options=options, dropout_rate=0.1
        )
        assert made.options == {"width": 5 if start == "base" else 3}
        assert made.config.dropout_rate == 0.1


def test_parameters_of_an_expert_are_drawn_only_where_there_are_none(places):
    def drawn(kind, start):
        return [pattern for pattern, _ in checkpoints.restore_rules(kind, start)]

    state = list(checkpoints.OPTIMIZER_STATE)
    assert drawn("bottleneck", places["bottleneck"]) == drawn("full", places["base"]) == state
    assert len(drawn("lora", places["base"])) == len(drawn("lora", None)) == 1 + len(state)


# Of 44 parameters of two and two layers an encoder's layer has 9 and a decoder's 14 of its own. A bottleneck
# adds 4 parameters for each of 2 blocks of 4 layers.
@pytest.mark.parametrize(
    ("start", "given", "told"),
    [
        ("bottleneck", {"kind": "full"}, "lacks 0 of them, has 32 more and 0 of another shape"),
        ("base", {"kind": "bottleneck"}, "lacks 32 of them, has 0 more and 0 of another shape"),
        ("bottleneck", {"options": {"width": 4}}, "lacks 0 of them, has 0 more and 24 of another shape"),
        ("lora", {"options": {"rank": 9}}, "has 0 more and 8 of another shape"),
        ("base", {"size": "small"}, "has 0 more and"),
        ("base", {"vocab_size": 500}, "has 0 more and 2 of another shape"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_with_counts(places, start, given, told):
    with pytest.raises(UserError, match=told):
        checkpoints.make_module(places[start], **given)


def test_a_base_that_lacks_layers_is_refused(base, tmp_path, monkeypatch):
    t5x_write.save(tmp_path, base)
    monkeypatch.setitem(checkpoints.sizes.SIZES, "three", find_config("tiny", num_encoder_layers=3))
    with pytest.raises(UserError, match=r"lacks 9 of them, has 0 more .*'encoder/layers_2/"):
        checkpoints.make_module(
            tmp_path / "checkpoint_0", model_dir=tmp_path / "new", size="three", kind="full"
        )


def test_a_run_that_goes_on_fits_its_own_last_checkpoint_and_not_the_first(places, base, tmp_path):
    t5x_write.save(tmp_path, base)
    (tmp_path / "checkpoint_0").rename(tmp_path / "checkpoint_20")
    (tmp_path / "checkpoint_9").mkdir()
    (tmp_path / "checkpoint_30.orbax-checkpoint-tmp-1").mkdir()
    given = {"checkpoint": places["bottleneck"], "model_dir": tmp_path}
    assert checkpoints.make_module(**given).kind == "full"
    with pytest.raises(UserError, match=r"checkpoint_20'.* lacks 32 of them"):
        checkpoints.make_module(**given, kind="bottleneck")


def test_more_ids_than_rows_of_the_table_are_refused(places):
    assert checkpoints.make_module(places["base"], vocabulary=SimpleNamespace(vocab_size=512))
    with pytest.raises(UserError, match=r"at most 512 ids.* got 513"):
        checkpoints.make_module(places["base"], vocabulary=SimpleNamespace(vocab_size=513))


def test_nothing_to_start_from_wants_a_size():
    assert checkpoints.make_module(None, size="tiny", kind="full").config.vocab_size == 1024
    with pytest.raises(UserError, match="SIZE"):
        checkpoints.make_module(None, kind="full")


@pytest.mark.parametrize(
    ("told", "wanted"), [("{'inputs': 7}", {"inputs": 7}), ("@lengths()", 5), ("%OTHER", 5), (None, 5)]
)
def test_a_macro_of_the_training_is_read_beside_the_checkpoint(tmp_path, told, wanted):
    (tmp_path / "checkpoint_3").mkdir()
    if told:
        (tmp_path / "config.gin").write_text(f"LENGTHS = {told}\nOTHER = 1\n")
    for place in (tmp_path, tmp_path / "checkpoint_3"):
        assert checkpoints.read_macro("LENGTHS", place, 5) == wanted


@pytest.mark.filterwarnings("ignore")  # TensorFlow's own
@pytest.mark.parametrize("stateful", [True, False])
def test_a_position_in_the_data_that_cannot_be_saved_is_a_warning(tmp_path, monkeypatch, stateful):
    tf = pytest.importorskip("tensorflow")
    pytest.importorskip("clu")
    rows = tf.data.Dataset.range(9).map(lambda number: {"a": number})
    if stateful:
        spec = {"a": tf.TensorSpec((), tf.int64)}
        rows = tf.data.Dataset.from_generator(
            lambda: iter([{"a": n} for n in range(9)]), output_signature=spec
        )
    utils = SimpleNamespace(get_dataset=lambda config: rows)
    monkeypatch.setitem(sys.modules, "t5x.utils", utils)

    def iterate():
        return checkpoints.get_dataset(None, model_dir=tmp_path)

    found, place = iterate(), tmp_path / "checkpoint_3" / "ds"
    place.parent.mkdir()
    for _ in range(3):
        next(found)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        found.save(place)
    assert len([each for each in told if "cannot be saved" in str(each.message)]) == stateful
    again = iterate()
    again.restore(place)
    assert next(again)["a"] == (0 if stateful else 3)
