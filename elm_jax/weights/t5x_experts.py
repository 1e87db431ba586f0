"""Experts that T5X trained, and whether an expert's tree fits a base.

T5X writes the whole model, so an expert trained there, by a network with this package's names for adapters,
LoRA or (IA)³, is a part of a checkpoint. The rest of it must be the base, to the bit: else another base was
trained on, or this one was not frozen.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from elm_jax import names, storage
from elm_jax.errors import UserError
from elm_jax.models import expert_kinds, paths
from elm_jax.models.sizes import T5Config
from elm_jax.records import Params
from elm_jax.weights import base_model, t5x
from elm_jax.weights.base_model import Base
from elm_jax.weights.tensors import Tensor

# What an expert of each kind owns, by the end of its path.
OWNED_PARAMS: Mapping[str, re.Pattern[str]] = {
    "bottleneck": re.compile(r".*(_adapter/(down|up)/(kernel|bias)|norm/scale)"),
    "lora": re.compile(r".*/lora_[ab]"),
    "dora": re.compile(r".*/(lora_[ab]|dora_magnitude)"),
    "vera": re.compile(r".*/lambda_[db]|vera/vera_[ab]"),
    "ia3": re.compile(r".*/ia3_(in|out)"),
    "prompt": re.compile(expert_kinds.PROMPT),
    "full": re.compile(r".*"),
}
EXPERT_ONLY = re.compile(
    r"(.*(_adapter/.*|/lora_[ab]|/dora_magnitude|/lambda_[db]|/ia3_(in|out)|/prompt/prompt)|vera/vera_[ab])"
)
"""Paths of parameters that experts have and no base has."""
_LAYER = re.compile(r"(encoder|decoder)/layers_(\d+)/(.+)")
_ADAPTERS = {
    f"{stack}/{paths.LAYER_STACK}/{block}_adapter/{half}"
    for stack, blocks in expert_kinds.ADAPTED_BLOCKS.items()
    for block in blocks
    for half in ("down", "up")
}


def infer_expert(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, dict[str, Any]]:
    """Returns the kind of the expert in a checkpoint, and the options that give an expert of its shapes.

    A checkpoint without an expert's parameters is of kind `full`, without options.

    Args:
        shapes: Path -> shape of all parameters, layers apart or together.

    Raises:
        UserError: If there are experts of two kinds.

    >>> infer_expert({"encoder/layers_0/attention/query/lora_a": (64, 4)})
    ('lora', {'rank': 4, 'projections': ('encoder/layers/attention/query',)})
    """
    added = {path: shape for path, shape in sorted(shapes.items()) if EXPERT_ONLY.fullmatch(path)}
    if not added:
        return "full", {}
    kinds = [
        kind for kind in OWNED_PARAMS if kind != "full" and all(map(OWNED_PARAMS[kind].fullmatch, added))
    ]
    if not kinds:
        raise UserError(
            f"Expected one expert beside a base, got parameters of several kinds, such as {min(added)!r} and "
            f"{max(added)!r}. Fix: name another checkpoint."
        )
    kind = kinds[0]  # of a LoRA's parameters a DoRA has all, and more
    if kind == "bottleneck":
        width = next(shape[-1] for path, shape in added.items() if path.endswith("/down/kernel"))
        return "bottleneck", {"width": width}
    if kind == "prompt":
        return kind, {"tokens": added[expert_kinds.PROMPT][0]}
    added = {path: shape for path, shape in added.items() if not path.startswith(f"{expert_kinds.VERA}/")}
    owners = (re.sub(r"/layers_\d+/", f"/{paths.LAYER_STACK}/", path).rpartition("/")[0] for path in added)
    options: dict[str, Any] = {"projections": tuple(dict.fromkeys(owners))}
    if kind in ("lora", "dora"):
        rank = next(shape[-1] for path, shape in added.items() if path.endswith("/lora_a"))
        options = {"rank": rank} | options
    if kind == "vera":
        rank = next(shape[-1] for path, shape in added.items() if path.endswith("/lambda_d"))
        options = {"rank": rank} | options
    return kind, options


def load_t5x_expert(
    where: storage.PathLike, base: Base, kind: str, owned: Sequence[str] | None = None
) -> dict[str, Any]:
    """Returns the expert in a checkpoint of T5X, float32, as a tree beside its base.

    Args:
        where: The checkpoint.
        base: The base that it was trained on.
        kind: The expert's kind.
        owned: The stacked paths of its parameters; default: what experts of the kind own.

    Raises:
        UserError: If a parameter is missing, misshapen or too many, or differs from the base's; it is named.
    """
    pattern = OWNED_PARAMS[
        names.resolve(kind, OWNED_PARAMS, kind="expert kind", where="elm_jax.weights.t5x_experts")
    ]
    text = repr(str(storage.path(where)))
    found = _stack_layers(t5x.list_parameters(where), text)
    of_base = paths.flatten(base.params)
    chosen = set(owned) if owned is not None else {path for path in found if pattern.fullmatch(path)}
    for path in sorted(chosen - set(found)) or ([] if chosen else ["an expert's parameters"]):
        raise UserError(
            f"Expected {path!r} of an expert of kind {kind!r} in {text}, got none. Fix: name its kind."
        )
    for path in sorted((set(found) ^ set(of_base)) - chosen):
        raise UserError(
            f"Expected the base and an expert of kind {kind!r} in {text}, got one "
            f"{'with' if path in found else 'without'} {path!r}. Fix: name the base that it was trained on, "
            "and the expert's kind."
        )
    flat = {}
    for path, layers in found.items():
        if path in chosen:
            flat[path] = _read(layers, np.dtype(np.float32))
        elif not _is_same(layers, np.asarray(of_base[path])):
            raise UserError(
                f"Expected {path!r} in {text} as in the base, got other values: it was trained on another "
                "base, or that parameter was not frozen. Fix: name its own base, or the kind that owns it."
            )
    tree = paths.unflatten(flat)
    require_matching_shapes(tree, base.config, what=text)
    return tree


def require_matching_shapes(tree: Params, config: T5Config, *, what: str, kind: str = "full") -> None:
    """Refuses a tree of one expert that does not fit a base's shape, or its kind; names the parameter."""
    sizes: dict[str, Any] = {
        "embed": config.emb_dim,
        "joined_kv": config.num_heads * config.head_dim,
        "mlp": config.mlp_dim,
        "vocab": config.vocab_size,
        "heads": config.num_heads,
        "relpos_buckets": config.relpos_buckets,
    }
    kernels = base_model.param_shapes(config)
    owners = {path.rpartition("/")[0] for path in kernels} | _ADAPTERS
    owners |= {expert_kinds.VERA, expert_kinds.PROMPT.rpartition("/")[0]}
    # VeRA's matrices are as large as the largest of the projections that share them.
    sharing = [path for path in paths.flatten(tree) if path.endswith("/lambda_d")]
    sharing = [kernels.get(f"{path.rpartition('/')[0]}/kernel", (0, 0, 0)) for path in sharing]
    largest = [max((kernel[axis] for kernel in sharing), default=0) for axis in (1, 2)]
    ranks: dict[str, int] = {}
    for path, value in paths.flatten(tree).items():
        owner, shape = path.rpartition("/")[0], tuple(np.shape(value))
        if owner not in owners:
            raise UserError(
                f"Expected parameters that act on the base, got {path!r} ({what}). Fix: name the base that "
                "it was trained on."
            )
        if not OWNED_PARAMS[kind].fullmatch(path):
            raise UserError(
                f"Expected parameters of kind {kind!r}, got {path!r} ({what}). Fix: name its kind."
            )
        axes = expert_kinds.logical_axes(path)
        layers = config.num_encoder_layers if path.startswith("encoder/") else config.num_decoder_layers
        pair = owner.rpartition("/")[0] if owner in _ADAPTERS else owner
        leaf = path.rpartition("/")[2]
        if leaf in ("vera_a", "vera_b", "lambda_d"):
            pair = expert_kinds.VERA  # of one rank, all of them
        if "rank" in axes and len(shape) == len(axes):
            ranks.setdefault(pair, shape[axes.index("rank")])
        known = {**sizes, "layers": layers, "rank": ranks.get(pair, "R")}
        known |= {"projection": largest[leaf == "vera_b"], "prompt": shape[0] if shape else "P"}
        wanted = tuple(known[axis] for axis in axes)
        if shape != wanted:
            axes_text = ", ".join(map(str, wanted)) + "," * (len(wanted) == 1)
            raise UserError(
                f"Expected {path!r} as ({axes_text}) for the base, got {shape} of {what}. Fix: name the base "
                "that it was trained on."
            )


def _stack_layers(found: Mapping[str, Tensor], where: str) -> dict[str, Tensor | list[Tensor]]:
    """Returns the tensors by stacked path, one or one a layer; a UserError if layers do not go together."""
    apart: dict[str, dict[int, Tensor]] = {}
    together: dict[str, Tensor | list[Tensor]] = {}
    for path, tensor in found.items():
        layer = _LAYER.fullmatch(path)
        if layer is None:
            together[path] = tensor
        else:
            stack, number, rest = layer.groups()
            apart.setdefault(f"{stack}/{paths.LAYER_STACK}/{rest}", {})[int(number)] = tensor
    for path, layers in apart.items():
        shapes = {number: tensor.network_shape for number, tensor in sorted(layers.items())}
        if set(shapes) != set(range(len(shapes))) or len(set(shapes.values())) > 1:
            raise UserError(
                f"Expected {path!r} of one shape for all layers in {where}, got layers "
                f"{', '.join(f'{number} {shape}' for number, shape in shapes.items())}. Fix: name another "
                "checkpoint."
            )
        together[path] = [layers[number] for number in range(len(layers))]
    return dict(sorted(together.items()))


def _read(layers: Tensor | list[Tensor], dtype: np.dtype) -> np.ndarray:
    if isinstance(layers, Tensor):
        whole = np.empty(layers.network_shape, dtype)
        layers.read_into(whole)
        return whole
    whole = np.empty((len(layers), *layers[0].network_shape), dtype)
    for layer, part in zip(layers, whole, strict=True):
        layer.read_into(part)
    return whole


def _is_same(layers: Tensor | list[Tensor], wanted: np.ndarray) -> bool:
    """Says whether a parameter is the base's, to the bit in the base's type."""
    found = _read(layers, wanted.dtype)
    return found.shape == wanted.shape and found.tobytes() == wanted.tobytes()
