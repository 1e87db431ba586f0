"""Traffic: what the devices of a mesh send one another for a batch that trains, before it is compiled.

A test holds the bytes against those of the compiled programs (`collectives`), at small sizes and in float32.
With n devices along the axes that split rows, L layers and rows of S + T tokens, a batch sends, by axis:

    expert    nothing: experts need nothing of one another
    data      the experts' gradient, an all-reduce of 4 bytes a parameter; of full experts that of all
              parameters, of the table of embeddings once for each stack, and of the relative positions'
              biases, 4 H (S² + T²) for every layer
    fsdp      every kernel of the base, gathered for a layer's forward pass and again for its gradient; the
              experts' kernels likewise; the states before the output layer, gathered and their gradient
              summed; what embeddings are looked up, exchanged. Gradients as for data
    tensor    the states of a layer's tokens, an all-reduce after each block and in the gradient of each
              product that enters one

Where `expert` stands beside `data` or `fsdp`, XLA does not sum the experts' gradients: it gathers those of
every row and segment, 4 bytes for each parameter of an expert, and adds them up on all devices. What moves
experts sends norms alone, which is left out, and so is anything of a number a token.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

from elm_jax.models import paths, sharding
from elm_jax.runs import plan
from elm_jax.runs.collectives import Collective
from elm_jax.runs.plan import Work

WIDE = 4  # bytes of what is computed in float32: gradients, experts, logits


def training(work: Work, mesh: Mapping[str, int]) -> list[Collective]:
    """Returns the collectives of a batch that trains on a mesh of these sizes."""
    apart = tuple(axis for axis in ("data", "fsdp") if mesh[axis] > 1)
    rows = max(1, work.train_tokens // (work.prompt + work.answer)) / mesh["expert"]  # of a part
    found: list[Collective] = []
    if apart:
        found += _gradients(work, mesh, apart, rows)
    if mesh["fsdp"] > 1:
        # Within a part of experts its own axis is left; without one XLA gathers over the rows' devices.
        over = ("fsdp",) if mesh["expert"] > 1 else apart
        found += _gathered(work, mesh, over) + _exchanged(work, mesh, over, rows / mesh["data"])
    if mesh["tensor"] > 1:
        found += _summed(work, mesh, rows / mesh["data"] / mesh["fsdp"])
    return [each for each in found if each.size and each.devices > 1]


def _gradients(work: Work, mesh: Mapping[str, int], apart: tuple[str, ...], rows: float) -> list[Collective]:
    base, expert = plan.shapes(work)
    devices = math.prod(mesh[axis] for axis in apart)
    if work.kind == "full":
        return _of_all(work, base, mesh, apart)
    own = sum(leaf.size for leaf in jax.tree.leaves(expert))
    places = -(-work.group // mesh["expert"])
    if mesh["expert"] > 1 and places > 1:
        size = int(rows * work.segments * own * WIDE)
        return [Collective("all-gather", apart, devices, size, 1, "experts' gradients of every row")]
    size = places * (own + 1) * WIDE  # and its loss
    return [Collective("all-reduce", apart, devices, size, 1, "experts' gradients")]


def _of_all(work: Work, base: Any, mesh: Mapping[str, int], apart: tuple[str, ...]) -> list[Collective]:
    """Returns the sums of the gradients of a full expert."""
    network, devices = work.network, math.prod(mesh[axis] for axis in apart)
    flat = paths.flatten(base)
    kernels = sum(leaf.size for path, leaf in flat.items() if "/layers/" in path and leaf.ndim == 3)
    ends = sum(
        leaf.size for path, leaf in flat.items() if path.endswith(("embedding", "logits_dense/kernel"))
    )
    vectors = sum(leaf.size for path, leaf in flat.items() if path.endswith("scale"))
    table = flat["token_embedder/embedding"].size
    biases = network.num_heads * (
        network.num_encoder_layers * work.prompt**2 + network.num_decoder_layers * work.answer**2
    )
    # Split over some of the devices and summed over all, XLA sums a kernel's part once more.
    again = kernels // mesh["fsdp"] if len(apart) == 2 and mesh["expert"] == 1 else 0
    size = (kernels + again + vectors + biases) * WIDE
    found = [Collective("all-reduce", apart, devices, size, 1, "gradients of the layers")]
    if mesh["data"] > 1:
        size = (ends + table) * WIDE // mesh["fsdp"]
        found += [Collective("all-reduce", ("data",), mesh["data"], size, 1, "gradients of embeddings")]
    return found


def _gathered(work: Work, mesh: Mapping[str, int], over: tuple[str, ...]) -> list[Collective]:
    """Returns the gathering of what `fsdp` splits, one kernel of one layer at a time."""
    base, expert = plan.shapes(work)
    devices = math.prod(mesh[axis] for axis in over)
    width = WIDE if work.kind == "full" else jnp.dtype(work.network.dtype).itemsize
    places = -(-work.group // mesh["expert"])
    found = [
        Collective("all-gather", over, devices, size * width // mesh["tensor"], 2 * layers, path)
        for path, layers, size in _split(base, mesh)
        if size > 1
    ]
    if work.kind == "full":
        return found
    # Experts of many segments are spread over rows once, a single one's kernels gathered as the base's.
    twice = 2 if work.network.remat or places == 1 else 1
    return found + [
        Collective("all-gather", over, devices, places * size * WIDE, twice * layers, path)
        for path, layers, size in _split(expert, mesh)
    ]


def _exchanged(work: Work, mesh: Mapping[str, int], over: tuple[str, ...], rows: float) -> list[Collective]:
    """Returns what the table of embeddings and the output layer cost: of neither has a device ever all."""
    network, fsdp = work.network, mesh["fsdp"]
    emb, full = network.emb_dim, work.kind == "full"
    width = jnp.dtype(network.dtype).itemsize
    states = int(rows * work.answer * emb * WIDE)
    looked_up = int(rows * (work.prompt + work.answer) * emb * width) // fsdp
    head = network.vocab_size * emb * (WIDE if full else width) // (fsdp * mesh["tensor"])
    devices = math.prod(mesh[axis] for axis in over)
    one = ("fsdp",)
    return [
        Collective("all-gather", one, fsdp, states, 1, "states before the output layer"),
        Collective("all-reduce", one, fsdp, states, 1, "their gradient"),
        Collective("all-to-all", over, devices, head, 2 if full else 1, "the output layer's kernel"),
        Collective("all-to-all", one, fsdp, looked_up, 2 if full else 1, "embeddings"),
        Collective("all-gather", one, fsdp, int(rows * work.prompt * 4), 1, "tokens"),
    ]


def _summed(work: Work, mesh: Mapping[str, int], rows: float) -> list[Collective]:
    """Returns the sums of states where `tensor` splits the inside of layers."""
    network, tensor = work.network, mesh["tensor"]
    width = jnp.dtype(network.dtype).itemsize
    prompt, answer = (int(rows * tokens * network.emb_dim * width) for tokens in (work.prompt, work.answer))
    wide = len(network.mlp_activations)
    deep, deep_answer = network.num_encoder_layers, network.num_decoder_layers
    both = tuple(axis for axis in ("data", "tensor") if mesh[axis] > 1 and mesh["expert"] == 1) or ("tensor",)
    found = [
        ("the encoder's blocks", ("tensor",), prompt, (2 + 3 + wide) * deep),
        ("the decoder's blocks", ("tensor",), answer, (3 + 3 + 1 + wide) * deep_answer),
        ("keys and values of the prompt", ("tensor",), prompt, 2 * deep_answer),
        ("embeddings", both, prompt + answer, 1),
        ("the output layer", ("tensor",), int(rows * work.answer * network.emb_dim * WIDE), 1),
    ]
    return [
        Collective("all-reduce", axes, math.prod(mesh[axis] for axis in axes), size, times, name)
        for name, axes, size, times in found
        if tensor > 1
    ]


def _split(tree: Any, mesh: Mapping[str, int]) -> list[tuple[str, int, int]]:
    """Returns path, layers and values of one layer of every leaf of the layers that `fsdp` splits."""
    types = (AxisType.Auto,) * len(sharding.AXES)
    on = AbstractMesh(tuple(mesh[axis] for axis in sharding.AXES), sharding.AXES, axis_types=types)
    laid = paths.flatten(sharding.shardings(on, tree))
    return [
        (path, leaf.shape[0], leaf.size // leaf.shape[0])
        for path, leaf in paths.flatten(tree).items()
        if "/layers/" in path and any("fsdp" in (part or ()) for part in laid[path].spec)
    ]
