"""Toys for the tests of merging: a base of two layers, and experts of every kind on it."""

from collections.abc import Callable

import numpy as np
import pytest

from elm_jax.experts import compatibility
from elm_jax.merging import merger
from elm_jax.merging.plan import plan_merge
from elm_jax.models import paths
from elm_jax.records import Expert, ExpertSpec

LAYERS, D, F, RANK = 2, 6, 10, 2
QUERY, WO = "encoder/layers/attention/query", "decoder/layers/mlp/wo"
ADAPTER, NORM = "encoder/layers/mlp_adapter", "encoder/layers/pre_mlp_layer_norm/scale"
LAST, EMBEDDING = "decoder/decoder_norm/scale", "token_embedder/embedding"
SHAPES = {
    "bottleneck": {
        f"{ADAPTER}/down/kernel": (LAYERS, D, RANK),
        f"{ADAPTER}/down/bias": (LAYERS, RANK),
        f"{ADAPTER}/up/kernel": (LAYERS, RANK, D),
        f"{ADAPTER}/up/bias": (LAYERS, D),
        NORM: (LAYERS, D),
        LAST: (D,),
    },
    "lora": {
        f"{QUERY}/lora_a": (LAYERS, D, RANK),
        f"{QUERY}/lora_b": (LAYERS, RANK, D),
        f"{WO}/lora_a": (LAYERS, F, RANK),
        f"{WO}/lora_b": (LAYERS, RANK, D),
    },
    "dora": {
        f"{QUERY}/lora_a": (LAYERS, D, RANK),
        f"{QUERY}/lora_b": (LAYERS, RANK, D),
        f"{QUERY}/dora_magnitude": (LAYERS, D),
    },
    "vera": {
        "vera/vera_a": (D, RANK),
        "vera/vera_b": (RANK, D),
        f"{QUERY}/lambda_d": (LAYERS, RANK),
        f"{QUERY}/lambda_b": (LAYERS, D),
    },
    "prompt": {"encoder/prompt/prompt/prompt": (3, D)},
    "ia3": {f"{QUERY}/ia3_out": (LAYERS, D), f"{WO}/ia3_in": (LAYERS, F)},
    "full": {
        f"{QUERY}/kernel": (LAYERS, D, D),
        f"{WO}/kernel": (LAYERS, F, D),
        NORM: (LAYERS, D),
        LAST: (D,),
        EMBEDDING: (7, D),
    },
}
KINDS = tuple(SHAPES)


def values(expert: Expert) -> dict[str, np.ndarray]:
    return paths.flatten(expert.params)


def merge(method, experts, *, weights=None, base=None, statistics=None, id=None, **options) -> Expert:
    """Plans a merge of experts and computes it."""
    pairs = [(expert.spec, compatibility.shapes_by_path(expert.params)) for expert in experts]
    plan = plan_merge(method, pairs, options, weights=weights, id=id)
    return merger.merge(plan, experts, base=base, statistics=statistics)


def change(expert: Expert, path: str) -> np.ndarray:
    """The ΔW of LoRA at a projection."""
    flat = values(expert)
    return flat[f"{path}/lora_a"] @ flat[f"{path}/lora_b"]


@pytest.fixture
def expert() -> Callable[..., Expert]:
    """Makes an expert of random parameters: the same name and kind give the same expert."""

    def make(kind: str, name: str = "a", dtype=np.float32) -> Expert:
        rng = np.random.default_rng(sum(map(ord, name)))
        shared = np.random.default_rng(5)  # VeRA's matrices are those of all experts
        draws = {path: shared if path.startswith("vera/") else rng for path in SHAPES[kind]}
        flat = {path: draws[path].normal(size=shape).astype(dtype) for path, shape in SHAPES[kind].items()}
        spec = ExpertSpec(f"{name}/p", kind, "base", tuple(flat), (name,), 10)
        return Expert(spec, paths.unflatten(flat))

    return make


@pytest.fixture(scope="session")
def toy_base() -> dict:
    rng = np.random.default_rng(99)
    flat = {path: rng.normal(size=shape).astype(np.float32) for path, shape in SHAPES["full"].items()}
    return paths.unflatten(flat)


@pytest.fixture
def statistics() -> Callable[..., list[dict] | None]:
    """Makes what a method reads for so many experts of a kind; None for a method that reads nothing."""

    def make(method: str, kind: str, number: int) -> list[dict] | None:
        if method not in ("regmean", "fisher"):
            return None
        rng = np.random.default_rng(7)
        wanted = {"lora": {f"{QUERY}/kernel": (D, D), f"{WO}/kernel": (F, D)}}.get(kind)
        if wanted is None:
            wanted = {path: shape[1:] if "layers" in path else shape for path, shape in SHAPES[kind].items()}

        def one(path: str, shape: tuple[int, ...]) -> np.ndarray:
            if method == "regmean" and path.endswith("/kernel"):
                rows = rng.normal(size=(LAYERS, 20, shape[0]))
                return (rows.transpose(0, 2, 1) @ rows).astype(np.float32)
            whole = (LAYERS, *shape) if "layers" in path else shape
            return np.square(rng.normal(size=whole)).astype(np.float32)

        return [{path: one(path, shape) for path, shape in wanted.items()} for _ in range(number)]

    return make
