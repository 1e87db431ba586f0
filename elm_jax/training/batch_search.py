"""Batch search: how many experts train at once, and the largest batch, that a device's memory holds.

What a program takes is not estimated: it is compiled, for the devices at hand or for others, and the compiler
says it. A formula chooses what is compiled first.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from elm_jax.aot import memory
from elm_jax.errors import OutOfMemoryError
from elm_jax.models.sizes import T5Config
from elm_jax.training.batches import Shape
from elm_jax.training.programs import GroupPrograms, Layout

ENOUGH_MEMORY_FILL = 0.85  # of the memory that is free for a batch; with more no other size is compiled
TARGET_FILL = 0.94  # of it, when the next size is chosen
MAX_BATCH_COMPILATIONS = 14  # sizes of a batch that are compiled
SUFFICIENT_EXPERTS = (
    8  # fill a batch well together; more train at once only beside `DEVICE_SATURATING_TOKENS`
)
DEVICE_SATURATING_TOKENS = 8192  # of a batch on one device, that keep it busy
UNBOUNDED_TOKENS = 10**12  # more than any experts have in a step
MOST_TOKENS: Mapping[str, int] = {"cpu": 8192}
"""Tokens of a batch on one device, by platform: more would fit on a CPU, and be no faster."""


@dataclass(frozen=True)
class Fit:
    """The group and the batch that were chosen.

    Attributes:
        layout: how many experts train at once, and how they lie on the devices.
        tokens: of a batch on all devices, as the search asked for it.
        shape: of the batch.
        peak_bytes: of one device, in the program that takes most.
        fixed_bytes: of one device, whatever the batch: base, experts, moments and gradients.
        limit_bytes: that a device has.
        compiled: shapes that were compiled.
    """

    layout: Layout
    tokens: int
    shape: Shape
    peak_bytes: int
    fixed_bytes: int
    limit_bytes: int
    compiled: int

    @property
    def fill_ratio(self) -> float:
        """The share of what is free beside `fixed_bytes` that is used."""
        return (self.peak_bytes - self.fixed_bytes) / max(1, self.limit_bytes - self.fixed_bytes)


@dataclass(frozen=True)
class Memory:
    """What programs take of a device's memory.

    Attributes:
        fixed_bytes: that a layout takes whatever the batch.
        peak_bytes: of the program that takes most; None if a compiler that refused it did not say.
        limit_bytes: that a device has.
    """

    fixed_bytes: Callable[[Layout], int]
    peak_bytes: Callable[[Layout, Shape], int | None]
    limit_bytes: int


@dataclass(frozen=True)
class BatchSearch:
    """What is searched, for one network on one kind of device.

    Attributes:
        layouts: how the experts may lie, those with most experts first.
        shape_for: the shape of a batch of at most so many tokens on all devices, in a layout.
        memory: what programs take of a device.
        token_bytes: of a token of the batch, a first guess.
        most_tokens: of a batch on one device. Default: as many as fit.
    """

    layouts: tuple[Layout, ...]
    shape_for: Callable[[Layout, int], Shape]
    memory: Memory
    token_bytes: float
    most_tokens: int | None = None


def largest_fit(search: BatchSearch) -> Fit:
    """Returns the most experts and the largest batch that fit.

    Raises:
        OutOfMemoryError: not even one row on a device fits beside the fewest experts.
    """
    refused: int | None = None
    for layout in _layouts_to_try(search):
        fit, refused = _largest_batch(search, layout)
        if fit is not None:
            return fit
    needed = f"{refused / 1e9:.2f} GB" if refused else "more"
    fewest, limit = search.layouts[-1], search.memory.limit_bytes
    raise OutOfMemoryError(
        f"Expected room for {fewest.slots} expert{'s' * (fewest.slots != 1)} and one row on each device, "
        f"which takes {needed}, got {limit / 1e9:.2f} GB on a device. Fix: split the base over "
        "more devices (a mesh with fsdp), compute layers again for the gradient (remat), train experts of a "
        "smaller kind such as lora, or shorten rows."
    )


def layouts_for(layout: Layout, *, fixed: bool = False) -> tuple[Layout, ...]:
    """Returns a layout and those of half as many experts, a quarter, …, down to one for each part.

    Args:
        layout: with the most experts.
        fixed: whether the number of experts is given, so that there is one layout.
    """
    layouts, slots = [layout], layout.slots
    while not fixed and slots > layout.parts:
        slots = max(layout.parts, slots // 2 // layout.parts * layout.parts)
        layouts.append(layout._replace(slots=slots))
    return tuple(layouts)


def token_bytes(network: T5Config, layout: Layout) -> float:
    """Guesses the bytes that a token of a batch takes on one device until its gradient is made.

    A layer keeps about 8 D + 4 J + 3 F values of a token, with widths D of the model, J of all heads and F of
    the feed-forward; with rematerialisation it keeps D.
    """
    heads = network.num_heads * network.head_dim
    values = network.emb_dim if network.remat else 8 * network.emb_dim + 4 * heads + 3 * network.mlp_dim
    layers = max(network.num_encoder_layers, network.num_decoder_layers)
    return 1.2 * jnp.dtype(network.dtype).itemsize * layers * values / layout.row_parts


def fixed_bytes(programs: GroupPrograms) -> int:
    """Returns the bytes of one device that a group holds between two batches."""
    accumulate = programs.accumulate
    params, base, _, accumulator = accumulate.arguments
    return memory.device_bytes((params, base, accumulator, accumulate.resident))


def batch_programs(*, whole_steps: bool) -> tuple[str, ...]:
    """Returns the names of the programs that a group runs for every batch."""
    return ("train_step",) if whole_steps else ("accumulate", "update")


def accumulator_bytes(programs: GroupPrograms, *, whole_steps: bool) -> int:
    """Returns the bytes of one device to keep free for gradients that the programs of a batch do not count.

    Steps are whole on the batches that were tried; one that is not wants an accumulator.
    """
    return memory.device_bytes(programs.accumulate.arguments[3]) if whole_steps else 0


def peak_bytes(programs: GroupPrograms, *, whole_steps: bool = False) -> int | None:
    """Compiles what a group runs for every batch, for its own devices; returns the bytes that it takes."""
    peaks = []
    beside = accumulator_bytes(programs, whole_steps=whole_steps)
    for program in (getattr(programs, name) for name in batch_programs(whole_steps=whole_steps)):
        try:
            compiled = program.lower().compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return memory.required_bytes(str(error))
        peaks.append(memory.count_program_bytes(compiled) + memory.resident_bytes(program) + beside)
    return max(peaks)


def _layouts_to_try(search: BatchSearch) -> Iterator[Layout]:
    """Yields layouts: first the one with most experts that leaves room for enough tokens."""
    layouts = list(search.layouts)
    for number, layout in enumerate(layouts):
        free = search.memory.limit_bytes - search.memory.fixed_bytes(layout)
        tokens = TARGET_FILL * free / search.token_bytes
        last = layout.slots <= SUFFICIENT_EXPERTS or number + 1 == len(layouts)
        enough = tokens >= DEVICE_SATURATING_TOKENS * layout.row_parts
        if last or enough or tokens >= search.shape_for(layout, UNBOUNDED_TOKENS).tokens:
            yield from layouts[number:]
            return


def _largest_batch(search: BatchSearch, layout: Layout) -> tuple[Fit | None, int | None]:
    """Returns the largest batch that fits beside a layout, and what the smallest that does not fit needs."""
    held, limit = search.memory.fixed_bytes(layout), search.memory.limit_bytes
    free = limit - held
    if free <= 0:
        return None, held
    devices = layout.row_parts
    most = UNBOUNDED_TOKENS if search.most_tokens is None else search.most_tokens * devices
    best: Fit | None = None
    too_large: tuple[int, int | None] | None = None  # tokens of the smallest such shape, and its bytes
    tokens, tries = int(min(most, TARGET_FILL * free / search.token_bytes)), 0
    seen: set[Shape] = set()
    while tries < MAX_BATCH_COMPILATIONS:
        shape = search.shape_for(layout, max(1, tokens))
        if shape in seen:
            break
        seen.add(shape)
        tries += 1
        peak = search.memory.peak_bytes(layout, shape)
        if peak is not None and peak <= limit:
            if best is None or shape.tokens > best.shape.tokens:
                best = Fit(layout, tokens, shape, peak, held, limit, tries)
            used = max(1, peak - held)
            if (
                best.fill_ratio >= ENOUGH_MEMORY_FILL
                or tokens >= most
                or search.shape_for(layout, most) == shape
            ):
                break
            tokens = int(shape.tokens * min(4.0, TARGET_FILL * free / used))
        else:
            if too_large is None or shape.tokens < too_large[0]:
                too_large = shape.tokens, peak
            used = 2 * free if peak is None else peak - held
            tokens = int(shape.tokens * min(0.9, TARGET_FILL * free / max(1, used)))
        beyond_best = best is not None and shape.tokens > best.shape.tokens
        if too_large is not None and best is not None and (beyond_best or tokens >= too_large[0]):
            tokens = _interpolate_tokens(best, too_large, TARGET_FILL * free)
        tokens = min(tokens, most)
    return best, too_large[1] if too_large else None


def _interpolate_tokens(best: Fit, too_large: tuple[int, int | None], target_bytes: float) -> int:
    """Returns how many tokens to try between a batch that fits and one that does not.

    On the line through both, where it has the target's bytes; halfway if the compiler did not say what the
    larger one takes.
    """
    low, high = best.shape.tokens, too_large[0]
    if too_large[1] is None:
        return (low + high) // 2
    used = best.peak_bytes - best.fixed_bytes
    slope = (too_large[1] - best.peak_bytes) / (high - low)
    return min(max(low + 1, round(low + (target_bytes - used) / slope)), high - 1)
