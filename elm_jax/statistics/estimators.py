"""Statistics of rows with an expert in place: what merging methods and routers want to know of its data.

What enters projections is taken from the forward pass over prompts and targets, without padding. Encoder
projections, and those that make keys and values of the encoder's output, see the tokens of the prompt, all
others those of the target. All sums are in float32; `statistics.moments` tells their shapes.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from elm_jax.axes import PAD, Array, Prompts, Targets
from elm_jax.data.prepared import pad
from elm_jax.models import experts as ex
from elm_jax.models import paths
from elm_jax.models.sizes import T5Config
from elm_jax.models.t5 import T5
from elm_jax.records import Expert, Params
from elm_jax.scoring.buckets import BUCKET_LENGTHS, smallest_bucket
from elm_jax.statistics import moments as sums
from elm_jax.training.loss import token_losses

Tokens = Sequence[Sequence[int] | Int[np.ndarray, " _"]]
Flat = dict[str, np.ndarray]
ROWS = 8  # of a batch
OF_PROMPT = ("encoder_decoder_attention/key", "encoder_decoder_attention/value")


def input_means(
    config: T5Config, base: Params, expert: Expert, prompts: Tokens, targets: Tokens, wanted: Collection[str]
) -> Flat:
    """Returns the mean of what enters each of the projections wanted, by path, [L, I]."""
    run = _summed(config, expert.spec.kind, tuple(sorted(wanted)), "mean")
    total, tokens = _over(run, base, expert, prompts, targets)
    return {path: np.asarray(value / tokens[_sees_prompt(path)]) for path, value in total.items()}


def regmean(
    config: T5Config,
    base: Params,
    expert: Expert,
    prompts: Tokens,
    targets: Tokens,
    wanted: Collection[str],
) -> Flat:
    """Returns what RegMean reads at the paths wanted: sums over all real tokens.

    At a kernel that is the Gram matrix of its inputs, [L, I, I], or [I, I] of the output layer. At an (IA)³
    vector it is the squares of what the vector multiplies: of a projection's inputs, or of what its kernel
    makes of them, which the Gram matrix tells too.
    """
    owners = {path: path.rpartition("/")[0] for path in wanted}
    run = _summed(config, expert.spec.kind, tuple(sorted(set(owners.values()))), "gram")
    grams, _ = _over(run, base, expert, prompts, targets)
    kernels = paths.flatten(base)
    found = {}
    for path, owner in owners.items():
        gram = grams[owner]
        if path.endswith("/ia3_in"):
            gram = jnp.diagonal(gram, axis1=-2, axis2=-1)
        elif path.endswith("/ia3_out"):
            kernel = jnp.asarray(kernels[f"{owner}/kernel"], jnp.float32)
            gram = jnp.einsum("lio,lij,ljo->lo", kernel, gram, kernel, precision="highest")
        found[path] = np.asarray(gram)
    return found


def fisher(
    config: T5Config,
    base: Params,
    expert: Expert,
    prompts: Tokens,
    targets: Tokens,
    wanted: Collection[str],
) -> Flat:
    """Returns the mean over rows of the squared gradient of a target's log-likelihood, at the paths wanted.

    A path is one of the expert's, or a kernel of the base that its LoRA changes.
    """
    run = _squared(config, expert.spec.kind, tuple(sorted(wanted)))
    total, _ = _over(run, base, expert, prompts, targets)
    return {path: np.asarray(value / len(prompts)) for path, value in total.items()}


def _over(
    run: Callable[..., Any], base: Params, expert: Expert, prompts: Tokens, targets: Tokens
) -> tuple[dict[str, Array], dict[bool, int]]:
    """Returns what a compiled sum adds up to over all rows, and how many tokens prompts and targets have."""
    params = jax.device_put(expert.params)
    total = None
    for batch in _batches(prompts, targets):
        total = run(base, params, *batch, total)
    assert total is not None
    return total, {True: sum(map(len, prompts)), False: sum(map(len, targets))}


def _batches(prompts: Tokens, targets: Tokens) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields all rows in batches of one shape; rows of padding alone fill the last."""
    longest = [
        smallest_bucket(max(map(len, rows)), BUCKET_LENGTHS, what="row length") for rows in (prompts, targets)
    ]
    for start in range(0, len(prompts), ROWS):
        batch = []
        for rows, length in zip((prompts, targets), longest, strict=True):
            some = [np.asarray(row, np.int32) for row in rows[start : start + ROWS]]
            full = np.full((ROWS, length), PAD, np.int32)
            full[: len(some)] = pad(some, length)
            batch.append(full)
        yield batch[0], batch[1]


def _sees_prompt(projection: str) -> bool:
    return projection.startswith("encoder/") or projection.endswith(OF_PROMPT)


@lru_cache(maxsize=16)
def _summed(config: T5Config, kind: str, projections: tuple[str, ...], what: str) -> Callable[..., Any]:
    """Returns the compiled `(base, expert, prompts, targets, before) -> sums` of what enters projections."""

    def add(
        base: Params, expert: Params, prompts: Prompts, targets: Targets, before: dict[str, Array] | None
    ) -> dict[str, Array]:
        placed, beside = ex.place(kind, base, expert)
        arguments = (prompts, targets[:, None], beside)
        _, seen = T5(config).apply({"params": placed}, *arguments, mutable=["intermediates"])
        entered = paths.flatten(seen["intermediates"])
        made = {}
        for path in projections:
            real = (prompts if _sees_prompt(path) else targets) != PAD
            (inputs,) = entered[f"{path}/input"]
            stacked = f"/{paths.STACK}/" in path
            # [L, B, N, I], and zero where it is padding, which adds nothing.
            layers = inputs.reshape(-1, *real.shape, inputs.shape[-1]).astype(jnp.float32)
            layers = layers * real[None, ..., None]
            of_layer = jax.vmap(sums.add_gram if what == "gram" else _sum)(layers)
            made[path] = of_layer if stacked else of_layer[0]
        return made if before is None else jax.tree.map(jnp.add, before, made)

    return jax.jit(add)


def _sum(inputs: Float[Array, "*batch I"]) -> Float[Array, " I"]:
    return jnp.asarray(inputs).reshape(-1, inputs.shape[-1]).sum(axis=0)


@lru_cache(maxsize=16)
def _squared(config: T5Config, kind: str, wanted: tuple[str, ...]) -> Callable[..., Any]:
    """Returns the compiled `(base, expert, prompts, targets, before) -> sums` of squared gradients by row."""

    def likelihood(
        chosen: dict[str, Array], base: Params, expert: Params, prompt: Array, target: Array
    ) -> Array:
        owned = paths.flatten(expert)
        of_base = {path: value for path, value in chosen.items() if path not in owned}
        of_expert = {path: value for path, value in chosen.items() if path in owned}
        placed, beside = ex.place(
            kind,
            paths.unflatten({**paths.flatten(base), **of_base}),
            paths.unflatten({**owned, **of_expert}),
        )
        logits = T5(config).apply({"params": placed}, prompt[None], target[None, None], beside)
        return -token_losses(jnp.asarray(logits)[:, 0], target[None]).sum()

    def add(
        base: Params, expert: Params, prompts: Prompts, targets: Targets, before: dict[str, Array] | None
    ) -> dict[str, Array]:
        every = {**paths.flatten(base), **paths.flatten(expert)}
        chosen = {path: jnp.asarray(every[path], jnp.float32) for path in wanted}
        gradient = jax.grad(likelihood)

        # One row's gradient at a time: those of a batch would be as many times the parameters.
        def row(total: dict[str, Array], tokens: tuple[Array, Array]) -> tuple[dict[str, Array], None]:
            found = gradient(chosen, base, expert, *tokens)
            return jax.tree.map(lambda so_far, one: so_far + one**2, total, found), None

        start = jax.tree.map(jnp.zeros_like, chosen) if before is None else before
        return jax.lax.scan(row, start, (prompts, targets))[0]

    return jax.jit(add)
