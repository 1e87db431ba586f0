"""Generator: the answers that many experts write to many prompts, batched by length whatever the expert."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from elm_jax.aot.program import Program, get_platform, with_replication, with_shardings
from elm_jax.axes import PAD, Array
from elm_jax.errors import UserError
from elm_jax.models import sharding
from elm_jax.models.sizes import T5Config
from elm_jax.records import Params
from elm_jax.scoring import buckets, decoding
from elm_jax.scoring.programs import network_arguments
from elm_jax.scoring.scorer import BATCH_TOKENS, Network, OnProgress, compilation_tokens
from elm_jax.scoring.tries import Tokens

GenerationItem = tuple[
    bytes, int
]  # a prompt and an expert: what is written once, however often it is asked for


class AnswerLimit(NamedTuple):
    """Where an answer ends.

    Attributes:
        length: tokens at most.
        eos: the token that ends an answer before.
    """

    length: int
    eos: int


def generate_rows(
    config: T5Config,
    params: Params,
    prompts: Sequence[Tokens],
    limit: AnswerLimit,
    experts: Params | None = None,
    pairs: Int[np.ndarray, "P 2"] | None = None,
    *,
    batch_tokens: int = BATCH_TOKENS,
    lengths: Sequence[int] | None = None,
    progress: OnProgress | None = None,
    stacked: bool = True,
) -> list[np.ndarray]:
    """Returns, in the order of the pairs, the tokens of each answer, padded to `limit.length` after its end.

    The same prompt under the same expert is answered once. If the parameters lie on a mesh, the rows of a
    batch are split over it. The next batch is assembled while the device works on the last one.

    Args:
        config: the network.
        params: of the base, or of a full expert in its stead.
        prompts: token ids.
        limit: where an answer ends. It ends with `decoding.NAN_TOKEN` if the logits are NaN.
        experts: a stack [E, …], or one tree for all rows.
        pairs: (prompt, place of an expert in the stack), [P, 2]. Default: every prompt once, by the first
            expert or, without experts, by the base alone.
        batch_tokens: of one device.
        lengths: those of `choose_prompt_lengths`, given more prompts than these, so that several calls share
            compilations.
        progress: is called after every batch.
        stacked: whether `experts` is a stack.

    Raises:
        UserError: a prompt that is empty or too long, or a length below one token.
    """
    if limit.length < 1:
        raise UserError(f"Expected answers of at least one token, got a length of {limit.length}.")
    keys = [_unit_key(number, prompt) for number, prompt in enumerate(prompts)]
    if pairs is None:
        pairs = np.stack([np.arange(len(prompts)), np.zeros(len(prompts), int)], axis=1)
    asked = [(keys[prompt], expert) for prompt, expert in pairs.tolist()]
    times: dict[GenerationItem, int] = {}
    for unit in asked:
        times[unit] = times.get(unit, 0) + 1
    if lengths is None:
        lengths = choose_prompt_lengths(params, prompts, experts_per_prompt=len(pairs) / max(1, len(prompts)))
    network = Network(config, params, experts, stacked and experts is not None)
    answers: dict[GenerationItem, np.ndarray] = {}
    done, waiting = 0, None

    def fetch(units: list[GenerationItem], pending: Array) -> int:
        answers.update(zip(units, np.asarray(pending)[: len(units)], strict=True))
        return sum(times[unit] for unit in units)

    for batch in _batches(network, list(times), lengths, limit, batch_tokens):
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
    if mesh is not None:
        prompts = with_shardings(prompts, sharding.batch_shardings(mesh, prompts))
    base, experts, index = network_arguments(base, experts, rows, stacked=stacked, mesh=mesh)
    run = decoding.compiled_decoder(config, length, get_platform(mesh))
    eos = with_replication(mesh, jax.ShapeDtypeStruct((), jnp.int32))
    return Program("generate", run, (base, prompts, eos, experts, index))


def choose_prompt_lengths(
    params: Params, prompts: Sequence[Tokens], *, experts_per_prompt: float = 1.0
) -> list[int]:
    """Returns the lengths that it is best to pad prompts to, where each is read under so many on average."""
    if not prompts:
        return []
    distinct = {_unit_key(number, prompt): len(prompt) for number, prompt in enumerate(prompts)}
    tokens = np.array(list(distinct.values()))
    per_expert = compilation_tokens(params) / max(experts_per_prompt, 1.0)
    return buckets.choose_lengths(tokens, buckets.PROMPT_STEP, buckets.MAX_PROMPT_LENGTHS, per_expert)


def _batches(
    network: Network,
    units: Sequence[GenerationItem],
    lengths: Sequence[int],
    limit: AnswerLimit,
    batch_tokens: int,
) -> Iterator[tuple[list[GenerationItem], Array]]:
    """Yields batches that the device has begun to answer, the longest prompts first."""
    mesh, parts = network.mesh, network.row_parts
    compile_tokens = compilation_tokens(network.params)
    members: dict[int, list[tuple[GenerationItem, np.ndarray]]] = {}
    for unit in units:
        prompt = np.frombuffer(unit[0], np.int32)
        members.setdefault(next(room for room in lengths if len(prompt) <= room), []).append((unit, prompt))
    for room in sorted(members, reverse=True):
        # A batch lasts as long as its longest answer, and an expert's answers are of a length.
        own = sorted(members[room], key=lambda member: member[0][1])
        shape = buckets.BucketShape(room, limit.length, 0)
        for chosen, size in buckets.split_batches(
            own, shape, batch_tokens * parts, compile_tokens=compile_tokens
        ):
            size = -(-size // parts) * parts
            prompts = np.full((size, room), PAD, np.int32)
            # What fills a batch repeats its first prompt.
            filled = chosen + chosen[:1] * (size - len(chosen))
            for row, (_, prompt) in zip(prompts, filled, strict=True):
                row[: len(prompt)] = prompt
            index = np.array([expert for (_, expert), _ in filled], np.int32) if network.indexed else None
            if mesh is not None:
                prompts = jax.device_put(prompts, sharding.batch_shardings(mesh, prompts))
            run = generate_program(
                network.config,
                network.params,
                size,
                room,
                limit.length,
                experts=network.experts,
                stacked=network.indexed,
                mesh=mesh,
            )
            pending = run(network.params, prompts, np.int32(limit.eos), network.experts, index)
            yield [unit for unit, _ in chosen], pending


def _unit_key(number: int, prompt: Tokens) -> bytes:
    if not 0 < len(prompt) <= buckets.MAX_PROMPT_TOKENS:
        raise UserError(
            f"Expected a prompt of 1 to {buckets.MAX_PROMPT_TOKENS} tokens, got {len(prompt)} in prompt "
            f"{number}."
        )
    return np.asarray(prompt, np.int32).tobytes()
