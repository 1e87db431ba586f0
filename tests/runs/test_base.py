"""Bases of a run: those of other formats serve as ours do, with the vocabulary that belongs to them."""

import jax
import pytest

from elm_jax.errors import UserError
from elm_jax.models.sizes import size
from elm_jax.models.t5 import init_params
from elm_jax.runs import base
from elm_jax.runs.data import Source
from elm_jax.tasks import vocabulary
from elm_jax.weights import base as bases
from elm_jax.weights import elm, huggingface

TEXTS = ["the dog ran to the gate because it had heard the car of its owner"]


@pytest.fixture(scope="module")
def model():
    config = size("tiny", vocab_size=160, num_encoder_layers=1, num_decoder_layers=1)
    return bases.of(config, init_params(jax.random.key(0), config))


@pytest.fixture
def published(model, tmp_path):
    """A directory as the hub has them, with T5's vocabulary: its sentinels are not among the pieces."""
    huggingface.save(tmp_path / "hub", model)
    vocabulary.train(TEXTS, tmp_path / "hub" / base.PUBLISHED, 40, extra_ids=0)
    return tmp_path / "hub"


def test_a_published_model_and_its_vocabulary_are_a_base_and_the_workspace_remembers_them(
    model, published, tmp_path
):
    run = base.open_run(tmp_path / "run", initial_checkpoint=published)
    assert run.base.fingerprint == model.fingerprint
    pieces = vocabulary.load(published / base.PUBLISHED, extra_ids=0)
    assert (run.pieces.size, run.pieces.extra_ids) == (pieces.size + 100, 100)
    again = base.open_run(tmp_path / "run")
    assert again.base.fingerprint == model.fingerprint
    assert (
        again.pieces.fingerprint
        == run.pieces.fingerprint
        == base.reading(tmp_path / "run").pieces.fingerprint
    )


def test_a_vocabulary_with_sentinels_among_its_pieces_gets_no_more(published, tmp_path):
    # A model's own bytes with the sentinels behind are a model that has them.
    file = tmp_path / "with.model"
    file.write_bytes((published / base.PUBLISHED).read_bytes() + vocabulary._sentinels(4))
    assert base.pieces_of(published, file).extra_ids == 0
    assert base.pieces_of(published, file).size == base.pieces_of(published).size - 100 + 4


def test_a_vocabulary_elsewhere_is_named_and_one_that_is_missing_is_said_to_be(model, published, tmp_path):
    elm.save(tmp_path / "bare", model)
    with pytest.raises(UserError, match=r"vocabulary\.model or spiece\.model, but neither is there"):
        base.open_run(tmp_path / "run", initial_checkpoint=tmp_path / "bare")
    source = Source(vocabulary=published / base.PUBLISHED)
    run = base.open_run(tmp_path / "run", initial_checkpoint=tmp_path / "bare", source=source)
    assert run.pieces.fingerprint == base.open_run(tmp_path / "run").pieces.fingerprint
    assert run.pieces.extra_ids == 100


def test_a_name_that_no_model_has_is_answered_with_the_nearest(tmp_path):
    with pytest.raises(UserError, match="t5-xl-lm-adapt"):
        base.open_run(tmp_path / "run", initial_checkpoint="t5-xl-lm-adpat")
