"""Our formulas and PEFT's give the same on random matrices."""

from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from elm_jax.merging.dare import drop_values
from elm_jax.merging.parameter_groups import weighted_sum
from elm_jax.merging.task_arithmetic import task_arithmetic
from elm_jax.merging.ties import elect_signs, trim_tensor

pytestmark = pytest.mark.parity

SHAPE, WEIGHTS = (8, 5), [0.5, 0.3, 0.2]


@pytest.fixture(scope="module")
def theirs() -> Any:
    pytest.importorskip("torch", reason="wants the parity extra: peft and torch")
    found = find_spec("peft")
    if found is None or found.origin is None:
        pytest.skip("wants the parity extra: peft and torch")
    # Its one file of formulas without the package around it, which takes long to import.
    spec = spec_from_file_location("merge_utils", Path(found.origin).parent / "utils" / "merge_utils.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def changes() -> list[np.ndarray]:
    return list(np.random.default_rng(0).normal(size=(3, *SHAPE)).astype(np.float32))


def tensors(arrays):
    torch = pytest.importorskip("torch")
    return [torch.from_numpy(array) for array in arrays]


def weights(numbers):
    return pytest.importorskip("torch").tensor(numbers)


@pytest.fixture
def masks(monkeypatch) -> list[np.ndarray]:
    """Which values are kept of each expert, for PEFT too, which draws them one expert after another."""
    torch = pytest.importorskip("torch")
    made = list(np.random.default_rng(1).random((3, *SHAPE)) < 0.4)
    left = iter(made)
    monkeypatch.setattr(torch, "bernoulli", lambda values: torch.from_numpy(next(left)).to(values.dtype))
    return made


def test_task_arithmetic(theirs, changes):
    wanted = theirs.task_arithmetic(tensors(changes), weights(WEIGHTS)).numpy()
    np.testing.assert_allclose(task_arithmetic(changes, WEIGHTS, 1.0), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("density", [0.1, 0.25, 0.5, 0.9])
def test_trimming(theirs, changes, density):
    wanted = theirs.magnitude_based_pruning(tensors(changes)[0], density).numpy()
    np.testing.assert_array_equal(trim_tensor(changes[0], density), wanted)


@pytest.mark.parametrize("density", [0.1, 0.25, 0.5, 0.9])
def test_ties(theirs, changes, density):
    wanted = theirs.ties(tensors(changes), weights([1.0] * 3), density).numpy()
    kept = (trim_tensor(change, density) for change in changes)
    np.testing.assert_allclose(elect_signs(kept, [1 / 3] * 3), wanted, rtol=1e-5, atol=1e-6)


def test_dare_then_average(theirs, changes, masks):
    wanted = theirs.dare_linear(tensors(changes), weights(WEIGHTS), 0.4).numpy()
    ours = [drop_values(change, 0.4, mask) for change, mask in zip(changes, masks, strict=True)]
    np.testing.assert_allclose(weighted_sum(ours, WEIGHTS), wanted, rtol=1e-5, atol=1e-6)


def test_dare_then_ties(theirs, changes, masks):
    wanted = theirs.dare_ties(tensors(changes), weights([1.0] * 3), 0.4).numpy()
    ours = [drop_values(change, 0.4, mask) for change, mask in zip(changes, masks, strict=True)]
    np.testing.assert_allclose(elect_signs(ours, [1 / 3] * 3), wanted, rtol=1e-5, atol=1e-6)
