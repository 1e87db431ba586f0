"""Routing, scoring and losses as functions of the arrays that the authors' own code was run on.

`ROUTING` maps a file's name, without .npz, to a function from its inputs and options to its outputs. Each
only turns the arrays into the package's layout and back, as `tests.golden_methods` does.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elm_jax.axes import PAD
from elm_jax.evaluation.few_shot import sum_weighted_experts
from elm_jax.models import expert_layers as ex
from elm_jax.models import gating
from elm_jax.routing.arrow import arrow
from elm_jax.routing.average_activation import average_activation
from elm_jax.routing.inputs import KeyIndex, Queries
from elm_jax.routing.lorahub import penalize_weights
from elm_jax.routing.mbc import cluster_experts, embed_experts
from elm_jax.routing.phatgoose import phatgoose
from elm_jax.routing.roe import roe
from elm_jax.routing.spectr import spectr
from elm_jax.routing.token_gate import TokenGate
from elm_jax.scoring import rank
from elm_jax.statistics.moments import sum_row_means
from elm_jax.training.config import LossConfig
from elm_jax.training.loss import token_losses

Arrays = dict[str, Any]
PATH = "mlp/wo"
QUERIES = Queries("task/1", ())


def make_index(experts: int, owners: Any = None, vectors: Any = None) -> KeyIndex:
    ids = tuple(f"{expert}/1" for expert in range(experts))
    owners = np.arange(experts) if owners is None else owners
    vectors = np.eye(len(owners), dtype=np.float32) if vectors is None else vectors
    datasets = tuple((str(expert),) for expert in range(experts))
    return KeyIndex(ids, datasets, owners, vectors, ("",) * len(owners), "toy", "instance")


def stack_loras(inputs: Arrays) -> Arrays:
    """Returns the experts' one projection of one layer in the package's layout."""
    factors = {name: np.swapaxes(inputs[name], 1, 2)[:, None] for name in ("lora_a", "lora_b")}
    return {"mlp": {"wo": factors}}


def take_layer(gate: TokenGate, stack: Arrays) -> Arrays:
    """Returns what the network has at the projection: the factors, and the gate beside them."""
    return jax.tree.map(lambda leaf: leaf[0], gate.make_tree(stack)["mlp"]["wo"])


def routing_arrow(inputs: Arrays) -> Arrays:
    stack, x = stack_loras(inputs), inputs["x"]
    options = {"params": stack, "k": int(inputs["top_k"]), "temperature": float(inputs["temperature"])}
    index = make_index(len(inputs["lora_a"]))
    layers = {
        mixing: take_layer(arrow(QUERIES, index, mixing=mixing, **options), stack)
        for mixing in ("outputs", "factors")
    }
    gate = layers["outputs"]["gate"]
    return {
        "scores": gating.score_experts(x, gate) * options["temperature"],
        "weights": gating.gate_weights(x, gate),
        **{f"delta_{mixing}": gating.gated_delta(jnp.asarray(x), own) for mixing, own in layers.items()},
    }


def routing_average_activation(inputs: Arrays) -> Arrays:
    means = [
        sum_row_means(hidden, mask) / len(hidden)
        for hidden, mask in zip(inputs["hidden"], inputs["mask"], strict=True)
    ]
    prototypes = np.stack(means)

    def route(k: int) -> TokenGate:
        activations = {PATH: prototypes[:, None]}
        return average_activation(QUERIES, make_index(len(prototypes)), activations=activations, k=k)

    return {"prototypes": prototypes, **route_by_gates(inputs, route)}


def routing_phatgoose(inputs: Arrays) -> Arrays:
    def route(k: int) -> TokenGate:
        gates = {PATH: inputs["gates"][:, None]}
        return phatgoose(QUERIES, make_index(len(inputs["gates"])), gates=gates, k=k)

    return route_by_gates(inputs, route)


def route_by_gates(inputs: Arrays, route: Callable[[int], TokenGate]) -> Arrays:
    stack, x = stack_loras(inputs), jnp.asarray(inputs["x"])

    def layer(k: int) -> Arrays:
        return take_layer(route(k), stack)

    own = layer(int(inputs["top_k"]))
    return {
        "probabilities": gating.gate_weights(x, layer(len(inputs["lora_a"]))["gate"]),
        "weights": gating.gate_weights(x, own["gate"]),
        "delta": gating.gated_delta(x, own) / inputs["lora_a"].shape[1],
    }


def experts_phatgoose_gate(inputs: Arrays) -> Arrays:
    x, rank = inputs["x"], inputs["lora_a"].shape[0]
    factors = {name: inputs[name].T for name in ("lora_a", "lora_b")}

    def gated(gate: Any) -> Any:
        nothing = jnp.zeros_like(inputs["cotangent"])
        return ex.apply_delta(x, nothing, {**factors, "input_gate": gate}) / rank

    y, pull = jax.vjp(gated, jnp.asarray(inputs["gate"]))
    return {"y": y, "grad_gate": pull(jnp.asarray(inputs["cotangent"]))[0]}


def routing_lorahub(inputs: Arrays) -> Arrays:
    shots = int(inputs["n_examples"])
    parts = list(zip(inputs["batch_losses"].sum(axis=1).tolist(), inputs["weights"], strict=True))
    stack = stack_loras(inputs)
    composed = [sum_weighted_experts(stack, {}, weights)["mlp"]["wo"] for weights in inputs["weights"]]
    return {
        "loss": [penalize_weights(loss, 0 * weights, shots=shots) for loss, weights in parts],
        "penalty": [penalize_weights(0.0, weights, shots=shots) for _, weights in parts],
        "objective": [penalize_weights(loss, weights, shots=shots) for loss, weights in parts],
        "composed_a": np.stack([np.asarray(own["lora_a"])[0].T for own in composed]),
        "composed_b": np.stack([np.asarray(own["lora_b"])[0].T for own in composed]),
    }


def routing_mbc(inputs: Arrays) -> Arrays:
    vectors = inputs["vectors"]
    half = vectors.shape[1] // 2
    halves = {"lora_a": vectors[:, None, :half, None], "lora_b": vectors[:, None, None, half:]}
    ids = [str(expert) for expert in range(len(vectors))]
    found = {}
    for suffix, dimensions in (("", "n_components"), ("_small", "n_components_small")):
        points = embed_experts(
            {"wo": halves}, dimensions=int(inputs[dimensions]), sparsity=float(inputs["sparsity_threshold"])
        )
        groups = cluster_experts(points, ids, int(inputs["k"]))
        lowest = {expert: min(map(int, group)) for group in groups for expert in group}
        found["similarity" + suffix] = points @ points.T
        found["group" + suffix] = [lowest[expert] for expert in ids]
    return found


def routing_roe_vote(inputs: Arrays) -> Arrays:
    similarity, owners = inputs["similarity"][:, :32], inputs["expert_of_key"]
    experts = int(owners.max()) + 1
    index = make_index(experts, owners)
    asked = Queries("task/1", tuple(map(str, range(32))), embedder="toy", text_format="instance")
    found = [roe(replace(asked, vectors=own), index, faithful=True) for own in similarity]
    place = {expert: number for number, expert in enumerate(index.experts)}
    return {
        "pick": [[place[expert] for expert, _ in each.nearest] for each in found],
        "votes": [[each.votes.get(expert, 0) for expert in index.experts] for each in found],
        "elected": [place[next(iter(each.weights))] for each in found],
    }


def routing_spectr(inputs: Arrays) -> Arrays:
    stack, x = stack_loras(inputs), jnp.asarray(inputs["x"]) * inputs["scaling"]
    gate = spectr(QUERIES, make_index(len(inputs["lora_a"])), params=stack, k=int(inputs["top_k"]))
    own = take_layer(gate, stack)
    # The authors' signs of singular vectors, which their sum depends on.
    reader, writer = np.swapaxes(inputs["v"], 1, 2), np.swapaxes(inputs["b_star"], 1, 2)
    turned = {**own, "lora_a": jnp.asarray(reader), "lora_b": jnp.asarray(writer)}
    return {
        "scores": gating.score_experts(x, own["gate"]),
        "chosen": np.asarray(gating.gate_weights(x, own["gate"]) > 0, np.int8),
        "delta": gating.gated_delta(x, turned),
    }


def scoring_lm_eval(inputs: Arrays) -> Arrays:
    ways = {
        "acc": ("sum", None),
        "acc_norm": ("characters", None),
        "acc_bytes": ("bytes", None),
        "acc_mutual_info": ("calibrated", "unconditional"),
    }
    found = {}
    for way, (score, bare) in ways.items():
        picks = [
            rank.predict(
                rank.normalize_scores(
                    rank.parse_normalization(score),
                    inputs["loglikelihoods"][row].astype(np.float64),
                    [1] * len(choices),  # tokens, which none of these ways reads
                    choices,
                    inputs[bare][row][None].astype(np.float64) if bare else None,
                )
            )
            for row, choices in enumerate(inputs["choices"].tolist())
        ]
        found[f"pick_{way}"] = np.array(picks)
        found[way] = np.array(picks) == inputs["gold"]
    return found


def sum_choices(inputs: Arrays) -> np.ndarray:
    """Returns the summed log-probabilities of choices from their logits, [B, C]."""
    logits, choices = inputs["logits"], inputs["choices"]
    length = choices.shape[-1]
    losses = token_losses(logits.reshape(-1, *logits.shape[2:]), choices.reshape(-1, length), LossConfig())
    edges = np.where(choices == PAD, length, np.arange(length)).reshape(-1, 1, length)
    return rank.answer_scores(-np.asarray(losses), edges).reshape(choices.shape[:2])


def scoring_t0(inputs: Arrays) -> Arrays:
    scores = sum_choices(inputs)
    return {"scores": scores, "prediction": [rank.predict(row) for row in scores]}


def scoring_tfew(inputs: Arrays) -> Arrays:
    lengths = (inputs["choices"] != PAD).sum(axis=-1)
    way = rank.parse_normalization(f"length:{float(inputs['length_norm'])}")
    scores = np.stack(
        [
            rank.normalize_scores(way, row, own, [""] * len(row))
            for row, own in zip(sum_choices(inputs), lengths.tolist(), strict=True)
        ]
    )
    return {"scores": -scores, "prediction": [rank.predict(row) for row in scores]}


def loss_t5x(inputs: Arrays) -> Arrays:
    targets = np.where(inputs["weights"] > 0, inputs["targets"], PAD)
    smoothing, z_loss = float(inputs["label_smoothing"]), float(inputs["z_loss"])
    configs = {
        "plain": LossConfig(),
        "smoothed": LossConfig(label_smoothing=smoothing),
        "z": LossConfig(z_loss=z_loss),
        "both": LossConfig(z_loss=z_loss, label_smoothing=smoothing),
    }

    def total(logits: Any, config: LossConfig) -> Any:
        return token_losses(logits, targets, config).sum()

    logits, found = jnp.asarray(inputs["logits"]), {}
    for name, config in configs.items():
        found[f"loss_{name}"], found[f"grad_{name}"] = jax.value_and_grad(total)(logits, config)
        # At weight 1, where it is not small beside the rest of the loss.
        squares = total(logits, replace(config, z_loss=1.0)) - total(logits, replace(config, z_loss=0.0))
        found[f"zterm_{name}"] = config.z_loss * squares
    return {**found, "weight_sum": (targets != PAD).sum().astype(np.float32)}


ROUTING: dict[str, Callable[[Arrays], Arrays]] = {
    "experts_phatgoose_gate": experts_phatgoose_gate,
    "loss_t5x": loss_t5x,
    "routing_arrow": routing_arrow,
    "routing_average_activation": routing_average_activation,
    "routing_lorahub": routing_lorahub,
    "routing_mbc": routing_mbc,
    "routing_phatgoose": routing_phatgoose,
    "routing_roe_vote": routing_roe_vote,
    "routing_spectr": routing_spectr,
    "scoring_lm_eval": scoring_lm_eval,
    "scoring_t0": scoring_t0,
    "scoring_tfew": scoring_tfew,
}
