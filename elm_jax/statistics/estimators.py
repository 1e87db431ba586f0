"""Estimators: compute the statistics that merging methods and routers read, from rows and an expert.

Inputs of projections are taken from the forward pass over prompts and targets, without padding. Encoder
projections, and those that make keys and values of the encoder's output, see the tokens of the prompt, all
others those of the target. All sums are in float32; `statistics.moments` has their shapes.

Arguments that all of them have: the network's `config`, the parameters of its `base`, the `expert`, and the
rows as token ids, `prompts` and `targets`.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from elm_jax.axes import PAD, Array, Prompts, Targets
from elm_jax.data.tokenized_rows import pad
from elm_jax.models import expert_layers as ex
from elm_jax.models import paths
from elm_jax.models.sizes import T5Config
from elm_jax.models.t5 import T5
from elm_jax.records import Expert, Params
from elm_jax.scoring.buckets import BUCKET_LENGTHS, smallest_bucket
from elm_jax.statistics import moments
from elm_jax.training.loss import token_losses

Tokens = Sequence[Sequence[int] | Int[np.ndarray, " _"]]
Statistics = dict[str, np.ndarray]
BATCH_ROWS = 8
CROSS_ATTENTION_INPUTS = ("encoder_decoder_attention/key", "encoder_decoder_attention/value")


def mean_inputs(
    config: T5Config,
    base: Params,
    expert: Expert,
    prompts: Tokens,
    targets: Tokens,
    projections: Collection[str],
) -> Statistics:
    """Returns the mean over rows of the mean input of each of these projections: path -> [L, I]."""
    add = _compile_input_sums(config, expert.spec.kind, tuple(sorted(projections)), "mean")
    total = _sum_batches(add, base, expert, prompts, targets)
    return {path: np.asarray(value / len(prompts)) for path, value in total.items()}


def regmean_statistics(
    config: T5Config,
    base: Params,
    expert: Expert,
    prompts: Tokens,
    targets: Tokens,
    param_paths: Collection[str],
) -> Statistics:
    """Returns what RegMean reads at these paths: means over all real tokens.

    At a kernel that is the Gram matrix of its inputs, [L, I, I], or [I, I] for the output layer. At an (IA)³
    vector it is the squares of what the vector multiplies: of a projection's inputs, or of its outputs,
    which follow from the Gram matrix.
    """
    owners = {path: path.rpartition("/")[0] for path in param_paths}
    tokens = {True: sum(map(len, prompts)), False: sum(map(len, targets))}
    add = _compile_input_sums(config, expert.spec.kind, tuple(sorted(set(owners.values()))), "gram")
    grams = _sum_batches(add, base, expert, prompts, targets)
    kernels = paths.flatten(base)
    statistics = {}
    for path, owner in owners.items():
        gram = grams[owner] / tokens[_reads_prompt(owner)]
        if path.endswith("/ia3_in"):
            gram = jnp.diagonal(gram, axis1=-2, axis2=-1)
        elif path.endswith("/ia3_out"):
            kernel = jnp.asarray(kernels[f"{owner}/kernel"], jnp.float32)
            gram = jnp.einsum("lio,lij,ljo->lo", kernel, gram, kernel, precision="highest")
        statistics[path] = np.asarray(gram)
    return statistics


def fisher_statistics(
    config: T5Config,
    base: Params,
    expert: Expert,
    prompts: Tokens,
    targets: Tokens,
    param_paths: Collection[str],
) -> Statistics:
    """Returns the mean over rows of the squared gradient of a target's log-likelihood, at these paths.

    A path is one of the expert's, or a kernel of the base that its LoRA changes.
    """
    add = _compile_squared_gradients(config, expert.spec.kind, tuple(sorted(param_paths)))
    total = _sum_batches(add, base, expert, prompts, targets)
    return {path: np.asarray(value / len(prompts)) for path, value in total.items()}


def _sum_batches(
    add: Callable[..., dict[str, Array]], base: Params, expert: Expert, prompts: Tokens, targets: Tokens
) -> dict[str, Array]:
    """Returns the sums over all rows, by a compiled function that adds those of a batch."""
    params = jax.device_put(expert.params)
    total = None
    for batch in _batches(prompts, targets):
        total = add(base, params, *batch, total)
    assert total is not None
    return total


def _batches(prompts: Tokens, targets: Tokens) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields all rows in batches of one shape; rows of padding fill the last one."""
    longest = [
        smallest_bucket(max(map(len, rows)), BUCKET_LENGTHS, what="row length") for rows in (prompts, targets)
    ]
    for start in range(0, len(prompts), BATCH_ROWS):
        batch = []
        for rows, length in zip((prompts, targets), longest, strict=True):
            some = [np.asarray(row, np.int32) for row in rows[start : start + BATCH_ROWS]]
            full = np.full((BATCH_ROWS, length), PAD, np.int32)
            full[: len(some)] = pad(some, length)
            batch.append(full)
        yield batch[0], batch[1]


def _reads_prompt(projection: str) -> bool:
    return projection.startswith("encoder/") or projection.endswith(CROSS_ATTENTION_INPUTS)


@lru_cache(maxsize=16)
def _compile_input_sums(
    config: T5Config, kind: str, projections: tuple[str, ...], moment: str
) -> Callable[..., dict[str, Array]]:
    """Returns the compiled `(base, expert, prompts, targets, before) -> sums` of the projections' inputs."""

    def add(
        base: Params, expert: Params, prompts: Prompts, targets: Targets, before: dict[str, Array] | None
    ) -> dict[str, Array]:
        placed, applied_expert = ex.split_base_and_expert(kind, base, expert)
        arguments = (prompts, targets[:, None], applied_expert)
        _, seen = T5(config).apply({"params": placed}, *arguments, mutable=["intermediates"])
        entered = paths.flatten(seen["intermediates"])
        sums = {}
        for path in projections:
            real = (prompts if _reads_prompt(path) else targets) != PAD
            (inputs,) = entered[f"{path}/input"]
            stacked = f"/{paths.LAYER_STACK}/" in path
            # [L, B, N, I], and zero where it is padding, which adds nothing.
            layers = inputs.reshape(-1, *real.shape, inputs.shape[-1]).astype(jnp.float32)
            layers = layers * real[None, ..., None]
            add_moment = moments.add_gram if moment == "gram" else partial(moments.sum_row_means, real=real)
            of_layer = jax.vmap(add_moment)(layers)
            sums[path] = of_layer if stacked else of_layer[0]
        return sums if before is None else jax.tree.map(jnp.add, before, sums)

    return jax.jit(add)


@lru_cache(maxsize=16)
def _compile_squared_gradients(
    config: T5Config, kind: str, param_paths: tuple[str, ...]
) -> Callable[..., dict[str, Array]]:
    """Returns the compiled `(base, expert, prompts, targets, before) -> sums` of squared gradients by row."""

    def likelihood(
        chosen: dict[str, Array], base: Params, expert: Params, prompt: Array, target: Array
    ) -> Array:
        owned = paths.flatten(expert)
        of_base = {path: value for path, value in chosen.items() if path not in owned}
        of_expert = {path: value for path, value in chosen.items() if path in owned}
        placed, applied_expert = ex.split_base_and_expert(
            kind,
            paths.unflatten({**paths.flatten(base), **of_base}),
            paths.unflatten({**owned, **of_expert}),
        )
        logits = T5(config).apply({"params": placed}, prompt[None], target[None, None], applied_expert)
        return -token_losses(jnp.asarray(logits)[:, 0], target[None]).sum()

    def add(
        base: Params, expert: Params, prompts: Prompts, targets: Targets, before: dict[str, Array] | None
    ) -> dict[str, Array]:
        every = {**paths.flatten(base), **paths.flatten(expert)}
        chosen = {path: jnp.asarray(every[path], jnp.float32) for path in param_paths}
        gradient = jax.grad(likelihood)

        # One row's gradient at a time: those of a batch would be as many times the parameters.
        def row(total: dict[str, Array], tokens: tuple[Array, Array]) -> tuple[dict[str, Array], None]:
            slopes = gradient(chosen, base, expert, *tokens)
            return jax.tree.map(lambda so_far, one: so_far + one**2, total, slopes), None

        start = jax.tree.map(jnp.zeros_like, chosen) if before is None else before
        return jax.lax.scan(row, start, (prompts, targets))[0]

    return jax.jit(add)
