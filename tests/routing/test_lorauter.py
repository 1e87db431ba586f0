"""LoRAuter: similarities of tasks become weights of their experts, worked out by hand."""

import numpy as np
import pytest

from elm_jax.errors import UserError
from elm_jax.routing.inputs import KeyIndex, Queries
from elm_jax.routing.lorauter import lorauter

# Two keys of each expert; their means point along (1, 0), (1, 1) / √2 and (0, 1).
KEYS = np.array([[2, 0], [1, 0], [1, 0], [0, 1], [0, 3], [0, 1]], np.float32)
INDEX = KeyIndex(
    ("a/1", "b/1", "c/1"), (("a",), ("b",), ("c",)), np.repeat(np.arange(3), 2), KEYS, ("",) * 6, "toy",
    "instance",
)  # fmt: skip


def ask(*vectors):
    rows = tuple(map(str, range(len(vectors))))
    return Queries("t/1", rows, vectors=np.array(vectors, np.float32), embedder="toy", text_format="instance")


def test_weights_are_the_softmax_of_mean_cosines_over_the_nearest_experts():
    found = lorauter(ask((5, 0), (0, 2), (3, 0)), INDEX, k=2, temperature=0.5)
    # Mean cosines: a 2/3, b 1/√2, c 1/3.
    ratio = np.exp((2 / 3 - np.sqrt(0.5)) / 0.5)
    assert list(found.weights) == ["b/1", "a/1"]
    np.testing.assert_allclose(
        list(found.weights.values()), [1 / (1 + ratio), ratio / (1 + ratio)], rtol=1e-5
    )
    assert found.votes == {"a/1": 2, "c/1": 1}
    assert [expert for expert, _ in found.nearest] == ["a/1", "c/1", "a/1"]


def test_experts_of_excluded_datasets_have_no_weight_and_fewer_than_k_share():
    found = lorauter(ask((1, 0)), INDEX, k=3, exclude=["a"])
    assert list(found.weights) == ["b/1", "c/1"]
    assert sum(found.weights.values()) == pytest.approx(1.0)
    assert found.nearest[0][0] == "b/1"


@pytest.mark.parametrize("options", [{"k": 0}, {"temperature": 0.0}])
def test_options_without_a_meaning_are_refused(options):
    with pytest.raises(UserError, match="above 0"):
        lorauter(ask((1, 0)), INDEX, **options)
