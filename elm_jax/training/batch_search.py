"""Batch search: how many experts train at once, and the largest batch, that a device's memory holds.

What a program takes is not estimated: it is compiled, for the devices at hand or for others, and the compiler
tells. A formula chooses what is compiled first.
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

FILLED = 0.85  # of the memory that is free for a batch; less is not worth another compilation
AIMED = 0.94  # of it, when the next size is chosen
TRIES = 14  # sizes of a batch that are compiled at most
FEW = 8  # experts that fill a batch well together; more train at once only beside `ENOUGH` tokens
ENOUGH = 8192  # tokens of a batch on one device that keep it busy
ALL = 10**12  # tokens: more than any experts offer in a step
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
        held_bytes: of one device, whatever the batch: base, experts, moments and gradients.
        limit_bytes: that a device has.
        compiled: shapes that were compiled.
    """

    layout: Layout
    tokens: int
    shape: Shape
    peak_bytes: int
    held_bytes: int
    limit_bytes: int
    compiled: int

    @property
    def filled(self) -> float:
        """The share of what is free beside `held_bytes` that is used."""
        return (self.peak_bytes - self.held_bytes) / max(1, self.limit_bytes - self.held_bytes)


@dataclass(frozen=True)
class Search:
    """What is searched, for one network on one kind of device.

    Attributes:
        layouts: how the experts may lie, those with most experts first.
        shape_for: the shape of a batch of at most so many tokens on all devices, in a layout.
        held_bytes: bytes of a device that a layout takes whatever the batch.
        peak_bytes: bytes of a device in the program that takes most; None where a compiler that refused it
            did not say.
        limit_bytes: that a device has.
        token_bytes: of a token of the batch, a first guess.
        most_tokens: of a batch on one device; None is as many as fit.
    """

    layouts: tuple[Layout, ...]
    shape_for: Callable[[Layout, int], Shape]
    held_bytes: Callable[[Layout], int]
    peak_bytes: Callable[[Layout, Shape], int | None]
    limit_bytes: int
    token_bytes: float
    most_tokens: int | None = None


def largest_fit(search: Search) -> Fit:
    """Returns the most experts and the largest batch that fit.

    Raises:
        OutOfMemoryError: not even one row on a device fits beside the fewest experts.
    """
    refused: int | None = None
    for layout in _worthwhile(search):
        found, refused = _largest_batch(search, layout)
        if found is not None:
            return found
    needed = f"{refused / 1e9:.2f} GB" if refused else "more"
    fewest = search.layouts[-1]
    raise OutOfMemoryError(
        f"Expected room for {fewest.places} expert{'s' * (fewest.places != 1)} and one row on each device, "
        f"which takes {needed}, got {search.limit_bytes / 1e9:.2f} GB on a device. Fix: split the base over "
        "more devices (a mesh with fsdp), compute layers again for the gradient (remat), train experts of a "
        "smaller kind such as lora, or shorten rows."
    )


def layouts_for(layout: Layout, *, fixed: bool = False) -> tuple[Layout, ...]:
    """Returns a layout and those of half as many experts, a quarter, …, down to one for each part.

    Args:
        layout: with the most experts.
        fixed: whether their number is given, so that there is no other.
    """
    found, places = [layout], layout.places
    while not fixed and places > layout.parts:
        places = max(layout.parts, places // 2 // layout.parts * layout.parts)
        found.append(layout._replace(places=places))
    return tuple(found)


def token_bytes(config: T5Config, layout: Layout) -> float:
    """Guesses the bytes that a token of a batch takes on one device until its gradient is made.

    A layer keeps about 8 D + 4 J + 3 F values of a token, with widths D of the model, J of all heads and F of
    the feed-forward; with rematerialisation it keeps D.
    """
    joined = config.num_heads * config.head_dim
    kept = config.emb_dim if config.remat else 8 * config.emb_dim + 4 * joined + 3 * config.mlp_dim
    layers = max(config.num_encoder_layers, config.num_decoder_layers)
    return 1.2 * jnp.dtype(config.dtype).itemsize * layers * kept / layout.row_parts


def held_bytes(programs: GroupPrograms) -> int:
    """Returns the bytes of one device that a group holds between two batches."""
    gather = programs.gather
    params, base, _, sums = gather.arguments
    return memory.device_bytes((params, base, sums, gather.resident))


def peak_bytes(programs: GroupPrograms) -> int | None:
    """Compiles what a group runs in every round, for its own devices; returns the bytes that it takes."""
    peaks = []
    for program in (programs.gather, programs.advance):
        try:
            compiled = program.lower().compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return memory.required_bytes(str(error))
        peaks.append(memory.count_program_bytes(compiled) + memory.resident_bytes(program))
    return max(peaks)


def _worthwhile(search: Search) -> Iterator[Layout]:
    """Yields the layouts to try: first the one with most experts that leaves room for enough tokens."""
    layouts = list(search.layouts)
    for number, layout in enumerate(layouts):
        room = AIMED * (search.limit_bytes - search.held_bytes(layout)) / search.token_bytes
        last = layout.places <= FEW or number + 1 == len(layouts)
        if last or room >= ENOUGH * layout.row_parts or room >= search.shape_for(layout, ALL).tokens:
            yield from layouts[number:]
            return


def _largest_batch(search: Search, layout: Layout) -> tuple[Fit | None, int | None]:
    """Returns the largest batch that fits beside a layout, and what the smallest that does not fit needs."""
    held, limit = search.held_bytes(layout), search.limit_bytes
    free = limit - held
    if free <= 0:
        return None, held
    devices = layout.row_parts
    most = ALL if search.most_tokens is None else search.most_tokens * devices
    best: Fit | None = None
    over: tuple[int, int | None] | None = None  # tokens of the smallest shape that is too large, its bytes
    asked, tried = int(min(most, AIMED * free / search.token_bytes)), 0
    seen: set[Shape] = set()
    while tried < TRIES:
        shape = search.shape_for(layout, max(1, asked))
        if shape in seen:
            break
        seen.add(shape)
        tried += 1
        peak = search.peak_bytes(layout, shape)
        if peak is not None and peak <= limit:
            if best is None or shape.tokens > best.shape.tokens:
                best = Fit(layout, asked, shape, peak, held, limit, tried)
            used = max(1, peak - held)
            if best.filled >= FILLED or asked >= most or search.shape_for(layout, most) == shape:
                break
            asked = int(shape.tokens * min(4.0, AIMED * free / used))
        else:
            if over is None or shape.tokens < over[0]:
                over = shape.tokens, peak
            used = 2 * free if peak is None else peak - held
            asked = int(shape.tokens * min(0.9, AIMED * free / max(1, used)))
        if over is not None and best is not None and (shape.tokens > best.shape.tokens or asked >= over[0]):
            asked = _between(best, over, AIMED * free)
        asked = min(asked, most)
    return best, over[1] if over else None


def _between(best: Fit, over: tuple[int, int | None], wanted: float) -> int:
    """Returns how many tokens to ask for between a batch that fits and one that does not.

    On the line through both, where it has the bytes that are wanted; halfway where the compiler did not say
    what the larger one takes.
    """
    low, high = best.shape.tokens, over[0]
    if over[1] is None:
        return (low + high) // 2
    used = best.peak_bytes - best.held_bytes
    slope = (over[1] - best.peak_bytes) / (high - low)
    return min(max(low + 1, round(low + (wanted - used) / slope)), high - 1)
