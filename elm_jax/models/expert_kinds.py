"""Expert kinds: the initial parameters of every kind of expert, and the logical axes of parameters.

`expert_layers` describes the layout of the trees. A kind is a function `(key, base, **options)` that uses the
base's shapes and, for norm scales, its values. Options are plain values that a recipe can set.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from elm_jax.errors import UserError
from elm_jax.models import magnitudes, paths
from elm_jax.records import Params

REDUCTION = 32
INITIAL_STD = 0.01
RSLORA_ALPHA = 8.0  # PEFT's default
# The blocks that an adapter follows, by stack; cross-attention has none.
ADAPTED_BLOCKS = {"encoder": ("attention", "mlp"), "decoder": ("self_attention", "mlp")}
_KERNELS = ("kernel", "lora_a", "lora_b", "vera_a", "vera_b")
COMMON_TOKENS = range(3, 5000)  # of a T5's vocabulary, behind padding and its like
# The logical axes of a kernel, by the name of its module: T5X's names, and "rank" of experts.
KERNEL_AXES = {
    "query": ("embed", "joined_kv"),
    "key": ("embed", "joined_kv"),
    "value": ("embed", "joined_kv"),
    "out": ("joined_kv", "embed"),
    "wi": ("embed", "mlp"),
    "wi_0": ("embed", "mlp"),
    "wi_1": ("embed", "mlp"),
    "wo": ("mlp", "embed"),
    "logits_dense": ("embed", "vocab"),
    "down": ("embed", "rank"),
    "up": ("rank", "embed"),
}
_OTHER_AXES = {
    "embedding": ("vocab", "embed"),
    "rel_embedding": ("heads", "relpos_buckets"),
    "scale": ("embed",),
    "prompt": ("prompt", "embed"),
    "vera_a": ("projection", "rank"),
    "vera_b": ("rank", "projection"),
}
VERA, PROMPT = "vera", "encoder/prompt/prompt/prompt"
"""Where an expert has VeRA's matrices, and a soft prompt as google-research/prompt-tuning has it in T5X."""


def init_bottleneck(key: jax.Array, base: Params, width: int | None = None) -> dict[str, Any]:
    """Returns a new bottleneck expert: adapters near zero, and the base's norm scales.

    Kernels are drawn from N(0, 0.01²), biases are zero (released code of arXiv 2302.03202).

    Args:
        key: Draws initial values.
        base: The base's parameters.
        width: The width R of the bottleneck; default: that of the paper, `emb_dim // 32`, at least 1.
    """
    emb_dim = base["token_embedder"]["embedding"].shape[1]
    width = max(1, emb_dim // REDUCTION) if width is None else _require_positive("bottleneck's width", width)
    flat: dict[str, Any] = {}
    for stack, blocks in ADAPTED_BLOCKS.items():
        layers = base[stack]["layers"]["mlp"]["wo"]["kernel"].shape[0]
        for block in blocks:
            key, down, up = jax.random.split(key, 3)
            at = f"{stack}/layers/{block}_adapter"
            flat[f"{at}/down/kernel"] = INITIAL_STD * jax.random.normal(down, (layers, emb_dim, width))
            flat[f"{at}/down/bias"] = jnp.zeros((layers, width))
            flat[f"{at}/up/kernel"] = INITIAL_STD * jax.random.normal(up, (layers, width, emb_dim))
            flat[f"{at}/up/bias"] = jnp.zeros((layers, emb_dim))
    scales = {path: value for path, value in paths.flatten(base).items() if path.endswith("norm/scale")}
    flat |= {path: jnp.asarray(value, jnp.float32) for path, value in scales.items()}
    return paths.unflatten(flat)


def init_lora(
    key: jax.Array,
    base: Params,
    rank: int = 8,
    projections: Sequence[str] = ("query", "value"),
    alpha: int | float | None = None,
    rslora: bool = False,
) -> dict[str, Any]:
    """Returns a new LoRA expert, which changes nothing yet: `lora_a` is drawn, `lora_b` is zero.

    `lora_a` is Kaiming-uniform with a = √5, as in the authors' release and in `peft`: uniform within 1 / √I
    for I inputs (Hu et al. 2021, section 4). The factor that alpha makes is part of `lora_b`, see
    `param_factors`.

    Args:
        key: Draws initial values.
        base: The base's parameters.
        rank: The rank R.
        projections: Names such as `query` or `wo`, in both stacks and all attentions, or ends of paths such
            as `encoder_decoder_attention/value`.
        alpha: The paper's alpha; default: R, or 8 with `rslora`.
        rslora: Whether the factor is alpha / √R instead of alpha / R (Kalajdzievski 2023, arXiv 2312.03732).
    """
    rank = _require_positive("rank", rank)
    _lora_factor(rank, alpha, rslora)
    flat: dict[str, Any] = {}
    for path, (layers, inputs, outputs) in _select_projections(base, projections).items():
        key, own = jax.random.split(key)
        bound = 1 / math.sqrt(inputs)
        flat[f"{path}/lora_a"] = jax.random.uniform(own, (layers, inputs, rank), minval=-bound, maxval=bound)
        flat[f"{path}/lora_b"] = jnp.zeros((layers, rank, outputs))
    return paths.unflatten(flat)


def init_dora(
    key: jax.Array,
    base: Params,
    rank: int = 8,
    projections: Sequence[str] = ("query", "value"),
    alpha: int | float | None = None,
    rslora: bool = False,
) -> dict[str, Any]:
    """Returns a new DoRA expert, which changes nothing yet (Liu et al. 2024, arXiv 2402.09353).

    It is a LoRA with a magnitude for every output, which begins as the norm of the base's weights there.

    Args:
        key: Draws initial values.
        base: The base's parameters.
        rank: As of a LoRA.
        projections: As of a LoRA.
        alpha: As of a LoRA.
        rslora: As of a LoRA.
    """
    flat = paths.flatten(init_lora(key, base, rank, projections, alpha, rslora))
    kernels = paths.flatten(base)
    for path in [path.rpartition("/")[0] for path in flat if path.endswith("/lora_a")]:
        flat[f"{path}/{magnitudes.MAGNITUDE_LEAF}"] = magnitudes.column_norms(kernels[f"{path}/kernel"])
    return paths.unflatten(flat)


def init_ia3(
    key: jax.Array, base: Params, projections: Sequence[str] = ("key", "value", "wo")
) -> dict[str, Any]:
    """Returns a new (IA)³ expert, which changes nothing yet: vectors of ones. `key` is not used.

    They scale keys, values and the inner activation of the feed-forward, which is the input of `wo`, in every
    attention of both stacks (Liu et al. 2022, section 3.3). `projections` are named as for LoRA; the outputs
    of all but `wo` are scaled.
    """
    del key
    flat: dict[str, Any] = {}
    for path, (layers, inputs, outputs) in _select_projections(base, projections).items():
        inner = path.endswith("/wo")
        flat[f"{path}/{'ia3_in' if inner else 'ia3_out'}"] = jnp.ones((layers, inputs if inner else outputs))
    return paths.unflatten(flat)


def init_vera(
    key: jax.Array,
    base: Params,
    rank: int = 256,
    projections: Sequence[str] = ("query", "value"),
    d_initial: float = 0.1,
    seed: int = 0,
) -> dict[str, Any]:
    """Returns a new VeRA expert, which changes nothing yet (Kopiczko et al. 2024, arXiv 2310.11454).

    Two random matrices, which are never trained, serve all projections: each uses as many of their inputs and
    outputs as it has. Two vectors of its own scale what is between them and what comes out. All is drawn as
    in `peft`: matrices Kaiming-uniform, `lambda_d` all `d_initial`, `lambda_b` zero. `key` is not used.

    Args:
        key: Not used: experts share the matrices, so that they can be merged.
        base: The base's parameters.
        rank: The rank R.
        projections: As of a LoRA.
        d_initial: The vectors between the matrices.
        seed: Of the matrices.
    """
    del key
    rank = _require_positive("rank", rank)
    chosen = _select_projections(base, projections)
    inputs, outputs = (max(shape[axis] for shape in chosen.values()) for axis in (1, 2))
    flat: dict[str, Any] = {}
    keys = jax.random.split(jax.random.key(seed))
    for own, leaf, shape in zip(keys, ("vera_a", "vera_b"), ((inputs, rank), (rank, outputs)), strict=True):
        bound = math.sqrt(6 / shape[0])
        flat[f"{VERA}/{leaf}"] = jax.random.uniform(own, shape, minval=-bound, maxval=bound)
    for path, (layers, _, width) in chosen.items():
        flat[f"{path}/lambda_d"] = jnp.full((layers, rank), d_initial)
        flat[f"{path}/lambda_b"] = jnp.zeros((layers, width))
    return paths.unflatten(flat)


def init_prompt(key: jax.Array, base: Params, tokens: int = 100, start: str = "vocabulary") -> dict[str, Any]:
    """Returns a new soft prompt, vectors before those of a prompt's tokens (Lester et al., arXiv 2104.08691).

    As released they begin as embeddings of common tokens, or uniform within 0.5. A vector of zeros stands for
    none: it is not attended to. So a prompt of zeros changes nothing, and one of fewer tokens can be filled.

    Args:
        key: Draws initial values.
        base: The base's parameters.
        tokens: How many vectors.
        start: "vocabulary" or "uniform".
    """
    tokens = _require_positive("number of tokens", tokens)
    table = jnp.asarray(base["token_embedder"]["embedding"], jnp.float32)
    if start == "uniform":
        drawn = jax.random.uniform(key, (tokens, table.shape[1]), minval=-0.5, maxval=0.5)
    elif start == "vocabulary":
        common = jnp.arange(COMMON_TOKENS.start, min(COMMON_TOKENS.stop, table.shape[0]), dtype=jnp.int32)
        drawn = table[jax.random.choice(key, common, (tokens,), replace=tokens > len(common))]
    else:
        raise UserError(f"Expected 'vocabulary' or 'uniform' as start, got {start!r}. Fix: name one.")
    return paths.unflatten({PROMPT: drawn})


def init_full(key: jax.Array, base: Params) -> dict[str, Any]:
    """Returns a full expert: a float32 copy of every parameter of the base. `key` is not used."""
    del key
    return jax.tree.map(lambda value: jnp.array(value, jnp.float32), dict(base))


def init_gates(
    key: jax.Array, base: Params, rank: int, projections: Sequence[str] = ("query", "value")
) -> dict[str, Any]:
    """Returns the gates of a LoRA expert before they are trained, which is done beside it: zeros.

    A gate is a vector of every projection that the expert changes (Muqeeth et al. 2024, arXiv 2402.05859).
    The options are those of the expert; neither `key` nor `rank` is used.
    """
    del key, rank
    return paths.unflatten(
        {
            f"{path}/input_gate": jnp.zeros((layers, inputs))
            for path, (layers, inputs, _) in _select_projections(base, projections).items()
        }
    )


KINDS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "bottleneck": init_bottleneck,
    "lora": init_lora,
    "dora": init_dora,
    "vera": init_vera,
    "ia3": init_ia3,
    "prompt": init_prompt,
    "full": init_full,
}
GATES = "gates"
"""The kind of what is trained beside a LoRA expert, and is no expert of its own."""


def param_factors(kind: str, options: Mapping[str, Any]) -> dict[str, float]:
    """Returns the factors of a kind that are part of its parameters: end of a path -> factor.

    LoRA's `x lora_a lora_b` is multiplied by a factor that alpha makes. Here it is part of `lora_b`, and so
    nothing that is read, merged or exported knows of it. Only an optimiser has to, which moves `lora_b`
    divided by it: `training.optimizers.optimize_scaled_params`.

    >>> param_factors("lora", {"rank": 16, "alpha": 8, "rslora": True}), param_factors("lora", {"rank": 16})
    ({'lora_b': 2.0}, {})
    """
    if kind not in ("lora", "dora"):
        return {}
    given = {name: value for name, value in options.items() if value is not None}
    factor = _lora_factor(given.get("rank", 8), given.get("alpha"), given.get("rslora", False))
    return {} if factor == 1 else {"lora_b": factor}


def _lora_factor(rank: int, alpha: int | float | None, rslora: bool) -> float:
    if alpha is None:
        alpha = RSLORA_ALPHA if rslora else rank
    if not (alpha > 0 and math.isfinite(alpha)):
        raise UserError(f"Expected an alpha above 0, got {alpha}. Fix: raise it.")
    return alpha / (math.sqrt(rank) if rslora else rank)


def is_kernel(path: str) -> bool:
    """Returns whether a parameter is a kernel, which enters nothing but products, in the network's type."""
    return path.rpartition("/")[2] in _KERNELS


def logical_axes(path: str) -> tuple[str, ...]:
    """Returns the logical axes of a parameter of an expert or of the base, without an axis of experts.

    >>> logical_axes("decoder/layers/self_attention/query/lora_a")
    ('layers', 'embed', 'rank')
    >>> logical_axes("decoder/decoder_norm/scale")
    ('embed',)
    """
    *parents, owner, leaf = ["", *path.split("/")]
    known = {**_OTHER_AXES}
    if owner in KERNEL_AXES:
        into, out = KERNEL_AXES[owner]
        known |= {"kernel": (into, out), "lora_a": (into, "rank"), "lora_b": ("rank", out)}
        known |= {"bias": (out,), "ia3_in": (into,), "ia3_out": (out,), "input_gate": (into,)}
        known |= {"lambda_d": ("rank",), "lambda_b": (out,), magnitudes.MAGNITUDE_LEAF: (out,)}
    if leaf not in known:
        raise UserError(f"Expected a parameter of a T5 or of an expert, got {path!r}. Fix: correct its path.")
    return (("layers",) if paths.LAYER_STACK in parents else ()) + known[leaf]


def _select_projections(base: Params, projections: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """Returns path -> (layers, inputs, outputs) of the named projections."""
    known = {
        path.removesuffix("/kernel"): value.shape
        for path, value in paths.flatten(base).items()
        if f"/{paths.LAYER_STACK}/" in path and path.endswith("/kernel")
    }
    chosen = set()
    for name in [projections] if isinstance(projections, str) else projections:
        named = {path for path in known if f"/{path}".endswith(f"/{name}")}
        if not named:
            names = sorted({path.rpartition("/")[2] for path in known})
            raise UserError(
                f"Expected the name of a projection, got {name!r}. Fix: name one of {', '.join(names)}."
            )
        chosen |= named
    if not chosen:
        raise UserError("Expected at least one projection, got none. Fix: name one, such as query.")
    return {path: known[path] for path in sorted(chosen)}


def _require_positive(what: str, value: Any) -> int:
    if not isinstance(value, int) or value < 1:
        raise UserError(f"Expected a {what} of at least 1, got {value!r}. Fix: give a whole number.")
    return value
