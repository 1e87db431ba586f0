"""What these tests share: a T5 of one layer a stack."""

import jax
import pytest

from elm_jax.models.t5 import init_params


@pytest.fixture(scope="session")
def config(one_layer):
    return one_layer


@pytest.fixture(scope="session")
def base(config):
    return init_params(jax.random.key(0), config)
