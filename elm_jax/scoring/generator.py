"""Generation: the answers that many experts write to many prompts, batched by length whatever the expert."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from elm_jax.aot.program import Program, platform_of, replicated, with_shardings
from elm_jax.axes import PAD, Array
from elm_jax.errors import UserError
from elm_jax.models import sharding
from elm_jax.models.shapes import shapes_of
from elm_jax.models.sizes import T5Config
from elm_jax.records import Params
from elm_jax.scoring import buckets, decoding
from elm_jax.scoring.scorer import BATCH_TOKENS, OnProgress, compilation_tokens
from elm_jax.scoring.tries import Tokens

Unit = tuple[bytes, int]  # a prompt and an expert: what is written once, however often it is asked for
Written = tuple[list[Unit], Array]


def generate_rows(
    config: T5Config,
    params: Params,
    prompts: Sequence[Tokens],
    length: int,
    eos: int,
    experts: Params | None = None,
    pairs: Int[np.ndarray, "P 2"] | None = None,
    *,
    batch_tokens: int = BATCH_TOKENS,
    lengths: Sequence[int] | None = None,
    progress: OnProgress | None = None,
    stacked: bool = True,
) -> list[np.ndarray]:
    """Returns, in the order of the pairs, the `length` tokens of each answer, padded after its end.

    A pair is a prompt's number and an expert's, of the stack [E, …]; without pairs every prompt is answered
    once, by the first expert or, without experts, by the base alone. The same prompt under the same expert is
    answered once. Experts that are not `stacked` are one tree for all prompts. An answer ends with
    `generate.NO_NUMBERS` where an expert gives none. `lengths` are those of `lengths_for`, given more prompts
    than these, so that several calls share compilations. Where the parameters lie on a mesh, the rows of a
    batch are split over it; `batch_tokens` are those of one device. The next batch is assembled while the
    device works on the last one.

    Raises `UserError` for a prompt that is empty or too long, and for a length below one token.
    """
    if length < 1:
        raise UserError(f"Answers of at least one token are wanted, but a length of {length} came.")
    keys = [_key(number, prompt) for number, prompt in enumerate(prompts)]
    if pairs is None:
        pairs = np.stack([np.arange(len(prompts)), np.zeros(len(prompts), int)], axis=1)
    asked = [(keys[prompt], expert) for prompt, expert in pairs.tolist()]
    times: dict[Unit, int] = {}
    for unit in asked:
        times[unit] = times.get(unit, 0) + 1
    if lengths is None:
        lengths = choose_prompt_lengths(params, prompts, experts=len(pairs) / max(1, len(prompts)))
    answers: dict[Unit, np.ndarray] = {}
    done, waiting = 0, None

    def fetch(units: list[Unit], pending: Array) -> int:
        answers.update(zip(units, np.asarray(pending)[: len(units)], strict=True))
        return sum(times[unit] for unit in units)

    indexed = stacked and experts is not None
    units = list(times)
    for batch in _batches(units, lengths, length, eos, batch_tokens, config, params, experts, indexed):
        if waiting is not None:
            done += fetch(*waiting)
            if progress:
                progress(done, len(pairs))
        waiting = batch
    if waiting is not None:
        fetch(*waiting)
    if progress:
        progress(len(pairs), len(pairs))
    return [answers[unit] for unit in asked]


def generate_program(
    config: T5Config,
    base: Any,
    rows: int,
    prompt: int,
    length: int,
    *,
    experts: Any = None,
    stacked: bool = True,
    mesh: Mesh | None = None,
) -> Program:
    """Returns the program that answers a batch: it encodes the prompts, then decodes token by token.

    Args:
        config: the network.
        base: its parameters or their shapes; those of a full expert in its stead.
        rows: of the batch, on all devices together.
        prompt: tokens of a prompt.
        length: tokens of an answer, at most.
        experts: a stack [E, …] or one tree for all rows, or their shapes; None is the base alone.
        stacked: whether every row names its own of the experts.
        mesh: that the base lies on; None is the default device.
    """
    prompts: Any = jax.ShapeDtypeStruct((rows, prompt), jnp.int32)
    base, experts = shapes_of(base), None if experts is None else shapes_of(experts)
    index = jax.ShapeDtypeStruct((rows,), jnp.int32) if stacked and experts is not None else None
    if mesh is not None:
        prompts = with_shardings(prompts, sharding.batch_shardings(mesh, prompts))
        base = with_shardings(base, sharding.shardings(mesh, base))
        # One tree for all rows lies whole on every device.
        lie = sharding.shardings(mesh, experts, experts=True) if stacked and experts else None
        experts = with_shardings(experts, lie) if lie else replicated(mesh, experts)
    run = decoding.compiled_decoder(config, length, platform_of(mesh))
    eos = replicated(mesh, jax.ShapeDtypeStruct((), jnp.int32))
    return Program("generate", run, (base, prompts, eos, experts, index))


def choose_prompt_lengths(params: Params, prompts: Sequence[Tokens], *, experts: float = 1.0) -> list[int]:
    """Returns the lengths that it is best to pad prompts to, each under so many experts on average."""
    if not prompts:
        return []
    distinct = {_key(number, prompt): len(prompt) for number, prompt in enumerate(prompts)}
    tokens = np.array(list(distinct.values()))
    worth = compilation_tokens(params) / max(experts, 1.0)
    return buckets.choose_lengths(tokens, buckets.PROMPT_STEP, buckets.MAX_PROMPT_LENGTHS, worth)


def _batches(
    units: Sequence[Unit],
    lengths: Sequence[int],
    length: int,
    eos: int,
    batch_tokens: int,
    config: T5Config,
    params: Params,
    experts: Params | None,
    indexed: bool,
) -> Iterator[Written]:
    """Yields batches that the device has begun to answer, the longest prompts first."""
    worth = compilation_tokens(params)
    mesh = sharding.mesh_of(params)
    apart = 1 if mesh is None else sharding.row_parts(mesh.shape)
    members: dict[int, list[tuple[Unit, np.ndarray]]] = {}
    for unit in units:
        prompt = np.frombuffer(unit[0], np.int32)
        members.setdefault(next(room for room in lengths if len(prompt) <= room), []).append((unit, prompt))
    for room in sorted(members, reverse=True):
        # A batch lasts as long as its longest answer, and an expert's answers are of a length.
        here = sorted(members[room], key=lambda member: member[0][1])
        shape = buckets.BucketShape(room, length, 0)
        for chosen, size in buckets.split_batches(here, shape, batch_tokens * apart, worth=worth):
            size = -(-size // apart) * apart
            laid = np.full((size, room), PAD, np.int32)
            # What fills a batch repeats its first prompt.
            filled = chosen + chosen[:1] * (size - len(chosen))
            for row, (_, prompt) in zip(laid, filled, strict=True):
                row[: len(prompt)] = prompt
            index = np.array([expert for (_, expert), _ in filled], np.int32)
            beside = (experts, index if indexed else None)
            if mesh is not None:
                laid = sharding.place(laid, sharding.batch_shardings(mesh, laid))
            run = generate_program(
                config, params, size, room, length, experts=experts, stacked=indexed, mesh=mesh
            )
            yield [unit for unit, _ in chosen], run(params, laid, np.int32(eos), *beside)


def _key(number: int, prompt: Tokens) -> bytes:
    if not 0 < len(prompt) <= buckets.MAX_PROMPT_TOKENS:
        raise UserError(
            f"A prompt of 1 to {buckets.MAX_PROMPT_TOKENS} tokens is wanted, but prompt {number} has "
            f"{len(prompt)}."
        )
    return np.asarray(prompt, np.int32).tobytes()
