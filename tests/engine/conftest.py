"""What the tests of engines share: a T5 of one layer a stack."""

import jax
import pytest

from elm_jax.models.sizes import size
from elm_jax.models.t5 import init_params


@pytest.fixture(scope="session")
def config():
    """One layer a stack: what several layers do is asked in the tests of the network."""
    return size(
        "tiny",
        vocab_size=48,
        emb_dim=16,
        num_heads=2,
        head_dim=8,
        mlp_dim=24,
        num_encoder_layers=1,
        num_decoder_layers=1,
    )


@pytest.fixture(scope="session")
def base(config):
    return init_params(jax.random.key(0), config)
