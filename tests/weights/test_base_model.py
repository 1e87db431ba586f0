"""The base: put together a parameter at a time, with the fingerprint of the whole."""

import numpy as np
import pytest
from ml_dtypes import bfloat16

from elm_jax import storage
from elm_jax.errors import UserError
from elm_jax.models import paths
from elm_jax.weights import base_model, elm


@pytest.fixture
def saved(model, tmp_path):
    elm.save(tmp_path, model)
    return elm.open_checkpoint(tmp_path)


def test_the_fingerprint_made_on_the_way_is_that_of_all_parameters(model, saved):
    found = base_model.read_base(saved, dtype=None, place=base_model.keep_on_host)
    assert found.fingerprint == storage.array_fingerprint(paths.flatten(model.params)) == model.fingerprint


def test_parameters_come_in_the_order_of_their_paths_one_at_a_time(saved):
    seen = []
    base_model.read_base(
        saved, dtype=None, place=lambda path, value: seen.append((path, value.shape)) or value
    )
    assert seen == sorted(base_model.param_shapes(saved.config).items())


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_type_that_is_asked_for_is_every_parameters(model, saved, dtype):
    found = base_model.read_base(saved, dtype=dtype, place=base_model.keep_on_host)
    for path, value in paths.flatten(found.params).items():
        assert value.dtype == base_model.DTYPES[dtype]
        np.testing.assert_array_equal(value, paths.flatten(model.params)[path].astype(value.dtype))
    assert found.fingerprint == storage.array_fingerprint(paths.flatten(found.params))
    assert (found.fingerprint == model.fingerprint) == (dtype == "float32")


@pytest.mark.parametrize("dtype", ["bfloat16", bfloat16, np.dtype(bfloat16)])
def test_a_type_may_be_given_by_name_or_itself(dtype):
    assert base_model.dtype_name(dtype) == "bfloat16"


@pytest.mark.parametrize("dtype", ["float16", "half", "nonsense", np.int32])
def test_any_other_type_is_refused(dtype):
    with pytest.raises(UserError, match="float32 or bfloat16"):
        base_model.dtype_name(dtype)
