"""What every test stands on: eight CPU devices, rank promotion an error, and a T5 small enough to test."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

from elm_jax.models import experts as ex
from elm_jax.models.sizes import size
from elm_jax.models.t5 import init_params

jax.config.update("jax_numpy_rank_promotion", "raise")
# Tiny networks take longer to compile well than to run badly.
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session")
def config():
    return size("tiny", vocab_size=96, emb_dim=32, head_dim=8, mlp_dim=48, num_decoder_layers=3)


@pytest.fixture(scope="session")
def base(config):
    return init_params(jax.random.key(0), config)


@pytest.fixture(scope="session")
def experts(base):
    """Three experts whose adapters are large enough to change every logit."""
    made = [ex.init_bottleneck(jax.random.key(seed), base, width=4) for seed in (1, 2, 3)]
    return [jax.tree.map(lambda leaf, by=5.0 + seed: leaf * by, tree) for seed, tree in enumerate(made)]
