"""Toys for the tests of the library: two-parameter experts, their keys, and an empty library."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from elm_jax.experts.library import Library
from elm_jax.models import paths
from elm_jax.records import Expert, ExpertSpec, Keys

DOWN = "encoder/layers/mlp_adapter/down/kernel"
SCALE = "decoder/decoder_norm/scale"


@pytest.fixture
def library(tmp_path) -> Library:
    return Library.open(tmp_path / "library", create=True)


@pytest.fixture
def expert() -> Callable[..., Expert]:
    """Makes an expert of 2·3·2 + 3 parameters, all of one value."""

    def make(name="dream/baseline", value=1.0, shape=(2, 3, 2), **changes):
        flat = {DOWN: np.full(shape, value, np.float32), SCALE: np.full(3, value, np.float32)}
        spec = ExpertSpec(
            id=name,
            kind="bottleneck",
            base="base",
            paths=tuple(flat),
            datasets=(name.split("/")[0],),
            steps=abs(int(value)),
            recipe={"seed": 0},
        )
        return Expert(replace(spec, **changes), paths.unflatten(flat))

    return make


@pytest.fixture
def keys() -> Callable[..., Keys]:
    """Makes keys of the given texts, whose vectors count up from 0."""

    def make(*texts, embedder="toy", text_format="instance", width=2):
        vectors = np.arange(len(texts) * width, dtype=np.float32).reshape(-1, width)
        return Keys(vectors, texts, embedder, text_format)

    return make
