"""The gin file beside a T5X checkpoint: what it says of the network is used, and what is unknown refused."""

from dataclasses import replace

import pytest

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.weights import t5x_gin
from elm_jax.weights.load import load_model

GIN = """
from __gin__ import dynamic_registration
import seqio
from t5x import models
from t5x.examples.t5 import network

include 't5x/configs/runs/pretrain.gin'

WIDTH = 8
ACTIVATIONS = %OTHER
OTHER = ('swish', 'linear')
network.T5Config:
  vocab_size = 24  # vocab size rounded
  dtype = 'bfloat16'
  emb_dim = %WIDTH
  num_heads = 2
  head_dim = 5
  mlp_dim = 14
  mlp_activations = %ACTIVATIONS
  dropout_rate = 0.25
  logits_via_embedding = False
  float32_attention_logits = True
train/models.EncoderDecoderModel.module = @network.Transformer()
"""


@pytest.fixture
def trained(t5_1_1, writers, tmp_path):
    """A run's directory as T5X leaves it, without the gin file."""
    writers["orbax"](tmp_path, writers["tree"](t5_1_1.params))
    return tmp_path


@pytest.mark.parametrize("name", ["config.gin", "operative_config.gin"])
@pytest.mark.parametrize("place", ["", "checkpoint_7"])
def test_it_says_what_names_and_shapes_do_not(trained, t5_1_1, name, place):
    assert load_model(trained).config == t5_1_1.config
    (trained / place / name).write_text(GIN)
    wanted = replace(t5_1_1.config, mlp_activations=("silu", "linear"), dropout_rate=0.25)
    assert load_model(trained).config == wanted
    assert load_model(trained / "checkpoint_7").config == wanted


def test_a_file_that_says_nothing_of_the_network_changes_nothing(trained, t5_1_1):
    (trained / "config.gin").write_text("train.total_steps = 30\nMACRO = 3\n")
    assert load_model(trained).config == t5_1_1.config


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("network.T5Config.emb_dim = 9", r" as \(.*, got \("),
        ("network.T5Config.num_heads = 1", r" as \(.*, got \("),
        ("network.T5Config.logits_via_embedding = True", "got .*logits_dense"),
        ("network.T5Config.mlp_activations = 'gelu'", "to be names of activations, got 'gelu'"),
        ("network.T5Config.mlp_activations = ('tanh', 'linear')", "mlp_activations of gelu"),
        ("network.T5Config.rotary = True", "got 'rotary' = True"),
        ("network.T5Config.dropout_rate = %NOWHERE", "to define the macro '%NOWHERE'"),
        (
            "NET = @t5_architecture.EncoderDecoder()\nmodels.EncoderDecoderModel.module = %NET",
            "'module' in .* to be 'Transformer', got 'EncoderDecoder'",
        ),
        ("A = %B\nB = %A\nnetwork.T5Config.dropout_rate = %A", "to define the macro"),
        ("network.T5Config.dropout_rate = = 3", "to be a gin file, got one that does not parse"),
    ],
)
def test_what_does_not_fit_or_is_unknown_is_one_sentence(trained, line, told):
    (trained / "config.gin").write_text(line)
    with pytest.raises(UserError, match=told):
        load_model(trained)


def test_a_field_that_was_looked_at_is_ignored(trained, t5_1_1):
    (trained / "config.gin").write_text("network.T5Config.rotary = True")
    assert load_model(trained, ignore=["rotary"]).config == t5_1_1.config


def test_nothing_that_it_names_is_imported(trained):
    (trained / "config.gin").write_text("import no_such_module\nfrom other import thing\n" + GIN)
    found = t5x_gin.read_network_fields(storage.path(trained / "checkpoint_7"))
    assert (found["num_heads"], found["emb_dim"]) == (2, 8)
