"""Room: the memory that is there for training, and how many experts at once it has room for."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace

import jax

from elm_jax.errors import UserError
from elm_jax.models import sharding
from elm_jax.records import Params
from elm_jax.runs import plan
from elm_jax.runs.plan import Work

FILLED = 0.8  # of a device's memory that a group is sized for; what lies between the layers is estimated
FEW = 8  # experts that fill a batch well together
STRETCH = 2  # how many times the longest prompt a packed row is at most, see `engine.batches`


def memory() -> int:
    """Returns the bytes that one device of this process has.

    Of an accelerator those that JAX may take of it; of a machine's own memory half, shared by its devices.
    """
    devices = jax.local_devices()
    told = (devices[0].memory_stats() or {}).get("bytes_limit")
    if told:
        return int(told)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2 // len(devices)


def spread(params: Params, sizes: Mapping[str, int] | None = None) -> Params:
    """Returns a base's parameters as they lie on this process's devices, to score with; `sizes` are by axis.

    Without them they are whole on every accelerator, and each scores rows of its own; split where they would
    take more than half of its memory. What a CPU is divided into is used on request alone.
    """
    devices = jax.local_devices()
    if sizes is None:
        if len(devices) == 1 or jax.default_backend() == "cpu":
            return params
        whole = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        sizes = {"data" if 2 * whole <= memory() else "fsdp": len(devices)}
    on = sharding.mesh(devices, **{"data": 1 if -1 in sizes.values() else -1, **sizes})
    return sharding.place(params, sharding.shardings(on, params))


def fit(
    work: Work, memory: int, mesh: Mapping[str, int] | None = None, *, most_places: int = 64
) -> tuple[int, int]:
    """Returns how many experts train at once and the tokens of a batch, of all devices together.

    Each device of `mesh`, sizes by axis, has `memory` bytes, of which `FILLED` are taken. `work` tells the
    longest prompt and answer, a row of which every device has room for at least, and in `train_tokens` what
    it has at best; its `group` is not read. Batches are halved until `FEW` experts fit beside them, or all
    that are wanted; then as many do as fit. Raises a UserError where not even one does.
    """
    sizes = dict.fromkeys(sharding.AXES, 1) | dict(mesh or {})
    parts, split, longest = sizes["expert"], sharding.row_parts(sizes), work.prompt + work.answer
    most = 1 if work.kind == "full" else max(1, -(-most_places // parts))  # of a part
    budget = int(FILLED * memory)

    def takes(places: int, tokens: int) -> int:
        # Rows are as long as the longest example, or longer where more fit in so; that costs more.
        stretches = [by for by in (1, STRETCH) if by == 1 or tokens >= by * longest]
        return max(
            trained(
                replace(
                    work,
                    group=places * parts,
                    train_tokens=tokens * split,
                    prompt=by * work.prompt,
                    answer=by * work.answer,
                ),
                sizes,
            )
            for by in stretches
        )

    tokens = max(work.train_tokens, longest)
    while True:
        places = _most(lambda places, tokens=tokens: takes(places, tokens) <= budget, most)
        if places >= min(FEW, most) or tokens == longest:
            break
        tokens = max(tokens // 2, longest)
    if not places:
        raise UserError(_too_little(work, takes(1, longest), memory))
    return places * parts, tokens * split


def trained(work: Work, mesh: Mapping[str, int]) -> int:
    """Returns the bytes that a device of a mesh of these sizes needs to train a work, as its network does."""
    need = plan.need(work, mesh)
    return plan.held(need) + (need.activations_remat if work.network.remat else need.activations)


def _most(fits: Callable[[int], bool], most: int) -> int:
    """Returns the largest number up to `most` that fits, where all smaller ones do too; 0 where none does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _too_little(work: Work, needed: int, memory: int) -> str:
    do = [] if work.network.remat else ["compute layers again for the gradient (remat)"]
    do += ["split the base over more devices (a mesh with fsdp)"]
    do += [] if work.kind == "lora" else ["train LoRA experts"]
    there = f"{plan.gb(int(FILLED * memory))} GB are there, {FILLED:.0%} of its {plan.gb(memory)}"
    return (
        f"Room to train one {work.kind} expert on rows of {work.prompt} + {work.answer} tokens is wanted, "
        f"about {plan.gb(needed)} GB on a device, but {there}. What takes less: {', or '.join(do)}."
    )
