"""The package's methods as functions of the arrays that the authors' own code was run on.

`FUNCTIONS` maps a file's name, without .npz, to a function from its inputs and options to its outputs. Each
only turns the arrays into the package's layout and back: PyTorch's weights are [out, in], kernels here are
[in, out], LoRA's A is [r, in] there and lora_a [in, r] here.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from elm_jax.merging.breadcrumbs import keep_middle
from elm_jax.merging.consensus import consensus_mask, tall_mask
from elm_jax.merging.dare import drop_values
from elm_jax.merging.della import keep_probability, prune
from elm_jax.merging.fisher import average_by_importance, measure_norms, raise_floor
from elm_jax.merging.iso_c import iso_c
from elm_jax.merging.iso_cts import iso_cts
from elm_jax.merging.knots import align_changes
from elm_jax.merging.lowrank import Factors
from elm_jax.merging.model_stock import interpolation_share
from elm_jax.merging.parameter_groups import weighted_sum
from elm_jax.merging.regmean import regmean
from elm_jax.merging.sce import sce
from elm_jax.merging.slerp import slerp
from elm_jax.merging.task_arithmetic import task_arithmetic
from elm_jax.merging.ties import elect_signs, trim_network, trim_tensor
from elm_jax.merging.tsvm import tsvm
from elm_jax.merging.wudi import wudi
from elm_jax.models import expert_layers as ex
from elm_jax.models.layers import FeedForward
from elm_jax.models.magnitudes import resolve_magnitudes
from elm_jax.models.sizes import find_config
from elm_jax.statistics.moments import add_gram
from elm_jax.training.loss import choice_losses, token_losses, unlikelihood_losses
from tests.golden_routing import ROUTING

Arrays = dict[str, Any]


def numbered(inputs: Arrays, stem: str) -> list[np.ndarray]:
    """Returns the arrays called `stem` with a number, in the order of their numbers."""
    count = sum(name.startswith(stem) and name.removeprefix(stem).isdigit() for name in inputs)
    return [inputs[f"{stem}{number}"] for number in range(count)]


def name_layers(name: str, layers: Sequence[Any]) -> Arrays:
    return {f"{name}_{number}": np.asarray(layer) for number, layer in enumerate(layers)}


def equal_weights(experts: Sequence[Any]) -> list[float]:
    return [1 / len(experts)] * len(experts)


def multiply(factors: Factors) -> np.ndarray:
    return factors.left @ factors.right


def merging_average(inputs: Arrays) -> Arrays:
    return {"merged": weighted_sum(inputs["params"], equal_weights(inputs["params"]))}


def merging_breadcrumbs(inputs: Arrays) -> Arrays:
    changes = numbered(inputs, "tv_")
    keep, remove = float(inputs["top_k_keep"]), float(inputs["top_k_remove"])
    kept = [np.stack([keep_middle(own, keep, remove) for own in layer]) for layer in changes]
    density, gamma = float(inputs["density"]), float(inputs["gamma"])
    whole = [
        np.stack([keep_middle(own.ravel(), density, gamma).reshape(own.shape) for own in layer])
        for layer in changes
    ]
    sums = [weighted_sum(layer, [1.0] * len(layer)) for layer in kept]
    return name_layers("kept", kept) | name_layers("sum", sums) | name_layers("mergekit", whole)


def merging_dare(inputs: Arrays) -> Arrays:
    density = 1 - float(inputs["drop_rate"])
    pairs = zip(inputs["deltas"], inputs["drop_mask"] == 0, strict=True)
    return {"deltas": np.stack([drop_values(delta, density, kept) for delta, kept in pairs])}


def merging_della(inputs: Arrays) -> Arrays:
    deltas, draws = inputs["deltas"], inputs["uniform"]
    chances = [
        keep_probability(delta, float(inputs["density"]), float(inputs["window_size"])) for delta in deltas
    ]
    cells = list(zip(deltas, chances, draws, strict=True))
    pruned = [prune(*cell) for cell in cells]
    change = np.float32(inputs["lambda"]) * elect_signs(pruned, equal_weights(deltas))
    return {
        "keep_probability": np.stack(chances),
        "pruned": np.stack(pruned),
        "merged": inputs["base"] + change,
        "pruned_mergekit_l1": np.stack([prune(*cell, "l1") for cell in cells]),
    }


def merging_fisher(inputs: Arrays) -> Arrays:
    params, fishers = ([list(own) for own in numbered(inputs, stem)] for stem in ("params_", "fisher_"))
    floor = float(inputs["fisher_floor"])
    norms, weights = measure_norms(fishers), inputs["coefficients"].tolist()

    def merge(weights: Sequence[float], floor_on: str) -> list[np.ndarray]:
        raised = [raise_floor(own, floor, floor_on) for own in fishers]
        return [average_by_importance(own, weights, f) for own, f in zip(params, raised, strict=True)]

    by_norm = [weight / norm for weight, norm in zip(weights, norms, strict=True)]
    return {
        **name_layers("plain", merge(weights, "target")),
        **name_layers("normalised", merge(by_norm, "target")),
        **name_layers("normalised_floor_all", merge(by_norm, "all")),
        "norms": np.array(norms),
    }


def merging_iso(inputs: Arrays) -> Arrays:
    kernels, ones = [matrix.T for matrix in inputs["matrices"]], [1.0] * len(inputs["matrices"])
    return {
        "iso_c": multiply(iso_c(kernels, ones)).T,
        "iso_cts": multiply(iso_cts(kernels, ones, float(inputs["common_space_fraction"]))).T,
        "vector": weighted_sum(inputs["vectors"], equal_weights(inputs["vectors"])),
    }


def merging_knots_ties(inputs: Arrays) -> Arrays:
    pairs = zip(numbered(inputs, "lora_a_"), numbered(inputs, "lora_b_"), strict=True)
    layers = [align_changes([Factors(a.T, b.T) for a, b in zip(*pair, strict=True)]) for pair in pairs]
    every = [layer.parts for layer in layers]
    merge = trim_network(lambda: every, equal_weights(every[0]), float(inputs["keep_percent"]) / 100)
    scale = float(inputs["scaling"])
    return name_layers("merged", [(scale * merge(parts) @ shared).T for parts, shared in layers])


def merging_model_stock(inputs: Arrays) -> Arrays:
    base = inputs["base"]
    merged = {}
    for name, experts in (("two", inputs["experts"][:2]), ("all", inputs["experts"])):
        changes = list(experts - base)
        mean = weighted_sum(changes, equal_weights(changes))
        whole = interpolation_share([change.reshape(1, -1) for change in changes])
        merged |= {f"layer_{name}": base + whole * mean}
        merged |= {f"filter_{name}": base + interpolation_share(changes) * mean}
    return merged


def merging_regmean(inputs: Arrays) -> Arrays:
    grams = [np.asarray(add_gram(x)) / (x.shape[0] * x.shape[1]) for x in numbered(inputs, "x_")]
    kernels = [weight.T for weight in inputs["weights"]]
    merged = {
        f"merged_{alpha}": regmean(kernels, equal_weights(kernels), grams, alpha).T
        for alpha in (0.1, 0.9, 1.0)
    }
    return {"gram": np.stack(grams), **merged}


def merging_sce(inputs: Arrays) -> Arrays:
    base, changes = inputs["base"], list(inputs["experts"] - inputs["base"])
    merged = {}
    for name, share in (("select", float(inputs["select_topk"])), ("all", 1.0)):
        merged[f"fusechat_{name}"] = base + sce(changes, equal_weights(changes), share, "all")
        merged[f"mergekit_{name}"] = base + sce(changes, equal_weights(changes), share, "selected")
    return merged


def merging_slerp(inputs: Arrays) -> Arrays:
    return {
        "slerp": np.stack([slerp(inputs["v0"], inputs["v1"], float(t)) for t in inputs["t"]]),
        "near": np.stack([slerp(inputs["v0"], inputs["v1_near"], float(t)) for t in inputs["t"]]),
    }


def merging_tall_consensus(inputs: Arrays) -> Arrays:
    changes, scale = list(inputs["experts"] - inputs["base"]), float(inputs["lambda"])
    total = weighted_sum(changes, [1.0] * len(changes))
    consensus = consensus_mask(changes, total, scale, int(inputs["threshold"]))
    return {
        "masks": np.stack([tall_mask(change, total, scale) for change in changes]),
        "consensus": consensus,
        "merged": np.where(consensus, total, 0),
    }


def merging_task_arithmetic(inputs: Arrays) -> Arrays:
    base, changes = inputs["base"], list(inputs["experts"] - inputs["base"])
    return {"merged": base + task_arithmetic(changes, [1.0] * len(changes), float(inputs["scaling"]))}


def merging_ties(inputs: Arrays) -> Arrays:
    layers, density = [list(layer) for layer in numbered(inputs, "tv_")], float(inputs["keep_percent"]) / 100
    weights = equal_weights(layers[0])
    whole = trim_network(lambda: layers, weights, density)
    alone = [trim_network(lambda layer=layer: [layer], weights, density)(layer) for layer in layers]
    peft = [elect_signs([trim_tensor(own, density) for own in layer], weights) for layer in layers]
    return {
        **name_layers("whole", [whole(layer) for layer in layers]),
        **name_layers("tensor", alone),
        **name_layers("peft", peft),
    }


def merging_tsvm(inputs: Arrays) -> Arrays:
    kernels = [matrix.T for matrix in inputs["matrices"]]
    return {
        "matrix": multiply(tsvm(kernels, [1.0] * len(kernels))).T,
        "vector": weighted_sum(inputs["vectors"], equal_weights(inputs["vectors"])),
    }


def merging_wudi(inputs: Arrays) -> Arrays:
    kernels, ones = [task.T for task in inputs["task_vectors"]], [1.0] * len(inputs["task_vectors"])
    return {"merged": wudi(kernels, kernels, ones, int(inputs["iterations"]), float(inputs["lr"])).T}


def experts_dora(inputs: Arrays) -> Arrays:
    kernel, scaling = inputs["weight"].T, np.float32(inputs["scaling"])
    params = {
        "lora_a": inputs["lora_a"].T[None],
        "lora_b": inputs["lora_b"].T[None],
        "dora_magnitude": inputs["magnitude"][None],
    }

    def project(own: Arrays) -> Any:
        scaled = {**own, "lora_b": own["lora_b"] * scaling}
        layers = resolve_magnitudes({"p": scaled}, {"p": {"kernel": kernel[None]}})["p"]
        expert = jax.tree.map(lambda leaf: leaf[0], layers)
        x = inputs["x"][None]
        return ex.apply_delta(x, x @ kernel, expert)[0] + inputs["bias"][None]

    y, backward = jax.vjp(project, params)
    (gradient,) = backward(jax.numpy.asarray(inputs["cotangent"]))
    return {
        "y": y,
        "grad_lora_a_detached": gradient["lora_a"][0].T,
        "grad_lora_b_detached": gradient["lora_b"][0].T,
        "grad_magnitude_detached": gradient["dora_magnitude"][0],
    }


def experts_ia3(inputs: Arrays) -> Arrays:
    x = jax.numpy.asarray(inputs["x"])[None]
    linear = ex.apply_delta(x, x @ inputs["weight"].T, {"ia3_out": inputs["scale"]})
    inner, width = inputs["wi_0"].shape
    block = FeedForward(find_config("tiny", emb_dim=width, mlp_dim=inner))
    kernels = {name: {"kernel": inputs[name].T} for name in ("wi_0", "wi_1", "wo")}
    changed = block.apply({"params": kernels}, x, {"wo": {"ia3_in": inputs["scale_ff"]}})
    return {"linear": linear[0], "feed_forward": changed[0]}


def loss_tfew(inputs: Arrays) -> Arrays:
    choices, labels = inputs["choices"], inputs["labels"].reshape(-1, 1)
    number = np.arange(choices.shape[1])[None]
    real, is_right = choices != 0, number == labels
    wrong = real & ~is_right[..., None]
    order = np.argsort(np.where(is_right, -1, number), axis=1)  # the right one first

    def terms(logits: Any) -> Any:
        flat = logits.reshape(-1, *logits.shape[2:])
        logp = -token_losses(flat, choices.reshape(-1, choices.shape[2])).reshape(choices.shape)
        lengths, sums = real.sum(axis=2), logp.sum(axis=2)
        ordered = [np.take_along_axis(lengths, order, 1), jax.numpy.take_along_axis(sums, order, 1)]
        right = real & is_right[..., None]
        return {
            "lm": -jax.numpy.where(right, logp, 0).sum() / right.sum(),
            "unlikelihood": unlikelihood_losses(logp, wrong).sum() / wrong.sum(),
            "multiple_choice": choice_losses(ordered[1], ordered[0], float(inputs["length_norm"])).mean(),
        }

    def total(logits: Any) -> Any:
        found = terms(logits)
        unlikely, chosen = float(inputs["unlikely_loss"]), float(inputs["mc_loss"])
        whole = found["lm"] + unlikely * found["unlikelihood"] + chosen * found["multiple_choice"]
        return whole, {**found, "total": whole}

    gradient, found = jax.grad(total, has_aux=True)(jax.numpy.asarray(inputs["logits"]))
    return {**found, "grad_logits": gradient}


EXPERTS: dict[str, Callable[[Arrays], Arrays]] = {
    function.__name__: function for function in (experts_dora, experts_ia3, loss_tfew)
}
MERGING: dict[str, Callable[[Arrays], Arrays]] = {
    function.__name__: function
    for function in (
        merging_average,
        merging_breadcrumbs,
        merging_dare,
        merging_della,
        merging_fisher,
        merging_iso,
        merging_knots_ties,
        merging_model_stock,
        merging_regmean,
        merging_sce,
        merging_slerp,
        merging_tall_consensus,
        merging_task_arithmetic,
        merging_ties,
        merging_tsvm,
        merging_wudi,
    )
}
FUNCTIONS: dict[str, Callable[[Arrays], Arrays]] = dict(sorted({**MERGING, **EXPERTS, **ROUTING}.items()))
