"""The roofline: how long a batch takes a device, by what it computes, what it moves and what it sends.

    seconds = max(FLOPs / (UTILISATION * peak), bytes / (STREAMED * memory)) + EXPOSED * sent / ring

FLOPs are model FLOPs (`flops`) of all tokens of a batch, padding among them, where a token attends to its
whole row and passes the experts of all segments of it, and a forward pass more with remat. Bytes are

    the base's kernels     once forward and once for the gradient of what enters them, once more with remat
    what layers keep       written and read (`activations`)
    gradients              read and written where they are added up

and where experts move, their parameters and moments read and written, and their gradients too. What XLA
reads more often is not counted, so the bytes are too few rather than too many.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from elm_jax.models import paths, sharding
from elm_jax.runs import activations, collectives, flops, plan, traffic
from elm_jax.runs.plan import Work
from elm_jax.runs.rates import Rates

# Of a device's peak that products are taken to reach. T5X's published runs of T5 1.1 XL reach 30 to 37 % on
# A100s (JAX-Toolbox, rosetta's README), MaxText's of larger decoders 45 to 71 % on TPUs. Not measured here.
UTILISATION = 0.4
STREAMED = 0.8  # of a memory's published rate that long reads and writes are taken to reach. A guess
EXPOSED = 1.0  # of what is sent that products do not hide: all of it, the worst case


@dataclass(frozen=True)
class Batch:
    """What a batch costs one device."""

    flops: float
    bytes: float  # read from memory and written to it
    sent: Mapping[str, float]  # bytes to others, by axes of the mesh, as "data" or "data+fsdp"
    moved: float = 0.0  # bytes read and written where experts move, after the batch

    def seconds(self, rates: Rates) -> "Seconds":
        """Returns how long that takes at a device's rates."""
        memory = STREAMED * rates.memory
        return Seconds(
            compute=self.flops / (UTILISATION * rates.flops),
            memory=self.bytes / memory,
            traffic=EXPOSED * sum(self.sent.values()) / rates.ring if self.sent else 0.0,
            moving=self.moved / memory,
        )


@dataclass(frozen=True)
class Seconds:
    """How long a batch takes one device, by what it waits for."""

    compute: float
    memory: float
    traffic: float
    moving: float

    @property
    def together(self) -> float:
        """Products and memory work at once; traffic and the experts' moving come after."""
        return max(self.compute, self.memory) + self.traffic + self.moving


def training(work: Work, mesh: Mapping[str, int]) -> Batch:
    """Returns what a batch of `work.train_tokens`, of all devices, costs one of a mesh of these sizes."""
    network, full = work.network, work.kind == "full"
    base, expert = plan.shapes(work)
    rows = max(1, work.train_tokens // (work.prompt + work.answer) // sharding.row_parts(mesh))
    seen = flops.Attended(float(work.prompt), float(work.answer), float(work.prompt))
    tokens = rows * work.prompt, rows * work.answer
    alone, beside = (flops.cost(network, work.kind, base, own, seen) for own in ({}, expert))
    spent = alone.of(*tokens)
    apart = not full and -(-work.group // mesh["expert"]) > 1
    spent += (beside.of(*tokens) - spent) * (work.segments if apart else 1)
    if network.remat:
        spent += flops.cost(network, "full", base, {}, seen).of(*tokens) / 3
    need = plan.need(work, mesh)
    kept = activations.training(replace(network, remat=False), rows, work.prompt, work.answer, mesh["tensor"])
    if apart:
        plain = replace(network, remat=False)
        kept += activations.gathered(plain, expert, rows, work.segments, work.prompt, work.answer)
    sent: dict[str, float] = {}
    for axes, count in collectives.by_axes(traffic.training(work, mesh)).items():
        sent["+".join(axes)] = count
    return Batch(
        flops=spent / mesh["tensor"],
        bytes=(3 if network.remat else 2) * _read(work, mesh) + 2 * kept + 2 * need.gradients,
        sent=sent,
        moved=2.0 * (need.state + need.gradients),
    )


def scoring(work: Work) -> Batch:
    """Returns what a batch of `work.batch_tokens` scored costs a device that has all of the base."""
    network = work.network
    base, expert = plan.shapes(work)
    rows = max(1, work.batch_tokens // (work.prompt + work.answer))
    seen = flops.Attended(float(work.prompt), float(work.answer), float(work.prompt))
    tokens = rows * work.prompt, rows * work.answer
    spent = flops.cost(network, "full", base, {}, seen).of(*tokens) / 3
    apart = work.experts > 0 and work.kind != "full"
    if apart:
        with_expert, without = (flops.cost(network, work.kind, base, own) for own in (expert, {}))
        spent += (with_expert.of(*tokens) - without.of(*tokens)) / 3
    one: dict[str, int] = dict.fromkeys(sharding.AXES, 1)
    layers = network.num_encoder_layers + network.num_decoder_layers
    between = activations.scoring(network, rows, work.prompt, work.answer)
    # A row has its own expert, gathered from the stack.
    own = 2 * rows * sum(leaf.size for leaf in jax.tree.leaves(expert)) * 4 if apart else 0
    return Batch(spent, _read(work, one) + 2 * layers * between + own, {})


def _read(work: Work, mesh: Mapping[str, int]) -> float:
    """Returns the bytes of the kernels that a pass through the base reads, gathered where they are split."""
    base, _ = plan.shapes(work)
    width = 4 if work.kind == "full" else jnp.dtype(work.network.dtype).itemsize
    flat = paths.flatten(base)
    layers = sum(leaf.size for path, leaf in flat.items() if "/layers/" in path)
    head = sum(leaf.size for path, leaf in flat.items() if path.endswith("logits_dense/kernel"))
    return width * (layers + head / mesh["fsdp"]) / mesh["tensor"]
