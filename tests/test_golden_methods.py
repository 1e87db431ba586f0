"""The package's methods give what the authors' own code gave on the same arrays."""

import numpy as np
import pytest

from tests.golden_methods import FUNCTIONS
from tests.shared_data import DATA

FOLDER = DATA / "golden" / "methods"
TOLERANCE = 2e-5  # of the largest value; integers and booleans are equal
LEFT_OUT = {
    # Of gradients through the norm too, which DoRA's authors and ours take for constant.
    "experts_dora": {"grad_lora_a_full", "grad_lora_b_full", "grad_magnitude_full"},
    "merging_wudi": {"first_loss", "last_loss"},  # of its own optimisation, which the merge does not return
}


def load(name: str) -> tuple[dict, dict]:
    """Returns a file's inputs, options among them, and its outputs, by their names without prefix."""
    file = FOLDER / f"{name}.npz"
    if not file.exists():
        pytest.skip(f"the golden arrays beside the checkout ({file}) are absent")
    with np.load(file) as arrays:
        every = {key: arrays[key] for key in arrays.files}
    inputs = {key.removeprefix("opt_"): array for key, array in every.items() if not key.startswith("out_")}
    outputs = {key.removeprefix("out_"): array for key, array in every.items() if key.startswith("out_")}
    return {key: array if array.ndim else array.item() for key, array in inputs.items()}, outputs


@pytest.mark.shared_data
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_method_gives_what_its_authors_code_gave(name):
    inputs, wanted = load(name)
    got = FUNCTIONS[name](inputs)
    assert got.keys() == wanted.keys() - LEFT_OUT.get(name, set())
    for output, array in got.items():
        expected = wanted[output]
        if expected.dtype.kind == "f":
            bound = TOLERANCE * np.abs(expected).max() + 1e-12
            told = np.asarray(array, np.float64).reshape(expected.shape)
            np.testing.assert_allclose(told, expected, rtol=0, atol=bound, err_msg=output)
        else:
            np.testing.assert_array_equal(np.asarray(array).reshape(expected.shape), expected, output)


@pytest.mark.shared_data
def test_every_file_has_a_function():
    files = {file.stem for file in FOLDER.glob("*.npz")}
    assert files
    assert files <= FUNCTIONS.keys()
